"""Generated pickles in the form of MulT's and of MMSA's files of CMU-MOSI and CMU-MOSEI.

Every sentence has a score, a multiple of 1/3 between -3 and 3. With probability ``strength`` a
modality's steps point along the direction of the score's sign (negative, neutral, positive),
otherwise along one drawn from the three, under noise; so no classifier of that modality alone can
expect more of the three signs than ``strength + (1 - strength) / 3`` does of evenly spread ones. A
pickle depends on its arguments alone.

    mult_pickle(folder / "mosei_senti_data.pkl", Made(rows=(300, 60, 60)))
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmbench.seeds import numpy_stream

SETS = ("train", "valid", "test")
MODALITIES = ("text", "audio", "vision")
SENTENCES_PER_VIDEO = 4
MULT_MOSEI = {"text": (50, 300), "audio": (500, 74), "vision": (500, 35)}
MULT_MOSI = {"text": (50, 300), "audio": (375, 5), "vision": (500, 20)}
"""Steps and widths of the files that are not aligned; those aligned have 50 steps of each."""
FULL = {"text": 0.9, "audio": 0.6, "vision": 0.5}
Sentences = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """What to generate."""

    rows: tuple[int, int, int] = (48, 16, 16)
    """Of train, valid and test."""
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=lambda: MULT_MOSEI)
    """Steps and width by modality."""
    strength: Mapping[str, float] = field(default_factory=lambda: FULL)
    """By modality, from 0 to 1."""
    infinite: int = 0
    """Values of the training sound that are -inf."""
    shared_videos: int = 0
    """Videos of test that are in train too."""
    seed: int = 0


def mult_pickle(path: Path, made: Made, *, ids: str = "words", protocol: int = 4) -> None:
    """Write a pickle as MulT has it: float64, padding before the first step, labels ``(N, 1, 1)``.

    ``ids`` are ``words``, arrays ``[video, start, end]`` as in CMU-MOSEI's; ``bytes``, the same as
    bytes, as in CMU-MOSI's; or ``none``.
    """
    held: dict[str, Sentences] = {}
    for name, sentences in _generated(made).items():
        start = sentences["clip"] * 7.5
        entries = np.array(
            [[v, f"{s}", f"{s + 6.25}"] for v, s in zip(sentences["video"], start, strict=True)]
        )
        held[name] = {m: _padded(sentences, m, made, at_start=True) for m in MODALITIES}
        held[name]["labels"] = sentences["score"].reshape(-1, 1, 1)
        if ids != "none":
            held[name]["id"] = entries.astype("S") if ids == "bytes" else entries
    _write(path, held, protocol)


def mmsa_pickle(path: Path, made: Made, *, protocol: int = 4) -> None:
    """Write a pickle as MMSA has it: float32, padding after the last step, and all its fields."""
    held: dict[str, Sentences] = {}
    words = ("Negative", "Neutral", "Positive")
    for name, sentences in _generated(made).items():
        ids = [f"{v}$_${c}" for v, c in zip(sentences["video"], sentences["clip"], strict=True)]
        signs = np.sign(sentences["score"]).astype(int) + 1
        steps = made.shapes["text"][0]
        mask = np.arange(steps) < sentences["length"]["text"][:, None]
        held[name] = {m: _padded(sentences, m, made, at_start=False) for m in MODALITIES}
        held[name] |= {
            "raw_text": np.array(["words and words"] * len(ids)),
            "text_bert": np.stack([mask * 2000, mask, 0 * mask], axis=1).astype(np.float32),
            "id": ids,
            "audio_lengths": sentences["length"]["audio"].tolist(),
            "vision_lengths": sentences["length"]["vision"].tolist(),
            "annotations": [words[sign] for sign in signs],
            "classification_labels": signs.astype(np.float64),
            "regression_labels": sentences["score"],
        }
        for m in MODALITIES:
            held[name][m] = held[name][m].astype(np.float32)
    _write(path, held, protocol)


def _generated(made: Made) -> dict[str, Sentences]:
    """Return video, clip, score, lengths and shown signs of the sentences of each set."""
    found: dict[str, Sentences] = {}
    for name, rows in zip(SETS, made.rows, strict=True):
        rng = numpy_stream(made.seed, "sentiment", name)
        sign = rng.permutation(np.arange(rows) % 3)
        size = rng.integers(1, 10, size=rows) / 3
        number = np.arange(rows) // SENTENCES_PER_VIDEO
        is_shared = (name == "test") & (number < made.shared_videos)
        found[name] = {
            "name": name,
            "video": [
                f"{'train' if shared else name}_vid{n:02d}"[-11:].rjust(11, "-")
                for n, shared in zip(number, is_shared, strict=True)
            ],
            # Of a shared video, other sentences than those of train.
            "clip": np.arange(rows) % SENTENCES_PER_VIDEO + SENTENCES_PER_VIDEO * is_shared,
            "score": (sign - 1) * size,
            "length": {
                m: rng.integers(max(1, steps // 3), steps + 1, size=rows)
                for m, (steps, _) in made.shapes.items()
            },
            "shown": {
                m: np.where(rng.random(rows) < s, sign, rng.integers(0, 3, size=rows))
                for m, s in made.strength.items()
            },
        }
    return found


def _padded(sentences: Sentences, m: str, made: Made, *, at_start: bool) -> np.ndarray:
    """Return a modality's features ``(N, T, D)`` float64, zero where a sentence has no step."""
    steps, width = made.shapes[m]
    directions = numpy_stream(made.seed, "sentiment", m).standard_normal((3, width))
    shown, length = sentences["shown"][m], sentences["length"][m]
    rng = numpy_stream(made.seed, "sentiment", sentences["name"], m)
    values: np.ndarray = 0.5 * rng.standard_normal((len(shown), steps, width))
    values += directions[shown][:, None]
    place = np.arange(steps)
    is_step = place >= (steps - length)[:, None] if at_start else place < length[:, None]
    values[~is_step] = 0
    if m == "audio" and sentences["name"] == "train" and made.infinite:
        row, step, _ = (axis[: made.infinite] for axis in np.nonzero(values))
        values[row, step, np.arange(made.infinite) % width] = -np.inf
    return values


def _write(path: Path, held: dict[str, Sentences], protocol: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(held, protocol))
