"""From what a user asks for to complete configurations, with every name and option checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from mmbench import options as opt
from mmbench.config import NEEDS, SCHEMA, Recipe, RunConfig
from mmbench.data.dataset import Dataset, Splits
from mmbench.environment import choose_device, default_threads
from mmbench.errors import DataError, MmbenchError, RequestError, unknown_name
from mmbench.nets.encoders import build_encoder, default_encoder
from mmbench.nets.network import fusion_type, resolve_encoders
from mmbench.registry import (
    failing_place,
    file_hash,
    load_dataset,
    load_method,
    registered_name,
)
from mmbench.train.method import Method


class Request(opt.Options):
    """What a user asks for; whatever is left open takes the default of method and dataset."""

    methods: tuple[str, ...] = Field(("iibalance",), min_length=1)
    dataset: str = "mfeat"
    protocol: str | None = None
    fusion: str | None = None
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    method_options: dict[str, Any] = {}
    dataset_options: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    encoders: dict[str, str] = {}
    precision: str = "fp32"
    device: str = "auto"
    threads: int | None = opt.option(None, "CPU threads", ge=1)
    files: dict[str, str] = {}


def make_request(values: Mapping[str, Any], source: str = "the request") -> Request:
    """Return the request of these settings. Raises :class:`RequestError` that names the source for
    a setting that does not exist or is of another type."""
    asked = opt.validated(Request, dict(values), source)
    methods = tuple(registered_name("method", name) for name in asked.methods)
    dataset = registered_name("dataset", asked.dataset)
    return asked.model_copy(update={"methods": methods, "dataset": dataset})


@dataclass
class Job:
    """One run, ready to train."""

    config: RunConfig
    method: type[Method]
    options: opt.Options
    splits: Splits
    changed: dict[str, Any]
    """Settings that differ from the defaults, with dotted names."""


def make_jobs(request: Request) -> Iterable[Job]:
    """Yield the jobs of a request, seed by seed; data are loaded once for a seed.

    Raises :class:`RequestError` before the first job if any name, option or combination is wrong.
    """
    dataset = open_dataset(request.dataset, request.dataset_options)
    protocol = request.protocol or dataset.protocols[0]
    dataset.check_protocol(protocol)
    methods = [load_method(name) for name in request.methods]
    first = _load(dataset, protocol, request.seeds[0])
    for name, method in zip(request.methods, methods, strict=True):
        for job in _jobs_of(request, name, method, dataset, protocol, request.seeds[0], first):
            check_encoders(job)
    for seed in request.seeds:
        splits = first if seed == request.seeds[0] else _load(dataset, protocol, seed)
        for name, method in zip(request.methods, methods, strict=True):
            yield from _jobs_of(request, name, method, dataset, protocol, seed, splits)


def open_dataset(name: str, options: Mapping[str, Any]) -> Dataset:
    """Return the dataset of a name, of a Python file, or of a YAML file that describes arrays."""
    values = dict(options)
    if Path(name).suffix in (".yaml", ".yml"):
        values, name = {"file": name, **values}, "arrays"
    kind = load_dataset(name)
    return kind(opt.validated(kind.Config, values, kind.name()))


def _load(dataset: Dataset, protocol: str, seed: int) -> Splits:
    """Return the splits. Raises :class:`DataError` that names the place where a file of the user's
    own, or what it returns, is at fault."""
    try:
        splits = dataset.load(protocol, seed)
        splits.check(dataset.name())
    except MmbenchError:
        raise
    except Exception as error:
        if file_hash(type(dataset)) is None:
            raise
        place = failing_place(error, type(dataset))
        raise DataError(f"dataset '{dataset.name()}' cannot be loaded: {place}") from error
    return splits


def _jobs_of(
    request: Request,
    name: str,
    method: type[Method],
    dataset: Dataset,
    protocol: str,
    seed: int,
    splits: Splits,
) -> Iterable[Job]:
    modalities = tuple(splits.modalities)
    asked = opt.validated(method.Config, _options_for(request, method.name()), method.name())
    assert isinstance(asked, opt.Options)
    defaults = _recipe_defaults(dataset, protocol, request.recipe)
    recipe = opt.validated(Recipe, {**defaults, **request.recipe}, "the recipe (-t)")
    fusion = request.fusion or method.info.default_fusion
    check_support(method, fusion, len(modalities))
    encoders = resolve_encoders(splits.modalities, request.encoders)
    files = {"method": file_hash(method), "dataset": file_hash(type(dataset))}
    for variant in method.variants(asked, modalities):
        config = opt.validated(
            RunConfig,
            {
                "method": name,
                "method_options": variant.model_dump(mode="json"),
                "dataset": dataset.name() if _is_builtin(files["dataset"]) else request.dataset,
                "dataset_options": dataset.config.model_dump(mode="json"),
                "protocol": protocol,
                "fusion": fusion,
                "encoders": encoders,
                "recipe": recipe.model_dump(mode="json"),
                "files": {kind: sha for kind, sha in files.items() if sha is not None},
                "seed": seed,
                "precision": request.precision,
                "device": str(choose_device(request.device)),
                "threads": request.threads or default_threads(encoders.values()),
            },
            "the run",
        )
        _check_files(request.files, config)
        changed = {
            **opt.changed(variant),
            **{f"dataset.{k}": v for k, v in opt.changed(dataset.config).items()},
            **{
                f"recipe.{k}": v
                for k, v in recipe.model_dump(mode="json").items()
                if v != defaults[k]
            },
            **{
                f"encoder.{m}": encoder
                for m, encoder in encoders.items()
                if encoder != default_encoder(splits.modalities[m])
            },
            **({"fusion": fusion} if fusion != method.info.default_fusion else {}),
            **({"precision": config.precision} if config.precision != "fp32" else {}),
        }
        yield Job(config, method, variant, splits, changed)


def _recipe_defaults(dataset: Dataset, protocol: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training settings that hold unless others are given: the dataset's, less those
    that have no use beside what is given, such as momentum beside optimizer=adam."""
    usual = dataset.recipe(protocol)
    idle = {
        name for name, (other, value) in NEEDS.items() if other in given and given[other] != value
    }
    values = {name: value for name, value in usual.items() if name not in idle}
    return opt.validated(Recipe, values, f"the recipe of {dataset.name()}").model_dump(mode="json")


