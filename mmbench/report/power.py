"""How many seeds a difference needs before a test can see it."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

POWER = 0.8
"""Chance with which the test finds a difference of the observed size: the customary one (Cohen
1988)."""

MOST_SEEDS = 1000
"""Beyond so many seeds the answer is that nobody will run them."""

LARGEST_EFFECT = 10.0
"""Standardised differences above this are seen by the fewest pairs that allow a verdict."""


def fewest_pairs(comparisons: int, level: float = 0.05) -> int:
    """Return the fewest pairs with which a sign-flip test, corrected for so many comparisons, can
    come below the level: the smallest n with comparisons · 2^(1 - n) < level."""
    return math.floor(1 + math.log2(comparisons / level)) + 1


def t_test_power(effects: np.ndarray, pairs: np.ndarray, level: float) -> np.ndarray:
    """Return the power of the two-sided paired t-test; ``effects`` are |mean| / deviation of the
    differences. It is P(|T| > t) of Student's distribution with non-centrality effect · √n."""
    freedom, centre = pairs - 1.0, effects * np.sqrt(pairs)
    edge = special.stdtrit(freedom, 1 - level / 2)
    # scipy gives NaN for some of the probabilities below 1e-15.
    below, far_below = (np.nan_to_num(special.nctdtr(freedom, centre, e)) for e in (edge, -edge))
    return np.asarray(1 - below + far_below)


def seeds_needed(effects: np.ndarray, comparisons: int, level: float = 0.05) -> list[int | None]:
    """Return for each standardised difference the fewest paired seeds that find it with a chance
    of :data:`POWER` at ``level / comparisons``, the first step of Holm's correction; None where
    more than :data:`MOST_SEEDS` are needed.

    It is the number for a paired t-test, whose power on normal differences the sign-flip test
    nearly has, and at least what the sign-flip test needs to reach the level. Where it reaches it
    by differences of one sign only, their chance Φ(effect)^n has to be large enough too.
    """
    strict = level / comparisons
    capped = np.minimum(effects, LARGEST_EFFECT)
    fewest = fewest_pairs(comparisons, level)
    low = np.full(len(capped), fewest - 1)  # too few, or taken to be
    high = np.full(len(capped), MOST_SEEDS + 1)  # enough, or given up
    while np.any(high - low > 1):
        middle = (low + high) // 2
        pairs = np.maximum(middle, 2)
        one_sign_only = 2.0 ** (2 - pairs) >= strict
        found = t_test_power(capped, pairs, strict)
        found = np.where(one_sign_only, np.minimum(found, special.ndtr(capped) ** pairs), found)
        enough = found >= POWER
        unsettled = high - low > 1
        high = np.where(unsettled & enough, middle, high)
        low = np.where(unsettled & ~enough, middle, low)
    return [int(n) if n <= MOST_SEEDS else None for n in high]
