"""What is asked of a cache of pictures (items) and what is in one (a manifest)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmbench.hashing import digest

SCHEMA = 1
"""Of the cache; another is refused."""


@dataclass(frozen=True)
class Item:
    """One sample as a dataset lists it, before its picture is opened."""

    id: str
    """Unique within the dataset."""
    label: str
    split: str
    """The set it is listed in."""
    path: str
    """Of the picture, in the source folder."""
    text: str
    """What is written of the picture; may be empty."""


@dataclass(frozen=True)
class Row:
    """A picture in the cache: what it is, where it lies, and what it was read from."""

    id: str
    label: str
    split: str
    path: str
    text: str
    shard: int
    offset: int
    """Byte in the shard's pixels; from there ``(height, width, 3)`` uint8 RGB."""
    height: int
    width: int
    mode: str
    """Of the pixels in the file, such as RGB, L (grey) or CMYK; all but RGB were converted."""
    bytes: int
    sha256: str
    """Of the file that was read."""

    @property
    def pixel_bytes(self) -> int:
        return self.height * self.width * 3


@dataclass(frozen=True)
class LeftOut:
    """A picture that could not be used, and why."""

    id: str
    label: str
    split: str
    path: str
    what: str
    mend: str
    bytes: int
    """Of its file, -1 where there is none: another size means that it was replaced."""


@dataclass(frozen=True)
class Shard:
    """Some neighbouring pictures, decoded into one file."""

    plan: str
    """Hash of the items and how they are kept."""
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    sha256: str
    """Of the file."""


@dataclass(frozen=True)
class Manifest:
    """All that a cache holds. Rows are in the order of their ids."""

    dataset: str
    short_side: int
    """Pixels that the shorter side of a picture has at most."""
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    shards: tuple[str, ...]
    """SHA-256 of each shard's pixels."""
    notes: tuple[str, ...]
    """What is to be said of the lists that the items came from."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that was kept, wherever the cache lies."""
        return digest(str(self.short_side), *self.shards, *map(repr, self.rows))


def shard_file(cache: Path, number: int, ending: str) -> Path:
    """Return a file of a shard: ``pixels`` or ``json``."""
    return cache / "shards" / f"{number:05d}.{ending}"
