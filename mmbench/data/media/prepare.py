"""Turning listed clips into a cache, in parallel and resumable after a kill."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mmbench.data.files import FileError, file_sha256, only_writer, write_atomically
from mmbench.data.media.clips import decode_clip
from mmbench.data.media.manifest import (
    SCHEMA,
    TOLERATED,
    Clip,
    LeftOut,
    Manifest,
    MediaRecipe,
    Row,
    Shard,
)
from mmbench.data.media.parallel import in_processes
from mmbench.data.media.series import first_problem, size_of
from mmbench.data.media.shards import Job, finished, jobs, write_shard
from mmbench.errors import DataError

if TYPE_CHECKING:
    from mmbench.data.dataset import Progress

TRIED = 8
"""Clips decoded to say beforehand how large the cache will be."""
STILLS_TRIED = 64
"""The same of still pictures, which are quicker and of many shapes."""
ONE_OF = 64
"""Of so many clips one at most is decoded beforehand, so that a small corpus takes little longer.
Where none of those can be decoded, so many of the first are tried for one that can."""


def prepare(
    dataset: str,
    clips: Sequence[Clip],
    source: Path,
    recipe: MediaRecipe,
    cache: Path,
    progress: Progress,
    workers: int | None = None,
    allow_missing: bool = False,
    lists: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Decode clips of a source folder into a cache, and return what is in it.

    Work that an earlier call finished is kept, unless the clip's files have changed in size since;
    after a kill the same call ends with the same bytes as an unbroken one. ``lists`` are small
    files to keep beside the manifest. ``progress`` names the size that the cache will have before
    anything is written. Clips that cannot be used are left out and named in the manifest.

    Raises :class:`DataError` when more than :data:`TOLERATED` of the clips are missing, damaged or
    silent (any number with ``allow_missing``), when the cache was made with another recipe, is in
    use, or cannot be written.
    """
    _require_unique(dataset, clips, recipe)
    ordered = sorted(clips, key=lambda clip: clip.id)
    look = f"see `mmbench data verify {dataset} --source {source}`"
    if not allow_missing:
        _require_files(ordered, source, recipe, look)
    all_jobs = jobs(ordered, source, recipe, cache)
    with _only_writer(dataset, cache, recipe):
        shards = {job.number: shard for job in all_jobs if (shard := finished(job)) is not None}
        missing = [job for job in all_jobs if job.number not in shards]
        done = sum(len(all_jobs[number].clips) for number in shards)
        size = _said_size(_expected_bytes(list(shards.values()), missing, source, recipe, cache))
        what = f"{recipe.clips_are}, {size}"
        progress(done, len(ordered), what)
        for place, shard in in_processes(write_shard, missing, workers):
            shards[missing[place].number] = shard
            done += len(missing[place].clips)
            progress(done, len(ordered), what)
        manifest = _manifest(dataset, recipe, [shards[i] for i in sorted(shards)], lists or {})
        if not allow_missing:
            _require_sound_rows(manifest, look)
        _write_manifest(cache, manifest, lists or {})
        _remove_surplus(cache, all_jobs)
    return manifest


# -- before ----------------------------------------------------------------------------------------


def _require_unique(dataset: str, clips: Sequence[Clip], recipe: MediaRecipe) -> None:
    if not clips:
        raise DataError(
            f"dataset '{dataset}' lists no {recipe.clips_are}; check --source and the options"
        )
    ((name, count),) = Counter(clip.id for clip in clips).most_common(1)
    if count > 1:
        raise DataError(f"dataset '{dataset}' lists '{name}' {count} times; list each once")


def _require_files(clips: Sequence[Clip], source: Path, recipe: MediaRecipe, look: str) -> None:
    """Refuse early what would be refused in the end: files that no decoder need be asked about."""
    faults: list[tuple[str, str]] = []
    for clip in clips:
        problems = (first_problem(source / place) for place in clip.places)
        if (problem := next(filter(None, problems), None)) is not None:
            faults.append((str(FileError(problem)), problem.what))
    _require_few(faults, len(clips), recipe, look)


def _require_sound_rows(manifest: Manifest, look: str) -> None:
    faults = [(f"{clip.path}: {clip.what}; {clip.mend}", clip.what) for clip in manifest.left_out]
    faults += [(f"{row.audio}: is silent", "is silent") for row in manifest.rows if row.is_silent]
    total = len(manifest.rows) + len(manifest.left_out)
    _require_few(faults, total, manifest.recipe, look)


def _require_few(
    faults: Sequence[tuple[str, str]], total: int, recipe: MediaRecipe, look: str
) -> None:
    if len(faults) <= TOLERATED * total:
        return
    kinds = Counter(what for _, what in faults).most_common(3)
    counted = ", ".join(f"{what}: {count}" for what, count in kinds)
    raise DataError(
        f"{len(faults)} of {total} {recipe.clips_are} cannot be used, more than {TOLERATED:.0%} "
        f"({counted}); the first: {faults[0][0]}; {look}, or add -d allow_missing=true to go on "
        "without them"
    )


