"""Whether an experiment can be run: by this version of mmbench, and with the data at hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmbench.errors import DataError, RequestError
from mmbench.registry import entries, find, load_dataset, load_method, summary
from mmbench.reproduce.experiment import Experiment, System

if TYPE_CHECKING:
    from mmbench.planning import Request
    from mmbench.train.method import Method


Status = Literal["ready", "needs data", "needs dataset", "not valid"]


@dataclass(frozen=True)
class Readiness:
    """Whether an experiment can be run, and if not, what it needs."""

    status: Status
    reason: str = ""


def has_dataset(experiment: Experiment) -> bool:
    """Return whether this version of mmbench has the experiment's dataset."""
    return experiment.dataset in {entry.name for entry in entries("dataset")}


def needs_files(experiment: Experiment) -> bool:
    """Return whether a user has to supply the data of the experiment's dataset."""
    return bool(getattr(summary(find("dataset", experiment.dataset)), "files", ""))


def readiness(experiment: Experiment) -> Readiness:
    """Return whether an experiment can be run. Data that a user has to supply are loaded to see."""
    ((_, found),) = readiness_of_all([experiment])
    return found


def readiness_of_all(experiments: Iterable[Experiment]) -> list[tuple[Experiment, Readiness]]:
    """Return each experiment with whether it can be run. Data are looked for once for a dataset,
    with the options of its first experiment."""
    load = functools.cache(load_method)  # finding one reads the metadata of every installed package
    data: dict[str, Readiness] = {}
    found = []
    for experiment in experiments:
        try:
            check(experiment, load)
        except RequestError as error:
            found.append((experiment, Readiness("not valid", str(error))))
            continue
        if experiment.dataset not in data:
            data[experiment.dataset] = _data(experiment)
        found.append((experiment, data[experiment.dataset]))
    return found


def _data(experiment: Experiment) -> Readiness:
    from mmbench.planning import open_dataset

    if not has_dataset(experiment):
        missing = f"needs dataset {experiment.dataset}, which this version does not have"
        return Readiness("needs dataset", missing)
    if not needs_files(experiment):
        return Readiness("ready")
    dataset = open_dataset(experiment.dataset, experiment.dataset_options)
    try:
        dataset.load(experiment.protocol or dataset.protocols[0], experiment.seeds[0])
    except DataError as error:
        return Readiness("needs data", str(error))
    return Readiness("ready")


def check(experiment: Experiment, load: Callable[[str], type[Method]] = load_method) -> None:
    """Raise :class:`RequestError` for whatever mmbench could not run, data apart.

    Checked are method, options, fusion and recipe of every system; where the dataset is registered
    also its options, the protocol and the modalities.
    """
    is_registered = has_dataset(experiment)
    for system in experiment.systems:
        try:
            _check_system(experiment, system, load(system.method), is_registered)
        except RequestError as error:
            raise RequestError(f"{experiment.name}, system '{system.name}': {error}") from error


def _check_system(
    experiment: Experiment, system: System, method: type[Method], is_registered: bool
) -> None:
    from mmbench import options as opt
    from mmbench.config import Recipe
    from mmbench.nets.network import fusion_type
    from mmbench.planning import check_support

    options = opt.validated(method.Config, dict(system.options), method.name())
    assert isinstance(options, opt.Options)
    opt.validated(Recipe, {**experiment.recipe, **system.recipe}, "the recipe")
    fusion = system.fusion or experiment.fusion or method.info.default_fusion
    fusion_type(fusion)
    if not is_registered:
        return
    kind = load_dataset(experiment.dataset)
    values = opt.validated(kind.Config, dict(experiment.dataset_options), kind.name())
    assert isinstance(values, opt.Options)
    dataset = kind(values)
    dataset.check_protocol(experiment.protocol or dataset.protocols[0])
    modalities = tuple(dataset.info.modalities)
    check_support(method, fusion, len(modalities))
    method.variants(options, modalities)


def request(
    experiment: Experiment,
    system: System,
    seeds: tuple[int, ...] | None = None,
    device: str = "auto",
) -> Request:
    """Return what `mmbench run` would be asked for, with other seeds if they are given."""
    from mmbench.planning import make_request

    return make_request(
        {
            "methods": (system.method,),
            "dataset": experiment.dataset,
            "dataset_options": experiment.dataset_options,
            "protocol": experiment.protocol,
            "fusion": system.fusion or experiment.fusion,
            "method_options": system.options,
            "recipe": {**experiment.recipe, **system.recipe},
            "encoders": experiment.encoders,
            "seeds": seeds or experiment.seeds,
            "device": device,
        },
        str(Path("experiments") / f"{experiment.name}.yaml"),
    )
