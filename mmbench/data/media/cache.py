"""Reading a prepared cache: frames, sound and flow in memory-mapped files, rows in a manifest."""

from __future__ import annotations

import csv
import json
import mmap
import resource
from collections.abc import Callable, Mapping
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

VALUES: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "str | None": lambda cell: cell or None,
    "int": int,
    "bool": {"True": True, "False": False}.__getitem__,
    "tuple[float, ...]": lambda cell: tuple(map(float, cell.split())),
}
"""What a cell of the manifest stands for, by the type of its column."""


def most_mapped() -> int:
    """Return how many files a cache may hold mapped: a quarter of the descriptors of this process,
    1,024 on many systems, and of the maps that Linux allows it, 65,530 unless set otherwise. A
    corpus of 200,000 clips has 12,000 files; to map one takes some 0.02 ms."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65_530
    return min(limit for limit in limits if limit != resource.RLIM_INFINITY) // 4


class Cache:
    """What `prepare` wrote. Files are mapped when they are read, as many as :func:`most_mapped`
    stay so, and their content is read on demand."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._mapped: dict[tuple[int, Part], np.ndarray] = {}
        """The one read last stands last."""
        self._most_mapped = most_mapped()

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
        content = self._mapped.pop((shard, part), None)
        if content is None:
            if len(self._mapped) >= self._most_mapped:
                del self._mapped[next(iter(self._mapped))]
            path = shard_file(self.folder, shard, part)
            # Not numpy.memmap: to make one, or a slice of it, costs more than what it reads.
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            content = np.frombuffer(mapped, dtype)
        self._mapped[shard, part] = content
        return content


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
    names, kinds = zip(*((field.name, str(field.type)) for field in fields(Row)), strict=True)
    values = [VALUES[kind] for kind in kinds]
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        if (columns := tuple(next(lines, ()))) != names:
            raise ValueError(f"{path.name} has the columns {','.join(columns)}")
        return tuple(
            Row(*(value(cell) for value, cell in zip(values, cells, strict=True)))
            for cells in lines
        )


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