def _is_builtin(sha: str | None) -> bool:
    return sha is None


def _options_for(request: Request, method: str) -> dict[str, Any]:
    """Return a method's own options. With several methods they are given as ``method.option``."""
    given = dict(request.method_options)
    if len(request.methods) == 1:
        return given
    names = [Path(name).stem for name in request.methods]
    for key in given:
        if key not in names:
            raise RequestError(
                f"-o {key}: with several methods, say whose option it is, such as "
                f"-o {names[0]}.{key}=..."
            )
    own = given.get(method, {})
    if not isinstance(own, dict):
        raise RequestError(f"-o {method}: name an option, such as -o {method}.option=value")
    return own


def check_support(method: type[Method], fusion: str, modalities: int) -> None:
    """Raise :class:`RequestError` unless the method can use the fusion and number of modalities."""
    info, name = method.info, method.name()
    fusion_type(fusion)
    if info.fusions is not None and fusion not in info.fusions:
        raise RequestError(
            f"method '{name}' cannot use fusion '{fusion}': use {', '.join(info.fusions)}"
        )
    most = info.max_modalities
    if modalities < info.min_modalities or (most is not None and modalities > most):
        limits = f"at least {info.min_modalities}" if most is None else f"at most {most}"
        if most is not None and modalities < info.min_modalities:
            limits = f"at least {info.min_modalities}"
        raise RequestError(
            f"method '{name}' needs {limits} modalities, the dataset has {modalities}: "
            "choose other modalities or another method"
        )


def check_encoders(job: Job) -> None:
    """Raise :class:`RequestError` unless each encoder exists and reads its modality."""
    for m, name in job.config.encoders.items():
        build_encoder(name, m, job.splits.modalities[m])


def _check_files(expected: Mapping[str, str], config: RunConfig) -> None:
    for kind, sha in expected.items():
        if config.files.get(kind) != sha:
            raise RequestError(
                f"the file of the {kind} '{getattr(config, kind)}' is not the one that the "
                "configuration was stored with: restore it, or remove 'files' from that YAML"
            )


def request_from_file(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the fields of a request from a YAML file, and whether it is a stored configuration.

    A stored ``config.yaml`` has every setting; a file written by hand has those it wants to fix.
    Raises :class:`RequestError` for a file that cannot be read or names an unknown setting.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist: check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RequestError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RequestError(f"{path} holds no settings: write lines such as 'method: joint'")
    is_stored = "schema_version" in values
    if is_stored and values.pop("schema_version") != SCHEMA:
        raise RequestError(
            f"{path} was stored by another version of mmbench (schema other than {SCHEMA}): run it "
            "with that version, or write the settings anew"
        )
    known = {*RunConfig.model_fields, "methods", "seeds"}
    for name in values:
        if name not in known:
            raise unknown_name(f"setting in {path}", str(name), known)
    for one, several in (("method", "methods"), ("seed", "seeds")):
        if one in values and several in values:
            raise RequestError(f"{path} has both '{one}' and '{several}': leave one out")
    if "method" in values:
        values["methods"] = [values.pop("method")]
    if "seed" in values:
        values["seeds"] = [values.pop("seed")]
    make_request(values, str(path))
    return values, is_stored
