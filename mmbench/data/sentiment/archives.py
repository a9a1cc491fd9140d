"""The pickles in which CMU-MOSI and CMU-MOSEI are handed around: MulT's and MMSA's.

Both hold ``train``, ``valid`` and ``test``, and in each of these ``text``, ``audio`` and ``vision``
``(N, T, D)``. In MulT's, scores are ``labels (N, 1, 1)`` and an ``id`` is ``[video, start, end]``,
in CMU-MOSI's as bytes. In MMSA's, scores are ``regression_labels (N,)`` and an ``id`` is
``video$_$clip``. Lengths T and widths D are read from the arrays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmbench.data.files import FileError
from mmbench.data.pickles import load_pickle
from mmbench.data.problem import Problem

Form = Literal["MulT", "MMSA"]
MODALITIES = ("text", "audio", "vision")
SETS = {"train": "train", "valid": "val", "test": "test"}
"""The name of each set in a pickle, and the split it becomes."""
SCORES: dict[str, Form] = {"labels": "MulT", "regression_labels": "MMSA"}
"""The key of the scores tells whose pickle it is."""
YOUTUBE_LETTERS = 11
"""Length of a YouTube id, which may itself hold ``_`` and digits at its end."""


@dataclass(frozen=True)
class Part:
    """One set of a pickle."""

    features: dict[str, np.ndarray]
    """By modality, ``(N, T, D)`` as stored."""
    scores: np.ndarray
    """``(N,)`` float32, from -3 (negative) to 3 (positive)."""
    ids: tuple[str, ...]
    """Unique within the pickle."""
    videos: tuple[str, ...] | None
    """The video that each sentence is of; None where the pickle names none."""

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Archive:
    """All that is used of a pickle."""

    path: Path
    form: Form
    parts: dict[str, Part]
    """By split: train, val, test."""
    repeated_ids: int
    """Sentences whose id another one before them has; they are told apart by ``#2`` and so on."""

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Steps T and width D of each modality."""
        found = self.parts["train"].features
        return {m: (values.shape[1], values.shape[2]) for m, values in found.items()}

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of train, val and test."""
        return tuple(len(self.parts[split]) for split in SETS.values())


def read_archive(path: Path) -> Archive:
    """Return what a pickle holds.

    Raises :class:`FileError` that names what is missing or of another form than above.
    """
    held = load_pickle(path)
    if not isinstance(held, dict) or not all(isinstance(held.get(name), dict) for name in SETS):
        has = ", ".join(map(str, held)) if isinstance(held, dict) else f"a {type(held).__name__}"
        raise _fault(path, f"does not hold the sets {', '.join(SETS)}; it holds {has[:80]}")
    forms = {_form(path, name, held[name]) for name in SETS}
    if len(forms) > 1:
        raise _fault(path, "mixes sets of MulT's and of MMSA's form")
    (form,) = forms
    parts: dict[str, Part] = {}
    seen: Counter[str] = Counter()
    for name, split in SETS.items():
        parts[split] = _part(path, name, held[name], form, seen)
    for m in MODALITIES:
        shapes = {parts[split].features[m].shape[1:] for split in parts}
        if len(shapes) > 1:
            raise _fault(path, f"{m} has other lengths or widths in each set: {sorted(shapes)}")
    repeated = sum(seen.values()) - len(seen)
    return Archive(path, form, parts, repeated)


def _form(path: Path, name: str, held: Mapping[str, Any]) -> Form:
    for key in ("regression_labels", "labels"):
        if key in held:
            return SCORES[key]
    has = ", ".join(map(str, held))[:80]
    raise _fault(path, f"set '{name}' has neither labels nor regression_labels; it has {has}")


def _part(path: Path, name: str, held: Mapping[str, Any], form: Form, seen: Counter[str]) -> Part:
    key = next(key for key, of_form in SCORES.items() if of_form == form)
    scores = _scores(path, f"{name}/{key}", held[key])
    features = {m: _features(path, f"{name}/{m}", held.get(m), len(scores)) for m in MODALITIES}
    named = _named(path, f"{name}/id", held["id"], len(scores)) if "id" in held else None
    if named is None:
        ids = [f"{name}-{row:05d}" for row in range(len(scores))]
        seen.update(ids)
        return Part(features, scores, tuple(ids), None)
    ids = []
    for row_id, _ in named:
        seen[row_id] += 1
        ids.append(row_id if seen[row_id] == 1 else f"{row_id}#{seen[row_id]}")
    return Part(features, scores, tuple(ids), tuple(video for _, video in named))


def _scores(path: Path, where: str, held: Any) -> np.ndarray:
    """Return scores ``(N,)`` float32, as MulT and MMSA convert them."""
    try:
        values = np.asarray(held, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise _fault(path, f"{where} is not an array of numbers") from error
    if values.ndim == 0 or len(values) == 0:
        raise _fault(path, f"{where} is empty")
    values = values.reshape(len(values), -1)
    if values.shape[1] != 1:
        what = f"{where} has {values.shape[1]} numbers a row, not one score"
        raise _fault(path, what, "get the file of sentiment, not of emotions")
    bad = np.flatnonzero(~np.isfinite(values[:, 0]))
    if len(bad):
        raise _fault(path, f"{where}, row {bad[0]} (from 0) is NaN or infinite")
    scores: np.ndarray = values[:, 0]
    return scores


def _features(path: Path, where: str, held: Any, rows: int) -> np.ndarray:
    if held is None:
        raise _fault(path, f"has no {where}")
    try:
        values = np.asarray(held)
    except ValueError as error:  # a list of arrays of several lengths
        raise _fault(path, f"{where} is not padded to one length") from error
    if values.dtype.kind not in "fiu" or values.ndim != 3:
        what = f"{where} is {values.dtype} {values.shape}, not numbers (rows, steps, width)"
        raise _fault(path, what)
    if len(values) != rows:
        raise _fault(path, f"{where} has {len(values)} rows beside {rows} scores")
    if 0 in values.shape:
        raise _fault(path, f"{where} is empty: {values.shape}")
    return values


def _named(path: Path, where: str, held: Any, rows: int) -> list[tuple[str, str]]:
    """Return the id and the video of each row."""
    if not isinstance(held, np.ndarray | Sequence) or len(held) != rows:
        count = len(held) if isinstance(held, np.ndarray | Sequence) else "no"
        raise _fault(path, f"{where} has {count} rows beside {rows} scores")
    return [_identity(entry) for entry in held]


def _identity(entry: Any) -> tuple[str, str]:
    """Return id and video of ``[video, start, end]``, ``video$_$clip`` or another word."""
    is_several = isinstance(entry, list | tuple) or (isinstance(entry, np.ndarray) and entry.ndim)
    words = [_text(word) for word in (_flat(entry) if is_several else [entry])]
    return ":".join(words), video_of(words[0])


def _flat(entry: Any) -> Iterable[Any]:
    return entry.ravel() if isinstance(entry, np.ndarray) else entry


def _text(word: Any) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)


def video_of(name: str) -> str:
    """Return the video that a sentence's name begins with: that of ``video$_$clip``,
    ``video[segment]`` and ``video_segment``, and a name without a number as it is."""
    if "$_$" in name:
        return name.partition("$_$")[0]
    if found := re.fullmatch(r"(.+)\[\d+\]", name):
        return found[1]
    if len(name) != YOUTUBE_LETTERS and (found := re.fullmatch(r"(.+)_\d+", name)):
        return found[1]
    return name


def _fault(path: Path, what: str, mend: str = "download MulT's or MMSA's file again") -> FileError:
    return FileError(Problem(str(path), what, mend))
