"""Pickles of conversations, in the three layouts that people have.

``fields``: a dict by field, then by dialogue (Ada2I, SPCL): ``trainVid``, perhaps ``valVid``,
``testVid``, ``label``, ``text``, ``audio``, ``visual``, and where given ``sentence`` and
``speaker`` or ``speakers``.

``items``: nine or ten items (MMGCN and those after it): names of utterances, speakers, labels,
text, audio, visual, sentences, each a dict by dialogue; dialogues of train, and of test. A tenth
item is not read.

``folders``: six or seven items (GCNet, MoMKE): names of utterances, labels, speakers, sentences,
each a dict by dialogue; dialogues of train, perhaps of validation, and of test. Features lie beside
it, a file for each utterance (:mod:`mmbench.data.conversations.folders`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from mmbench.data.files import FileError
from mmbench.data.pickles import load_pickle
from mmbench.data.problem import Problem

Layout = Literal["fields", "items", "folders"]
Key = object
"""What a file calls a dialogue: text or a number."""
MODALITIES = ("text", "audio", "visual")
PARTS = ("train", "val", "test")
AGAIN = "get the file again, or correct what wrote it"
ITEMS = ("utterances", "speakers", "labels", "text", "audio", "visual", "sentences")
"""The first seven of nine or ten items."""
IN_FOLDERS = ("utterances", "labels", "speakers", "sentences")
"""The first four of six or seven items."""
FORMS = (
    "a dict of fields (Ada2I), 9 or 10 items (MMGCN), or 6 or 7 items with feature folders (GCNet)"
)


@dataclass(frozen=True)
class Contents:
    """A file of any layout, its fields under one name each; nothing in them is checked yet."""

    path: Path
    layout: Layout
    listed: dict[str, list[Key]]
    """Dialogues by part; ``val`` only where the file has such a list."""
    fields: dict[str, Mapping[Key, object]]
    """``labels``, and some of ``utterances``, ``speakers``, ``sentences`` and the modalities."""


@dataclass(frozen=True)
class Dialogue:
    """A conversation whose fields agree: ``n`` utterances in order."""

    name: str
    part: str
    labels: dict[str, tuple[str, ...]]
    """Class names of each kind of label, ``n`` each."""
    features: dict[str, np.ndarray]
    """``(n, width)`` float32 for each modality."""
    speakers: tuple[str, ...]
    """``n`` words, empty where the file does not say."""
    sentences: tuple[str, ...]
    """``n`` texts, or none at all."""


@dataclass
class Findings:
    """What is wrong with files: ``faults`` make them unusable, ``remarks`` do not."""

    faults: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)

    def fault(self, path: Path, what: str, mend: str = AGAIN) -> None:
        self.faults.append(Problem(str(path), what, mend))

    def remark(self, path: Path, what: str, mend: str = "") -> None:
        self.remarks.append(Problem(str(path), what, mend))


class Disagreement(Exception):
    """Something in a dialogue contradicts the rest; says what."""


def natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names with numbers by value: 9 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


# -- the whole file --------------------------------------------------------------------------------


def read_contents(path: Path) -> Contents:
    """Return a file's fields. Raises :class:`FileError` when it is damaged or of another layout."""
    loaded = load_pickle(path)
    if isinstance(loaded, Mapping):
        return _of_fields(path, loaded)
    if isinstance(loaded, list | tuple):
        if len(loaded) in (9, 10):
            return _of_items(path, "items", loaded, ITEMS, ("train", "test"))
        if len(loaded) in (6, 7):
            parts = ("train", "test") if len(loaded) == 6 else PARTS
            return _of_items(path, "folders", loaded, IN_FOLDERS, parts)
        raise _unlike(path, f"holds {len(loaded)} items")
    raise _unlike(path, f"holds a {type(loaded).__name__}")


def _unlike(path: Path, what: str) -> FileError:
    return FileError(Problem(str(path), what, f"use a file that holds {FORMS}"))


def _of_fields(path: Path, loaded: Mapping[Key, object]) -> Contents:
    names = {"labels": "label", "sentences": "sentence"} | {m: m for m in MODALITIES}
    names["speakers"] = "speakers" if "speakers" in loaded else "speaker"
    optional = {"sentences", "speakers"}
    lists = {"train": "trainVid", "val": "valVid", "test": "testVid"}
    needed = [n for name, n in names.items() if name not in optional] + ["trainVid", "testVid"]
    if absent := [name for name in needed if name not in loaded]:
        raise _unlike(path, f"is a dict without {', '.join(absent)}")
    fields = {
        name: _by_dialogue(path, f"field '{stored}'", loaded[stored])
        for name, stored in names.items()
        if stored in loaded
    }
    listed = {
        part: _listed(path, f"field '{stored}'", loaded[stored])
        for part, stored in lists.items()
        if stored in loaded
    }
    return Contents(path, "fields", listed, fields)


def _of_items(
    path: Path,
    layout: Layout,
    loaded: Sequence[object],
    names: Sequence[str],
    parts: Sequence[str],
) -> Contents:
    fields = {
        name: _by_dialogue(path, f"item {i} of {len(loaded)} ({name})", loaded[i - 1])
        for i, name in enumerate(names, start=1)
    }
    listed = {
        part: _listed(path, f"item {i} of {len(loaded)} ({part})", loaded[i - 1])
        for i, part in enumerate(parts, start=len(names) + 1)
    }
    return Contents(path, layout, listed, fields)


