"""Decoding some neighbouring pictures into one shard of the cache, in a process of its own.

A shard is the unit that is done or not done: its pixels take their name before its record does,
which says that they are whole. What is in it depends on its items and the size to keep alone, so a
run that was killed and started again writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmbench.data.files import FileError, file_sha256, write_atomically
from mmbench.data.pictures.decode import LONGEST, Picture, decode
from mmbench.data.pictures.manifest import SCHEMA, Item, LeftOut, Row, Shard, shard_file
from mmbench.data.problem import Problem
from mmbench.hashing import digest

PICTURES_PER_SHARD = 256
"""Few enough that a kill costs seconds and processes end together, many enough that 90,000 pictures
have 350 shards, which one process can hold open."""


@dataclass(frozen=True)
class Job:
    """One shard to write."""

    number: int
    items: tuple[Item, ...]
    source: Path
    short_side: int
    cache: Path

    def plan(self) -> str:
        """Return what tells this job from another of the same number."""
        kept = (SCHEMA, self.short_side, LONGEST)
        return digest(*map(str, kept), *map(repr, self.items))


def jobs(items: Sequence[Item], source: Path, short_side: int, cache: Path) -> list[Job]:
    """Return the shards of a cache, in order."""
    starts = range(0, len(items), PICTURES_PER_SHARD)
    return [
        Job(number, tuple(items[i : i + PICTURES_PER_SHARD]), source, short_side, cache)
        for number, i in enumerate(starts)
    ]


def write_shard(job: Job) -> Shard:
    """Decode the pictures of a job and write them; those that cannot be used are named and left
    out. Raises :class:`mmbench.errors.DataError` when the cache cannot be written."""
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    sha, written = hashlib.sha256(), 0
    with (
        write_atomically(shard_file(job.cache, job.number, "pixels")) as path,
        path.open("wb") as file,
    ):
        for item in job.items:
            try:
                picture = decode(job.source / item.path, job.short_side)
            except FileError as error:
                left_out.append(_left_out(item, error.problem, job.source))
                continue
            rows.append(_row(item, picture, job, written))
            content = picture.pixels.tobytes()
            file.write(content)
            sha.update(content)
            written += len(content)
    shard = Shard(job.plan(), tuple(rows), tuple(left_out), sha.hexdigest())
    with write_atomically(shard_file(job.cache, job.number, "json")) as path:
        path.write_text(json.dumps(asdict(shard), indent=1), encoding="utf-8")
    return shard


def finished(job: Job) -> Shard | None:
    """Return the shard of a job if it is there, whole, and its source files have the sizes that
    they had when it was written."""
    try:
        stored = json.loads(shard_file(job.cache, job.number, "json").read_text(encoding="utf-8"))
        rows = tuple(Row(**row) for row in stored.pop("rows"))
        left_out = tuple(LeftOut(**item) for item in stored.pop("left_out"))
        shard = Shard(rows=rows, left_out=left_out, **stored)
        size = shard_file(job.cache, job.number, "pixels").stat().st_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if shard.plan != job.plan() or size != sum(row.pixel_bytes for row in rows):
        return None
    parts: list[Row | LeftOut] = [*rows, *left_out]
    before = {part.id: part.bytes for part in parts}
    now = {item.id: _size(job.source / item.path) for item in job.items}
    return shard if before == now else None


@dataclass(frozen=True)
class Judged:
    """What a picture's file was found to be."""

    problem: Problem | None
    mode: str
    """Of the pixels in the file; empty where there is a problem."""


def judge(job: Job) -> list[Judged]:
    """Decode the pictures of a job without writing anything, and say what each is."""
    found: list[Judged] = []
    for item in job.items:
        try:
            found.append(Judged(None, decode(job.source / item.path, job.short_side).mode))
        except FileError as error:
            found.append(Judged(error.problem, ""))
    return found


def _row(item: Item, picture: Picture, job: Job, offset: int) -> Row:
    path = job.source / item.path
    height, width, _ = picture.pixels.shape
    return Row(
        **asdict(item),
        shard=job.number,
        offset=offset,
        height=height,
        width=width,
        mode=picture.mode,
        bytes=_size(path),
        sha256=file_sha256(path),
    )


def _left_out(item: Item, problem: Problem, source: Path) -> LeftOut:
    size = _size(source / item.path)
    named = (item.id, item.label, item.split, item.path)
    return LeftOut(*named, problem.what, problem.mend, size)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
