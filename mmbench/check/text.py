"""A check as text."""

from __future__ import annotations

from collections.abc import Sequence

from mmbench.check.checking import REGRESSIONS, Check, Finding, allowed_text

HEADINGS = ("row", "quantity", "stored", "now", "change", "allowed", "verdict")
RIGHT = range(2, 6)

SHOWN = 3
"""Findings that the verdict names; the table has all."""


def rendered(check: Check) -> str:
    """Return the verdict in words, a table of all findings, and what a reader has to know."""
    lines = [verdict(check), "", *table(check.findings)]
    remarks = [
        *(f"{problem.row}: {problem.what}" for problem in check.problems),
        *(f.sentence for f in check.untold if f.seeds),
        *(f"note: {note}" for note in check.notes),
    ]
    if check.improvements:
        remarks.append(
            'note: better than stored; `--update --reason "..."` makes it the new baseline'
        )
    if check.tests:
        remarks.append(
            f"note: where no value has really changed, at most {100 * check.false_alarms:g} % of "
            f"checks report a regression by chance ({check.tests} tolerances share it)"
        )
    return "\n".join([*lines, *([""] if remarks else []), *remarks]) + "\n"


def verdict(check: Check) -> str:
    """Return one sentence."""
    count = len(check.findings)
    if bad := check.regressions:
        return f"REGRESSION in {len(bad)} of {count} values: {_named(bad)}"
    if check.exit_code:
        missing = len(check.untold)
        return f"CANNOT TELL: {missing} of {count} values could not be judged; none is worse"
    if good := check.improvements:
        return f"ok: none of {count} values is worse; better: {_named(good)}"
    if check.is_unchanged:
        return f"ok: all {count} values are those stored"
    return f"ok: none of {count} values is worse than allowed"


def _named(findings: Sequence[Finding]) -> str:
    names = ", ".join(f.name for f in findings[:SHOWN])
    more = len(findings) - SHOWN
    return f"{names} and {more} more" if more > 0 else names


def table(findings: Sequence[Finding]) -> list[str]:
    """Return findings as lines; a regression is marked at the left."""
    rows = [HEADINGS, *map(_row, findings)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    marks = ["  ", *("! " if f.verdict in REGRESSIONS else "  " for f in findings)]
    return [
        mark
        + "  ".join(
            cell.rjust(width) if i in RIGHT else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for mark, row in zip(marks, rows, strict=True)
    ]


def _row(finding: Finding) -> tuple[str, ...]:
    show = finding.quantity
    numbers = ("-", "-", "-")
    if finding.seeds:
        numbers = (
            show.value(finding.stored),
            show.value(finding.now),
            show.change(finding.change),
        )
    return finding.row, show.name, *numbers, allowed_text(finding), finding.verdict
