"""Rows over several datasets: average ranks with the critical difference, and means over datasets.

After Demšar 2006 ("Statistical comparisons of classifiers over multiple data sets") and Agarwal et
al. 2021 ("Deep reinforcement learning at the edge of the statistical precipice").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mmbench.errors import RequestError
from mmbench.report.comparison import Group
from mmbench.report.resampling import share_interval
from mmbench.report.rows import Row
from mmbench.report.statistics import LEVEL, Estimate, interquartile_estimate

SHUFFLES = 9_999
"""Random orders of the ranks that the Friedman statistic is compared with."""

DECIMALS = 12
"""Means that agree in so many decimals are tied."""


@dataclass(frozen=True)
class Ranked:
    """One row over all datasets of a ranking."""

    label: str
    average_rank: float
    """1 is best."""
    ranks: tuple[float, ...]
    """In each dataset; tied rows share the mean of their places."""
    score: Estimate
    """Interquartile mean of the metric over datasets and seeds, each dataset with one weight."""
    improvement: Estimate | None = None
    """Probability of being better than the reference on the same data and seed, mean over
    datasets; None for the reference and where pairs are lacking."""


@dataclass(frozen=True)
class Ranking:
    """Rows that several datasets have in common, ranked in each of them."""

    datasets: tuple[str, ...]
    """Names of the groups."""
    rows: tuple[Ranked, ...]
    """The best average rank first."""
    friedman_p: float | None
    """Of the Friedman test that all rows rank alike; None with fewer than 2 datasets or rows."""
    critical_difference: float | None
    """Nemenyi's: average ranks that differ by less are not distinguishable."""
    nemenyi_p: np.ndarray
    """``(rows, rows)``, two-sided p-values of each pair, corrected for the number of pairs."""
    left_out: tuple[str, ...] = ()
    """Labels of rows that some of the datasets lack."""
    repeated: tuple[str, ...] = ()
    """Datasets that are there more than once, by other protocols or options."""

    @property
    def cliques(self) -> tuple[tuple[str, ...], ...]:
        """Return the largest sets of neighbouring rows that cannot be told apart, best first: the
        bars of a critical-difference diagram. Where the Friedman test finds nothing, all rows."""
        labels = [row.label for row in self.rows]
        if self.critical_difference is None or not self.is_distinguishable:
            return (tuple(labels),)
        found: list[tuple[int, int]] = []
        for first, row in enumerate(self.rows):
            last = max(
                i
                for i, other in enumerate(self.rows)
                if other.average_rank - row.average_rank < self.critical_difference
            )
            if last > first and (not found or last > found[-1][1]):
                found.append((first, last))
        return tuple(tuple(labels[first : last + 1]) for first, last in found)

    @property
    def is_distinguishable(self) -> bool:
        """Return whether the Friedman test lets anything be said of single rows."""
        return self.friedman_p is not None and self.friedman_p < LEVEL

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return in words what the ranks allow to be said."""
        return _sentences(self)


def rank(groups: Sequence[Group]) -> Ranking:
    """Return the rows that all groups have, by label, ranked by their mean in each.

    Raises :class:`RequestError` for fewer than two groups or fewer than two rows in common, and
    for groups that were compared by different metrics.
    """
    if len(groups) < 2:
        raise RequestError("average ranks need stored runs of two datasets or more")
    metric = groups[0].metric
    if any(group.metric.name != metric.name for group in groups):
        raise RequestError("average ranks need the same metric in every dataset")
    by_label = [{row.label: row for row in group.rows} for group in groups]
    common = [label for label in by_label[0] if all(label in rows for rows in by_label)]
    shared = [label for label in common if _is_finite(label, by_label)]
    if len(shared) < 2:
        names = ", ".join(group.name for group in groups)
        raise RequestError(
            f"{names}: fewer than two rows in common, so no ranks; run the same methods with the "
            "same options on each"
        )
    means = np.array([[rows[label].value.mean for label in shared] for rows in by_label])
    ranks = ranks_of(means, metric.higher_is_better)
    average = ranks.mean(axis=0)
    order = sorted(range(len(shared)), key=lambda i: (average[i], i))
    rows = [
        Ranked(
            shared[i],
            float(average[i]),
            tuple(ranks[:, i].tolist()),
            interquartile_estimate([by[shared[i]].value.values for by in by_label]),
            _improvement([by[shared[i]] for by in by_label]),
        )
        for i in order
    ]
    known = dict.fromkeys(label for rows_of in by_label for label in rows_of)
    counts = Counter(group.dataset for group in groups)
    return Ranking(
        tuple(group.name for group in groups),
        tuple(rows),
        friedman_p(ranks),
        critical_difference(len(shared), len(groups)),
        nemenyi_p(average[order], len(groups)),
        tuple(label for label in known if label not in shared),
        tuple(name for name, count in counts.items() if count > 1),
    )


def _is_finite(label: str, by_label: Sequence[dict[str, Row]]) -> bool:
    return all(math.isfinite(rows[label].value.mean) for rows in by_label)


def _improvement(rows: Sequence[Row]) -> Estimate | None:
    """Return the mean share of pairs won. Its interval is that of a share of as many trials as give
    a mean over datasets the same variance, Σ 1/n for the pairs n of each (Hoeffding 1956: shares
    that differ between datasets vary less than one share for all)."""
    shares: list[float] = []
    variance = 0.0
    for row in rows:
        d = row.difference
        if d is None or d.improvement is None:
            return None
        shares.append(d.improvement.value)
        variance += 1 / d.pairs
    mean = float(np.mean(shares))
    return Estimate(mean, *share_interval(mean, len(shares) ** 2 / variance, LEVEL))


# -- ranks -----------------------------------------------------------------------------------------


def ranks_of(means: np.ndarray, higher_is_better: bool = True) -> np.ndarray:
    """Return ranks of means ``(datasets, rows)`` within each dataset, 1 for the best."""
    rounded = np.round(means, DECIMALS)
    return np.asarray(stats.rankdata(-rounded if higher_is_better else rounded, axis=1))


def friedman_p(ranks: np.ndarray) -> float | None:
    """Return the p-value of the Friedman test of ranks ``(datasets, rows)``.

    The ranks of each dataset are put in random order :data:`SHUFFLES` times, from a fixed seed,
    and the observed order is counted among them. The chi-squared approximation of the textbooks
    needs more than 10 datasets, and no ties. None with fewer than two datasets or rows.
    """
    datasets, rows = ranks.shape
    if datasets < 2 or rows < 2:
        return None
    observed = _spread(ranks[None])[0]
    generator = np.random.default_rng(datasets * rows)
    beyond, left = 0, SHUFFLES
    while left:
        count = min(left, max(1, 1_000_000 // ranks.size))
        shuffled = generator.permuted(np.broadcast_to(ranks, (count, *ranks.shape)), axis=2)
        beyond += int(np.count_nonzero(_spread(shuffled) >= observed - 1e-9))
        left -= count
    return (1 + beyond) / (1 + SHUFFLES)


def _spread(ranks: np.ndarray) -> np.ndarray:
    """Return the sum of squares of rank sums ``(B,)``: Friedman's statistic but for a factor and a
    constant that no order of the ranks changes."""
    sums = ranks.sum(axis=1) - ranks.shape[1] * (ranks.shape[2] + 1) / 2
    return np.asarray((sums**2).sum(axis=1))


def critical_difference(rows: int, datasets: int, level: float = LEVEL) -> float:
    """Return Nemenyi's critical difference of average ranks, q · √(k (k + 1) / (6 N)), with q the
    quantile of the Studentised range of k = ``rows`` over √2 (Demšar 2006, section 3.2.2)."""
    return _quantile(rows, level) * _rank_deviation(rows, datasets)


def nemenyi_p(average_ranks: np.ndarray, datasets: int) -> np.ndarray:
    """Return Nemenyi's p-values ``(k, k)`` for each pair of average ranks ``(k,)``."""
    k = len(average_ranks)
    gaps = np.abs(average_ranks[:, None] - average_ranks[None, :])
    scaled = math.sqrt(2) * gaps / _rank_deviation(k, datasets)
    distinct, where = np.unique(scaled, return_inverse=True)
    return np.asarray(stats.studentized_range.sf(distinct, k, np.inf)[where].reshape(k, k))


