"""Reading a prepared cache: pixels in memory-mapped files, rows in a manifest."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from mmbench.data.files import file_sha256
from mmbench.data.pictures.manifest import SCHEMA, LeftOut, Manifest, Row, shard_file
from mmbench.errors import DataError

NUMBERS = ("shard", "offset", "height", "width", "bytes")


class Cache:
    """What `prepare` wrote. Files are mapped when they are first read, and read on demand."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._mapped: dict[int, np.ndarray] = {}

    def pixels(self, row: Row) -> np.ndarray:
        """Return a picture ``(height, width, 3)`` uint8, read-only and unread."""
        if row.shard not in self._mapped:
            path = shard_file(self.folder, row.shard, "pixels")
            # A plain array over the map: slices of a numpy.memmap cost more than what they read.
            self._mapped[row.shard] = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        part = self._mapped[row.shard][row.offset : row.offset + row.pixel_bytes]
        return part.reshape(row.height, row.width, 3)


def open_cache(dataset: str, folder: Path) -> Cache:
    """Return a prepared cache. Raises :class:`DataError` when it is missing, unfinished, damaged,
    or of another version or dataset."""
    mend = f"run `mmbench data prepare {dataset} --source DIR`"
    path = folder / "manifest.json"
    if not path.is_file():
        state = "only in part" if (folder / "plan.json").is_file() else "not"
        raise DataError(f"dataset '{dataset}' is {state} prepared in {folder}; {mend}")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["schema"] != SCHEMA:
            raise DataError(f"{path} is of another version of mmbench; remove it, then {mend}")
        if stored["dataset"] != dataset:
            raise DataError(f"{folder} holds '{stored['dataset']}', not '{dataset}'; {mend}")
        if file_sha256(folder / "manifest.csv") != stored["manifest_sha256"]:
            raise ValueError("manifest.csv has changed")
        manifest = Manifest(
            dataset,
            int(stored["short_side"]),
            _read_rows(folder / "manifest.csv"),
            tuple(LeftOut(**lost) for lost in stored["left_out"]),
            tuple(stored["shards"]),
            tuple(stored["notes"]),
        )
        _require_sizes(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"the cache {folder} is damaged ({error}); {mend} again") from error
    return Cache(folder, manifest)


def _read_rows(path: Path) -> tuple[Row, ...]:
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(_row(cells) for cells in csv.DictReader(file))


def _row(cells: dict[str, str]) -> Row:
    values: dict[str, Any] = {**cells, **{name: int(cells[name]) for name in NUMBERS}}
    return Row(**values)


def _require_sizes(folder: Path, manifest: Manifest) -> None:
    """Raise ValueError when a data file has not the size that its rows need."""
    needed = dict.fromkeys(range(len(manifest.shards)), 0)
    for row in manifest.rows:
        needed[row.shard] += row.pixel_bytes
    for shard, size in needed.items():
        path = shard_file(folder, shard, "pixels")
        if (held := path.stat().st_size) != size:
            raise ValueError(f"{path.name} has {held} bytes, not {size}")
