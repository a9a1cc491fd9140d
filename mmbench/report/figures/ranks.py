"""Average ranks over datasets, and which of them cannot be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mmbench.report.figures.labels import LABEL_WIDTH, broken, places_of, rows_axis, wrapped
from mmbench.report.figures.legends import legend_below
from mmbench.report.figures.style import METHOD, new_figure, style

if TYPE_CHECKING:
    from mmbench.report.ranking import Ranking

WIDTH = 6.5
LANE = 0.12
"""Inches between two bars at the side."""

Span = tuple[int, int]
"""First and last of the rows that a bar joins."""


def critical_difference_figure(ranking: Ranking) -> Figure:
    """Return the average rank of each row over datasets, the best at the top, with its rank in each
    dataset. Rows that a bar at the side joins are not distinguishable.

    The diagram of Demšar 2006 ("Statistical comparisons of classifiers over multiple data sets"),
    turned so that rows stand below one another: names may be many and long.
    """
    count = len(ranking.rows)
    spans = [_span(ranking, clique) for clique in ranking.cliques]
    lanes = lanes_of(spans)
    with style():
        names = [broken(row.label, LABEL_WIDTH) for row in ranking.rows]
        places = places_of(names)
        figure = new_figure(WIDTH, 1.6 + 0.22 * (places[-1] + 1))
        side = LANE * (max(lanes, default=0) + 1)
        axis, bars = figure.subplots(1, 2, width_ratios=[WIDTH - side, side])
        for row, place in zip(ranking.rows, places, strict=True):
            axis.plot(row.ranks, [place] * len(row.ranks), "|", color="0.55", markersize=6)
            axis.plot(row.average_rank, place, "o", color=METHOD, markersize=5)
        rows_axis(axis, names, places)
        axis.set_xlim(0.7, max(count, 1 + (ranking.critical_difference or 0)) + 0.3)
        axis.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=2))
        axis.set_xlabel(f"average rank over {len(ranking.datasets)} datasets, 1 is best")
        bars.set_axis_off()
        for (first, last), lane in zip(spans, lanes, strict=True):
            ends = [places[first] - 0.25, places[last] + 0.25]
            bars.plot([lane, lane], ends, color="0.1", lw=2.5, solid_capstyle="butt")
        if ranking.critical_difference is not None:
            _ruler(axis, ranking.critical_difference, places[0] - 1.1)
        bars.set_ylim(axis.get_ylim())
        bars.set_xlim(-0.5, max(lanes, default=0) + 0.5)
        figure.suptitle(wrapped(_heading(ranking), 78), fontsize=9)
        legend_below(figure, _handles())
    return figure


def _span(ranking: Ranking, clique: tuple[str, ...]) -> Span:
    labels = [row.label for row in ranking.rows]
    return labels.index(clique[0]), labels.index(clique[-1])


def lanes_of(spans: list[Span]) -> list[int]:
    """Return the lane of each bar: the first in which it meets no other."""
    lanes: list[int] = []
    last_in: list[int] = []  # of each lane, the last row that its bars reach
    for first, last in spans:
        lane = next((i for i, taken in enumerate(last_in) if taken < first), len(last_in))
        if lane == len(last_in):
            last_in.append(last)
        last_in[lane] = last
        lanes.append(lane)
    return lanes


def _ruler(axis: Axes, length: float, place: float) -> None:
    """Draw the critical difference to scale above the rows."""
    axis.plot([1, 1 + length], [place, place], "|-", color="0.1", lw=1.2, markersize=6)
    axis.set_ylim(top=place - 1.0)
    axis.annotate(
        f"critical difference {length:.2f}",
        (1, place),
        xytext=(0, 4),
        textcoords="offset points",
        va="bottom",
    )


def _heading(ranking: Ranking) -> str:
    if ranking.friedman_p is None:
        return "Average ranks"
    p = "p < 0.001" if ranking.friedman_p < 0.001 else f"p = {ranking.friedman_p:.3f}"
    p = p.replace(" ", "\u00a0")  # stays on one line
    said = "ranks differ" if ranking.is_distinguishable else "ranks are not distinguishable"
    return f"Average ranks of {len(ranking.rows)} rows: {said} (Friedman test, {p})"


def _handles() -> list[Line2D]:
    return [
        Line2D([], [], color=METHOD, marker="o", markersize=5, ls="", label="average rank"),
        Line2D([], [], color="0.55", marker="|", markersize=6, ls="", label="in one dataset"),
        Line2D([], [], color="0.1", lw=2.5, label="not distinguishable"),
    ]