@contextmanager
def _only_writer(dataset: str, cache: Path, recipe: MediaRecipe) -> Iterator[None]:
    """Hold the cache's folder for this process; refuse one that holds something else."""
    plan = {"schema": SCHEMA, "dataset": dataset, "recipe": asdict(recipe)}
    path = cache / "plan.json"
    with only_writer(cache):
        if not path.exists():
            with write_atomically(path) as temporary:
                temporary.write_text(json.dumps(plan, indent=1), encoding="utf-8")
        _require_same_plan(path, plan, recipe)
        yield


def _require_same_plan(path: Path, plan: Mapping[str, object], recipe: MediaRecipe) -> None:
    mend = "choose another folder with --cache, or remove it"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["schema"] != SCHEMA:
            raise DataError(f"{path.parent} is of another version of mmbench; {mend}")
        before = MediaRecipe(**stored["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged; {mend}") from error
    if stored != plan:
        raise DataError(
            f"{path.parent} holds {stored.get('dataset')} prepared with {before.said()}, not with "
            f"{recipe.said()}; {mend}"
        )


def _expected_bytes(
    done: Sequence[Shard], missing: Sequence[Job], source: Path, recipe: MediaRecipe, cache: Path
) -> int:
    """Return about how many bytes the whole cache will take, by decoding a few of the clips that
    are still to be written: none where all are.

    Raises :class:`DataError` when they do not fit on the disk.
    """
    kept = sum(sum(row.kept_bytes.values()) for shard in done for row in shard.rows)
    to_write = [
        clip for job in missing for clip in job.clips if size_of(source, (clip.video,)) >= 0
    ]
    rest = round(len(to_write) * _mean_bytes(to_write, source, recipe))
    free = shutil.disk_usage(cache).free
    if rest > free:
        smaller = "fewer or smaller frames (-d fps=..., -d short_side=...)"
        if recipe.is_of_stills:
            smaller = "smaller pictures (-d short_side=...)"
        raise DataError(
            f"{cache}: {_said_size(rest)} are to be written and {_said_size(free)} are free; free "
            f"some, or write elsewhere (--cache or MMBENCH_CACHE), or keep {smaller}"
        )
    return kept + rest


def _mean_bytes(clips: Sequence[Clip], source: Path, recipe: MediaRecipe) -> float:
    """Return what a clip takes in the cache on average, by a few spread over all; 0 where none of
    those that are tried can be decoded."""
    tried = STILLS_TRIED if recipe.is_of_stills else TRIED
    spread = clips[:: max(ONE_OF, len(clips) // tried)][:tried]
    sizes: list[int] = []
    for number, clip in enumerate((*spread, *clips[1:ONE_OF])):
        if sizes and number >= len(spread):
            break
        try:
            sizes.append(decode_clip(clip, source, recipe).kept_bytes)
        except FileError:
            continue
    return sum(sizes) / len(sizes) if sizes else 0.0


def _said_size(size: int) -> str:
    return f"about {size / 1e9:.1f} GB" if size >= 1e9 else f"about {size / 1e6:.1f} MB"


# -- after -----------------------------------------------------------------------------------------


def _manifest(
    dataset: str, recipe: MediaRecipe, shards: Sequence[Shard], lists: Mapping[str, bytes]
) -> Manifest:
    left_out: list[LeftOut] = [clip for shard in shards for clip in shard.left_out]
    return Manifest(
        dataset,
        recipe,
        tuple(row for shard in shards for row in shard.rows),
        tuple(left_out),
        tuple(shard.sha256 for shard in shards),
        {name: hashlib.sha256(content).hexdigest() for name, content in sorted(lists.items())},
    )


def _write_manifest(cache: Path, manifest: Manifest, lists: Mapping[str, bytes]) -> None:
    """Write the rows as CSV, for people too, and last of all what says that the cache is whole."""
    for name, content in lists.items():
        with write_atomically(cache / "lists" / name) as path:
            path.write_bytes(content)
    names = [field.name for field in fields(Row)]
    with (
        write_atomically(cache / "manifest.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in manifest.rows:
            writer.writerow([_cell(getattr(row, name)) for name in names])
    whole = {
        "schema": SCHEMA,
        "dataset": manifest.dataset,
        "recipe": asdict(manifest.recipe),
        "clips": len(manifest.rows),
        "left_out": [asdict(clip) for clip in manifest.left_out],
        "shards": manifest.shards,
        "lists": manifest.lists,
        "manifest_sha256": file_sha256(cache / "manifest.csv"),
    }
    with write_atomically(cache / "manifest.json") as path:
        path.write_text(json.dumps(whole, indent=1), encoding="utf-8")


def _cell(value: object) -> str:
    """Return a value as a cell: times in seconds with spaces between them, nothing for none."""
    if isinstance(value, tuple):
        return " ".join(repr(time) for time in value)
    return "" if value is None else str(value)


def _remove_surplus(cache: Path, all_jobs: Sequence[Job]) -> None:
    """Remove what this cache was once made of and is no more: shards past the last, of a longer
    list of clips, and parts that no clip has any longer."""
    endings = {"json", *all_jobs[0].parts}
    for path in sorted((cache / "shards").glob("[0-9]*.*")):
        if int(path.stem) >= len(all_jobs) or path.suffix[1:] not in endings:
            path.unlink()
