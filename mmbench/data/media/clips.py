"""One clip: what is kept of it, and all that is wrong with its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from mmbench.data.files import FileError
from mmbench.data.media.decode import Sound, audio, grid, nearest, pictures
from mmbench.data.media.manifest import Clip, Flow, MediaRecipe
from mmbench.data.media.series import files_of, fitted, flow_files, is_series, picture
from mmbench.data.problem import Problem
from mmbench.errors import DataError

UNEQUAL = 2.0
"""Picture and sound in files of their own belong together when neither is this much longer."""


@dataclass(frozen=True)
class Decoded:
    """One clip: frames ``(T, H, W, 3)`` uint8 shown at ``times``, its sound, and the optical flow
    ``(T, H, W, 2)`` uint8 after each frame; None for what it has not."""

    frames: np.ndarray
    times: tuple[float, ...]
    sound: Sound | None
    flow: np.ndarray | None
    video_files: tuple[Path, ...]
    flow_files: tuple[Path, ...]
    """Those that were read."""

    @property
    def kept_bytes(self) -> int:
        sound = 0 if self.sound is None else self.sound.samples.nbytes
        return self.frames.nbytes + sound + (0 if self.flow is None else self.flow.nbytes)


@dataclass(frozen=True)
class _Frame:
    """A frame of a clip: its number, from 0, and the picture or the file that holds it."""

    number: int
    content: VideoFrame | Path


@dataclass
class _Picture:
    """The frames of a clip, once through, and when those were shown that went by."""

    video: Path
    recipe: MediaRecipe
    shown: list[float] = field(default_factory=list)
    """Seconds."""

    def at(self, times: Iterator[float]) -> Iterator[tuple[float, _Frame]]:
        """Yield the frames at these times; read to the end."""
        return nearest(self._passing(), times)

    def _passing(self) -> Iterator[tuple[float, _Frame]]:
        for number, (time, content) in enumerate(_contents(self.video, self.recipe)):
            self.shown.append(time)
            yield time, _Frame(number, content)


def _contents(video: Path, recipe: MediaRecipe) -> Iterator[tuple[float, VideoFrame | Path]]:
    if recipe.is_of_stills:
        yield 0.0, video
        return
    if not is_series(str(video)):
        yield from pictures(video)
        return
    if recipe.series_fps is None:
        raise DataError(f"{video}: a series of pictures needs a recipe with `series_fps`")
    for number, path in enumerate(files_of(video)):
        yield number / recipe.series_fps, path


def decode_clip(clip: Clip, source: Path, recipe: MediaRecipe) -> Decoded:
    """Return what is kept of a clip. Raises :class:`FileError` when it cannot be used."""
    start, end = _part(clip, recipe)
    sound = None if clip.audio is None else _heard(source / clip.audio, start, end, recipe)
    whole = _Picture(source / clip.video, recipe)
    reader = _Reader(recipe.short_side)
    frames: list[np.ndarray] = []
    times: list[float] = []
    numbers: list[int] = []
    for time, frame in whole.at(_times(clip, recipe)):
        frames.append(reader.read(frame.content))
        times.append(round(time, 6))
        numbers.append(frame.number)
    if not frames:
        raise _fault(whole.video, f"has no frame from {start:g} to {end:g} s")
    if sound is not None and clip.video != clip.audio:
        _require_equal(whole.video, len(frames) / recipe.fps, sound.seconds, recipe)
    pairs = _pairs(clip.flow, source, numbers, len(whole.shown))
    return Decoded(
        np.stack(frames),
        tuple(times),
        sound,
        np.stack([reader.flow(pair) for pair in pairs]) if pairs else None,
        tuple(reader.files) if reader.files else (whole.video,),
        tuple(path for pair in pairs for path in pair),
    )


def clip_problems(clip: Clip, source: Path, recipe: MediaRecipe) -> list[Problem]:
    """Return all that is wrong with a clip's files, silence included.

    Sound and picture are read to the end; of series of pictures, those that would be kept.
    """
    problems: list[Problem] = []
    heard = seen = 0.0
    if clip.audio is not None:
        try:
            sound = audio(source / clip.audio, recipe.rate)
            heard = sound.seconds
            if sound.is_silent:
                problems.append(Problem(str(source / clip.audio), "is silent", "download it again"))
        except FileError as error:
            problems.append(error.problem)
    try:
        seen = _look(clip, source, recipe, problems)
    except FileError as error:
        if error.problem not in problems:
            problems.append(error.problem)
    if problems:
        return problems
    lengths = {clip.video: seen} if clip.audio is None else {clip.video: seen, clip.audio: heard}
    try:
        if clip.audio not in (None, clip.video):
            shown = (int(min(seen, recipe.seconds) * recipe.fps) + 1) / recipe.fps
            _require_equal(source / clip.video, shown, min(heard, recipe.seconds), recipe)
        for path, length in lengths.items():
            if length < (clip.start or 0.0):
                raise _fault(source / path, f"ends at {length:.2f} s, before {clip.start:g} s")
    except FileError as error:
        problems.append(error.problem)
    return problems


def _look(clip: Clip, source: Path, recipe: MediaRecipe, problems: list[Problem]) -> float:
    """Return when the last frame is shown, adding to ``problems`` what single pictures have.

    Raises :class:`FileError` when the picture or the flow cannot be read as a whole.
    """
    whole = _Picture(source / clip.video, recipe)
    reader = _Reader(recipe.short_side)
    numbers: list[int] = []
    for _, frame in whole.at(_times(clip, recipe)):
        numbers.append(frame.number)
        if isinstance(frame.content, Path):
            try:
                reader.read(frame.content)
            except FileError as error:
                problems.append(error.problem)
    for pair in dict.fromkeys(_pairs(clip.flow, source, numbers, len(whole.shown))):
        try:
            reader.flow(pair)
        except FileError as error:
            problems.append(error.problem)
    return whole.shown[-1]


def _part(clip: Clip, recipe: MediaRecipe) -> tuple[float, float]:
    """Return from when to when a clip is used, in seconds."""
    start = clip.start or 0.0
    return start, min(start + recipe.seconds, np.inf if clip.end is None else clip.end)


def _times(clip: Clip, recipe: MediaRecipe) -> Iterator[float]:
    """Return the times in seconds whose frames are kept."""
    return iter([0.0]) if recipe.is_of_stills else grid(recipe.fps, *_part(clip, recipe))


def _heard(path: Path, start: float, end: float, recipe: MediaRecipe) -> Sound:
    whole = audio(path, recipe.rate)
    first, last = (round(min(time, whole.seconds) * whole.rate) for time in (start, end))
    samples = whole.samples[first:last]
    if len(samples) == 0:
        lasting = f"it lasts {whole.seconds:.2f} s"
        raise _fault(path, f"has no sound from {start:g} to {end:g} s: {lasting}")
    return Sound(samples, whole.rate, whole.channels, whole.rate_in_file)


class _Reader:
    """Makes arrays of the frames of one clip, and of its flow, all of the size of the first."""

    def __init__(self, short_side: int) -> None:
        self.short_side = short_side
        self.reformatter = VideoReformatter()
        self.size: tuple[int, int] | None = None
        self.flow_size: tuple[int, int] | None = None
        """Width and height in pixels."""
        self.files: list[Path] = []
        """Frames of a series that were read."""

    def read(self, content: VideoFrame | Path) -> np.ndarray:
        """Return a frame as ``(H, W, 3)`` uint8."""
        if isinstance(content, Path):
            self.files.append(content)
            kept = picture(content, "RGB", self.short_side)
            self.size = self.size or _size(kept)
            return _require_size(content, kept, self.size)
        self.size = self.size or fitted(content.width, content.height, self.short_side)
        frame = self.reformatter.reformat(
            content, *self.size, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        pixels: np.ndarray = frame.to_ndarray()
        return pixels

    def flow(self, pair: tuple[Path, Path]) -> np.ndarray:
        """Return u and v as ``(H, W, 2)`` uint8."""
        parts = []
        for path in pair:
            kept = picture(path, "L", self.short_side)
            self.flow_size = self.flow_size or _size(kept)
            parts.append(_require_size(path, kept, self.flow_size))
        return np.stack(parts, axis=-1)


def _pairs(
    flow: Flow | None, source: Path, numbers: list[int], frames: int
) -> list[tuple[Path, Path]]:
    """Return the files of the motion after each of the frames with these numbers, of so many; after
    the last frame there is none, and the motion before it stands for it."""
    if flow is None:
        return []
    files = flow_files(source / flow.u, source / flow.v, frames)
    return [files[min(number, len(files) - 1)] for number in numbers]


def _size(kept: np.ndarray) -> tuple[int, int]:
    return kept.shape[1], kept.shape[0]


def _require_size(path: Path, kept: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if (found := _size(kept)) != size:
        what = f"is of {found[0]} by {found[1]} pixels, not {size[0]} by {size[1]} as the first"
        raise _fault(path, what)
    return kept


def _require_equal(video: Path, seen: float, heard: float, recipe: MediaRecipe) -> None:
    """Refuse a picture that cannot belong to its sound: one of them is cut or is of another clip.
    ``seen`` is rounded up to the next frame of the grid."""
    if seen < heard / UNEQUAL or seen - 1 / recipe.fps > heard * UNEQUAL:
        raise _fault(video, f"has {seen:.1f} s of picture beside {heard:.1f} s of sound")


def _fault(path: Path, what: str) -> FileError:
    return FileError(Problem(str(path), what, "download it again"))
