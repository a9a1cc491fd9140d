"""The metric of each row with its interval."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmbench.report.comparison import Group
from mmbench.report.figures.labels import labels, places_of, rows_axis
from mmbench.report.figures.legends import legend_below
from mmbench.report.figures.style import CONTROL, METHOD, new_figure, style
from mmbench.report.rows import CONTROLS, Row


def outcome_figure(group: Group) -> Figure:
    """Return the metric of each row with its 95 % interval, in the order of the table.

    Lines stand at the reference and at the best unimodal model. The majority class, if it lies far
    from the others, is written at the edge so that it does not squeeze them.
    """
    metric, rows = group.metric, group.rows
    with style():
        names = labels(rows)
        places = places_of(names)
        figure = new_figure(6.5, 1.1 + 0.22 * (places[-1] + 1))
        axis = figure.subplots()
        low, high = limits(group)
        lines = _lines(axis, group)
        for row, place in zip(rows, places, strict=True):
            value = row.value.mean * metric.scale
            is_control = row.method in CONTROLS
            colour = CONTROL if is_control else METHOD
            if low <= value <= high:
                axis.errorbar(
                    value,
                    place,
                    xerr=whiskers(row, metric.scale),
                    fmt="s" if is_control else "o",
                    color=colour,
                    markersize=4.5,
                    capsize=2.5,
                    lw=1.2,
                )
            else:
                _at_the_edge(axis, metric.value(row.value.mean), value, place, colour, (low, high))
        axis.set_xlim(low, high)
        rows_axis(axis, names, places)
        unit = f" ({metric.unit})" if metric.unit else ""
        axis.set_xlabel(f"test {metric.title}{unit}, mean and 95 % interval over seeds")
        axis.set_title(group.name, loc="left")
        if lines:
            legend_below(figure, lines)
    return figure


def _at_the_edge(
    axis: Axes, text: str, value: float, place: float, colour: object, ends: tuple[float, float]
) -> None:
    """Write a value that lies outside of the axis, or that is not a number."""
    is_right = value > ends[1]
    said = f"{text} ▸" if is_right else f"◂ {text}"
    axis.annotate(
        said if math.isfinite(value) else " not a number",
        (ends[1] if is_right else ends[0], place),
        ha="right" if is_right else "left",
        va="center",
        color=colour,
    )


def whiskers(row: Row, scale: int) -> list[list[float]] | None:
    """Return the lengths of the interval to both sides of the mean; None where there is none."""
    if row.value.low is None or row.value.high is None:
        return None
    mean = row.value.mean
    return [[(mean - row.value.low) * scale], [(row.value.high - mean) * scale]]


def limits(group: Group) -> tuple[float, float]:
    """Return the ends of the axis: all rows with their intervals, the majority class left aside."""
    chosen = [r for r in group.rows if r.method != CONTROLS[0]] or list(group.rows)
    if group.best_unimodal is not None:
        chosen.append(group.best_unimodal)
    found = [e for r in chosen for e in (r.value.mean, r.value.low, r.value.high) if e is not None]
    ends = [e * group.metric.scale for e in found if math.isfinite(e)] or [0.0]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 0.01 * group.metric.scale
    return low - margin, high + margin


def _lines(axis: Axes, group: Group) -> list[Line2D]:
    lines = []
    base = next((row for row in group.rows if row.is_reference), None)
    for row, line, what in (
        (base, "-", "reference: "),
        (group.best_unimodal, "--", "best unimodal: "),
    ):
        if row is not None and math.isfinite(row.value.mean):
            value = row.value.mean * group.metric.scale
            label = f"{what}{row.label} ({group.metric.value(row.value.mean)})"
            lines.append(axis.axvline(value, color="0.5", lw=1, ls=line, zorder=0.5, label=label))
    return lines
