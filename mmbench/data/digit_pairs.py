"""Which handwritten digit goes with which spoken one, and the split that each pair is in."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmbench.data.digit_files import TEST_IMAGES, ImageSet
from mmbench.data.files import require_sound
from mmbench.errors import DataError

NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]+)")
COLUMNS = ("fsdd_name", "label", "mnist_set", "mnist_index", "split", "split_speaker")


@dataclass(frozen=True)
class Pair:
    """A recording and the image that goes with it; the id of the row is the recording's name."""

    id: str
    label: int
    speaker: str
    mnist_set: str
    mnist_index: int
    official: str
    """train, val or test: by index 0-4 test, 5-9 val, the rest train, as distributed."""
    by_speaker: str
    """train, val or test: theo test, george val, the rest train."""


def draw_pairs(names: Sequence[str], sets: Mapping[str, ImageSet]) -> list[Pair]:
    """Return a pair for each recording by a fixed rule, which depends on nothing but its arguments.

    Names go in sorted order. Rows that either protocol tests on take the next unused image of
    their digit in the t10k set; the others that of the other sets in the order of their names,
    then, where those run out, of t10k. No image is used twice.
    """
    if TEST_IMAGES not in sets:
        raise DataError(f"there is no sound MNIST set '{TEST_IMAGES}' to test on; add it")
    unused = {
        name: {digit: iter(np.flatnonzero(part.labels == digit).tolist()) for digit in range(10)}
        for name, part in sorted(sets.items())
    }
    others = [name for name in unused if name != TEST_IMAGES]
    drafts = [_parsed(name) for name in sorted(names)]
    tested = [draft for draft in drafts if "test" in _protocols(*draft[1:])]
    rest = [draft for draft in drafts if "test" not in _protocols(*draft[1:])]
    pairs = [_paired(draft, [TEST_IMAGES], unused) for draft in tested]
    pairs += [_paired(draft, [*others, TEST_IMAGES], unused) for draft in rest]
    return sorted(pairs, key=lambda pair: pair.id)


Draft = tuple[int, str, int]
"""Digit, speaker and index of a recording."""


def _parsed(name: str) -> Draft:
    match = NAME.fullmatch(name)
    if match is None:
        raise DataError(f"'{name}' is not the name of a recording, <digit>_<speaker>_<index>")
    return int(match[1]), match[2], int(match[3])


def _protocols(speaker: str, index: int) -> tuple[str, str]:
    official = "test" if index < 5 else "val" if index < 10 else "train"
    return official, {"theo": "test", "george": "val"}.get(speaker, "train")


def _paired(
    draft: Draft, places: Sequence[str], unused: dict[str, dict[int, Iterator[int]]]
) -> Pair:
    digit, speaker, index = draft
    for place in places:
        image = next(unused[place][digit], None)
        if image is not None:
            name = f"{digit}_{speaker}_{index}"
            return Pair(name, digit, speaker, place, image, *_protocols(speaker, index))
    raise DataError(
        f"too few images of digit {digit} in {', '.join(places)}; add the MNIST training set"
    )


def read_pairs(path: Path, sets: Mapping[str, ImageSet]) -> list[Pair]:
    """Return the pairs of a file, in its order.

    Raises :class:`DataError` that names the line when a column is missing, a name or set is
    unknown, an image is used twice or has another label than the recording.
    """
    require_sound(path)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise DataError(f"{path}: column {', '.join(missing)} is missing")
        rows = list(reader)
    if not rows:
        raise DataError(f"{path} holds no pairs; delete it to have them drawn")
    pairs: list[Pair] = []
    used: set[tuple[str, int]] = set()
    names: set[str] = set()
    for line, row in enumerate(rows, start=2):
        try:
            pair = _checked(row, sets)
        except (DataError, ValueError, TypeError) as error:
            raise DataError(f"{path}, line {line}: {error}") from error
        image = (pair.mnist_set, pair.mnist_index)
        if image in used or pair.id in names:
            raise DataError(f"{path}, line {line}: an image or a recording is used twice")
        used.add(image)
        names.add(pair.id)
        pairs.append(pair)
    return pairs


def _checked(row: dict[str, str], sets: Mapping[str, ImageSet]) -> Pair:
    digit, speaker, _ = _parsed(row["fsdd_name"])
    place, index = row["mnist_set"], int(row["mnist_index"])
    if place not in sets:
        known = ", ".join(sorted(sets)) or "none"
        raise DataError(f"MNIST set '{place}' was not found or is damaged; there are: {known}")
    if not 0 <= index < len(sets[place].labels):
        raise DataError(f"image {index} is not in '{place}', which has {len(sets[place].labels)}")
    if not digit == int(row["label"]) == int(sets[place].labels[index]):
        raise DataError("recording, label and image are of different digits")
    for column in ("split", "split_speaker"):
        if row[column] not in ("train", "val", "test"):
            raise DataError(f"{column} is '{row[column]}', not train, val or test")
    return Pair(row["fsdd_name"], digit, speaker, place, index, row["split"], row["split_speaker"])
