"""A prepared pickle: an ``.npy`` file for each modality and split, the rows, and a manifest.

The manifest is removed before anything is written and written last of all, so that what a kill
leaves behind does not pass for whole.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmbench.data.files import file_sha256, only_writer, write_atomically
from mmbench.data.sentiment.archives import MODALITIES, SETS, Archive, Form
from mmbench.errors import DataError

if TYPE_CHECKING:
    from mmbench.data.dataset import Progress

SCHEMA = 1
"""Of the prepared data; another is refused."""
SPLITS = tuple(SETS.values())
CHUNK = 1 << 26
"""Bytes of float32 converted at once."""
COLUMNS = ("split", "id", "video", "score")


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (divisor N) of each feature over the steps of the training rows
    that are not padding (all zero)."""

    mean: list[float]
    deviation: list[float]


@dataclass(frozen=True)
class Manifest:
    """What was prepared, and from what."""

    dataset: str
    file: str
    """Name of the pickle."""
    form: Form
    source_bytes: int
    source_sha256: str
    shapes: dict[str, list[int]]
    """Steps and width by modality."""
    rows: dict[str, int]
    """By split."""
    repeated_ids: int
    has_videos: bool
    replaced: dict[str, int]
    """By modality: values that were infinite or NaN and are 0 now."""
    values_sha256: dict[str, str]
    """By ``<split>-<modality>``."""
    rows_sha256: str
    moments: dict[str, Moments]
    """By modality."""


@dataclass(frozen=True)
class Stored:
    """A prepared pickle, opened."""

    folder: Path
    manifest: Manifest
    ids: dict[str, np.ndarray]
    videos: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    """By split."""


def array_file(folder: Path, split: str, modality: str) -> Path:
    """Return the file of a split's features."""
    return folder / f"{split}-{modality}.npy"


def write(archive: Archive, dataset: str, folder: Path, progress: Progress) -> Manifest:
    """Write what a pickle holds into a folder. Its arrays are let go one by one.

    Raises :class:`DataError` when the place cannot be written, has not the room, or is being
    written by another process.
    """
    _require_room(archive, folder)
    with only_writer(folder):
        (folder / "manifest.json").unlink(missing_ok=True)  # nothing there passes for whole now
        return _write(archive, dataset, folder, progress)


def _write(archive: Archive, dataset: str, folder: Path, progress: Progress) -> Manifest:
    shapes = {m: [*shape] for m, shape in archive.shapes.items()}
    replaced = dict.fromkeys(MODALITIES, 0)
    hashes: dict[str, str] = {}
    moments: dict[str, Moments] = {}
    done, total = 0, len(SPLITS) * len(MODALITIES)
    progress(done, total, "arrays")
    for split in SPLITS:
        for m in MODALITIES:
            values = archive.parts[split].features.pop(m)
            gathered = _Gathered(values.shape[2]) if split == "train" else None
            bad, sha = _write_array(array_file(folder, split, m), values, gathered)
            replaced[m] += bad
            hashes[f"{split}-{m}"] = sha
            if gathered is not None:
                moments[m] = gathered.moments()
            done += 1
            progress(done, total, "arrays")
    _write_rows(folder / "rows.csv", archive)
    manifest = Manifest(
        dataset,
        archive.path.name,
        archive.form,
        archive.path.stat().st_size,
        file_sha256(archive.path),
        shapes,
        {split: len(archive.parts[split]) for split in SPLITS},
        archive.repeated_ids,
        all(part.videos is not None for part in archive.parts.values()),
        replaced,
        hashes,
        file_sha256(folder / "rows.csv"),
        moments,
    )
    with write_atomically(folder / "manifest.json") as path:
        path.write_text(json.dumps({"schema": SCHEMA, **asdict(manifest)}, indent=1), "utf-8")
    return manifest


