"""What accuracy was paid for, in updates and in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mmbench.report.comparison import Group
from mmbench.report.figures.labels import labels
from mmbench.report.figures.legends import legend_below
from mmbench.report.figures.outcomes import limits, whiskers
from mmbench.report.figures.style import CONTROL, METHOD, new_figure, style
from mmbench.report.rows import CONTROLS, Row

COSTS = {"updates": "updates", "train_seconds": "training time (s)"}
PANEL, LEFT, BETWEEN, LEADERS, NAMES = 2.0, 0.62, 0.2, 0.7, 2.5
"""Inches: a panel, the room left of it and between two, the lines to the names, the names."""
LINE = 0.135
"""Height of a line of a name, in inches."""
DECADE = 10
"""Costs that spread by more than this factor stand on a logarithmic axis."""
WIDE = 2.5
"""From so many decades on, only their ends are numbered."""


def cost_figure(group: Group) -> Figure | None:
    """Return the metric of each row that trains, with its 95 % interval, against its updates and
    its training time. Names stand at the right, each at the end of a line through its points.

    Filled points: no row costs less or the same and has a better mean. That is said of the means,
    not of what can be distinguished. None where no row trains.
    """
    rows = [r for r in group.rows if r.trains and math.isfinite(r.value.mean)]
    if not rows:
        return None
    metric = group.metric
    with style():
        names = labels(rows)
        room = np.array([LINE * (name.count("\n") + 1) + 0.03 for name in names])
        height = max(2.2, float(room.sum()) + 0.1)
        bottom, top = 0.75, 0.3
        width = LEFT + len(COSTS) * PANEL + BETWEEN + LEADERS + NAMES
        figure = new_figure(width, bottom + height + top, constrained=False)
        total = figure.get_figheight()
        low, high = limits(group)
        values = [row.value.mean * metric.scale for row in rows]
        axes = []
        for i, (cost, title) in enumerate(COSTS.items()):
            left = LEFT + i * (PANEL + BETWEEN)
            place = (left / width, bottom / total, PANEL / width, height / total)
            axis = figure.add_axes(place)
            _panel(axis, rows, cost, group)
            axis.set_ylim(low, high)
            axis.set_xlabel(title if cost == "updates" else f"{title}{_devices(rows)}")
            axis.tick_params(labelleft=i == 0)
            axes.append(axis)
        unit = f" ({metric.unit})" if metric.unit else ""
        axes[0].set_ylabel(f"test {metric.title}{unit}")
        left = LEFT + len(COSTS) * PANEL + BETWEEN
        place = (left / width, bottom / total, (LEADERS + NAMES) / width, height / total)
        _names(figure.add_axes(place), names, values, room * (high - low) / height, (low, high))
        heading = f"{group.name}: {metric.title} against cost, mean and 95 % interval over seeds"
        figure.text(0.02, 1 - 0.07 / total, heading, ha="left", va="top", fontsize=9)
        legend_below(figure, _handles())
    return figure


def _panel(axis: Axes, rows: Sequence[Row], cost: str, group: Group) -> None:
    metric = group.metric
    costs = [row.cost(cost) for row in rows]
    means = [row.value.mean for row in rows]
    front = on_front(costs, means if metric.higher_is_better else [-m for m in means])
    axis.grid(axis="y", visible=False)
    _x_axis(axis, costs)
    for row, x, is_first in zip(rows, costs, front, strict=True):
        is_control = row.method in CONTROLS
        colour = CONTROL if is_control else METHOD
        value = row.value.mean * metric.scale
        axis.axhline(value, color="0.85", lw=0.5, zorder=0.5)
        axis.errorbar(x, value, yerr=whiskers(row, metric.scale), color=colour, lw=0.7, alpha=0.5)
        axis.plot(
            x,
            value,
            marker="s" if is_control else "o",
            color=colour,
            markerfacecolor=colour if is_first else "w",
            markersize=4.5,
            ls="",
            gid="row",
        )


def on_front(costs: Sequence[float], scores: Sequence[float]) -> list[bool]:
    """Return whether no other point costs less or the same and scores higher, nor costs less and
    scores the same."""
    return [
        not any(
            (c <= cost and s > score) or (c < cost and s >= score)
            for c, s in zip(costs, scores, strict=True)
        )
        for cost, score in zip(costs, scores, strict=True)
    ]


def _x_axis(axis: Axes, costs: Sequence[float]) -> None:
    low, high = min(costs), max(costs)
    if low > 0 and high / low > DECADE:
        axis.set_xscale("log")
        margin = (high / low) ** 0.08
        axis.set_xlim(low / margin, high * margin)
        decades = math.log10(high / low)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3) if decades < WIDE else (1,)))
        axis.xaxis.set_major_formatter(FuncFormatter(_short))
        axis.xaxis.set_minor_formatter(NullFormatter())
        return
    margin = 0.08 * (high - low) or 0.08 * high or 1.0
    axis.set_xlim(low - margin, high + margin)
    axis.locator_params(axis="x", nbins=4)


def _short(cost: float, _: int | None = None) -> str:
    """Return a cost in few characters: 300, 3k, 30M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if cost >= factor:
            return f"{cost / factor:g}{letter}"
    return f"{cost:g}"