def _by_dialogue(path: Path, where: str, value: object) -> Mapping[Key, object]:
    if not isinstance(value, Mapping):
        raise _unlike(path, f"{where} is a {type(value).__name__}, not a dict by dialogue")
    return value


def _listed(path: Path, where: str, value: object) -> list[Key]:
    if not isinstance(value, set | frozenset | list | tuple | np.ndarray):
        raise _unlike(path, f"{where} is a {type(value).__name__}, not a list of dialogues")
    return list(value.tolist()) if isinstance(value, np.ndarray) else list(value)


# -- lists of dialogues ----------------------------------------------------------------------------


def dialogues_by_part(contents: Contents, findings: Findings) -> list[tuple[Key, str]]:
    """Return every dialogue to read and its part, in the order of their names: sets have none that
    lasts. What is listed twice, or nowhere, is found fault with or remarked upon."""
    seen: dict[Key, str] = {}
    for part, keys in contents.listed.items():
        for key, count in Counter(keys).items():
            if count > 1:
                what = f"dialogue '{key}' is listed {count} times in {part}"
                findings.fault(contents.path, what)
            if (other := seen.setdefault(key, part)) != part:
                findings.fault(contents.path, f"dialogue '{key}' is in {other} and in {part}")
    if unlisted := [key for key in contents.fields["labels"] if key not in seen]:
        what = f"{len(unlisted)} dialogues are in no list and left out, such as '{unlisted[0]}'"
        findings.remark(contents.path, what)
    return sorted(seen.items(), key=lambda item: natural(str(item[0])))


# -- one dialogue ----------------------------------------------------------------------------------


def class_numbers(contents: Contents, key: Key) -> list[int]:
    """Return the labels of a dialogue as they are. Raises :class:`Disagreement`."""
    if key not in contents.fields["labels"]:
        raise Disagreement("has no labels")
    try:
        values = np.asarray(contents.fields["labels"][key], dtype=np.float64).reshape(-1)
    except (ValueError, TypeError):
        raise Disagreement("has labels that are not numbers") from None
    if not len(values):
        raise Disagreement("has no utterances")
    if not np.isfinite(values).all() or (values % 1).any():
        raise Disagreement("has labels that are not whole numbers")
    return [int(value) for value in values]


def class_names(numbers: Sequence[int], classes: Sequence[str]) -> tuple[str, ...]:
    """Return the name of each class number. Raises :class:`Disagreement` for one out of range."""
    for n, number in enumerate(numbers):
        if not 0 <= number < len(classes):
            raise Disagreement(
                f"utterance {n} has label {number}; {len(classes)} classes are numbered from 0"
            )
    return tuple(classes[number] for number in numbers)


def words(contents: Contents, name: str, key: Key, count: int) -> tuple[str, ...]:
    """Return a field of words, such as ``sentences``, empty where the file lacks it. Raises
    :class:`Disagreement` when there are not as many as utterances."""
    held = contents.fields.get(name)
    if held is None or key not in held:
        return ()
    values = held[key]
    if not isinstance(values, list | tuple | np.ndarray) or len(values) != count:
        size = len(values) if isinstance(values, list | tuple | np.ndarray) else "no list of"
        raise Disagreement(f"has {count} labels and {size} {name}")
    return tuple(_word(value) for value in values)


def _word(value: object) -> str:
    """Return text as it is, a number as its digits, a one-hot vector as the place of its one."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, list | tuple | np.ndarray) and np.ndim(value) == 1:
        places = np.flatnonzero(np.asarray(value))
        return str(places[0]) if len(places) == 1 else ""
    return str(value)


def matrix(contents: Contents, modality: str, key: Key, count: int) -> np.ndarray:
    """Return the features of a dialogue's utterances, ``(count, width)`` float32. Raises
    :class:`Disagreement`."""
    held = contents.fields[modality]
    if key not in held:
        raise Disagreement(f"has no {modality} features")
    value = held[key]
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != count:
        size = len(value) if isinstance(value, list | tuple | np.ndarray) else "no list of"
        raise Disagreement(f"has {count} labels and {size} utterances of {modality} features")
    rows = []
    for n, one in enumerate(value):
        try:
            row = np.asarray(one, dtype=np.float32)
        except (ValueError, TypeError):
            raise Disagreement(
                f"utterance {n} has {modality} features that are not numbers"
            ) from None
        rows.append(row.reshape(-1))
    return stacked(rows, modality)


def stacked(rows: Sequence[np.ndarray], modality: str) -> np.ndarray:
    """Return vectors as rows. Raises :class:`Disagreement` unless they are finite and of one
    width."""
    for n, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise Disagreement(
                f"utterance {n} has {len(row)} {modality} features, utterance 0 has {len(rows[0])}"
            )
        if not np.isfinite(row).all():
            raise Disagreement(f"utterance {n} has {modality} features that are NaN or infinite")
    return np.stack(rows)
