"""Small clips for tests of decoding: what is in them is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmbench.data.media.manifest import Clip, MediaRecipe
from mmbench.testing.corpora import write_video, write_wav

RECIPE = MediaRecipe(fps=4.0, short_side=24, rate=8000, seconds=3.0)
LEVEL = 20
"""Frame number n of a written picture is grey with the value n * LEVEL."""


def grey(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return frames that can be told by their level, ``(count, height, width, 3)`` uint8."""
    levels = (LEVEL * np.arange(count) % 256).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def noise(seconds: float, rate: int = 8000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-9000, 9000, round(seconds * rate), dtype=np.int16)


def write_clip(folder: Path, name: str, seconds: float = 1.0, seed: int = 0) -> Clip:
    """Write a FLV of 10 frames a second and a WAV as long, and return how they are listed."""
    write_video(folder / f"{name}.flv", grey(round(10 * seconds)), 10, None, 0)
    write_wav(folder / f"{name}.wav", noise(seconds, seed=seed), 8000)
    return Clip(name, "ab"[seed % 2], f"g{seed % 3}", f"{name}.flv", f"{name}.wav")


def write_clips(folder: Path, count: int) -> list[Clip]:
    return [write_clip(folder, f"clip{i:02d}", 1.0 + 0.1 * (i % 4), i) for i in range(count)]


def quiet(done: int, total: int, what: str) -> None:
    """Progress that nobody looks at."""
