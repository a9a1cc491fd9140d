"""Accuracies in print: the files of results/reported, and how they stand beside our own rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from mmbench.errors import DataError, RequestError, unknown_name
from mmbench.registry import entries
from mmbench.report.comparison import Group
from mmbench.report.rows import TRAINING, Row

FOLDER = Path(__file__).parent.parent / "reported"
"""The package's link to results/reported."""

Text = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """A part of a file; a field that nothing reads is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Match(Part):
    """A protocol of mmbench that is the same as the source's."""

    protocol: Text
    settings: dict[str, Any] = {}
    """What has to differ from mmbench's defaults, named as in a record's ``changed``."""


class Value(Part):
    """A number in print."""

    dataset: Text
    method: Text
    modality: str | None = None
    """For the method ``unimodal``: which one."""
    metric: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """As `mmbench compare --metric` names it; a metric that mmbench does not have is kept too."""
    value: Annotated[FiniteFloat, Field(ge=0, le=100)]
    """Percent."""
    printed_as: Text
    """The method's name in the source."""
    caveat: Text | None = None
    unregistered: bool = False
    """Whether the method is one that mmbench does not have."""


class Source(Part):
    """A paper, thesis or repository, and the numbers read from it."""

    source: Text
    read: Text
    """How the numbers were obtained."""
    protocol: Text
    """What the numbers are of, in words."""
    matches: dict[str, Match] | None = None
    """By dataset."""
    caveats: list[Text] = []
    values: Annotated[list[Value], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Source:
        counts = Counter(
            (v.dataset, v.method, v.modality, v.metric, v.printed_as) for v in self.values
        )
        (twice, count), *_ = counts.most_common(1)
        if count > 1:
            raise ValueError(f"{' '.join(map(str, twice))} is there {count} times")
        unused = (self.matches or {}).keys() - {v.dataset for v in self.values}
        if unused:
            raise ValueError(f"matches names {', '.join(sorted(unused))}, of which no value is")
        return self


@dataclass(frozen=True)
class Printed:
    """A number in print beside a row."""

    value: Value
    source: int
    """Place of its source among all that were given."""
    is_comparable: bool
    """Whether the row was trained and tested under the same protocol."""


def load_reported(folder: Path | None = None) -> tuple[Source, ...]:
    """Return the sources in a folder, that of mmbench if none is given, in order of the files'
    names.

    Raises :class:`RequestError` where there are none, and :class:`DataError` for a file that does
    not hold what it should: the line names file, field and mend.
    """
    folder = folder or FOLDER
    if not folder.is_dir():
        raise RequestError(
            f"{folder} is not a folder: a checkout without symbolic links lacks the accuracies in "
            "print; run `git config core.symlinks true`, then `git checkout -- mmbench/reported`"
            if folder == FOLDER
            else f"{folder}: no such folder of accuracies in print"
        )
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise RequestError(f"{folder}: no accuracies in print here (*.yaml)")
    methods = {entry.name for entry in entries("method")}
    return tuple(_read(file, methods) for file in files)


def _read(file: Path, methods: set[str]) -> Source:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        source = Source.model_validate(yaml.load(file.read_text(encoding="utf-8"), loader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "file"
        what = fault["msg"].removeprefix("Value error, ")
        raise DataError(f"{file}: {where}: {what[:1].lower()}{what[1:]}; mend the file") from error
    for value in source.values:
        if value.method not in methods and not value.unregistered:
            cause = unknown_name("method", value.method, methods)
            raise DataError(
                f"{file}: '{value.printed_as}': {cause} A method that mmbench does not have is "
                "marked 'unregistered: true'"
            )
    return source


def beside_rows(group: Group, sources: Sequence[Source]) -> dict[str, list[Printed]]:
    """Return the numbers in print by the label of the row that they belong to.

    They stand beside the plainest row of the method (and modality): a source's other settings are
    not those of our other rows. Numbers in print are percentages, so that a metric that is none
    has none.
    """
    found: dict[str, list[Printed]] = {}
    if group.metric.unit != "%":
        return found
    for number, source in enumerate(sources):
        match = (source.matches or {}).get(group.dataset)
        for value in source.values:
            if value.dataset == group.dataset and value.metric == group.metric.name:
                row = _row_of(group.rows, value)
                if row is not None:
                    same = match is not None and _is_same(group, row, match)
                    found.setdefault(row.label, []).append(Printed(value, number, same))
    return found


def without_rows(group: Group, source: Source) -> list[str]:
    """Return what the source calls the methods that the group has no row of."""
    ours = [v for v in source.values if v.dataset == group.dataset]
    ours = [v for v in ours if v.metric == group.metric.name]
    return list(dict.fromkeys(v.printed_as for v in ours if _row_of(group.rows, v) is None))


def _row_of(rows: Sequence[Row], value: Value) -> Row | None:
    if value.unregistered:
        return None
    own = (
        row
        for row in rows
        if row.method == value.method and row.settings.get("modality") == value.modality
    )
    return min(own, key=lambda row: len(row.settings), default=None)


def _is_same(group: Group, row: Row, match: Match) -> bool:
    """Whether a row's protocol, data and training are the source's, to the last setting."""
    ours: Mapping[str, Any] = {f"dataset.{k}": v for k, v in group.dataset_options.items()} | {
        k: v for k, v in row.settings.items() if k.startswith((*TRAINING, "fusion"))
    }
    return group.protocol == match.protocol and dict(ours) == match.settings
