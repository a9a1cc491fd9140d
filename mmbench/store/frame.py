"""Reading stored runs: records as objects, as a DataFrame, and the arrays beside them.

Nothing here trains or imports torch. A record is checked when it is read: what cannot be trusted is
left out with a line that says why, and never becomes a number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from mmbench.config import SCHEMA
from mmbench.errors import StoreError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def _is_current(schema: int) -> int:
    if schema != SCHEMA:
        raise ValueError(f"schema is not {SCHEMA}")
    return schema


def _null_is_nan(value: object, check: ValidatorFunctionWrapHandler) -> float:
    return math.nan if value is None else float(check(value))


Schema = Annotated[int, AfterValidator(_is_current)]
Nats = Annotated[float, Field(allow_inf_nan=False), WrapValidator(_null_is_nan)]
"""A loss; null in the file, where it was infinite, is read as NaN."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Status = Literal["done", "failed", "interrupted", "unreadable"]


class Part(BaseModel):
    """A part of a record. Fields that later versions add are kept and not read."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class Scores(Part):
    """Metrics of one split; ``nll`` is in nats.

    None where the record has no number: the run was stored before mmbench had the metric
    (:func:`mmbench.evaluate.stored.with_metric` computes it), or it is not defined (``auroc`` of a
    split with one class).
    """

    accuracy: Share
    macro_f1: Share
    nll: Nats
    ece: Share
    brier: FiniteFloat
    weighted_f1: Share | None = None
    mean_average_precision: Share | None = None
    auroc: Share | None = None
    adaptive_ece: Share | None = None


class Shapley(Part):
    """Shapley values of accuracy: they sum to ``all`` minus ``none``."""

    values: dict[str, FiniteFloat]
    none: FiniteFloat
    all: FiniteFloat


class Contributions(Part):
    """What each modality contributed, by split."""

    shapley: dict[str, Shapley] = {}
    permutation: dict[str, dict[str, FiniteFloat]] = {}
    leave_one_out: dict[str, dict[str, FiniteFloat]] = {}
    """Empty for runs stored before mmbench had it."""


class Cost(Part):
    """What training took."""

    updates: int
    forwards: int
    encoder_forwards: int
    backwards: int
    train_seconds: FiniteFloat
    parameters: int
    peak_memory_bytes: int | None = None
    step_flops: int | None = None


class Unfinished(Part):
    """A record of a run that did not end."""

    schema_number: Schema = Field(alias="schema")
    status: Literal["failed", "interrupted"]
    dataset: str
    protocol: str
    method: str
    seed: int
    config_hash: str
    reason: str | None = None
    changed: dict[str, Any] = {}


class Finished(Part):
    """A record of a run that ended, with everything that tables and figures use."""

    schema_number: Schema = Field(alias="schema")
    status: Literal["done"]
    dataset: str
    protocol: str
    method: str
    fusion: str
    seed: int
    config_hash: str
    changed: dict[str, Any]
    modalities: list[str]
    classes: list[str]
    notes: list[str] = []
    metrics: dict[str, Scores]
    per_modality: dict[str, dict[str, dict[str, Share]]]
    contributions: Contributions
    cost: Cost
    selected: list[dict[str, Any]]
    report: dict[str, Any] = {}
    fingerprints: dict[str, str]
    environment: dict[str, Any]


Record = Annotated[Finished | Unfinished, Field(discriminator="status")]
_RECORD: TypeAdapter[Finished | Unfinished] = TypeAdapter(Record)


@dataclass(frozen=True)
class StoredRun:
    """One run's folder. ``record`` is None unless the run is done."""

    path: Path
    dataset: str
    method: str
    config_hash: str
    seed: int
    status: Status
    protocol: str | None = None
    reason: str | None = None
    changed: Mapping[str, Any] | None = None
    record: Finished | None = None

    @property
    def finished(self) -> Finished:
        """Return the record of a done run; :class:`StoreError` for any other."""
        if self.record is None:
            raise StoreError(f"{self.path}: {self.status}: {self.reason}")
        return self.record

    @property
    def name(self) -> str:
        """Return method and seed, as a sentence names the run."""
        return f"{self.method} seed {self.seed}"


def load_runs(root: Path) -> list[StoredRun]:
    """Return every run under a results folder, in order of dataset, method, setting and seed.

    Failed and interrupted runs are rows too, with the reason. A record that cannot be trusted
    (another schema, damaged JSON, a field missing or out of range) has status ``unreadable`` and a
    reason that names the file and the mend. Raises :class:`StoreError` when there is no run.
    """
    try:
        runs = sorted(_scan(root), key=lambda r: (r.dataset, r.method, r.config_hash, r.seed))
    except OSError as error:
        raise StoreError(f"{root}: cannot be read ({error.strerror})") from error
    if not runs:
        nested = root / "runs"
        if nested.is_dir():
            raise StoreError(
                f"{root}: no stored runs here; they may be in {nested}: name that folder"
            )
        state = "no stored runs here" if root.exists() else "no such folder"
        raise StoreError(f"{root}: {state}; `mmbench run` stores some")
    return runs


def _scan(root: Path) -> Iterator[StoredRun]:
    for setting in root.glob("*/*/*"):
        if not setting.is_dir():
            continue
        partial: list[tuple[int, Path]] = []
        complete: set[int] = set()
        for folder in setting.iterdir():
            match = re.fullmatch(r"(\.?)seed-(\d+)(\.partial)?", folder.name)
            if match is None or bool(match[1]) != bool(match[3]):
                continue
            if match[1]:
                partial.append((int(match[2]), folder))
            else:
                complete.add(int(match[2]))
                yield _read(folder, int(match[2]))
        # Beside a complete run, a partial folder is only a repetition of it.
        for seed, folder in partial:
            if seed not in complete:
                yield _killed(folder, seed)


