"""Figures of a comparison: outcomes with intervals, contributions of modalities, learning curves.

They are drawn on figure objects of their own, never on pyplot's, so that a caller's backend and
open figures are left alone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmbench.errors import StoreError
from mmbench.report.comparison import Group
from mmbench.report.rows import CONTROLS, Row
from mmbench.report.tables import MARK
from mmbench.store.frame import learning_curves

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MARKERS = "osD^vP"
"""A shape for each modality beside its colour, for print without colours."""
LINES = ("--", "-.", ":")
"""Line styles of the modalities, in turn."""
LABEL_WIDTH = 34
"""Characters of a row's label before it is broken into lines."""
PANELS_ACROSS = 4
DPI = 200


@contextmanager
def _style() -> Iterator[None]:
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
            "svg.hashsalt": "mmbench",  # the same figure is the same file
        }
    ):
        yield


def palette(modalities: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Return a colour for each modality, of seaborn's palette for colour-blind readers."""
    colours = sns.color_palette("colorblind", max(6, len(modalities)))
    return dict(zip(modalities, colours, strict=False))


def _labels(rows: Sequence[Row]) -> list[str]:
    return [_broken(_marked(row), LABEL_WIDTH) for row in rows]


def _marked(row: Row) -> str:
    return f"{row.label} {MARK}" if row.selected_on_test else row.label


def _broken(label: str, width: int) -> str:
    """Break a label that is too long: at blanks, and first before its settings if a word of them
    does not fit behind the method."""
    method, bracket, settings = label.partition("[")
    first = settings.partition(" ")[0]
    if bracket and len(label) > width and len(method) + 1 + len(first) > width:
        return f"{method}\n{textwrap.fill(bracket + settings, width)}"
    return textwrap.fill(label, width)


def _heights(labels: Sequence[str]) -> np.ndarray:
    """Return the place of each row from the top: a label of more lines takes more room."""
    lines = np.array([label.count("\n") for label in labels], dtype=float)
    room = 1 + 0.55 * lines
    return np.cumsum(room) - room / 2


def _rows_axis(axis: Axes, labels: Sequence[str], places: np.ndarray) -> None:
    axis.set_yticks(places, labels)
    axis.set_ylim(places[-1] + 0.7, places[0] - 0.7)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


# -- outcomes --------------------------------------------------------------------------------------


def outcome_figure(group: Group) -> Figure:
    """Return the metric of each row with its 95 % interval, in the order of the table.

    Lines stand at the reference and at the best unimodal model. The majority class, if it lies far
    from the others, is written at the edge so that it does not squeeze them.
    """
    metric, rows = group.metric, group.rows
    with _style():
        labels = _labels(rows)
        places = _heights(labels)
        figure = _figure(6.5, 1.1 + 0.22 * (places[-1] + 1))
        axis = figure.subplots()
        low, high = _limits(group)
        lines = _outcome_lines(axis, group)
        for row, place in zip(rows, places, strict=True):
            value = row.value.mean * metric.scale
            colour = "0.35" if row.method in CONTROLS else "#0173b2"
            if not low <= value <= high:
                left = value < low
                axis.annotate(
                    f"◂ {metric.value(row.value.mean)}"
                    if left
                    else f"{metric.value(row.value.mean)} ▸",
                    (low if left else high, place),
                    ha="left" if left else "right",
                    va="center",
                    color=colour,
                )
                continue
            error = _error(row, metric.scale)
            axis.errorbar(
                value, place, xerr=error, fmt="o", color=colour, markersize=4.5, capsize=2.5, lw=1.2
            )
        axis.set_xlim(low, high)
        _rows_axis(axis, labels, places)
        unit = f" ({metric.unit})" if metric.unit else ""
        axis.set_xlabel(f"test {metric.title}{unit}, mean and 95 % interval over seeds")
        axis.set_title(group.name, loc="left")
        if lines:
            figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return figure


def _error(row: Row, scale: int) -> list[list[float]] | None:
    if row.value.low is None or row.value.high is None:
        return None
    mean = row.value.mean
    return [[(mean - row.value.low) * scale], [(row.value.high - mean) * scale]]


def _limits(group: Group) -> tuple[float, float]:
    """Return the ends of the axis: all rows with their intervals, the majority class left aside."""
    chosen = [r for r in group.rows if r.method != CONTROLS[0]] or list(group.rows)
    if group.best_unimodal is not None:
        chosen.append(group.best_unimodal)
    ends = [e for r in chosen for e in (r.value.mean, r.value.low, r.value.high) if e is not None]
    low, high = min(ends) * group.metric.scale, max(ends) * group.metric.scale
    margin = 0.06 * (high - low) or 0.01 * group.metric.scale
    return low - margin, high + margin


def _outcome_lines(axis: Axes, group: Group) -> list[Line2D]:
    lines = []
    base = next((row for row in group.rows if row.is_reference), None)
    for row, style, what in (
        (base, "-", "reference: "),
        (group.best_unimodal, "--", "best unimodal: "),
    ):
        if row is not None:
            value = row.value.mean * group.metric.scale
            label = f"{what}{row.label} ({group.metric.value(row.value.mean)})"
            lines.append(axis.axvline(value, color="0.5", lw=1, ls=style, zorder=0.5, label=label))
    return lines


# -- contributions ---------------------------------------------------------------------------------


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
    contributions = {m: [r.shapley(m) for r in rows] for m in group.modalities}
    with_shapley = any(v is not None for values in contributions.values() for v in values)
    panels = len(modalities) + with_shapley
    across = min(panels, PANELS_ACROSS)
    down = math.ceil(panels / across)
    colours = palette(group.modalities)
    with _style():
        labels = _labels(rows)
        places = _heights(labels)
        figure = _figure(2.1 + 1.75 * across, 0.7 + down * (0.55 + 0.2 * (places[-1] + 1)))
        axes = figure.subplots(down, across, squeeze=False, sharey=True)
        flat = list(axes.flat)
        for axis in flat[panels:]:
            axis.remove()
        low, high = _probe_limits(group, rows, modalities)
        for i, m in enumerate(modalities):
            _probe_panel(flat[i], group, rows, places, m, colours[m], MARKERS[i % len(MARKERS)])
            flat[i].set_xlim(low, high)
        if with_shapley:
            _shapley_panel(flat[panels - 1], places, contributions, colours)
        for axis in flat[:panels]:
            _rows_axis(axis, labels, places)
        figure.suptitle(f"{group.name}: what each modality knows and adds", fontsize=9)
        handles: list[Line2D | Patch] = [
            Line2D([], [], color="0.3", marker="o", ls="", label="probe accuracy in the method"),
            Line2D([], [], color="0.3", ls="--", label="probe accuracy trained alone"),
        ]
        handles += [Patch(color=colours[m], label=m) for m in group.modalities]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure


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
    colour: tuple[float, float, float],
    marker: str,
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
        axis.plot(100 * probe.mean, place, marker=marker, color=colour, markersize=5, ls="")
    lines = textwrap.wrap(modality.replace("_", "_ "), 24)  # breaks after an underscore
    axis.set_title(
        "\n".join(words.replace("_ ", "_") for words in lines), color="0.1", fontweight="bold"
    )
    axis.set_xlabel("probe accuracy (%)")


def _shapley_panel(
    axis: Axes,
    places: np.ndarray,
    contributions: dict[str, list[float | None]],
    colours: dict[str, tuple[float, float, float]],
) -> None:
    """Stack Shapley values: positive ones to the right of zero, negative ones to the left."""
    right, left = np.zeros(len(places)), np.zeros(len(places))
    for m, values in contributions.items():
        width = np.array([0.0 if v is None else 100 * v for v in values])
        start = np.where(width >= 0, right, left)
        axis.barh(places, width, left=start, height=0.7, color=colours[m], edgecolor="w", lw=0.4)
        right += np.maximum(width, 0)
        left += np.minimum(width, 0)
    axis.axvline(0, color="0.4", lw=0.8)
    # Room for a label of the last tick, which may stand at the very end of the axis.
    axis.set_xlim(right=1.06 * axis.get_xlim()[1])
    axis.set_title("Shapley value", color="0.1", fontweight="bold")
    axis.set_xlabel("points of accuracy")


# -- learning curves -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """Validation accuracy in one stage, an array ``(seeds, epochs)`` each."""

    start: int
    """Epochs before it."""
    fused: np.ndarray
    modalities: dict[str, np.ndarray]


@dataclass(frozen=True)
class Curves:
    """Learning curves of a row, a segment a stage."""

    segments: tuple[Segment, ...]
    own_heads: bool
    """Whether the modalities are read by their own heads, for want of a part of the logits."""


def row_curves(row: Row, modalities: Sequence[str]) -> Curves | None:
    """Return the learning curves of a row; None where no stage looked at validation.

    A stage goes on where an earlier one ended that trained any of its modalities; stages that share
    none, as those of an ensemble, all begin at epoch 1.
    """
    histories = [h for run in row.runs if (h := _looked(learning_curves(run))) is not None]
    if not histories:
        return None
    columns = {name for h in histories for name in h.columns if h[name].notna().any()}
    own = not any(f"val_split_accuracy.{m}" in columns for m in modalities)
    kind = "val_own_head_accuracy" if own else "val_split_accuracy"
    ends: dict[str, int] = {}
    segments = []
    for stage in dict.fromkeys(name for h in histories for name in h["stage"]):
        parts = [h[h["stage"] == stage] for h in histories]
        curves = {m: _stack(parts, f"{kind}.{m}") for m in modalities}
        known = {m: curve for m, curve in curves.items() if not np.isnan(curve).all()}
        fused = _stack(parts, "val_accuracy")
        start = max([ends.get(m, 0) for m in known or ends], default=0)
        ends |= dict.fromkeys(known or modalities, start + fused.shape[1])
        segments.append(Segment(start, fused, known))
    return Curves(tuple(segments), own and any(s.modalities for s in segments))


def _looked(history: pd.DataFrame) -> pd.DataFrame | None:
    if "val_accuracy" not in history:
        return None
    found = history[history["val_accuracy"].notna()]
    return found if len(found) else None


def _stack(histories: Sequence[pd.DataFrame], name: str) -> np.ndarray:
    """Return a column of each history, filled with NaN to the longest."""
    stacked = np.full((len(histories), max(map(len, histories))), np.nan)
    for i, history in enumerate(histories):
        if name in history:
            stacked[i, : len(history)] = history[name].to_numpy(dtype=float)
    return stacked


def learning_curve_figure(group: Group) -> Figure | None:
    """Return validation accuracy over epochs, fused and of each modality: a panel a row, the mean
    over seeds and a band of one standard deviation. None where nothing looked at validation."""
    found = [(row, c) for row in group.rows if (c := row_curves(row, group.modalities)) is not None]
    if not found:
        return None
    colours = palette(group.modalities)
    styles = {m: LINES[i % len(LINES)] for i, m in enumerate(group.modalities)}
    across = min(len(found), PANELS_ACROSS)
    down = math.ceil(len(found) / across)
    with _style():
        titles = [_panel_title(row, curves) for row, curves in found]
        lines = max(title.count("\n") + 1 for title in titles)
        figure = _figure(max(1.9 * across, 4.2), 0.9 + (1.35 + 0.12 * lines) * down)
        axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        flat = list(axes.flat)
        for axis in flat[len(found) :]:
            axis.remove()
        for i, ((_, curves), title) in enumerate(zip(found, titles, strict=True)):
            axis = flat[i]
            for segment in curves.segments:
                _curve(axis, segment.start, segment.fused, (0.1, 0.1, 0.1), "-")
                for m, values in segment.modalities.items():
                    _curve(axis, segment.start, values, colours[m], styles[m])
                if segment.start:
                    axis.axvline(segment.start + 0.5, color="0.6", lw=0.8, ls=":")
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.set_title(title, va="bottom")
            if i + across >= len(found):
                axis.tick_params(labelbottom=True)
                axis.set_xlabel("epoch")
        for line in axes[:, 0]:
            line.set_ylabel("val accuracy (%)")
        handles: list[Line2D] = [Line2D([], [], color="0.1", label="fused")]
        parts = [segment for _, curves in found for segment in curves.segments]
        shown_modalities = [
            m for m in group.modalities if any(m in part.modalities for part in parts)
        ]
        handles += [
            Line2D([], [], color=colours[m], ls=styles[m], lw=1.4, label=m)
            for m in shown_modalities
        ]
        if any(part.start for part in parts):
            handles.append(Line2D([], [], color="0.6", ls=":", lw=0.8, label="next stage"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        figure.suptitle(f"{group.name}: mean over seeds ± standard deviation", fontsize=9)
    return figure


def _panel_title(row: Row, curves: Curves) -> str:
    return _broken(_marked(row) + (" (own heads)" if curves.own_heads else ""), 27)


def _curve(
    axis: Axes, start: int, values: np.ndarray, colour: tuple[float, float, float], style: str
) -> None:
    known = ~np.isnan(values).all(axis=0)
    if not known.any():
        return
    epochs = start + np.arange(1, values.shape[1] + 1)[known]
    chosen = 100 * values[:, known]
    mean = np.nanmean(chosen, axis=0)
    axis.plot(epochs, mean, color=colour, ls=style, lw=1.3)
    if len(values) > 1:
        # With n - 1, as in the tables; nothing where a single seed got so far.
        spread = np.nansum((chosen - mean) ** 2, axis=0)
        count = (~np.isnan(chosen)).sum(axis=0)
        deviation = np.where(count > 1, np.sqrt(spread / np.maximum(count - 1, 1)), np.nan)
        axis.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)


# -- files -----------------------------------------------------------------------------------------


def write_figures(group: Group, folder: Path) -> tuple[list[Path], list[str]]:
    """Write `<metric>`, `contributions` and `learning_curves` as PNG and SVG; return the files, and
    the names of figures for which the stored runs hold nothing. Raises :class:`StoreError` where
    the folder cannot be written."""
    figures: dict[str, Callable[[Group], Figure | None]] = {
        group.metric.name: outcome_figure,
        "contributions": contribution_figure,
        "learning_curves": learning_curve_figure,
    }
    written: list[Path] = []
    empty: list[str] = []
    for name, draw in figures.items():
        figure = draw(group)
        if figure is None:
            empty.append(name)
            continue
        # Find the places once: it takes longer than drawing.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for suffix in ("png", "svg"):
            file = folder / f"{name}.{suffix}"
            try:
                with _style():
                    metadata = {"Date": None} if suffix == "svg" else {}
                    figure.savefig(file, metadata=metadata)
            except OSError as error:
                raise StoreError(
                    f"{file}: cannot be written ({error.strerror}); choose another --output"
                ) from error
            written.append(file)
    return written, empty
