"""What each modality's encoder knows, beside its training alone, and the Shapley values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmbench.report.comparison import Group
from mmbench.report.figures.labels import labels, places_of, rows_axis, wrapped
from mmbench.report.figures.legends import legend_below
from mmbench.report.figures.style import HATCHES, Colour, marker, new_figure, palette, style
from mmbench.report.rows import Row

PANELS_ACROSS = 4


def contribution_figure(group: Group) -> Figure | None:
    """Return what each modality's encoder knows beside what it knows when trained alone, and the
    Shapley values; None where no row has probes.

    A panel a modality: the probe accuracy of each row, and a dashed line at that of the unimodal
    model. The bar between the two is what training together cost that encoder, or gave it.
    """
    rows = [r for r in group.rows if any(r.readout(m, "probe") for m in group.modalities)]
    if not rows:
        return None
    modalities = [m for m in group.modalities if any(r.readout(m, "probe") for r in rows)]
    values = {m: [r.shapley(m) for r in rows] for m in group.modalities}
    with_shapley = any(v is not None for of_rows in values.values() for v in of_rows)
    panels = len(modalities) + with_shapley
    across = min(panels, PANELS_ACROSS)
    down = math.ceil(panels / across)
    colours = palette(group.modalities)
    with style():
        names = labels(rows)
        places = places_of(names)
        figure = new_figure(2.1 + 1.75 * across, 0.7 + down * (0.55 + 0.2 * (places[-1] + 1)))
        axes = figure.subplots(down, across, squeeze=False)
        flat = list(axes.flat)
        for axis in flat[panels:]:
            axis.remove()
        ends = _probe_limits(group, rows, modalities)
        for i, m in enumerate(modalities):
            flat[i].set_xlim(ends)
            flat[i].set_autoscale_on(False)
            shape = marker(group.modalities.index(m))
            _probe_panel(flat[i], group, rows, places, m, colours[m], shape)
        if with_shapley:
            _shapley_panel(flat[panels - 1], places, values, colours)
        for i, axis in enumerate(flat[:panels]):
            rows_axis(axis, names, places)
            axis.tick_params(labelleft=i % across == 0)
        figure.suptitle(f"{group.name}: what each modality knows and adds", fontsize=9)
        handles: list[Line2D | Patch] = [
            Line2D([], [], color="0.3", marker="o", ls="", label="probe accuracy in the method"),
            Line2D([], [], color="0.3", ls="--", label="probe accuracy trained alone"),
        ]
        handles += [
            Patch(facecolor=colours[m], edgecolor="w", hatch=2 * hatch, label=m)
            for m, hatch in zip(group.modalities, _hatches(len(group.modalities)), strict=True)
        ]
        legend_below(figure, handles)
    return figure


def _hatches(count: int) -> list[str]:
    return [HATCHES[i % len(HATCHES)] for i in range(count)]


def _probe_limits(
    group: Group, rows: Sequence[Row], modalities: Sequence[str]
) -> tuple[float, float]:
    """Return one pair of ends for all panels, so that modalities can be compared too."""
    shown_rows = [*rows, *group.unimodal.values()]
    found = [s.mean for r in shown_rows for m in modalities if (s := r.readout(m, "probe"))]
    low, high = 100 * min(found), 100 * max(found)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _probe_panel(
    axis: Axes,
    group: Group,
    rows: Sequence[Row],
    places: np.ndarray,
    modality: str,
    colour: Colour,
    shape: str,
) -> None:
    alone = group.unimodal.get(modality)
    line = alone.readout(modality, "probe") if alone is not None else None
    if line is not None:
        axis.axvline(100 * line.mean, color=colour, ls="--", lw=1.2)
    for row, place in zip(rows, places, strict=True):
        probe = row.readout(modality, "probe")
        if probe is None:
            continue
        if line is not None:
            ends = [100 * line.mean, 100 * probe.mean]
            axis.plot(ends, [place, place], color=colour, lw=2.5, alpha=0.4, solid_capstyle="butt")
        axis.plot(100 * probe.mean, place, marker=shape, color=colour, markersize=5, ls="")
    axis.set_title(wrapped(modality, 24), color="0.1", fontweight="bold")
    axis.set_xlabel("probe accuracy (%)")


def _shapley_panel(
    axis: Axes,
    places: np.ndarray,
    values: dict[str, list[float | None]],
    colours: dict[str, Colour],
) -> None:
    """Stack Shapley values: positive ones to the right of zero, negative ones to the left."""
    right, left = np.zeros(len(places)), np.zeros(len(places))
    for (m, of_rows), hatch in zip(values.items(), _hatches(len(values)), strict=True):
        width = np.array([0.0 if v is None else 100 * v for v in of_rows])
        start = np.where(width >= 0, right, left)
        axis.barh(
            places,
            width,
            left=start,
            height=0.7,
            color=colours[m],
            edgecolor="w",
            lw=0.4,
            hatch=hatch,
        )
        right += np.maximum(width, 0)
        left += np.minimum(width, 0)
    axis.axvline(0, color="0.4", lw=0.8)
    # Room for a label of the last tick, which may stand at the very end of the axis.
    axis.set_xlim(right=1.06 * axis.get_xlim()[1])
    axis.set_title("Shapley value", color="0.1", fontweight="bold")
    axis.set_xlabel("points of accuracy")
