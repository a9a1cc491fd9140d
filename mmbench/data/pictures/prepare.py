"""Turning listed pictures into a cache, in parallel and resumable after a kill."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mmbench.data.files import FileError, file_sha256, inspect, write_atomically
from mmbench.data.media.manifest import TOLERATED
from mmbench.data.media.parallel import in_processes
from mmbench.data.pictures.decode import kept_bytes
from mmbench.data.pictures.manifest import SCHEMA, Item, Manifest, Row, Shard
from mmbench.data.pictures.shards import Job, Judged, finished, jobs, judge, write_shard
from mmbench.errors import DataError

if TYPE_CHECKING:
    from mmbench.data.dataset import Progress

TRIED = 256
"""Pictures whose headers are read to say beforehand how large the cache will be."""


def prepare(
    dataset: str,
    items: Sequence[Item],
    source: Path,
    short_side: int,
    cache: Path,
    progress: Progress,
    workers: int | None = None,
    allow_missing: bool = False,
    notes: Sequence[str] = (),
) -> Manifest:
    """Decode the pictures of items in a source folder into a cache, and return what is in it.

    Work that an earlier call finished is kept, unless a picture's file has changed in size since;
    after a kill the same call ends with the same bytes as an unbroken one. ``progress`` names the
    size that the cache will have before anything is written. Pictures that cannot be used are left
    out and named in the manifest, beside ``notes``.

    Raises :class:`DataError` when more than :data:`TOLERATED` of the pictures are missing or
    damaged (any number with ``allow_missing``), when the cache holds something else, is in use, or
    cannot be written.
    """
    if not items:
        raise DataError(f"dataset '{dataset}' lists no pictures; check --source")
    ordered = sorted(items, key=lambda item: item.id)
    look = f"see `mmbench data verify {dataset} --source {source}`"
    if not allow_missing:
        _require_files(ordered, source, look)
    all_jobs = jobs(ordered, source, short_side, cache)
    with _only_writer(dataset, cache, short_side):
        shards = {job.number: shard for job in all_jobs if (shard := finished(job)) is not None}
        missing = [job for job in all_jobs if job.number not in shards]
        done = sum(len(all_jobs[number].items) for number in shards)
        what = f"pictures, {_said_size(_expected_bytes(ordered, missing, source, cache))}"
        progress(done, len(ordered), what)
        for place, shard in in_processes(write_shard, missing, workers):
            shards[missing[place].number] = shard
            done += len(missing[place].items)
            progress(done, len(ordered), what)
        manifest = _manifest(dataset, short_side, [shards[i] for i in sorted(shards)], notes)
        if not manifest.rows or not allow_missing:
            faults = [(f"{lost.path}: {lost.what}", lost.what) for lost in manifest.left_out]
            _require_few(faults, len(ordered), look)
        _write_manifest(cache, manifest)
        _remove_surplus(cache, len(all_jobs))
    return manifest


def judged(
    items: Sequence[Item],
    source: Path,
    short_side: int,
    progress: Progress | None,
    workers: int | None,
) -> dict[str, Judged]:
    """Return what the file of every item is found to be, by id; nothing is written."""
    tasks = jobs(items, source, short_side, source)
    found: dict[str, Judged] = {}
    for place, answers in in_processes(judge, tasks, workers):
        found |= dict(zip((item.id for item in tasks[place].items), answers, strict=True))
        if progress:
            progress(len(found), len(items), "pictures")
    return found


# -- before ----------------------------------------------------------------------------------------


def _require_files(items: Sequence[Item], source: Path, look: str) -> None:
    """Refuse early what would be refused in the end: files that no decoder need be asked about."""
    found = (inspect(source / item.path) for item in items)
    faults = [(str(FileError(problem)), problem.what) for problem in found if problem is not None]
    _require_few(faults, len(items), look)


def _require_few(faults: Sequence[tuple[str, str]], total: int, look: str) -> None:
    if len(faults) <= TOLERATED * total:
        return
    kinds = Counter(what for _, what in faults).most_common(3)
    counted = ", ".join(f"{what}: {count}" for what, count in kinds)
    raise DataError(
        f"{len(faults)} of {total} pictures cannot be used, more than {TOLERATED:.0%} ({counted}); "
        f"the first: {faults[0][0]}; {look}, or add -d allow_missing=true to go on without them"
    )


@contextmanager
def _only_writer(dataset: str, cache: Path, short_side: int) -> Iterator[None]:
    """Hold the cache's folder for this process; refuse one that holds something else."""
    plan = {"schema": SCHEMA, "dataset": dataset, "short_side": short_side}
    path = cache / "plan.json"
    if not path.exists():
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(plan, indent=1), encoding="utf-8")
    folder = os.open(cache, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{cache} is being written by another `mmbench data prepare`; wait for it"
            ) from error
        _require_same_plan(path, plan)
        for leftover in [*cache.glob("*/.partial-*"), *cache.glob(".partial-*")]:
            leftover.unlink()  # of a run that was killed
        yield
    finally:
        os.close(folder)