def _devices(rows: Sequence[Row]) -> str:
    """Return what the seconds were taken on: those of different devices do not compare."""
    devices = {str(run.finished.environment.get("device", "")) for r in rows for run in r.runs}
    return f" on {' and '.join(sorted(devices))}" if all(devices) else ""


def _names(
    axis: Axes,
    names: Sequence[str],
    values: Sequence[float],
    room: np.ndarray,
    ends: tuple[float, float],
) -> None:
    """Write the names beside their values, one above the other, with a line to each."""
    axis.set_axis_off()
    axis.set_xlim(0, LEADERS + NAMES)
    axis.set_ylim(ends)
    spots = spread(values, room, ends)
    for name, value, spot in zip(names, values, spots, strict=True):
        line = [0, 0.04, LEADERS - 0.08, LEADERS - 0.04], [value, value, spot, spot]
        axis.plot(*line, color="0.7", lw=0.5, clip_on=False)
        axis.text(LEADERS, spot, name, va="center", linespacing=1.05)


def spread(values: Sequence[float], room: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Return places near the values, in their order, each with its room and within the ends.

    Neighbours that are too close form a block about the mean of where they would stand, as in
    isotonic regression. The rooms must fit between the ends.
    """
    order = np.argsort(values, kind="stable")
    blocks: list[list[float]] = []  # start, size, wish for the start, members
    for i in order:
        size = float(room[i])
        blocks.append([values[i] - size / 2, size, values[i] - size / 2, 1.0])
        while True:
            start, size, _, _ = blocks[-1]
            blocks[-1][0] = start = min(max(start, ends[0]), ends[1] - size)
            if len(blocks) == 1 or blocks[-2][0] + blocks[-2][1] <= start + 1e-12:
                break
            _, above_size, above_wish, above_count = blocks.pop()
            _, below_size, below_wish, below_count = blocks.pop()
            count = below_count + above_count
            wish = (below_wish * below_count + (above_wish - below_size) * above_count) / count
            blocks.append([wish, below_size + above_size, wish, count])
    places = np.empty(len(room))
    members = iter(order)
    for start, _, _, count in blocks:
        for _ in range(int(count)):
            i = next(members)
            places[i] = start + room[i] / 2
            start += room[i]
    return places


def _handles() -> list[Line2D]:
    return [
        Line2D([], [], color=METHOD, marker="o", markersize=4.5, ls="", label="method"),
        Line2D([], [], color=CONTROL, marker="s", markersize=4.5, ls="", label="control"),
        Line2D(
            [],
            [],
            color="0.2",
            marker="o",
            markerfacecolor="w",
            markersize=4.5,
            ls="",
            label="open: a row that costs no more has a better mean",
        ),
    ]
