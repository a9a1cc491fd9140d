"""Experiments and findings as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from mmbench.reproduce.agreement import Agreement, Finding
from mmbench.reproduce.experiment import Experiment
from mmbench.reproduce.readiness import Readiness, Status

HEADINGS = ("system", "value", "reported", "obtained", "expected", "points", "")


def listed(experiments: Sequence[tuple[Experiment, Readiness]]) -> list[tuple[str, ...]]:
    """Return a heading and what else there is to say of each experiment, what can be run first."""
    order = get_args(Status)
    experiments = sorted(experiments, key=lambda pair: order.index(pair[1].status))
    name = max((len(e.name) for e, _ in experiments), default=0)
    return [
        (
            f"{e.name:<{name}}  {found.status:<13}  {e.title}",
            f"systems: {', '.join(s.name for s in e.systems)}",
            *([found.reason] if found.reason else []),
        )
        for e, found in experiments
    ]


def table(found: Sequence[Finding]) -> list[str]:
    """Return findings as lines of a table, in percent; ``expected`` is the interval in which the
    reported value would lie, had it been obtained by runs like ours."""
    rows = [HEADINGS, *map(_row, found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    return [
        "  ".join(
            cell.ljust(width) if i in (0, 1, 6) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(finding: Finding) -> tuple[str, ...]:
    agreement = finding.agreement
    mean, points, interval = agreement.mean, agreement.points, agreement.interval
    return (
        finding.system,
        finding.metric,
        f"{agreement.reported:.2f}",
        "-" if mean is None else f"{mean:.2f}",
        "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}",
        "-" if points is None else f"{points:+.1f}",
        finding.verdict + _why(finding, agreement),
    )


def _why(finding: Finding, agreement: Agreement) -> str:
    """Return what a verdict rests on, where the numbers beside it do not say so."""
    if finding.failures:
        return f": {'; '.join(finding.failures)}"
    if finding.verdict == "cannot tell":
        return ": one seed has no interval; add --seed"
    interval = agreement.interval
    if finding.verdict == "agrees" and interval is not None:
        low, high = interval
        if not low <= agreement.reported <= high:
            return ", within the tolerance"
    return ""


def verdict(experiment: Experiment, found: Sequence[Finding]) -> str:
    """Return the findings in one sentence."""
    counts = [
        f"{sum(f.verdict == word for f in found)} {plural}"
        for word, plural in (
            ("agrees", "agree"),
            ("differs", "differ"),
            ("cannot tell", "cannot be told"),
        )
        if any(f.verdict == word for f in found)
    ]
    means = _count(experiment.runs, "run")
    tolerance = f", or {experiment.tolerance:g} points" if experiment.tolerance is not None else ""
    return (
        f"Of {_count(len(found), 'value')} {', '.join(counts)}. Agreement is the 95 % interval for "
        f"the mean of {means}{tolerance}; of 20 values that do agree, one falls outside such an "
        "interval on average."
    )


def reasons(experiment: Experiment) -> Iterable[str]:
    """Yield why the values may differ."""
    if experiment.data is not None:
        yield f"data in print: {experiment.data}"
    yield from experiment.differences


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
