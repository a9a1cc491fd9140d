"""What is asked of a cache (clips and a recipe) and what is in one (a manifest)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmbench.hashing import digest

SCHEMA = 1
"""Of the cache; another is refused."""
TOLERATED = 0.01
"""Share of the clips that may be missing, damaged or silent unless the user allows more."""


@dataclass(frozen=True)
class Clip:
    """One sample as a dataset lists it, before its files are opened."""

    id: str
    """Unique within the dataset."""
    label: str
    group: str
    """Actor, speaker or video: what must not be divided between train and validation."""
    video: str
    """Path in the source folder."""
    audio: str
    """The same path as ``video`` where the sound is in the same file."""
    split: str | None = None
    """The set it is listed in, where the dataset has fixed ones."""
    start: float | None = None
    end: float | None = None
    """The part to use, in seconds; None for all."""


@dataclass(frozen=True)
class MediaRecipe:
    """How clips are decoded and kept. Part of the cache; another recipe is another cache."""

    fps: float
    """Frames kept a second, the first at the start of the part: those shown at these times."""
    short_side: int
    """Pixels that the shorter side of a frame has at most; the shape stays, none is enlarged."""
    rate: int
    """Hz of the kept sound; other sound is resampled."""
    seconds: float
    """The longest part kept; what follows is left out."""

    def said(self) -> str:
        """Return the recipe in words, for a user who is to compare two."""
        return (
            f"fps={self.fps:g}, short_side={self.short_side}, sound at {self.rate} Hz, at most "
            f"{self.seconds:g} s"
        )


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
    is_silent: bool
    channels: int
    """Of the sound in the file; several were averaged."""
    rate_in_file: int
    """Hz of the sound in the file; another than the recipe's was resampled."""
    video: str
    audio: str
    """Paths in the source folder."""
    video_bytes: int
    audio_bytes: int
    video_sha256: str
    audio_sha256: str
    """Of the files that were read."""

    @property
    def frame_bytes(self) -> int:
        return self.frames * self.height * self.width * 3


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
    """Of its files, -1 where there is none: another size means that it was replaced."""


@dataclass(frozen=True)
class Shard:
    """Some neighbouring clips, decoded: the frames of all in one file, the sound in another."""

    plan: str
    """Hash of the clips and the recipe."""
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    frames_sha256: str
    sound_sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that a cache holds. Rows are in the order of their ids."""

    dataset: str
    recipe: MediaRecipe
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    shards: tuple[tuple[str, str], ...]
    """SHA-256 of the frames and of the sound of each shard."""
    lists: dict[str, str]
    """SHA-256 of each list in the folder ``lists``."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that was kept, wherever the cache lies."""
        shards = [f"{frames}:{sound}" for frames, sound in self.shards]
        return digest(repr(self.recipe), *shards, *map(repr, self.rows))


def shard_file(cache: Path, number: int, ending: str) -> Path:
    """Return a file of a shard: ``frames``, ``sound`` or ``json``."""
    return cache / "shards" / f"{number:05d}.{ending}"
