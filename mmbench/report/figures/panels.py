"""A grid of small panels with the same ends, one for each row of a table.

Places are computed from the sizes of what is written, in inches. matplotlib's layout engine finds
them too, but draws every panel twice for it: seconds for 30.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmbench.report.figures.labels import broken, wrapped
from mmbench.report.figures.legends import PER_INCH, legend_below
from mmbench.report.figures.style import new_figure

ACROSS = 4
WIDTHS = (3.0, 2.4, 2.0, 1.6)
"""Inches of a panel, where 1 to 4 stand side by side."""
LEFT, RIGHT, BETWEEN = 0.62, 0.14, 0.16
LINE = 0.15
"""Height of a line of text."""
ABOVE = 0.1
"""Between a panel's title and what stands above it."""
TICKS = 0.22
"""Room of the numbers below an axis."""


@dataclass(frozen=True)
class Frame:
    """What all panels have in common."""

    heading: str
    x_label: str
    y_label: str
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    height: float = 1.15
    """Inches of a panel."""


def panel_grid(
    frame: Frame,
    titles: Sequence[str],
    handles: Sequence[Line2D | Patch],
    across: int = ACROSS,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with an empty panel for each title, in reading order, and the legend. Titles
    are broken into lines where they are wider than a panel."""
    across = min(len(titles), across)
    width = WIDTHS[across - 1]
    total = LEFT + across * width + (across - 1) * BETWEEN + RIGHT
    fitting = int(PER_INCH * (width + BETWEEN / 2))
    titles = ["\n".join(broken(line, fitting) for line in t.split("\n")) for t in titles]
    heading = wrapped(frame.heading, int(PER_INCH * total * 8 / 9))
    figure = new_figure(total, 1.0, constrained=False)
    legend = legend_below(figure, handles).get_window_extent().height / figure.dpi

    # From the top: heading; then of each line of panels its titles, the panels, what is below.
    y = LINE * lines_of(heading) + 0.05
    full = len(titles) // across  # lines of panels without a gap at the end
    spots: list[float] = []
    for start in range(0, len(titles), across):
        y += ABOVE + LINE * max(lines_of(title) for title in titles[start : start + across])
        spots.append(y)
        y += frame.height
        y += TICKS + LINE if start // across + 1 >= full else 0.05
    height = y + 0.08 + legend + 0.05
    figure.set_size_inches(total, height)
    figure.text(0.5, 1 - 0.05 / height, heading, ha="center", va="top", fontsize=9)
    axes = []
    for i, title in enumerate(titles):
        left = LEFT + (i % across) * (width + BETWEEN)
        bottom = height - spots[i // across] - frame.height
        place = (left / total, bottom / height, width / total, frame.height / height)
        axis = figure.add_axes(place)
        axis.set_xlim(frame.x_limits)
        axis.set_ylim(frame.y_limits)
        axis.set_autoscale_on(False)
        axis.set_title(title, pad=3)
        has_none_below = i + across >= len(titles)
        axis.tick_params(labelbottom=has_none_below, labelleft=i % across == 0)
        if has_none_below:
            axis.set_xlabel(frame.x_label, labelpad=1)
        if i % across == 0:
            axis.set_ylabel(frame.y_label)
        axes.append(axis)
    return figure, axes


def lines_of(text: str) -> int:
    return text.count("\n") + 1
