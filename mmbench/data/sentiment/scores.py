"""From a score between -3 (negative) and 3 (positive) to a class."""

from __future__ import annotations

import numpy as np

CLASSES: dict[str, tuple[str, ...]] = {
    "binary": ("negative", "non-negative"),
    "nonzero": ("negative", "positive"),
    "three": ("negative", "neutral", "positive"),
    "seven": ("-3", "-2", "-1", "0", "1", "2", "3"),
}
"""By protocol, in order."""
LEFT_OUT = -1


def class_numbers(scores: np.ndarray, protocol: str) -> np.ndarray:
    """Return the class numbers ``(N,)`` int64 of scores, :data:`LEFT_OUT` for rows without one.

    ``binary``: below zero, or not. ``nonzero``: below or above zero, those at zero left out.
    ``three``: by sign. ``seven``: the nearest whole number after cutting to [-3, 3], halves to the
    even one, as numpy and torch round.
    """
    numbers: np.ndarray
    match protocol:
        case "binary":
            numbers = scores >= 0
        case "nonzero":
            numbers = np.where(scores == 0, LEFT_OUT, scores > 0)
        case "three":
            numbers = np.sign(scores) + 1
        case "seven":
            numbers = np.rint(scores.clip(-3, 3)) + 3
        case _:
            raise ValueError(f"no protocol '{protocol}'")
    return numbers.astype(np.int64)
