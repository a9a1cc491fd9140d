"""The file of a baseline: what is run, what came out, and why it was changed."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from mmbench.check.quantities import check_name
from mmbench.check.tolerance import Given, parse_given
from mmbench.errors import MmbenchError, RequestError, StoreError
from mmbench.hashing import digest
from mmbench.store.record import write_text

SCHEMA = 1

Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A part of the file; a field that nothing reads is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaselineRow(Part):
    """One setting of one method."""

    method: Text
    options: dict[str, Any] = {}
    fusion: Text | None = None
    quantities: list[Text] = []
    """In addition to those of all rows."""


class Settings(Part):
    """What is run, and what is compared."""

    dataset: Text
    dataset_options: dict[str, Any] = {}
    protocol: Text
    recipe: dict[str, Any] = {}
    encoders: dict[str, str] = {}
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    device: Text = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    seeds: Annotated[list[Seed], Field(min_length=1)]
    quantities: Annotated[list[Text], Field(min_length=1)]
    rows: Annotated[dict[str, BaselineRow], Field(min_length=1)]
    fail: dict[Text, Text] = {}
    """Tolerances in place of the derived ones, written as for ``--fail``."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Settings:
        try:
            of_rows = [row.quantities for row in self.rows.values()]
            for name in (name for names in (self.quantities, *of_rows) for name in names):
                check_name(name)
            self.given()
        except MmbenchError as error:
            raise ValueError(str(error)) from error
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is named twice")
        return self

    def given(self) -> dict[str, Given]:
        return {check_name(name): parse_given(text) for name, text in self.fail.items()}

    def quantities_of(self, row: str) -> list[str]:
        return list(dict.fromkeys([*self.quantities, *self.rows[row].quantities]))

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the values."""
        values = self.model_dump(mode="json", exclude={"fail"})
        return digest(json.dumps(values, sort_keys=True))


class Change(Part):
    """One time that the values were written."""

    date: date
    reason: Text
    version: Text
    """Of mmbench."""
    commit: Text | None
    """Of mmbench's checkout, with ``+changes`` if files differed from it."""
    changed: list[Text] = []
    """What was worse, better or otherwise than allowed at the time."""


class Stored(Part):
    """What came out."""

    settings: Text
    """:meth:`Settings.fingerprint` of what the values are of."""
    fingerprints: dict[int, dict[str, str]]
    """Hashes of split and data by seed, as in ``record.json``."""
    environment: dict[str, Any]
    values: dict[str, dict[str, list[FiniteFloat]]]
    """By row and quantity, in the order of the seeds."""


class Baseline(Part):
    """The content of the file."""

    schema_number: Literal[1] = Field(alias="schema")
    title: str = ""
    settings: Settings
    stored: Stored | None = None
    history: list[Change] = []

    @model_validator(mode="after")
    def _values_belong_to_seeds(self) -> Baseline:
        if self.stored is None or self.stored.settings != self.settings.fingerprint():
            return self
        seeds, rows = set(self.settings.seeds), self.settings.rows.keys()
        if self.stored.fingerprints.keys() != seeds or self.stored.values.keys() != rows:
            raise ValueError("stored has not the seeds and rows of the settings")
        for row, quantities in self.stored.values.items():
            for name, values in quantities.items():
                if len(values) != len(self.settings.seeds):
                    raise ValueError(
                        f"stored.values.{row}.{name} has {len(values)} values for "
                        f"{len(self.settings.seeds)} seeds"
                    )
        return self


def load_baseline(file: Path) -> Baseline:
    """Return the baseline of a file. Raises :class:`RequestError` that names the file and the
    field."""
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{file} does not exist: check --against") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RequestError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(written, dict) or "settings" not in written:
        raise RequestError(f"{file} is no baseline: it has no 'settings' (docs/checking.md)")
    if written.get("schema") != SCHEMA:
        raise RequestError(
            f"{file} has schema {written.get('schema')}, read here is {SCHEMA}: use the mmbench "
            "that wrote it"
        )
    try:
        return Baseline.model_validate(written)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "file"
        what = fault["msg"].removeprefix("Value error, ")
        raise RequestError(
            f"{file}: {where}: {what[:1].lower()}{what[1:]}; mend the file (docs/checking.md)"
        ) from error


def values_of(baseline: Baseline, file: Path) -> Stored:
    """Return the stored values. Raises :class:`RequestError` where there are none, or where they
    belong to other settings than the file has now."""
    mend = 'add --update --reason "..."'
    if baseline.stored is None:
        raise RequestError(f"{file} has settings and no values yet: {mend} to store some")
    if baseline.stored.settings != baseline.settings.fingerprint():
        raise RequestError(
            f"the settings in {file} were changed after its values were stored: {mend} to store "
            "new ones, or undo the change"
        )
    return baseline.stored


def save_baseline(baseline: Baseline, file: Path) -> None:
    """Write a baseline in place of what the file holds, whole or not at all. Raises
    :class:`StoreError`."""
    values = baseline.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    try:
        write_text(file, yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=100))
    except OSError as error:
        raise StoreError(f"{file} cannot be written: {error.strerror}") from error


class _Dumper(yaml.SafeDumper):
    """Writes a list of plain values on one line, where it fits."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _as_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    is_short = all(isinstance(item, int | float) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=is_short)


_Dumper.add_representer(list, _as_list)
