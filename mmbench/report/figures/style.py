"""How all figures look: type sizes, colours that colour-blind readers tell apart, and for each
colour a shape, a line and a hatch, for print without colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

Colour = tuple[float, float, float]
Dashes = tuple[int, tuple[float, ...]]

MARKERS = "osD^vPX*"
"""A shape for each modality."""
LINES: tuple[str | Dashes, ...] = (
    "--",
    "-.",
    ":",
    (0, (7, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (1, 2.5)),
)
"""A line for each modality; the solid one is the fused prediction's."""
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----")
"""A hatch for each modality's bars."""

METHOD: Colour = (0.004, 0.451, 0.698)
"""Colour of a method beside the grey of controls: the first of the palette."""
CONTROL = "0.35"
DPI = 200


@contextmanager
def style() -> Iterator[None]:
    """Within it, matplotlib draws and saves as all figures here do."""
    with mpl.rc_context(
        {
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.labelsize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "0.9",
            "axes.axisbelow": True,
            "hatch.linewidth": 0.5,
            "svg.hashsalt": "mmbench",  # the same figure is the same file
        }
    ):
        yield


def palette(names: Sequence[str]) -> dict[str, Colour]:
    """Return a colour for each name, of seaborn's palette for colour-blind readers."""
    colours = sns.color_palette("colorblind", max(6, len(names)))
    return dict(zip(names, colours, strict=False))


def marker(i: int) -> str:
    return MARKERS[i % len(MARKERS)]


def line(i: int) -> str | Dashes:
    return LINES[i % len(LINES)]


def new_figure(width: float, height: float, constrained: bool = True) -> Figure:
    """Return an empty figure of a size in inches."""
    layout = ConstrainedLayoutEngine() if constrained else None
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure
