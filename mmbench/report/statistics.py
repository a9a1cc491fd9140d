"""Statistics over seeds: means with intervals, and differences between runs of equal seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import special

from mmbench.report.power import fewest_pairs, seeds_needed
from mmbench.report.resampling import (
    Ends,
    bca_interval,
    interquartile_mean,
    share_interval,
    sign_flip_p,
    smallest_sign_flip_p,
    stratified_interval,
)

Verdict = Literal["better", "worse", "not distinguishable"]
IntervalKind = Literal["Student-t", "BCa"]

LEVEL = 0.05
"""A difference is called one below this p-value; intervals cover with 1 - LEVEL."""

BCA_FROM = 50
"""From so many values on intervals are BCa, below they are Student's. In simulation (the table in
docs/comparing.md) BCa covers 85 % with 5 normal values, 93 % with 30, and from 50 on nearly what
Student's does, and more where some runs collapse."""

ROUNDING = 1e-12
"""Differences that spread by less than this, relative to the values, are equal but for rounding."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, None where nothing can be said of its spread."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Summary:
    """Values of one setting over its seeds. Interval and deviation are None for a single seed, and
    where a value is not a number; the mean is then not a number either."""

    count: int
    mean: float
    deviation: float | None = None
    values: tuple[float, ...] = field(default=(), repr=False)

    @property
    def low(self) -> float | None:
        return self._ends[0] if self._ends else None

    @property
    def high(self) -> float | None:
        return self._ends[1] if self._ends else None

    @property
    def interval_kind(self) -> IntervalKind | None:
        return None if self._ends is None else _kind(self.count)

    @cached_property
    def interquartile(self) -> Estimate:
        """Return the interquartile mean: an outlying seed in four does not move it."""
        if not math.isfinite(self.mean):
            return Estimate(math.nan)
        return interquartile_estimate([self.values])

    @cached_property
    def _ends(self) -> Ends | None:
        if self.deviation is None:
            return None
        return _interval(np.array(self.values), self.mean, self.deviation)


@dataclass(frozen=True)
class Difference:
    """Paired difference to a reference, value minus reference, over the seeds both have."""

    pairs: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    """Two-sided, of the sign-flip test; None with fewer than two pairs."""
    higher_is_better: bool = True
    deviation: float | None = None
    """Standard deviation (n - 1) of the differences."""
    p_t: float | None = None
    """Two-sided, of the paired t-test; None also where every difference is the same."""
    improvement: Estimate | None = None
    """Share of the pairs in which the row is the better one, ties counting half: the probability
    that it is, with its Clopper-Pearson interval."""
    not_finite: tuple[int, ...] = ()
    """Seeds with a value that is not a number: there is no mean then, and no test."""
    p_holm: float | None = None
    """``p`` after Holm's correction for the rows of the table; None outside of a table."""
    comparisons: int = 1
    """Rows of the table that are tested."""
    attainable_p: float | None = None
    """``p_holm`` if all pairs of the table's rows differed as clearly as they can."""
    seeds_needed: int | None = None
    """Paired seeds that would show a difference like the observed one in this table with a chance
    of 80 %; None where it is shown already, and where they are more than 1,000."""

    @property
    def smallest_p(self) -> float | None:
        """Return the smallest p-value that a two-sided sign-flip test of so many pairs can reach:
        2 of the 2^n equally likely assignments of signs are as extreme as all of one sign."""
        return smallest_sign_flip_p(self.pairs) if self.pairs else None

    @property
    def final_p(self) -> float | None:
        """Return the p-value that the verdict is read from: corrected, where there is a table."""
        return self.p if self.p_holm is None else self.p_holm

    @property
    def verdict(self) -> Verdict:
        """Return what the p-value allows to be said."""
        if self.final_p is None or self.mean is None or self.final_p >= LEVEL:
            return "not distinguishable"
        return "better" if (self.mean > 0) == self.higher_is_better else "worse"

    @property
    def interval_kind(self) -> IntervalKind | None:
        return None if self.low is None else _kind(self.pairs)

    @property
    def remark(self) -> str | None:
        """Return what keeps a test or an interval from being made, if anything."""
        if self.pairs == 0:
            return "no seed in common with the reference: no difference"
        if self.not_finite:
            return f"not a number in {seeds_in_words(self.not_finite)}: no difference"
        if self.pairs == 1:
            return "one seed: no interval; add --seed"
        return "the same difference in every pair: no interval" if self.low is None else None


