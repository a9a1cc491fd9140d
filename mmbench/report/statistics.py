"""Statistics over seeds: means with intervals, and differences between runs of equal seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["better", "worse", "not distinguishable"]

LEVEL = 0.05
"""A difference is called one below this p-value; intervals cover with 1 - LEVEL."""

ROUNDING = 1e-12
"""Differences that spread by less than this, relative to the values, are equal but for rounding."""


@dataclass(frozen=True)
class Summary:
    """Values of one setting over its seeds. Interval and deviation are None for a single seed."""

    count: int
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """Paired difference to a reference, value minus reference, over the seeds both have."""

    pairs: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    """Two-sided; None with fewer than two pairs."""
    higher_is_better: bool = True

    @property
    def smallest_p(self) -> float | None:
        """Return the smallest p-value that a two-sided sign-flip test of so many pairs can reach:
        2 of the 2^n equally likely assignments of signs are as extreme as all of one sign."""
        return 2.0 ** (1 - self.pairs) if self.pairs else None

    @property
    def verdict(self) -> Verdict:
        """Return what the p-value allows to be said."""
        if self.p is None or self.mean is None or self.p >= LEVEL:
            return "not distinguishable"
        return "better" if (self.mean > 0) == self.higher_is_better else "worse"

    @property
    def remark(self) -> str | None:
        """Return what keeps the t-test from being made, if anything."""
        if self.pairs == 0:
            return "no seed in common with the reference: no difference"
        if self.pairs == 1:
            return "one seed: no interval; add --seed"
        return "the same difference in every pair: sign-flip test" if self.low is None else None


def summarise(values: Iterable[float]) -> Summary:
    """Return mean, standard deviation (n - 1) and the Student-t interval of the mean:
    mean ± t(n - 1) · deviation / √n. At least one value is needed."""
    x = np.asarray(list(values), dtype=np.float64)
    n, mean = len(x), float(x.mean())
    if n == 1:
        return Summary(1, mean)
    deviation = float(x.std(ddof=1))
    half = _half_width(deviation, n)
    return Summary(n, mean, deviation, mean - half, mean + half)


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], higher_is_better: bool = True
) -> Difference:
    """Return the difference to a reference over the seeds that both have, with a paired t-test.

    Where every pair differs by the same amount there is no variance for a t-test. Equal values give
    p = 1 and an interval of no width; any other amount gives no interval and the p-value of the
    sign-flip test, 2^(1 - n).
    """
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return Difference(0, higher_is_better=higher_is_better)
    x = np.array([values[s] for s in seeds], dtype=np.float64)
    y = np.array([reference[s] for s in seeds], dtype=np.float64)
    differences = x - y
    n, mean = len(seeds), float(differences.mean())
    if n == 1:
        return Difference(1, mean, higher_is_better=higher_is_better)
    tolerance = ROUNDING * max(1.0, float(np.abs([x, y]).max()))
    if float(np.ptp(differences)) <= tolerance:
        if abs(mean) <= tolerance:
            return Difference(n, 0.0, 0.0, 0.0, 1.0, higher_is_better)
        return Difference(n, mean, p=2.0 ** (1 - n), higher_is_better=higher_is_better)
    half = _half_width(float(differences.std(ddof=1)), n)
    p = float(stats.ttest_rel(x, y).pvalue)
    return Difference(n, mean, mean - half, mean + half, p, higher_is_better)


def _half_width(deviation: float, n: int) -> float:
    return float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * deviation / math.sqrt(n)
