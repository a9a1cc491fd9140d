"""Reading a prepared cache: frames, sound and flow in memory-mapped files, rows in a manifest."""

from __future__ import annotations

import csv
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mmbench.data.files import file_sha256
from mmbench.data.media.manifest import (
    SCHEMA,
    LeftOut,
    Manifest,
    MediaRecipe,
    Part,
    Row,
    shard_file,
)
from mmbench.errors import DataError


class Cache:
    """What `prepare` wrote. Files are mapped when they are first read, and read on demand."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._mapped: dict[tuple[int, Part], np.ndarray] = {}

    def frames(self, row: Row) -> np.ndarray:
        """Return a clip's frames ``(frames, height, width, 3)`` uint8, read-only and unread."""
        content = self._map(row.shard, "frames", np.dtype(np.uint8))
        part = content[row.frame_offset : row.frame_offset + row.frame_bytes]
        return part.reshape(row.frames, row.height, row.width, 3)

    def samples(self, row: Row) -> np.ndarray:
        """Return a clip's sound ``(samples,)`` int16, read-only and unread."""
        content = self._map(row.shard, "sound", np.dtype("<i2"))
        return content[row.sample_offset : row.sample_offset + row.samples]

    def flow(self, row: Row) -> np.ndarray:
        """Return a clip's optical flow ``(frames, height, width, 2)`` uint8, read-only and unread:
        u and v of the motion that follows each of its frames."""
        content = self._map(row.shard, "flow", np.dtype(np.uint8))
        part = content[row.flow_offset : row.flow_offset + row.kept_bytes["flow"]]
        return part.reshape(row.frames, row.flow_height, row.flow_width, 2)

    def lists(self) -> dict[str, bytes]:
        """Return the lists that were kept beside the manifest. Raises :class:`DataError` when one
        is gone or has changed."""
        found: dict[str, bytes] = {}
        for name, sha in self.manifest.lists.items():
            path = self.folder / "lists" / name
            if not path.is_file() or file_sha256(path) != sha:
                again = f"run `mmbench data prepare {self.manifest.dataset} --source DIR` again"
                raise DataError(f"{path} is gone or has changed since it was prepared; {again}")
            found[name] = path.read_bytes()
        return found

    def _map(self, shard: int, part: Part, dtype: np.dtype[Any]) -> np.ndarray:
        key = shard, part
        if key not in self._mapped:
            path = shard_file(self.folder, shard, part)
            # A plain array over the map: slices of a numpy.memmap cost more than what they read.
            self._mapped[key] = np.asarray(np.memmap(path, dtype=dtype, mode="r"))
        return self._mapped[key]


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
            MediaRecipe(**stored["recipe"]),
            _read_rows(folder / "manifest.csv"),
            tuple(LeftOut(**clip) for clip in stored["left_out"]),
            tuple(stored["shards"]),
            stored["lists"],
        )
        _require_sizes(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the cache {folder} is damaged ({error}); {mend} again") from error
    return Cache(folder, manifest)


def _read_rows(path: Path) -> tuple[Row, ...]:
    kinds = {field.name: str(field.type) for field in fields(Row)}
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            Row(**{name: _value(cells[name], kind) for name, kind in kinds.items()})
            for cells in csv.DictReader(file)
        )


def _value(cell: str, kind: str) -> Any:
    match kind:
        case "int":
            return int(cell)
        case "bool":
            return {"True": True, "False": False}[cell]
        case "str | None":
            return cell or None
        case "tuple[float, ...]":
            return tuple(map(float, cell.split()))
        case _:
            return cell


def _require_sizes(folder: Path, manifest: Manifest) -> None:
    """Raise ValueError when a data file has not the size that its rows need."""
    needed: dict[tuple[int, Part], int] = {
        (number, part): 0 for number, shard in enumerate(manifest.shards) for part in shard
    }
    for row in manifest.rows:
        for part in manifest.shards[row.shard]:
            needed[row.shard, part] += row.kept_bytes[part]
    for (number, part), size in needed.items():
        path = shard_file(folder, number, part)
        if (held := path.stat().st_size) != size:
            raise ValueError(f"{path.name} has {held} bytes, not {size}")
