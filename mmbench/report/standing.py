"""Which rows share the first place: the best mean, and what cannot be told apart from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmbench.report.rows import Metric, Row, difference
from mmbench.report.statistics import LEVEL, Difference, corrected, summarise

Mark = Literal["", "best", "tied", "apart"]
"""Tested against the best row: ``tied`` is not distinguishable from it, ``apart`` is. Empty where
no test could have told."""


@dataclass(frozen=True)
class Standing:
    """A row beside the best one. ``against_best`` is None for the best row and where no test is."""

    mark: Mark = ""
    against_best: Difference | None = None


def standings(rows: Sequence[Row], metric: Metric) -> dict[str, Standing]:
    """Return by label how each row stands to the one with the best mean of a metric on the test
    set.

    A row whose model was selected on the test set takes no part, unless all were: its numbers are
    too good. The others are tested against the best as verdicts are against the reference, with
    Holm's correction for their number. Nothing is called tied without a test that could have come
    out otherwise: not with one seed, and not with so few that no difference can be distinguished.
    """
    means = {
        row.label: mean
        for row in [row for row in rows if not row.selected_on_test] or rows
        if (mean := mean_of(row, metric)) is not None and math.isfinite(mean)
    }
    if len(means) < 2:
        return {row.label: Standing() for row in rows}
    leading = max(means.values()) if metric.higher_is_better else min(means.values())
    base = next(row for row in rows if means.get(row.label) == leading)
    tested = corrected(
        [
            None if means.get(row.label) in (None, leading) else difference(row, base, metric)
            for row in rows
        ]
    )
    return {
        row.label: Standing("best") if means.get(row.label) == leading else Standing(_mark(d), d)
        for row, d in zip(rows, tested, strict=True)
    }


def mean_of(row: Row, metric: Metric) -> float | None:
    """Return a row's mean of a metric on the test set; None unless every run has it."""
    values = row.metric(metric)
    return summarise(values.values()).mean if len(values) == len(row.runs) else None


def _mark(d: Difference | None) -> Mark:
    if d is None or d.attainable_p is None or d.attainable_p >= LEVEL:
        return ""
    return "tied" if d.verdict == "not distinguishable" else "apart"