def _rank_deviation(rows: int, datasets: int) -> float:
    return math.sqrt(rows * (rows + 1) / (6 * datasets))


def _quantile(k: int, level: float) -> float:
    return float(stats.studentized_range.ppf(1 - level, k, np.inf)) / math.sqrt(2)


# -- in words --------------------------------------------------------------------------------------


def _sentences(ranking: Ranking) -> tuple[str, ...]:
    first = ranking.rows[0]
    count = f"{len(ranking.rows)} rows over {len(ranking.datasets)} datasets"
    said = [f"{first.label} has the best average rank of {count}, {first.average_rank:.2f}."]
    p = ranking.friedman_p
    if not ranking.is_distinguishable or ranking.critical_difference is None:
        tested = "" if p is None else f" (Friedman test, p = {p:.3f})"
        said.append(f"The ranks are not distinguishable{tested}: more datasets are needed.")
    else:
        edge = first.average_rank + ranking.critical_difference
        behind = [row.label for row in ranking.rows if row.average_rank >= edge]
        worse = f"worse than it are {', '.join(behind)}" if behind else "none is worse than it"
        said.append(
            f"Ranks differ (Friedman test, p = {p:.3g}); by more than the critical difference of "
            f"{ranking.critical_difference:.2f} (Nemenyi), {worse}."
        )
    if ranking.left_out:
        said.append(f"Not ranked, as not every dataset has them: {', '.join(ranking.left_out)}.")
    if ranking.repeated:
        said.append(
            f"{', '.join(ranking.repeated)} counts more than once, by several protocols or "
            "options: these are not independent, so that p-values are too small."
        )
    return tuple(said)
