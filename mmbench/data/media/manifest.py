"""What is asked of a cache (clips and a recipe) and what is in one (a manifest)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from mmbench.hashing import digest

Part = Literal["frames", "sound", "flow"]
"""What of a clip is kept, each in files of its own."""

SCHEMA = 2
"""Of the cache; another is refused."""
TOLERATED = 0.01
"""Share of the clips that may be missing, damaged or silent unless the user allows more."""


@dataclass(frozen=True)
class Flow:
    """Places of the optical flow of a clip: two series of numbered grey pictures (see
    :mod:`mmbench.data.media.series`), number i being the motion from frame i to frame i + 1."""

    u: str
    """Motion to the right."""
    v: str
    """Motion downwards."""


@dataclass(frozen=True)
class Clip:
    """One sample as a dataset lists it, before its files are opened."""

    id: str
    """Unique within the dataset."""
    label: str
    group: str
    """Actor, speaker or video: what must not be divided between train and validation. Empty in a
    dataset without groups."""
    video: str
    """Path in the source folder, of a clip or a still picture, or with ``*`` for a number those of
    a series of pictures."""
    audio: str | None
    """The same path as ``video`` where the sound is in the same file; None for a clip without."""
    split: str | None = None
    """The set it is listed in, where the dataset has fixed ones."""
    start: float | None = None
    end: float | None = None
    """The part to use, in seconds; None for all."""
    flow: Flow | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """Return all that the clip is read from, each once."""
        flow = () if self.flow is None else (self.flow.u, self.flow.v)
        sound = () if self.audio is None else (self.audio,)
        return tuple(dict.fromkeys((self.video, *sound, *flow)))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return what is to be kept of it."""
        sound: tuple[Part, ...] = () if self.audio is None else ("sound",)
        flow: tuple[Part, ...] = () if self.flow is None else ("flow",)
        return ("frames", *sound, *flow)


@dataclass(frozen=True)
class MediaRecipe:
    """How clips are decoded and kept. Part of the cache; another recipe is another cache."""

    fps: float
    """Frames kept a second, the first at the start of the part: those shown at these times. 0 where
    every clip is one still picture, a frame at time 0."""
    short_side: int
    """Pixels that the shorter side of a frame has at most, and a third of those that the longer one
    has; the shape stays, none is enlarged."""
    seconds: float
    """The longest part kept; what follows is left out. 0 for still pictures."""
    rate: int | None = None
    """Hz of the kept sound; other sound is resampled. None for a dataset without sound."""
    series_fps: float | None = None
    """Frames a second of series of pictures, which have no times. None for a dataset without."""

    @property
    def is_of_stills(self) -> bool:
        return self.fps == 0

    @property
    def clips_are(self) -> str:
        """Return what a user calls the clips."""
        return "pictures" if self.is_of_stills else "clips"

    def said(self) -> str:
        """Return the recipe in words, for a user who is to compare two."""
        if self.is_of_stills:
            return f"short_side={self.short_side}"
        sound = "" if self.rate is None else f", sound at {self.rate} Hz"
        return f"fps={self.fps:g}, short_side={self.short_side}{sound}, at most {self.seconds:g} s"


@dataclass(frozen=True)
class Row:
    """A clip in the cache: what it is, where it lies, and what it was read from."""

    id: str
    label: str
    group: str
    split: str | None
    shard: int
    frame_offset: int
    """Byte in the shard's frames; from there ``(frames, height, width, 3)`` uint8 RGB."""
    frames: int
    height: int
    width: int
    times: tuple[float, ...]
    """Seconds of each frame in its file."""
    sample_offset: int
    """Sample in the shard's sound, int16."""
    samples: int
    """0 for a clip without sound."""
    is_silent: bool
    channels: int
    """Of the sound in the file; several were averaged. 0 for a clip without sound."""
    rate_in_file: int
    """Hz of the sound in the file; another than the recipe's was resampled. 0 without sound."""
    flow_offset: int
    """Byte in the shard's flow; from there ``(frames, height, width, 2)`` uint8, u and v of the
    motion that follows each frame kept."""
    flow_height: int
    flow_width: int
    """0 for a clip without flow."""
    video: str
    audio: str | None
    flow_u: str | None
    flow_v: str | None
    """Paths in the source folder, with ``*`` for the number in a series of pictures."""
    video_bytes: int
    audio_bytes: int
    flow_bytes: int
    """Of all files, u and v together; 0 for what the clip has not."""
    video_sha256: str
    audio_sha256: str | None
    flow_sha256: str | None
    """Of the files that were read, of series one after the other; None for what it has not."""

    @property
    def frame_bytes(self) -> int:
        return self.frames * self.height * self.width * 3

    @property
    def kept_bytes(self) -> dict[Part, int]:
        """Return the bytes that each part takes in the cache."""
        return {
            "frames": self.frame_bytes,
            "sound": 2 * self.samples,
            "flow": self.frames * self.flow_height * self.flow_width * 2,
        }


@dataclass(frozen=True)
class LeftOut:
    """A clip that could not be used, and why."""

    id: str
    label: str
    group: str
    split: str | None
    path: str
    """In the source folder."""
    what: str
    mend: str
    video_bytes: int
    audio_bytes: int
    flow_bytes: int
    """Of its files, -1 where they are missing: another size means that they were replaced."""


@dataclass(frozen=True)
class Shard:
    """Some neighbouring clips, decoded: the frames of all in one file, the sound in another, the
    flow in a third."""

    plan: str
    """Hash of the clips and the recipe."""
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    sha256: dict[Part, str]
    """Of each part that the dataset has."""


@dataclass(frozen=True)
class Manifest:
    """All that a cache holds. Rows are in the order of their ids."""

    dataset: str
    recipe: MediaRecipe
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    shards: tuple[dict[Part, str], ...]
    """SHA-256 of each part of each shard."""
    lists: dict[str, str]
    """SHA-256 of each list in the folder ``lists``."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that was kept, wherever the cache lies."""
        shards = [":".join(shard.values()) for shard in self.shards]
        return digest(repr(self.recipe), *shards, *map(repr, self.rows))


def shard_file(cache: Path, number: int, ending: str) -> Path:
    """Return a file of a shard: that of a :data:`Part`, or its record, ``json``."""
    return cache / "shards" / f"{number:05d}.{ending}"
