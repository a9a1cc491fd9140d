"""Stored robustness as tables: a table for each modality and corruption, a line a method or run.

For people, shares are in percent. CSV holds a row per severity with full precision.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmbench.errors import unknown_name
from mmbench.report.comparison import labels_of
from mmbench.report.rows import shown
from mmbench.store.frame import StoredRun
from mmbench.store.robustness import UNITS, Point, read_robustness, relative

FORMATS = ("text", "markdown", "csv")

COLUMNS = (
    "dataset",
    "protocol",
    "method",
    "label",
    "config_hash",
    "seeds",
    "modality",
    "corruption",
    "severity",
    "level",
    "accuracy",
    "nll",
    "relative",
    "relative_above_chance",
    "retained",
    "retained_above_chance",
)

EXPLANATION = (
    "Test accuracy in percent. retained: mean over the severities of accuracy / clean accuracy, in "
    "percent; above chance: the same of accuracy less that of always saying the most frequent "
    "class of the training rows, a dash where the clean accuracy is not above it."
)


@dataclass(frozen=True)
class Line:
    """One modality under one corruption: of a run, or the mean over runs of a setting."""

    table: str
    """Dataset, its options and protocol: what may stand in one table."""
    run: StoredRun
    """The run, or the first of the setting."""
    label: str
    seeds: tuple[int, ...]
    modality: str
    corruption: str
    levels: tuple[float, ...]
    """By severity; NaN where clean or missing."""
    accuracy: tuple[float, ...]
    nll: tuple[float, ...]
    relative: tuple[float, ...]
    above_chance: tuple[float, ...]

    @property
    def retained(self) -> float:
        """Area under the curve: the mean of ``relative`` over severities, clean left out."""
        return statistics.fmean(self.relative[1:])

    @property
    def retained_above_chance(self) -> float:
        return statistics.fmean(self.above_chance[1:])

    @property
    def heading(self) -> tuple[str, str, str, tuple[str, ...]]:
        """What lines of one table share."""
        levels = tuple("" if math.isnan(level) else f"{level:g}" for level in self.levels)
        return self.table, self.modality, self.corruption, levels


def lines_of(runs: Sequence[StoredRun], per_run: bool = False) -> list[Line]:
    """Return what is stored of finished runs: a line per run and curve, or the means over the runs
    of each setting. Raises :class:`StoreError` for a damaged file."""
    labels = labels_of(runs)
    merged: dict[tuple[object, ...], list[Line]] = {}
    for run in runs:
        for line in _of_run(run, labels[run.method, run.config_hash]):
            who = run.path if per_run else (run.method, run.config_hash)
            merged.setdefault((who, line.heading), []).append(line)
    found = [_mean(lines) for lines in merged.values()]
    tables = list(dict.fromkeys(line.heading[:2] for line in found))
    corruptions = list(UNITS)
    return sorted(
        found,
        key=lambda line: (
            tables.index(line.heading[:2]),
            corruptions.index(line.corruption) if line.corruption in UNITS else len(corruptions),
            line.heading[3],
        ),
    )


def _of_run(run: StoredRun, label: str) -> list[Line]:
    curves: dict[tuple[str, str], list[Point]] = {}
    for point in read_robustness(run.path):
        curves.setdefault(point.curve, []).append(point)
    options = "".join(
        f" {name.removeprefix('dataset.')}={shown(value)}"
        for name, value in run.finished.changed.items()
        if name.startswith("dataset.")
    )
    lines = []
    for (m, corruption), points in curves.items():
        ratios = [relative(point, points[0]) for point in points]
        lines.append(
            Line(
                f"{run.dataset} {run.finished.protocol}{options}",
                run,
                label,
                (run.seed,),
                m,
                corruption,
                tuple(point.level for point in points),
                tuple(point.accuracy for point in points),
                tuple(point.nll for point in points),
                tuple(ratio for ratio, _ in ratios),
                tuple(ratio for _, ratio in ratios),
            )
        )
    return lines


def _mean(lines: Sequence[Line]) -> Line:
    def over(name: str) -> tuple[float, ...]:
        by_severity = zip(*(getattr(line, name) for line in lines), strict=True)
        return tuple(statistics.fmean(values) for values in by_severity)

    return replace(
        lines[0],
        seeds=tuple(sorted(seed for line in lines for seed in line.seeds)),
        accuracy=over("accuracy"),
        nll=over("nll"),
        relative=over("relative"),
        above_chance=over("above_chance"),
    )


def rendered(lines: Sequence[Line], format: str = "text", width: int = 120) -> str:
    """Return the lines in one of :data:`FORMATS`."""
    if format == "csv":
        return _csv(lines)
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    is_text = format == "text"
    parts: list[str] = []
    table = None
    for heading in dict.fromkeys(line.heading for line in lines):
        if heading[0] != table:
            table = heading[0]
            parts += [f"{table}\n{'=' * len(table)}" if is_text else f"### {_escaped(table)}"]
        title = f"{heading[1]}, {heading[2]} ({UNITS.get(heading[2], 'level')})"
        cells = _cells([line for line in lines if line.heading == heading])
        made = _aligned(cells) if is_text else _piped(cells)
        parts.append(f"{title}\n{made}" if is_text else f"**{_escaped(title)}**\n\n{made}")
    parts.append("\n".join(textwrap.wrap(EXPLANATION, width)) if is_text else EXPLANATION)
    return "\n\n".join(parts) + "\n"


def _cells(lines: Sequence[Line]) -> list[list[str]]:
    levels = [level or "missing" for level in lines[0].heading[3][1:]]
    header = ["", "seeds", "clean", *levels, "retained", "above chance"]
    return [header] + [
        [
            line.label,
            ",".join(map(str, line.seeds)),
            *(_percent(value) for value in line.accuracy),
            _percent(line.retained),
            _percent(line.retained_above_chance),
        ]
        for line in lines
    ]


def _percent(value: float) -> str:
    return "—" if math.isnan(value) else f"{100 * value:.1f}"


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = (cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([first, *rest]))
    return "\n".join(lines)


def _piped(cells: Sequence[Sequence[str]]) -> str:
    header, *rows = ([_escaped(cell) for cell in row] for row in cells)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_")


def _csv(lines: Sequence[Line]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        run = line.run
        who = [run.dataset, run.finished.protocol, run.method, line.label, run.config_hash]
        for severity, level in enumerate(line.levels):
            numbers = (
                level,
                line.accuracy[severity],
                line.nll[severity],
                line.relative[severity],
                line.above_chance[severity],
                line.retained,
                line.retained_above_chance,
            )
            what = [" ".join(map(str, line.seeds)), line.modality, line.corruption, severity]
            writer.writerow([*who, *what, *("" if math.isnan(n) else repr(n) for n in numbers)])
    return stream.getvalue()
