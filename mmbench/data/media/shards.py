"""Decoding a few neighbouring clips into one shard of the cache, in a process of its own.

A shard is the unit that is done or not done: its two data files take their names before its record
does, which says that both are whole. What is in it depends on its clips and the recipe alone, so a
run that was killed and started again writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from mmbench.data.files import FileError, file_sha256, write_atomically
from mmbench.data.media.decode import Sound, audio, grid, nearest, pictures
from mmbench.data.media.manifest import SCHEMA, Clip, LeftOut, MediaRecipe, Row, Shard, shard_file
from mmbench.data.problem import Problem
from mmbench.hashing import digest

CLIPS_PER_SHARD = 32
"""Few enough that a kill costs seconds and processes end together, many enough that a corpus of
20,000 clips has 600 shards, which one process can hold open."""
UNEQUAL = 2.0
"""Picture and sound in files of their own belong together when neither is this much longer."""


@dataclass(frozen=True)
class Job:
    """One shard to write."""

    number: int
    clips: tuple[Clip, ...]
    source: Path
    recipe: MediaRecipe
    cache: Path

    def plan(self) -> str:
        """Return what tells this job from another of the same number."""
        return digest(str(SCHEMA), repr(self.recipe), *map(repr, self.clips))


@dataclass(frozen=True)
class Decoded:
    """One clip: frames ``(T, H, W, 3)`` uint8 shown at ``times``, and sound."""

    frames: np.ndarray
    times: tuple[float, ...]
    sound: Sound


def jobs(clips: Sequence[Clip], source: Path, recipe: MediaRecipe, cache: Path) -> list[Job]:
    """Return the shards of a cache, in order."""
    starts = range(0, len(clips), CLIPS_PER_SHARD)
    return [
        Job(number, tuple(clips[start : start + CLIPS_PER_SHARD]), source, recipe, cache)
        for number, start in enumerate(starts)
    ]


def write_shard(job: Job) -> Shard:
    """Decode the clips of a job and write them; those that cannot be used are named and left out.

    Raises :class:`mmbench.errors.DataError` when the cache cannot be written.
    """
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    hashes = {ending: hashlib.sha256() for ending in ("frames", "sound")}
    written = dict.fromkeys(hashes, 0)
    with ExitStack() as stack:
        files = {
            ending: stack.enter_context(
                stack.enter_context(
                    write_atomically(shard_file(job.cache, job.number, ending))
                ).open("wb")
            )
            for ending in hashes
        }
        for clip in job.clips:
            try:
                decoded = decode_clip(clip, job.source, job.recipe)
                row = _row(clip, decoded, job, written["frames"], written["sound"] // 2)
            except FileError as error:
                left_out.append(_left_out(clip, error.problem, job.source))
                continue
            parts = {"frames": decoded.frames, "sound": decoded.sound.samples.astype("<i2")}
            for ending, part in parts.items():
                content = np.ascontiguousarray(part).data.cast("B")
                files[ending].write(content)
                hashes[ending].update(content)
                written[ending] += len(content)
            rows.append(row)
    sums = [hashes[ending].hexdigest() for ending in ("frames", "sound")]
    shard = Shard(job.plan(), tuple(rows), tuple(left_out), *sums)
    with write_atomically(shard_file(job.cache, job.number, "json")) as path:
        path.write_text(json.dumps(asdict(shard), indent=1), encoding="utf-8")
    return shard


def finished(job: Job) -> Shard | None:
    """Return the shard of a job if it is there, whole, and its source files have the sizes that
    they had when it was written."""
    try:
        stored = json.loads(shard_file(job.cache, job.number, "json").read_text(encoding="utf-8"))
        rows = tuple(Row(**{**row, "times": tuple(row["times"])}) for row in stored.pop("rows"))
        left_out = tuple(LeftOut(**clip) for clip in stored.pop("left_out"))
        shard = Shard(rows=rows, left_out=left_out, **stored)
        sizes = [
            shard_file(job.cache, job.number, ending).stat().st_size
            for ending in ("frames", "sound")
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    expected = [sum(row.frame_bytes for row in rows), 2 * sum(row.samples for row in rows)]
    if shard.plan != job.plan() or sizes != expected:
        return None
    parts: list[Row | LeftOut] = [*rows, *left_out]
    before = {part.id: (part.video_bytes, part.audio_bytes) for part in parts}
    now = {clip.id: _sizes(clip, job.source) for clip in job.clips}
    return shard if before == now else None


def decode_clip(clip: Clip, source: Path, recipe: MediaRecipe) -> Decoded:
    """Return what is kept of a clip. Raises :class:`FileError` when it cannot be used."""
    start = clip.start or 0.0
    end = min(start + recipe.seconds, clip.end if clip.end is not None else np.inf)
    video = source / clip.video
    whole = audio(source / clip.audio, recipe.rate)
    first, last = (round(min(time, whole.seconds) * recipe.rate) for time in (start, end))
    samples = whole.samples[first:last]
    part = f"from {start:g} to {end:g} s"
    if len(samples) == 0:
        raise _fault(source / clip.audio, f"has no sound {part}: it lasts {whole.seconds:.2f} s")
    frames: list[np.ndarray] = []
    times: list[float] = []
    reformatter = VideoReformatter()
    size: tuple[int, int] | None = None
    for time, frame in nearest(pictures(video), grid(recipe.fps, start, end)):
        size = size or _fitted(frame.width, frame.height, recipe.short_side)
        kept = reformatter.reformat(
            frame, *size, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        frames.append(kept.to_ndarray())
        times.append(round(time, 6))
    if not frames:
        raise _fault(video, f"has no frame {part}")
    if clip.video != clip.audio:
        _require_equal(video, len(frames) / recipe.fps, len(samples) / recipe.rate, recipe)
    sound = Sound(samples, whole.rate, whole.channels, whole.rate_in_file)
    return Decoded(np.stack(frames), tuple(times), sound)


def clip_problems(clip: Clip, source: Path, recipe: MediaRecipe) -> list[Problem]:
    """Return all that is wrong with a clip's files, silence included; both are read to the end."""
    problems: list[Problem] = []
    heard = seen = 0.0
    try:
        sound = audio(source / clip.audio, recipe.rate)
        heard = sound.seconds
        if sound.is_silent:
            problems.append(Problem(str(source / clip.audio), "is silent", "download it again"))
    except FileError as error:
        problems.append(error.problem)
    try:
        for time, _ in pictures(source / clip.video):
            seen = time
    except FileError as error:
        if error.problem not in problems:
            problems.append(error.problem)
    if problems:
        return problems
    try:
        if clip.video != clip.audio:
            shown = (int(min(seen, recipe.seconds) * recipe.fps) + 1) / recipe.fps
            _require_equal(source / clip.video, shown, min(heard, recipe.seconds), recipe)
        for path, length in ((clip.video, seen), (clip.audio, heard)):
            if length < (clip.start or 0.0):
                raise _fault(source / path, f"ends at {length:.2f} s, before {clip.start:g} s")
    except FileError as error:
        problems.append(error.problem)
    return problems