def _require_same_plan(path: Path, plan: dict[str, object]) -> None:
    mend = "choose another folder with --cache, or remove it"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        before = f"{stored['dataset']} prepared with short_side={stored['short_side']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged or of another version of mmbench; {mend}") from error
    if stored != plan:
        raise DataError(
            f"{path.parent} holds {before}, not {plan['dataset']} with "
            f"short_side={plan['short_side']}; {mend}"
        )


def _expected_bytes(
    items: Sequence[Item], missing: Sequence[Job], source: Path, cache: Path
) -> int:
    """Return about how many bytes the whole cache will take, by the headers of some pictures.

    Raises :class:`DataError` when those that are still to be written do not fit on the disk.
    """
    sizes: list[int] = []
    for item in items[:: max(1, len(items) // TRIED)][:TRIED] if missing else ():
        try:
            sizes.append(kept_bytes(source / item.path, missing[0].short_side))
        except FileError:
            continue
    if not sizes:
        return sum(path.stat().st_size for path in (cache / "shards").glob("*.pixels"))
    mean = sum(sizes) / len(sizes)
    to_write = round(mean * sum(len(job.items) for job in missing))
    free = shutil.disk_usage(cache).free
    if to_write > free:
        raise DataError(
            f"{cache}: {_said_size(to_write)} are to be written and {free / 1e9:.1f} GB are free; "
            "free some, or write elsewhere (--cache or MMBENCH_CACHE), or keep smaller pictures "
            "(-d short_side=...)"
        )
    return round(mean * len(items))


def _said_size(size: int) -> str:
    return f"about {size / 1e9:.1f} GB" if size >= 1e9 else f"about {size / 1e6:.1f} MB"


# -- after -----------------------------------------------------------------------------------------


def _manifest(
    dataset: str, short_side: int, shards: Sequence[Shard], notes: Sequence[str]
) -> Manifest:
    return Manifest(
        dataset,
        short_side,
        tuple(row for shard in shards for row in shard.rows),
        tuple(lost for shard in shards for lost in shard.left_out),
        tuple(shard.sha256 for shard in shards),
        tuple(notes),
    )


def _write_manifest(cache: Path, manifest: Manifest) -> None:
    """Write the rows as CSV, for people too, and last of all what says that the cache is whole."""
    names = [field.name for field in fields(Row)]
    with (
        write_atomically(cache / "manifest.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in manifest.rows)
    whole = {
        "schema": SCHEMA,
        "dataset": manifest.dataset,
        "short_side": manifest.short_side,
        "pictures": len(manifest.rows),
        "left_out": [asdict(lost) for lost in manifest.left_out],
        "shards": manifest.shards,
        "notes": manifest.notes,
        "manifest_sha256": file_sha256(cache / "manifest.csv"),
    }
    with write_atomically(cache / "manifest.json") as path:
        path.write_text(json.dumps(whole, indent=1), encoding="utf-8")


def _remove_surplus(cache: Path, count: int) -> None:
    """Remove shards past the last, of a longer list of pictures that this cache was once made
    of."""
    for path in sorted((cache / "shards").glob("[0-9]*.*")):
        if int(path.stem) >= count:
            path.unlink()
