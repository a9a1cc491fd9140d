"""How confident each modality is in the true class beside the others, over training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mmbench.report.comparison import Group
from mmbench.report.figures.curves import Curves, Segment, draw_curve, group_curves
from mmbench.report.figures.labels import marked
from mmbench.report.figures.learning_curves import epoch_limits
from mmbench.report.figures.panels import Frame, panel_grid
from mmbench.report.figures.style import line, palette, style

LEAST = 1.0
"""The axis reaches from a half to two at least: noise about 1 shall look like noise."""


def confidence_ratios(confidence: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return ``rho_m = s_m / mean_(j != m) s_j`` from the confidences s ``{m: (seeds, epochs)}``.

    The ratio that OGM-GE steers by (Peng et al., CVPR 2022, eq. 8), on validation; for more than
    two modalities each is compared with the mean of the others, as
    :func:`mmbench.train.modulation.confidence_ratios` does. Empty for fewer than two; NaN where a
    modality has no confidence, and where a ratio would be zero or infinite.
    """
    if len(confidence) < 2:
        return {}
    total = np.sum(list(confidence.values()), axis=0)
    ratios = {}
    for m, own in confidence.items():
        others = (total - own) / (len(confidence) - 1)
        is_ratio = (own > 0) & (others > 0)
        ratios[m] = np.divide(own, others, out=np.full(own.shape, np.nan), where=is_ratio)
    return ratios


def confidence_figure(group: Group) -> Figure | None:
    """Return the confidence ratio of each modality over epochs, on a logarithmic axis: a panel a
    row, the geometric mean over seeds and a band of one standard deviation of the logarithm.

    None where no history has the confidence of two modalities in the same stage.
    """
    found = [(row, c, ratios) for row, c in group_curves(group) if (ratios := _of_row(c))]
    if not found:
        return None
    colours = palette(group.modalities)
    lines = {m: line(i) for i, m in enumerate(group.modalities)}
    parts = [part for _, _, ratios in found for part in ratios]
    read = [m for m in group.modalities if any(m in logs for _, logs in parts)]
    handles = [Line2D([], [], color=colours[m], ls=lines[m], lw=1.4, label=m) for m in read]
    handles.append(Line2D([], [], color="0.4", lw=0.8, label="as confident as the others"))
    if any(segment.start for segment, _ in parts):
        handles.append(Line2D([], [], color="0.6", ls=":", lw=0.8, label="next stage"))
    far = _farthest([logs for _, logs in parts])
    frame = Frame(
        f"{group.name}: confidence in the true class over the mean of the other modalities, "
        "validation, geometric mean over seeds ± standard deviation",
        "epoch",
        "confidence ratio",
        epoch_limits([(row, curves) for row, curves, _ in found]),
        (-far, far),
    )
    with style():
        figure, axes = panel_grid(frame, [marked(row) for row, _, _ in found], handles)
        for axis, (_, _, of_row) in zip(axes, found, strict=True):
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.yaxis.set_major_formatter(FuncFormatter(_as_ratio))
            axis.axhline(0, color="0.4", lw=0.8)
            for segment, logs in of_row:
                for m, values in logs.items():
                    draw_curve(axis, segment.start, values, colours[m], lines[m])
                if segment.start:
                    axis.axvline(segment.start + 0.5, color="0.6", lw=0.8, ls=":")
    return figure


Part = tuple[Segment, dict[str, np.ndarray]]
"""A stage, and for each modality the base-2 logarithm of its ratio, ``(seeds, epochs)``."""


def _of_row(curves: Curves) -> list[Part]:
    """Return the stages that have ratios."""
    found = ((segment, confidence_ratios(segment.confidence)) for segment in curves.segments)
    parts = [(s, {m: np.log2(values) for m, values in ratios.items()}) for s, ratios in found]
    return [
        (s, logs) for s, logs in parts if any(np.isfinite(values).any() for values in logs.values())
    ]


def _farthest(parts: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Return the end of the axis: it reaches as far below 1 as above."""
    far = max(float(np.nanmax(np.abs(v))) for p in parts for v in p.values() if not _is_empty(v))
    return 1.08 * max(far, LEAST)


def _is_empty(values: np.ndarray) -> bool:
    return bool(np.isnan(values).all())


def _as_ratio(exponent: float, _: int | None = None) -> str:
    power = round(exponent)
    return str(2**power) if power >= 0 else f"1/{2**-power}"
