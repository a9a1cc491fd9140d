"""Words of texts as numbers: a vocabulary of the training rows, without anything pretrained.

Ids: 0 is padding, 1 any word that is not in the vocabulary, and from 2 on its words, the most
frequent first and those of equal count by their letters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmbench.hashing import digest

PADDING = 0
UNKNOWN = 1
FIRST = 2
"""Id of the first word."""
WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits of any script, with
    apostrophes within them."""
    return WORD.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """The words that have an id of their own, in the order of their ids."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str], least: int = 1, size: int | None = None) -> Vocabulary:
        """Return the words that texts hold at least ``least`` times, at most ``size`` of them."""
        counts = Counter(word for text in texts for word in words(text))
        frequent = [(word, count) for word, count in counts.items() if count >= least]
        ordered = sorted(frequent, key=lambda entry: (-entry[1], entry[0]))
        return cls(tuple(word for word, _ in ordered[:size]))

    def __len__(self) -> int:
        """Return the number of ids, those of padding and of unknown words included."""
        return FIRST + len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words, start=FIRST)}

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Return the ids of the first ``length`` words of each text, followed by padding:
        ``(N, length)`` int64."""
        rows = np.full((len(texts), length), PADDING, dtype=np.int64)
        for row, text in zip(rows, texts, strict=True):
            found = [self.ids.get(word, UNKNOWN) for word in words(text)[:length]]
            row[: len(found)] = found
        return rows

    def fingerprint(self) -> str:
        return digest(*self.words)
