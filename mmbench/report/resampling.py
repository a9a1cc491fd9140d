"""Tests and intervals by resampling: sign flips of paired differences, and the bootstrap.

Nothing here depends on the state of a random generator: what is drawn is drawn from a fixed seed,
so that the same runs always give the same numbers. docs/comparing.md has the rates at which the
intervals cover and the test errs; tests/unit/test_resampling.py measures them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import special

EXACT_PAIRS = 16
"""Up to so many pairs all 2^(n - 1) assignments of signs (the other half mirrors them) are gone
through: 32,768, in less than a millisecond."""

FLIPS = 19_999
"""Assignments drawn beyond that. With the observed one they are 20,000, so that p can be as small
as 0.00005 and the first step of a Holm correction of 500 rows can still be passed."""

RESAMPLES = 1_999
"""Bootstrap samples. The share of them beyond an end of the interval is then 2.5 % within 0.35."""

Ends = tuple[float, float]


def sign_flip_p(differences: np.ndarray, tolerance: float = 0.0) -> float:
    """Return the two-sided p-value of the sign-flip test of paired differences ``(n,)``.

    Under the null hypothesis a difference is as likely to have one sign as the other, whatever its
    size, and independently of the rest. p is the share of assignments of signs whose sum is at
    least as far from zero as the observed sum (Fisher 1935; Edgington & Onghena 2007). Up to
    :data:`EXACT_PAIRS` all are counted. Beyond, :data:`FLIPS` are drawn and the observed one is
    counted among them, (1 + b) / (1 + B), without which p would be too small (Phipson & Smyth
    2010). Sums closer to each other than ``tolerance`` are equal.
    """
    observed = abs(float(differences.sum())) - tolerance
    n = len(differences)
    if n <= EXACT_PAIRS:
        sums = differences[:1].copy()
        for d in differences[1:]:
            sums = np.concatenate([sums + d, sums - d])
        return float(np.mean(np.abs(sums) >= observed))
    beyond = sum(
        int(np.count_nonzero(np.abs(signs.astype(np.float64) @ differences) >= observed))
        for signs in np.array_split(_signs(n), 1 + FLIPS * n // 1_000_000)
    )
    return (1 + beyond) / (1 + FLIPS)


@lru_cache(maxsize=4)
def _signs(n: int) -> np.ndarray:
    """Return signs ``(FLIPS, n)``, the same in every call."""
    drawn = np.random.default_rng(n).integers(0, 2, (FLIPS, n), dtype=np.int8)
    return np.asarray(2 * drawn - 1, dtype=np.int8)


def smallest_sign_flip_p(pairs: int) -> float:
    """Return the smallest p-value that so many pairs can give: that of differences of one sign, of
    which two assignments (all and none flipped) are as extreme."""
    return 2.0 ** (1 - pairs) if pairs <= EXACT_PAIRS else 1 / (1 + FLIPS)


def bca_interval(values: np.ndarray, level: float = 0.05) -> Ends | None:
    """Return the bias-corrected and accelerated bootstrap interval of the mean of values ``(n,)``
    (Efron 1987), by scipy; None where so few of the values differ that it is not defined."""
    from scipy import stats  # takes half a second to import, and few comparisons need it

    if np.ptp(values) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=1 - level,
            method="BCa",
            rng=len(values),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def share_interval(share: float, count: float, level: float = 0.05) -> Ends:
    """Return the Clopper-Pearson interval of a share of ``count`` independent trials.

    Trials that count half (ties) vary less than the shares for which the interval is made, so it
    covers them too.
    """
    hits = share * count
    low = float(special.betaincinv(hits, count - hits + 1, level / 2)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, count - hits, 1 - level / 2)) if hits < count else 1.0
    return low, high


# -- the interquartile mean ------------------------------------------------------------------------


def interquartile_mean(strata: Sequence[np.ndarray]) -> float:
    """Return the mean of the middle half of all values; every stratum has the same weight.

    Values at the edge of the middle half count in part, so that for n values in one stratum it is
    the 25 % trimmed mean of each value taken four times (Agarwal et al. 2021 drop ⌊n / 4⌋ of each
    end: the same where four divides n).
    """
    pooled = np.concatenate(list(strata))
    return float(_middle_means(pooled[None, :], _weights(strata))[0])


def stratified_interval(strata: Sequence[np.ndarray], level: float = 0.05) -> Ends | None:
    """Return an interval of the interquartile mean by the stratified bootstrap: seeds are drawn
    with replacement within each stratum (Agarwal et al. 2021).

    Percentiles of so few seeds are too narrow. The interval is therefore the interquartile mean
    ± Student's quantile · bootstrap deviation · √(n / (n - 1)), with Σ(n - 1) degrees of freedom:
    the two corrections of Hesterberg 2015, section 4. None where no stratum has two values.
    """
    sizes = np.array([len(values) for values in strata])
    freedom = int((sizes - 1).sum())
    if freedom < 1:
        return None
    generator = np.random.default_rng(int(sizes.sum()))
    drawn = np.concatenate(
        [values[generator.integers(0, len(values), (RESAMPLES, len(values)))] for values in strata],
        axis=1,
    )
    means = _middle_means(drawn, _weights(strata))
    # The bootstrap sees (n - 1) / n of a stratum's variance; strata of one value have none to see.
    seen = float(np.mean([(n - 1) / n for n in sizes if n > 1]))
    quantile = float(special.stdtrit(freedom, 1 - level / 2))
    half = quantile * float(means.std(ddof=1)) / math.sqrt(seen)
    centre = interquartile_mean(strata)
    return centre - half, centre + half


def _weights(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Return a weight for each pooled value; they sum to 1."""
    return np.concatenate([np.full(len(v), 1 / (len(v) * len(strata))) for v in strata])


def _middle_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the interquartile mean of each row of values ``(B, N)`` with weights ``(N,)``."""
    if np.ptp(weights) == 0:  # much the faster way, for strata of one size
        return np.asarray(np.sort(values, axis=1) @ _in_middle(weights))
    order = np.argsort(values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    return np.asarray((ranked * _in_middle(weights[order])).sum(axis=1))


def _in_middle(weights: np.ndarray) -> np.ndarray:
    """Return what is left of ranked weights ``(..., N)`` in the middle half; they sum to 1."""
    ends = np.cumsum(weights, axis=-1)
    inside = np.clip(np.minimum(ends, 0.75) - np.maximum(ends - weights, 0.25), 0, None)
    return np.asarray(inside / inside.sum(axis=-1, keepdims=True))
