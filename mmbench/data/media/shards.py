"""Decoding a few neighbouring clips into one shard of the cache, in a process of its own.

A shard is the unit that is done or not done: its data files take their names before its record
does, which says that all are whole. What is in it depends on its clips and the recipe alone, so a
run that was killed and started again writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mmbench.data.files import CHUNK, FileError, write_atomically
from mmbench.data.media.clips import Decoded, decode_clip
from mmbench.data.media.manifest import (
    SCHEMA,
    Clip,
    LeftOut,
    MediaRecipe,
    Part,
    Row,
    Shard,
    shard_file,
)
from mmbench.data.media.series import size_of
from mmbench.data.problem import Problem
from mmbench.hashing import digest

CLIPS_PER_SHARD = 32
"""Few enough that a kill costs seconds and processes end together, many enough that a corpus of
20,000 clips has 600 shards."""
STILLS_PER_SHARD = 256
"""The same of still pictures, which take some milliseconds each: 90,000 have 350 shards."""
PARTS: tuple[Part, ...] = ("frames", "sound", "flow")


@dataclass(frozen=True)
class Job:
    """One shard to write."""

    number: int
    clips: tuple[Clip, ...]
    source: Path
    recipe: MediaRecipe
    cache: Path
    parts: tuple[Part, ...]
    """What some clip of the dataset has: the files that every shard has."""

    def plan(self) -> str:
        """Return what tells this job from another of the same number."""
        return digest(str(SCHEMA), repr(self.recipe), repr(self.parts), *map(repr, self.clips))


def jobs(clips: Sequence[Clip], source: Path, recipe: MediaRecipe, cache: Path) -> list[Job]:
    """Return the shards of a cache, in order."""
    some = {part for clip in clips for part in clip.parts}
    parts = tuple(part for part in PARTS if part in some)
    return [
        Job(number, some_clips, source, recipe, cache, parts)
        for number, some_clips in enumerate(portions(clips, recipe))
    ]


def portions(clips: Sequence[Clip], recipe: MediaRecipe) -> list[tuple[Clip, ...]]:
    """Return the clips of each shard, in order."""
    size = STILLS_PER_SHARD if recipe.is_of_stills else CLIPS_PER_SHARD
    return [tuple(clips[start : start + size]) for start in range(0, len(clips), size)]


def write_shard(job: Job) -> Shard:
    """Decode the clips of a job and write them; those that cannot be used are named and left out.

    Raises :class:`mmbench.errors.DataError` when the cache cannot be written.
    """
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    hashes = {part: hashlib.sha256() for part in job.parts}
    written = dict.fromkeys(PARTS, 0)
    with ExitStack() as stack:
        files = {
            part: stack.enter_context(
                stack.enter_context(write_atomically(shard_file(job.cache, job.number, part))).open(
                    "wb"
                )
            )
            for part in job.parts
        }
        for clip in job.clips:
            try:
                decoded = decode_clip(clip, job.source, job.recipe)
                row = _row(clip, decoded, job, written)
            except FileError as error:
                left_out.append(_left_out(clip, error.problem, job.source))
                continue
            for part, array in _arrays(decoded).items():
                content = np.ascontiguousarray(array).data.cast("B")
                files[part].write(content)
                hashes[part].update(content)
                written[part] += len(content)
            rows.append(row)
    sums = {part: hashes[part].hexdigest() for part in job.parts}
    shard = Shard(job.plan(), tuple(rows), tuple(left_out), sums)
    with write_atomically(shard_file(job.cache, job.number, "json")) as path:
        path.write_text(json.dumps(asdict(shard), indent=1), encoding="utf-8")
    return shard


def _arrays(decoded: Decoded) -> dict[Part, np.ndarray]:
    """Return what is to be written of a clip."""
    arrays: dict[Part, np.ndarray] = {"frames": decoded.frames}
    if decoded.sound is not None:
        arrays["sound"] = decoded.sound.samples.astype("<i2")
    if decoded.flow is not None:
        arrays["flow"] = decoded.flow
    return arrays


def finished(job: Job) -> Shard | None:
    """Return the shard of a job if it is there, whole, and its source files have the sizes that
    they had when it was written."""
    try:
        stored = json.loads(shard_file(job.cache, job.number, "json").read_text(encoding="utf-8"))
        rows = tuple(Row(**{**row, "times": tuple(row["times"])}) for row in stored.pop("rows"))
        left_out = tuple(LeftOut(**clip) for clip in stored.pop("left_out"))
        shard = Shard(rows=rows, left_out=left_out, **stored)
        sizes = [shard_file(job.cache, job.number, part).stat().st_size for part in job.parts]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    expected = [sum(row.kept_bytes[part] for row in rows) for part in job.parts]
    if shard.plan != job.plan() or sizes != expected:
        return None
    kept: list[Row | LeftOut] = [*rows, *left_out]
    before = {clip.id: (clip.video_bytes, clip.audio_bytes, clip.flow_bytes) for clip in kept}
    now = {clip.id: _sizes(clip, job.source) for clip in job.clips}
    return shard if before == now else None


def _row(clip: Clip, decoded: Decoded, job: Job, written: Mapping[Part, int]) -> Row:
    video_bytes, audio_bytes, flow_bytes = _sizes(clip, job.source)
    video_sha = _sha256(decoded.video_files)
    if clip.audio is None or clip.audio == clip.video:
        audio_sha = None if clip.audio is None else video_sha
    else:
        audio_sha = _sha256((job.source / clip.audio,))
    count, height, width, _ = decoded.frames.shape
    sound, flow = decoded.sound, decoded.flow
    return Row(
        id=clip.id,
        label=clip.label,
        group=clip.group,
        split=clip.split,
        shard=job.number,
        frame_offset=written["frames"],
        frames=count,
        height=height,
        width=width,
        times=decoded.times,
        sample_offset=written["sound"] // 2,
        samples=0 if sound is None else len(sound.samples),
        is_silent=sound is not None and sound.is_silent,
        channels=0 if sound is None else sound.channels,
        rate_in_file=0 if sound is None else sound.rate_in_file,
        flow_offset=written["flow"],
        flow_height=0 if flow is None else flow.shape[1],
        flow_width=0 if flow is None else flow.shape[2],
        video=clip.video,
        audio=clip.audio,
        flow_u=None if clip.flow is None else clip.flow.u,
        flow_v=None if clip.flow is None else clip.flow.v,
        video_bytes=video_bytes,
        audio_bytes=audio_bytes,
        flow_bytes=flow_bytes,
        video_sha256=video_sha,
        audio_sha256=audio_sha,
        flow_sha256=None if flow is None else _sha256(decoded.flow_files),
    )


def _left_out(clip: Clip, problem: Problem, source: Path) -> LeftOut:
    path = Path(problem.path)
    place = path.relative_to(source).as_posix() if path.is_relative_to(source) else problem.path
    return LeftOut(
        clip.id,
        clip.label,
        clip.group,
        clip.split,
        place,
        problem.what,
        problem.mend,
        *_sizes(clip, source),
    )


def _sizes(clip: Clip, source: Path) -> tuple[int, int, int]:
    """Return the bytes of picture, sound and flow: 0 for what the clip has not, -1 where files are
    missing."""
    sound = () if clip.audio is None else (clip.audio,)
    flow = () if clip.flow is None else (clip.flow.u, clip.flow.v)
    return size_of(source, (clip.video,)), size_of(source, sound), size_of(source, flow)


def _sha256(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of files, one after the other, 64 hex digits."""
    sha = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                sha.update(chunk)
    return sha.hexdigest()
