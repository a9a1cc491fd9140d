"""Writing a run into the store: whole or not at all. Format: docs/results-format.md."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import yaml

from mmbench.config import SCHEMA, RunConfig
from mmbench.errors import RequestError, StoreError

Status = Literal["done", "failed", "interrupted"]


@dataclass
class RunRecord:
    """The content of ``record.json``; the fields are described in docs/results-format.md."""

    status: Status
    dataset: str
    protocol: str
    method: str
    fusion: str
    seed: int
    config_hash: str
    changed: dict[str, Any]
    modalities: list[str]
    classes: list[str]
    fingerprints: dict[str, str]
    environment: dict[str, Any]
    started: str
    finished: str = ""
    reason: str | None = None
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    per_modality: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    contributions: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    truth: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    selected: list[dict[str, Any]] = field(default_factory=list)
    schema: int = SCHEMA


class RunFolder:
    """Where one run is stored: a partial folder while it trains, renamed when it is complete.

    Holding one locks the run against other processes; the lock goes with the process.
    """

    def __init__(self, results: Path, config: RunConfig) -> None:
        self.config = config
        parent = results / Path(config.dataset).stem / Path(config.method).stem
        self.path = parent / config.config_hash() / f"seed-{config.seed}"
        self.partial = self.path.with_name(f".seed-{config.seed}.partial")
        self.checkpoints = self.partial / "checkpoint"
        self._lock: IO[str] | None = None

    def stored(self) -> dict[str, Any] | None:
        """Return the record that is stored, or None. Raises :class:`StoreError` if it is damaged
        or of another version."""
        return read_record(self.path)

    def begun(self) -> dict[str, Any] | None:
        """Return the record of the run that is unfinished, or None, as :meth:`stored` does."""
        return read_record(self.partial) if self.is_unfinished() else None

    def is_unfinished(self) -> bool:
        """Whether a run that did not end has left a checkpoint."""
        return (self.checkpoints / "last.pt").exists()

    def begin(self, record: RunRecord, resume: bool, overwrite: bool) -> None:
        """Make the partial folder, lock it, and put a record there of what is about to be run.

        Raises :class:`RequestError` where an unfinished run would be lost or another process is at
        it, and :class:`StoreError` when the folder cannot be written.
        """
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if self.is_unfinished() and not resume and not overwrite:
                raise RequestError(
                    f"an unfinished run lies in {self.partial}: add --resume to go on with it, "
                    "or --overwrite to start again"
                )
            self._clear(keep_checkpoint=resume)
            write_text(self.partial / "config.yaml", config_text(self.config))
            begun = replace(record, status="interrupted", reason="killed, or still running")
            write_text(self.partial / "record.json", record_text(begun))
        except OSError as error:
            self.release()
            raise unwritable(self.partial, error) from error
        except RequestError:
            self.release()
            raise

    def _take_lock(self) -> None:
        self._lock = (self.partial / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"another process is training this run ({self.partial}): wait for it, or stop it"
            ) from None

    def _clear(self, keep_checkpoint: bool) -> None:
        """Remove what an earlier attempt has left, but for the lock."""
        for path in self.partial.iterdir():
            if path == self.checkpoints and not keep_checkpoint:
                shutil.rmtree(path)
            elif path.is_file() and path.name != "lock":
                path.unlink()

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def abandon(self, keep_checkpoint: bool = True) -> None:
        """Remove the partial folder, unless it holds a checkpoint, and release the lock."""
        if not (keep_checkpoint and self.is_unfinished()):
            shutil.rmtree(self.partial, ignore_errors=True)
            with suppress(OSError):
                self.partial.parent.rmdir()
        self.release()

    def keep_partial(self, record: RunRecord) -> None:
        """Note in the partial folder that the run was interrupted; its checkpoint stays. Where the
        disk does not take the note, that of the beginning stays too."""
        with suppress(OSError):
            write_text(self.partial / "record.json", record_text(record))
        self.release()

    def finish(
        self,
        record: RunRecord,
        history: Sequence[Mapping[str, Any]],
        predictions: Mapping[str, np.ndarray],
        traceback: str = "",
    ) -> None:
        """Write all files and give the folder its name, in place of what was stored before.
        ``traceback`` says where a failed run failed.

        Raises :class:`StoreError` when the disk does not take them; what was stored stays, and so
        does the checkpoint.
        """
        old = self.path.with_name(f".seed-{self.config.seed}.old")
        try:
            write_history(self.partial / "history.csv", history)
            if traceback:
                write_text(self.partial / "traceback.txt", traceback)
            if predictions:
                temporary = self.partial / "predictions.tmp"
                with temporary.open("wb") as file:
                    np.savez_compressed(file, allow_pickle=False, **predictions)
                temporary.replace(self.partial / "predictions.npz")
            write_text(self.partial / "record.json", record_text(record))
            (self.checkpoints / "last.pt").unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)
            if self.path.exists():
                self.path.rename(old)
            self.partial.rename(self.path)
            (self.path / "lock").unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            if old.exists() and not self.path.exists():
                old.rename(self.path)
            raise unwritable(self.partial, error) from error
        finally:
            self.release()


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record in a run's folder, None without one. Raises :class:`StoreError` for one
    that is damaged or of another version."""
    path = folder / "record.json"
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = record["schema"]
        missing = {known.name for known in fields(RunRecord)} - record.keys()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{path} is damaged: delete {folder} and run again") from error
    if schema != SCHEMA:
        raise StoreError(
            f"{path} has schema {schema}, this mmbench reads {SCHEMA}: use the version that "
            "wrote it, or another --results folder"
        )
    if missing:
        names = ", ".join(sorted(missing))
        raise StoreError(f"{path} lacks {names}: delete {folder} and run again")
    return record


def write_text(path: Path, text: str) -> None:
    """Write a file to a temporary name, then rename it."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot write {path}: {error.strerror or error}; free space, check permissions, or choose "
        "another folder with --results"
    )


def config_text(config: RunConfig) -> str:
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def record_text(record: RunRecord) -> str:
    return json.dumps(finite(asdict(record)), indent=1, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Return a value as plain JSON: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write a row per epoch; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(history)


def read_predictions(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a stored run's ``predictions.npz``."""
    path = folder / "predictions.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(f"{path} is missing or damaged: run again with --overwrite") from error
