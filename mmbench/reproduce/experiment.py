"""The files of experiments/: one experiment in print each, as mmbench would run it.

Nothing here imports torch. A file is checked for form when it is read; whether its methods, options
and dataset exist is asked in :mod:`mmbench.reproduce.readiness`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from mmbench.errors import DataError, RequestError, unknown_name
from mmbench.report import reported

FOLDER = Path(__file__).parent.parent / "experiments"
"""The package's link to experiments/."""

METRICS = ("accuracy", "macro_f1")
"""What a record of mmbench holds of the metrics in print."""

LIST = "list"
"""What no experiment may be called: `mmbench reproduce list` lists them."""

Text = Annotated[str, Field(min_length=1)]
Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]


class Part(BaseModel):
    """A part of a file; a field that nothing reads is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class System(Part):
    """One row of the table in print: a method with its options, and what was reported of it."""

    method: Text
    options: dict[str, Any] = {}
    fusion: Text | None = None
    recipe: dict[str, Any] = {}
    """Training settings in place of the experiment's."""
    label: Text | None = None
    """Its name among the systems; by default the method's."""
    printed_as: Text | None = None
    """Its name in the source; needed where the source has several of the method."""
    reported: dict[str, Percent] = {}
    """By metric, as `mmbench compare --metric` names it: ``accuracy``, ``probe.audio``. Empty where
    the experiment names a file of results/reported."""

    @property
    def name(self) -> str:
        """Return what it goes by on the command line and in the table."""
        return self.label or self.method


class Experiment(Part):
    """A table in print, on one dataset, and how mmbench repeats it."""

    name: Text
    """The file's name."""
    title: Text
    source: Text | None = None
    """Where the values stand, unless ``reported_in`` says so."""
    reported_in: Text | None = None
    """File of results/reported that holds the values."""
    runs: Annotated[int, Field(ge=1)] = 1
    """How many runs a reported value is the mean of; 1 where the source does not say."""
    tolerance: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """Difference in points that counts as agreement, however small the spread over seeds is."""
    dataset: Text
    dataset_options: dict[str, Any] = {}
    protocol: Text | None = None
    """None for the dataset's default."""
    data: Text | None = None
    """What the source says of its data that the options above do not express."""
    fusion: Text | None = None
    recipe: dict[str, Any] = {}
    encoders: dict[str, str] = {}
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    differences: Annotated[list[Text], Field(min_length=1)]
    """What is known to be otherwise here, and why the values may differ."""
    systems: Annotated[list[System], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Experiment:
        if (self.source is None) == (self.reported_in is None):
            raise ValueError("give either 'source' or 'reported_in'")
        for system in self.systems:
            if (self.reported_in is None) != bool(system.reported):
                wanted = "needs 'reported'" if self.reported_in is None else "has both"
                raise ValueError(f"system '{system.name}' {wanted}: values stand in one place")
        names = [system.name for system in self.systems]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two systems are called '{name}'; give one a label")
        return self


def load_experiments(folder: Path = FOLDER) -> dict[str, Experiment]:
    """Return the experiments of a folder by name, in order of names, values filled in.

    A system of which the named file of results/reported has no value on this dataset is left out.
    Raises :class:`RequestError` where there is no folder, and :class:`DataError` for a file that
    does not hold what it should.
    """
    if not folder.is_dir():
        raise RequestError(
            f"{folder} is not a folder: a checkout without symbolic links lacks the experiments; "
            "run `git config core.symlinks true`, then `git checkout -- mmbench/experiments`"
            if folder == FOLDER
            else f"{folder}: no such folder of experiments"
        )
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise RequestError(f"{folder}: no experiments here (*.yaml)")
    written = {file.stem: _read(file) for file in files}
    printed = _printed()
    return {
        file.stem: _with_values(file, _experiment(file, written[file.stem], written), printed)
        for file in files
    }


def choose(names: Sequence[str], experiments: Mapping[str, Experiment]) -> list[Experiment]:
    """Return the experiments of these names; ``NAME/SYSTEM`` is an experiment with that system
    alone. Raises :class:`RequestError` for an unknown name."""
    chosen = []
    for asked in dict.fromkeys(names):
        name, _, system = asked.partition("/")
        if name not in experiments:
            raise unknown_name("experiment", name, experiments)
        experiment = experiments[name]
        if system:
            known = {s.name: s for s in experiment.systems}
            if system not in known:
                raise unknown_name(f"system of {name}", system, known)
            experiment = experiment.model_copy(update={"systems": [known[system]]})
        chosen.append(experiment)
    return chosen


def _read(file: Path) -> dict[str, Any]:
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(written, dict):
        raise DataError(f"{file}: it holds no settings; write lines such as 'dataset: mfeat'")
    return written


def _experiment(
    file: Path, written: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]
) -> Experiment:
    """Return the experiment of a file; ``like`` names another whose fields hold where this file has
    none of its own."""
    if file.stem == LIST:
        raise DataError(f"{file}: an experiment cannot be called '{LIST}'; rename the file")
    values = dict(written)
    like = values.pop("like", None)
    if like is not None:
        if like not in others or "like" in others[like]:
            raise DataError(f"{file}: like: '{like}' is no experiment that is written in full")
        values = {**others[like], **values}
    try:
        return Experiment.model_validate({"name": file.stem, **values})
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "file"
        what = fault["msg"].removeprefix("Value error, ")
        raise DataError(f"{file}: {where}: {what[:1].lower()}{what[1:]}; mend the file") from error


def _printed() -> dict[str, reported.Source]:
    """Return the files of results/reported by name."""
    names = [file.stem for file in sorted(reported.FOLDER.glob("*.yaml"))]
    return dict(zip(names, reported.load_reported(reported.FOLDER), strict=True))


def _with_values(
    file: Path, experiment: Experiment, printed: Mapping[str, reported.Source]
) -> Experiment:
    """Return the experiment with source and values from results/reported, where it names a file."""
    if experiment.reported_in is None:
        return experiment
    if experiment.reported_in not in printed:
        cause = unknown_name("file of results/reported", experiment.reported_in, printed)
        raise DataError(f"{file}: reported_in: {cause}")
    source = printed[experiment.reported_in]
    systems = []
    for system in experiment.systems:
        values = _values(file, system, experiment.dataset, source)
        if values:
            systems.append(system.model_copy(update={"reported": values}))
    if not systems:
        raise DataError(
            f"{file}: reported_in: {experiment.reported_in} has no value of these systems on "
            f"{experiment.dataset}; mend the file"
        )
    return experiment.model_copy(update={"systems": systems, "source": source.source})


def _values(file: Path, system: System, dataset: str, source: reported.Source) -> dict[str, float]:
    """Return what the source reports of a system, by metric, where mmbench has that metric."""
    found: dict[str, float] = {}
    for value in source.values:
        is_meant = (value.dataset, value.method) == (dataset, system.method)
        is_meant &= value.modality == system.options.get("modality")
        is_meant &= system.printed_as in (None, value.printed_as)
        if not is_meant or value.metric not in METRICS:
            continue
        if value.metric in found:
            raise DataError(
                f"{file}: system '{system.name}': its source has several values of "
                f"{value.metric} on {dataset}; say which with 'printed_as'"
            )
        found[value.metric] = value.value
    return found