def _require_equal(video: Path, seen: float, heard: float, recipe: MediaRecipe) -> None:
    """Refuse a picture that cannot belong to its sound: one of them is cut or is of another clip.
    ``seen`` is rounded up to the next frame of the grid."""
    if seen < heard / UNEQUAL or seen - 1 / recipe.fps > heard * UNEQUAL:
        raise _fault(video, f"has {seen:.1f} s of picture beside {heard:.1f} s of sound")


def _fitted(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return width and height with the shorter side at most ``short_side``."""
    scale = min(1.0, short_side / min(width, height))
    return round(width * scale), round(height * scale)


def _row(clip: Clip, decoded: Decoded, job: Job, frame_offset: int, sample_offset: int) -> Row:
    video_bytes, audio_bytes = _sizes(clip, job.source)
    video_sha = file_sha256(job.source / clip.video)
    is_one_file = clip.video == clip.audio
    count, height, width, _ = decoded.frames.shape
    return Row(
        id=clip.id,
        label=clip.label,
        group=clip.group,
        split=clip.split,
        shard=job.number,
        frame_offset=frame_offset,
        frames=count,
        height=height,
        width=width,
        times=decoded.times,
        sample_offset=sample_offset,
        samples=len(decoded.sound.samples),
        is_silent=decoded.sound.is_silent,
        channels=decoded.sound.channels,
        rate_in_file=decoded.sound.rate_in_file,
        video=clip.video,
        audio=clip.audio,
        video_bytes=video_bytes,
        audio_bytes=audio_bytes,
        video_sha256=video_sha,
        audio_sha256=video_sha if is_one_file else file_sha256(job.source / clip.audio),
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


def _sizes(clip: Clip, source: Path) -> tuple[int, int]:
    """Return the bytes of picture and sound, -1 where there is no file."""
    video, sound = (
        path.stat().st_size if path.is_file() else -1
        for path in (source / clip.video, source / clip.audio)
    )
    return video, sound


def _fault(path: Path, what: str) -> FileError:
    return FileError(Problem(str(path), what, "download it again"))
