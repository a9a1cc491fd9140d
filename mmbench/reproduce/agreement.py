"""Reported against obtained: when two accuracies agree, differ, or cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from mmbench.report.statistics import LEVEL

Verdict = Literal["agrees", "differs", "cannot tell"]

ROUNDING = 0.05
"""Points: values in print are rounded to a tenth of a percent, or finer."""


@dataclass(frozen=True)
class Agreement:
    """A value in print against ours over seeds, in percent."""

    reported: float
    obtained: tuple[float, ...]
    runs: int = 1
    """How many runs the reported value is the mean of."""
    tolerance: float | None = None
    """Points that count as agreement."""

    @property
    def mean(self) -> float | None:
        """Return the mean of ours; None without any."""
        return math.fsum(self.obtained) / len(self.obtained) if self.obtained else None

    @property
    def points(self) -> float | None:
        """Return ours less the reported value, in points."""
        return None if self.mean is None else self.mean - self.reported

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return where the reported value is to be expected, with 95 % of certainty, had it been
        obtained by runs like ours: mean ± t(n - 1) · s · √(1/n + 1/k) for the mean of k runs, after
        n runs of ours with standard deviation s. None with fewer than two."""
        n = len(self.obtained)
        if n < 2 or self.mean is None:
            return None
        deviation = math.sqrt(math.fsum((x - self.mean) ** 2 for x in self.obtained) / (n - 1))
        quantile = float(stats.t.ppf(1 - LEVEL / 2, n - 1))
        half = quantile * deviation * math.sqrt(1 / n + 1 / self.runs)
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> Verdict:
        """Return ``agrees`` within the tolerance or the interval, else ``differs``; with one seed
        there is no interval, and beyond the tolerance it ``cannot tell``."""
        if self.points is None:
            return "cannot tell"
        if abs(self.points) <= max(self.tolerance or 0.0, ROUNDING):
            return "agrees"
        if self.interval is None:
            return "cannot tell"
        low, high = self.interval
        is_inside = low - ROUNDING <= self.reported <= high + ROUNDING
        return "agrees" if is_inside else "differs"


@dataclass(frozen=True)
class Finding:
    """One value of one system: what was reported, what was obtained, and why there is none."""

    system: str
    metric: str
    agreement: Agreement
    failures: tuple[str, ...] = ()
    """Runs that failed, with the reason, or hold no such value."""

    @property
    def verdict(self) -> Verdict:
        """Return the verdict on the runs that there are; with a failed one among them none."""
        return "cannot tell" if self.failures else self.agreement.verdict


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 1 if anything differs, else 2 if something cannot be told, else 0."""
    verdicts = {finding.verdict for finding in findings}
    return 1 if "differs" in verdicts else 2 if "cannot tell" in verdicts or not verdicts else 0
