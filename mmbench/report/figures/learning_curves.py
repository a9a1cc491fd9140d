"""Validation accuracy over epochs, fused and of each modality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mmbench.report.comparison import Group
from mmbench.report.figures.curves import Curves, draw_curve, group_curves
from mmbench.report.figures.labels import marked
from mmbench.report.figures.panels import Frame, panel_grid
from mmbench.report.figures.style import line, palette, style
from mmbench.report.rows import Row

FUSED = (0.1, 0.1, 0.1)


def learning_curve_figure(group: Group) -> Figure | None:
    """Return validation accuracy over epochs, fused and of each modality: a panel a row, the mean
    over seeds and a band of one standard deviation. None where nothing looked at validation."""
    found = group_curves(group)
    if not found:
        return None
    colours = palette(group.modalities)
    lines = {m: line(i) for i, m in enumerate(group.modalities)}
    parts = [segment for _, curves in found for segment in curves.segments]
    read = [m for m in group.modalities if any(m in part.modalities for part in parts)]
    handles = [Line2D([], [], color=FUSED, label="fused")]
    handles += [Line2D([], [], color=colours[m], ls=lines[m], lw=1.4, label=m) for m in read]
    if any(part.start for part in parts):
        handles.append(Line2D([], [], color="0.6", ls=":", lw=0.8, label="next stage"))
    seen = [values for part in parts for values in (part.fused, *part.modalities.values())]
    frame = Frame(
        f"{group.name}: validation accuracy in training, mean over seeds ± standard deviation",
        "epoch",
        "val accuracy (%)",
        epoch_limits(found),
        _limits(seen),
    )
    with style():
        figure, axes = panel_grid(frame, [_title(row, curves) for row, curves in found], handles)
        for axis, (_, curves) in zip(axes, found, strict=True):
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            for segment in curves.segments:
                draw_curve(axis, segment.start, 100 * segment.fused, FUSED, "-")
                for m, values in segment.modalities.items():
                    draw_curve(axis, segment.start, 100 * values, colours[m], lines[m])
                if segment.start:
                    axis.axvline(segment.start + 0.5, color="0.6", lw=0.8, ls=":")
    return figure


def epoch_limits(found: Sequence[tuple[Row, Curves]]) -> tuple[float, float]:
    last = max(curves.epochs for _, curves in found)
    margin = max(0.5, 0.03 * last)
    return 1 - margin, last + margin


def _limits(seen: Sequence[np.ndarray]) -> tuple[float, float]:
    low = 100 * min(float(np.nanmin(values)) for values in seen)
    high = 100 * max(float(np.nanmax(values)) for values in seen)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _title(row: Row, curves: Curves) -> str:
    return marked(row) + (" (own heads)" if curves.own_heads else "")
