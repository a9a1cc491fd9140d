"""A legend below a figure, in as many columns as its width holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmbench.report.figures.labels import wrapped

FONT = 8
PER_INCH = 14
"""Characters of the font in an inch, rather too few than too many."""
BESIDE = (2.0 + 0.8 + 2.0) * FONT
"""Points that an entry takes beside its label: handle, pad and space of matplotlib's default."""


def legend_below(figure: Figure, handles: Sequence[Line2D | Patch]) -> Legend:
    """Add the legend, below the axes where a layout engine finds their places, else at the bottom
    edge. Labels that are wider than the figure are broken."""
    inches = figure.get_figwidth()
    for handle in handles:
        handle.set_label(wrapped(str(handle.get_label()), int((inches - 0.8) * PER_INCH)))
    managed = figure.get_layout_engine() is not None
    entries: Sequence[Artist] = handles
    return figure.legend(
        handles=entries,
        loc="outside lower center" if managed else "lower center",
        ncols=columns(figure, [str(handle.get_label()) for handle in handles]),
        borderaxespad=0.5 if managed else 0.2,
    )


def columns(figure: Figure, labels: Sequence[str]) -> int:
    """Return the most columns, filled from the top, that are no wider than the figure together."""
    widths = np.array([_width(figure, label) for label in labels]) + BESIDE * figure.dpi / 72
    for count in range(len(labels), 1, -1):
        if sum(part.max() for part in np.array_split(widths, count)) <= figure.bbox.width:
            return count
    return 1


def _width(figure: Figure, label: str) -> float:
    """Return the width of a label's longest line in pixels."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    measure = canvas.get_renderer().get_text_width_height_descent  # type: ignore[no-untyped-call]
    font = FontProperties(size=FONT)
    return max(float(measure(line, font, False)[0]) for line in label.split("\n"))
