"""How accuracy falls as a modality is corrupted or missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mmbench.errors import RequestError
from mmbench.report.figures.panels import ACROSS, Frame, panel_grid
from mmbench.report.figures.style import Colour, Dashes, line, marker, palette, style
from mmbench.report.rows import CONTROLS

if TYPE_CHECKING:
    import pandas as pd

    from mmbench.report.comparison import Group

COLUMNS = ("row", "modality", "corruption", "severity", "accuracy")
TOLD_APART = 8
"""Rows with a colour, line and shape of their own: more curves in a panel cannot be told apart."""
OTHERS: Colour = (0.78, 0.78, 0.78)


def group_robustness_figure(group: Group) -> Figure | None:
    """Return the robustness of a group's rows, as `mmbench robustness` stored it beside their runs;
    None where it was not measured. Raises :class:`StoreError` for a damaged file."""
    import pandas as pd

    from mmbench.store.robustness import read_robustness

    lines = [
        (row.label, p.modality, p.corruption, p.severity, p.accuracy)
        for row in group.rows
        for run in row.runs
        for p in read_robustness(run.path)
    ]
    data = pd.DataFrame(lines, columns=list(COLUMNS))
    measured = set(data["row"])
    # The reference, then methods from the best, as in the table.
    told_apart = [r.label for r in group.rows if r.is_reference or r.method not in CONTROLS]
    heading = f"{group.name}: test accuracy with a modality corrupted, mean over seeds"
    return robustness_figure(data, heading, [row for row in told_apart if row in measured])


def robustness_figure(
    data: pd.DataFrame, heading: str = "robustness", told_apart: Sequence[str] | None = None
) -> Figure | None:
    """Return the accuracy of each row over severities: a panel for each corruption of a modality,
    the mean over repeated lines (seeds) with a band of one standard deviation. None where there is
    no data.

    ``data`` has a line for each measured point, in the columns ``row, modality, corruption,
    severity, accuracy`` (a share; severity 0 is clean) and any others. Of more than 8 rows, those
    of ``told_apart`` (by default the 8 of the highest mean accuracy) get a colour of their own, and
    the others are grey. Raises :class:`RequestError` for a missing column or an unknown row.
    """
    if absent := [name for name in COLUMNS if name not in data.columns]:
        raise RequestError(f"robustness data have no column {', '.join(absent)}")
    if not len(data):
        return None
    if not np.isfinite(data[["severity", "accuracy"]].to_numpy(dtype=float)).all():
        raise RequestError("robustness data have a severity or accuracy that is not a number")
    rows = list(dict.fromkeys(data["row"]))
    chosen = _chosen(data, rows, told_apart)
    curves = _curves(data)
    colours = palette(chosen)
    panels = list(dict.fromkeys(zip(data["modality"], data["corruption"], strict=True)))
    severity, accuracy = data["severity"], 100 * data["accuracy"]
    frame = Frame(
        heading if len(chosen) == len(rows) else f"{heading}; {_left_grey(told_apart, chosen)}",
        "severity",
        "accuracy (%)",
        _ends(float(severity.min()), float(severity.max()), 0.3),
        _ends(float(accuracy.min()), float(accuracy.max()), 2.0),
        height=1.4,
    )
    handles = [
        Line2D(
            [],
            [],
            color=colours[row],
            marker=marker(i),
            ls=line(i),
            markersize=4,
            label=str(row),
        )
        for i, row in enumerate(chosen)
    ]
    if others := [row for row in rows if row not in chosen]:
        handles.append(Line2D([], [], color=OTHERS, lw=0.8, label=f"{len(others)} other rows"))
    with style():
        titles = [f"{m}\n{corruption}" for m, corruption in panels]
        figure, axes = panel_grid(frame, titles, handles, _across(panels))
        for axis, (m, corruption) in zip(axes, panels, strict=True):
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            for row in others:
                _curve(axis, curves.get((m, corruption, row)), OTHERS, "-", None)
            for i, row in enumerate(chosen):
                _curve(axis, curves.get((m, corruption, row)), colours[row], line(i), marker(i))
    return figure


def _chosen(data: pd.DataFrame, rows: list[str], asked: Sequence[str] | None) -> list[str]:
    """Return the rows to be told apart, in the order of the data."""
    if unknown := [row for row in asked or () if row not in rows]:
        raise RequestError(f"robustness data have no row {', '.join(unknown)}")
    if len(rows) <= TOLD_APART:
        return rows
    if asked is not None:
        return [row for row in rows if row in asked][:TOLD_APART]
    means = data.groupby("row", sort=False)["accuracy"].mean()
    best = set(means.sort_values(ascending=False, kind="stable").index[:TOLD_APART])
    return [row for row in rows if row in best]


def _left_grey(asked: Sequence[str] | None, chosen: Sequence[str]) -> str:
    if asked is not None:
        return f"{len(chosen)} rows in colour"
    return f"the {len(chosen)} rows of the highest mean accuracy in colour"


def _across(panels: Sequence[tuple[str, str]]) -> int:
    """Return the panels of a line: one modality a line, where all have the same corruptions."""
    by_modality: dict[str, list[str]] = {}
    for m, corruption in panels:
        by_modality.setdefault(m, []).append(corruption)
    kinds = list(by_modality.values())
    is_table = all(kind == kinds[0] for kind in kinds) and 1 < len(kinds[0]) <= ACROSS
    return len(kinds[0]) if is_table else min(len(panels), ACROSS)


def _ends(low: float, high: float, least: float) -> tuple[float, float]:
    margin = max(0.05 * (high - low), least)
    return low - margin, high + margin


def _curves(data: pd.DataFrame) -> dict[tuple[str, str, str], np.ndarray]:
    """Return severity, mean and standard deviation (n - 1) over repeated lines ``(severities, 3)``
    of each modality, corruption and row."""
    names = ["modality", "corruption", "row", "severity"]
    grouped = data.groupby(names, sort=True)["accuracy"].agg(["mean", "std"]).reset_index()
    found: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for m, corruption, row, *point in grouped.itertuples(index=False, name=None):
        found.setdefault((m, corruption, row), []).append(tuple(point))
    return {key: np.array(points, dtype=float) for key, points in found.items()}


def _curve(
    axis: Axes, points: np.ndarray | None, colour: Colour, dashes: str | Dashes, shape: str | None
) -> None:
    if points is None:
        return
    severity, mean, deviation = points[:, 0], 100 * points[:, 1], 100 * points[:, 2]
    width = 0.8 if shape is None else 1.2
    axis.plot(severity, mean, color=colour, ls=dashes, marker=shape, markersize=3.5, lw=width)
    if shape is not None and np.isfinite(deviation).any():
        ends = mean - deviation, mean + deviation
        axis.fill_between(severity, *ends, color=colour, alpha=0.15, lw=0)