def _read(folder: Path, seed: int) -> StoredRun:
    file = folder / "record.json"
    try:
        content = file.read_bytes()
        record = _RECORD.validate_json(content)
    except OSError as error:
        return _unreadable(folder, seed, f"{file}: cannot be read ({error.strerror})")
    except ValidationError as error:
        return _unreadable(folder, seed, f"{file}: {_explain(content, error)}")
    if (record.seed, record.config_hash) != (seed, folder.parent.name):
        return _unreadable(
            folder,
            seed,
            f"{file}: it is the record of setting {record.config_hash}, seed {record.seed}, and "
            "lies in another run's folder; put it back or delete the folder",
        )
    if isinstance(record, Finished) and "test" not in record.metrics:
        return _unreadable(folder, seed, f"{file}: metrics.test is missing; {_AGAIN}")
    return StoredRun(
        folder,
        record.dataset,
        record.method,
        record.config_hash,
        record.seed,
        record.status,
        record.protocol,
        record.reason if isinstance(record, Unfinished) else None,
        record.changed,
        record if isinstance(record, Finished) else None,
    )


_AGAIN = "run it again with `mmbench run --config` on the config.yaml beside it, and --overwrite"


def _explain(content: bytes, error: ValidationError) -> str:
    """Say in one line what is wrong with a record and how to mend it."""
    try:
        found = json.loads(content)
    except ValueError:
        return f"not valid JSON; {_AGAIN}"
    if not isinstance(found, dict):
        return f"not a record; {_AGAIN}"
    if (schema := found.get("schema")) != SCHEMA:
        environment = found.get("environment")
        version = environment.get("mmbench") if isinstance(environment, dict) else None
        wrote = f"mmbench {version}" if version else "the mmbench that wrote it"
        return f"schema {schema}, read here is {SCHEMA}; read it with {wrote}, or {_AGAIN}"
    fault = error.errors()[0]
    # The first part of a location is the member of the union, which is the status.
    where = ".".join(map(str, fault["loc"][1:])) or "status"
    what = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"field '{where}': {what}; {_AGAIN}"


def _unreadable(folder: Path, seed: int, reason: str) -> StoredRun:
    dataset, method, setting = folder.parts[-4:-1]
    return StoredRun(folder, dataset, method, setting, seed, "unreadable", reason=reason)


def _killed(folder: Path, seed: int) -> StoredRun:
    dataset, method, setting = folder.parts[-4:-1]
    protocol = None
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        protocol = config["protocol"] if isinstance(config, dict) else None
    except (OSError, ValueError, KeyError, yaml.YAMLError):
        pass  # a run killed early has not written its configuration; the protocol stays unknown
    return StoredRun(
        folder,
        dataset,
        method,
        setting,
        seed,
        "interrupted",
        protocol if isinstance(protocol, str) else None,
        "killed, or still running; `mmbench run --resume` goes on with it",
    )


def to_frame(runs: Iterable[StoredRun]) -> pd.DataFrame:
    """Return a row a run, failed ones included.

    Columns: ``path, dataset, protocol, method, fusion, seed, config_hash, status, reason,
    changed`` (JSON), then ``<split>.<metric>``, ``<split>.<readout>.<modality>``,
    ``<split>.shapley.<modality>``, ``<split>.leave_one_out.<modality>``,
    ``<split>.permutation.<modality>`` and ``cost.<name>``.
    """
    import pandas as pd

    return pd.DataFrame([_flat(run) for run in runs])


def _flat(run: StoredRun) -> dict[str, Any]:
    record = run.record
    row: dict[str, Any] = {
        "path": str(run.path),
        "dataset": run.dataset,
        "protocol": run.protocol,
        "method": run.method,
        "fusion": record.fusion if record else None,
        "seed": run.seed,
        "config_hash": run.config_hash,
        "status": run.status,
        "reason": run.reason,
        "changed": json.dumps(run.changed, sort_keys=True) if run.changed is not None else None,
    }
    if record is None:
        return row
    for split, scores in record.metrics.items():
        for name in Scores.model_fields:
            row[f"{split}.{name}"] = getattr(scores, name)
    for m, readouts in record.per_modality.items():
        for readout, by_split in readouts.items():
            for split, accuracy in by_split.items():
                row[f"{split}.{readout}.{m}"] = accuracy
    for split, shapley in record.contributions.shapley.items():
        for m, value in shapley.values.items():
            row[f"{split}.shapley.{m}"] = value
    for kind in ("leave_one_out", "permutation"):
        for split, losses in getattr(record.contributions, kind).items():
            for m, value in losses.items():
                row[f"{split}.{kind}.{m}"] = value
    for name in Cost.model_fields:
        row[f"cost.{name}"] = getattr(record.cost, name)
    return row


def learning_curves(run: StoredRun) -> pd.DataFrame:
    """Return history.csv: a row per epoch of each stage. Raises :class:`StoreError`."""
    import pandas as pd

    file = run.path / "history.csv"
    try:
        return pd.read_csv(file)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: cannot be read ({error}); {_AGAIN}") from error


def predictions(run: StoredRun, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of predictions.npz, logits ``(N, C)``, or those of the names that it has:
    the others are not read. Raises :class:`StoreError`."""
    import zipfile

    import numpy as np

    file = run.path / "predictions.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            chosen = arrays.files if names is None else [n for n in names if n in arrays.files]
            return {name: arrays[name] for name in chosen}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"{file}: cannot be read ({error}); {_AGAIN}") from error