def open_stored(dataset: str, folder: Path, file: str | None = None) -> Stored:
    """Return a prepared pickle. Raises :class:`DataError` when it is missing, unfinished, damaged,
    or of another dataset or version; ``file``, where one was asked for, is part of the mend. Errors
    of permission pass through."""
    chosen = f" -d file={file}" if file else ""
    mend = f"run `mmbench data prepare {dataset} --source DIR{chosen}`"
    path = folder / "manifest.json"
    if not path.is_file():
        state = "only in part" if folder.is_dir() else "not"
        raise DataError(f"dataset '{dataset}' is {state} prepared in {folder}; {mend}")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held.pop("schema") != SCHEMA:
            raise DataError(f"{path} is of another version of mmbench; {mend} again")
        if held["dataset"] != dataset:
            raise DataError(f"{folder} holds '{held['dataset']}', not '{dataset}'; {mend}")
        moments = {m: Moments(**of_m) for m, of_m in held.pop("moments").items()}
        manifest = Manifest(**held, moments=moments)
        if file_sha256(folder / "rows.csv") != manifest.rows_sha256:
            raise ValueError("rows.csv has changed")
        for split in SPLITS:
            for m in MODALITIES:
                _require_whole(folder, split, m, manifest)
        rows = _read_rows(folder / "rows.csv")
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the prepared data in {folder} are damaged ({error}); {mend}") from error
    return Stored(folder, manifest, *rows)


def _require_whole(folder: Path, split: str, m: str, manifest: Manifest) -> None:
    """Raise ValueError when an array is cut or is another one."""
    path = array_file(folder, split, m)
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise
    except (OSError, ValueError, EOFError) as error:  # numpy's EOFError is of an empty file
        raise ValueError(f"{path.name} is missing or cut") from error
    shape = (manifest.rows[split], *manifest.shapes[m])
    if values.shape != shape or values.dtype != np.dtype("<f4"):
        raise ValueError(f"{path.name} is {values.dtype} {values.shape}, not float32 {shape}")


# -- writing ---------------------------------------------------------------------------------------


class _Gathered:
    """Mean and variance of rows that come in blocks (Chan, Golub and LeVeque, 1983)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self.squares = np.zeros(width)

    def add(self, block: np.ndarray) -> None:
        """Take in the steps of ``(N, T, D)`` that are not all zero."""
        steps = block[(block != 0).any(axis=-1)].astype(np.float64)
        if len(steps) == 0:
            return
        mean = steps.mean(axis=0)
        count = self.count + len(steps)
        change = mean - self.mean
        self.squares += ((steps - mean) ** 2).sum(axis=0)
        self.squares += change**2 * self.count * len(steps) / count
        self.mean += change * len(steps) / count
        self.count = count

    def moments(self) -> Moments:
        deviation = np.sqrt(self.squares / max(self.count, 1))
        return Moments(self.mean.tolist(), deviation.tolist())


def _write_array(path: Path, values: np.ndarray, gathered: _Gathered | None) -> tuple[int, str]:
    """Write an array as float32, what is not finite as 0; return how many values that were, and
    the SHA-256 of what was written."""
    replaced = 0
    sha = hashlib.sha256()
    step = max(1, CHUNK // (4 * values[0].size))
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": values.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(values), step):
            with np.errstate(over="ignore"):
                block = np.ascontiguousarray(values[start : start + step]).astype("<f4")
            is_bad = ~np.isfinite(block)
            replaced += int(is_bad.sum())
            block[is_bad] = 0
            if gathered is not None:
                gathered.add(block)
            content = block.tobytes()
            sha.update(content)
            file.write(content)
    return replaced, sha.hexdigest()


def _write_rows(path: Path, archive: Archive) -> None:
    with (
        write_atomically(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for split in SPLITS:
            part = archive.parts[split]
            videos = part.videos or ("",) * len(part)
            for row_id, video, score in zip(part.ids, videos, part.scores.tolist(), strict=True):
                writer.writerow([split, row_id, video, repr(score)])


def _read_rows(
    path: Path,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return ids, videos and scores by split."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    columns = {
        name: {s: np.array([row[name] for row in rows if row["split"] == s]) for s in SPLITS}
        for name in COLUMNS[1:]
    }
    scores = {split: texts.astype(np.float32) for split, texts in columns["score"].items()}
    return columns["id"], columns["video"], scores


def _require_room(archive: Archive, folder: Path) -> None:
    """Raise :class:`DataError` when the arrays do not fit on the disk."""
    size = sum(4 * x.size for part in archive.parts.values() for x in part.features.values())
    place = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise DataError(
            f"{folder}: {size / 1e9:.1f} GB are to be written and {free / 1e9:.1f} GB are free; "
            "free some, or write elsewhere (--cache or MMBENCH_CACHE)"
        )