def seeds_in_words(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def summarise(values: Iterable[float]) -> Summary:
    """Return mean, standard deviation (n - 1) and the interval of the mean.

    Below :data:`BCA_FROM` values it is Student's, mean ± t(n - 1) · deviation / √n, from there on
    BCa. It is computed when it is asked for. At least one value is needed.
    """
    x = np.asarray(list(values), dtype=np.float64)
    n, mean = len(x), float(x.mean())
    if n == 1 or not math.isfinite(mean):
        return Summary(n, mean, values=tuple(x.tolist()))
    return Summary(n, mean, float(x.std(ddof=1)), tuple(x.tolist()))


def interquartile_estimate(strata: Sequence[Sequence[float]]) -> Estimate:
    """Return the interquartile mean with the interval of the stratified bootstrap. A stratum is a
    dataset; for one dataset give one."""
    arrays = [np.asarray(values, dtype=np.float64) for values in strata]
    return Estimate(interquartile_mean(arrays), *(stratified_interval(arrays) or (None, None)))


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], higher_is_better: bool = True
) -> Difference:
    """Return the difference to a reference over the seeds that both have, with the sign-flip test.

    Where every pair differs by the same amount there is no variance: equal values give p = 1 and an
    interval of no width, any other amount gives no interval and no t-test; the sign-flip test needs
    no variance. Where a value is not a number there is no mean and no test.
    """
    seeds = sorted(values.keys() & reference.keys())
    x = np.array([values[s] for s in seeds], dtype=np.float64)
    y = np.array([reference[s] for s in seeds], dtype=np.float64)
    n = len(seeds)
    plain = Difference(n, higher_is_better=higher_is_better)
    finite = np.isfinite(x) & np.isfinite(y)
    not_finite = tuple(seed for seed, good in zip(seeds, finite, strict=True) if not good)
    if n == 0 or not_finite:
        return replace(plain, not_finite=not_finite)
    differences = x - y
    tolerance = ROUNDING * max(1.0, float(np.abs([x, y]).max()))
    differences[np.abs(differences) <= tolerance] = 0.0
    found = replace(
        plain,
        mean=float(differences.mean()),
        improvement=_improvement(differences if higher_is_better else -differences),
    )
    if n == 1:
        return found
    found = replace(found, p=sign_flip_p(differences, n * tolerance), deviation=0.0)
    if float(np.ptp(differences)) <= tolerance:
        return found if found.mean else replace(found, mean=0.0, low=0.0, high=0.0, p_t=1.0)
    deviation = float(differences.std(ddof=1))
    low, high = _interval(differences, float(differences.mean()), deviation)
    statistic = abs(float(differences.mean())) / deviation * math.sqrt(n)
    p_t = 2 * float(special.stdtr(n - 1, -statistic))
    return replace(found, low=low, high=high, deviation=deviation, p_t=p_t)


def _improvement(gains: np.ndarray) -> Estimate:
    share = float(np.mean(gains > 0) + np.mean(gains == 0) / 2)
    return Estimate(share, *share_interval(share, len(gains), LEVEL))


def _kind(n: int) -> IntervalKind:
    return "Student-t" if n < BCA_FROM else "BCa"


def _interval(values: np.ndarray, mean: float, deviation: float) -> Ends:
    if len(values) >= BCA_FROM and (found := bca_interval(values, LEVEL)):
        return found
    half = float(special.stdtrit(len(values) - 1, 1 - LEVEL / 2)) * deviation
    half /= math.sqrt(len(values))
    return mean - half, mean + half


# -- several rows ----------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979): the i-th smallest times k - i + 1,
    none smaller than the one before, none above 1. The chance of one false positive or more among
    the k stays below the level, however the tests depend on each other."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


def corrected(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Return the differences of a table's rows with ``p_holm``, ``comparisons``, ``attainable_p``
    and ``seeds_needed``; those without a p-value stay as they are and do not count."""
    tested = [d for d in differences if d is not None and d.p is not None]
    after = iter(_corrected(tested))
    return [d if d is None or d.p is None else next(after) for d in differences]


def _corrected(tested: Sequence[Difference]) -> list[Difference]:
    k = len(tested)
    p_values = holm([d.p for d in tested if d.p is not None])
    attainable = holm([d.smallest_p for d in tested if d.smallest_p is not None])
    needed = seeds_needed(np.array([_effect(d) for d in tested]), k, LEVEL) if k else []
    made = []
    for d, p, best_p, n in zip(tested, p_values, attainable, needed, strict=True):
        now = replace(d, p_holm=p, comparisons=k, attainable_p=best_p)
        if now.verdict == "not distinguishable" and n is not None:
            now = replace(now, seeds_needed=max(n, d.pairs + 1))
        made.append(now)
    return made


def _effect(d: Difference) -> float:
    """Return |mean| / deviation, infinite where every pair differs by the same amount."""
    if not d.mean:
        return 0.0
    return abs(d.mean) / d.deviation if d.deviation else math.inf


def fewest_seeds(comparisons: int) -> int:
    """Return the fewest paired seeds with which a table of so many tested rows allows a verdict."""
    return fewest_pairs(comparisons, LEVEL)
