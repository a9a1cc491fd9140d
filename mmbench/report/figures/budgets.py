"""What modalities could tell, beside what they contributed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmbench.report.comparison import Group
from mmbench.report.figures.labels import marked
from mmbench.report.figures.panels import Frame, panel_grid
from mmbench.report.figures.style import Colour, marker, palette, style
from mmbench.report.rows import Row
from mmbench.report.statistics import summarise
from mmbench.store.frame import StoredRun

Shares = dict[str, float]
"""A modality's share of a sum, in percent."""


@dataclass(frozen=True)
class Point:
    """Shares of one row, in percent."""

    budget: Shares
    contribution: Shares


def stored_budgets(run: StoredRun) -> Shares | None:
    """Return the budgets that a run reports, by modality; None where it reports none.

    A method reports them as ``{"budgets": {"modalities": [...], "values": [...]}}`` in the free
    part of its record (docs/results-format.md).
    """
    reported = run.finished.report.get("budgets")
    if not isinstance(reported, Mapping):
        return None
    names, values = reported.get("modalities"), reported.get("values")
    if not isinstance(names, Sequence) or not isinstance(values, Sequence):
        return None
    if len(names) != len(values) or not all(_is_budget(value) for value in values):
        return None
    return {str(name): float(value) for name, value in zip(names, values, strict=True)}


def _is_budget(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _point(row: Row, modalities: Sequence[str]) -> Point | None:
    """Return a row's shares; None where a run has no budgets, or either sum is not positive."""
    found = [stored_budgets(run) for run in row.runs]
    known = [budgets for budgets in found if budgets is not None]
    names = [m for m in modalities if known and all(m in budgets for budgets in known)]
    if len(known) < len(found) or len(names) < 2:
        return None
    budget = _shares({m: summarise(b[m] for b in known).mean for m in names})
    contribution = _contribution(row, names)
    return Point(budget, contribution) if budget and contribution else None


def _contribution(row: Row, names: Sequence[str]) -> Shares | None:
    values = {m: value for m in names if (value := row.shapley(m)) is not None}
    return _shares(values) if len(values) == len(names) else None


def _shares(values: Mapping[str, float]) -> Shares | None:
    total = sum(values.values())
    return {m: 100 * value / total for m, value in values.items()} if total > 0 else None


def budget_figure(group: Group) -> Figure | None:
    """Return each modality's share of the Shapley values against its share of the information
    budgets: a panel for each row that reports budgets, with the reference's contributions beside,
    and a line where a modality contributes in proportion to its budget. Shares are of means over
    seeds. None where no row reports budgets.
    """
    found = [(row, p) for row in group.rows if (p := _point(row, group.modalities)) is not None]
    if not found:
        return None
    base = next((row for row in group.rows if row.is_reference), None)
    shown = [m for m in group.modalities if any(m in p.budget for _, p in found)]
    usual = None if base is None else _contribution(base, shown)
    colours = palette(group.modalities)
    shapes = {m: marker(i) for i, m in enumerate(group.modalities)}
    handles = [
        Line2D([], [], color=colours[m], marker=shapes[m], ls="", markersize=5, label=m)
        for m in shown
    ]
    if usual is not None and base is not None:
        handles.append(
            Line2D(
                [],
                [],
                color="0.3",
                marker="o",
                markerfacecolor="w",
                ls="",
                markersize=5,
                label=f"open: in {base.label}",
            )
        )
    handles.append(Line2D([], [], color="0.4", lw=0.8, ls="--", label="in proportion"))
    frame = Frame(
        f"{group.name}: contribution against information budget, means over seeds",
        "share of the budgets (%)",
        "Shapley share (%)",
        _limits([p.budget for _, p in found]),
        _limits([s for _, p in found for s in (p.budget, p.contribution)] + [usual or {}]),
        height=1.6,
    )
    with style():
        titles = [marked(row) for row, _ in found]
        figure, axes = panel_grid(frame, titles, handles)
        for axis, (row, point) in zip(axes, found, strict=True):
            axis.axline((0, 0), slope=1, color="0.4", lw=0.8, ls="--")
            if usual is not None and row is not base:
                _dots(axis, Point(point.budget, usual), colours, shapes, is_open=True)
            _dots(axis, point, colours, shapes, is_open=False)
    return figure


def _dots(
    axis: Axes,
    point: Point,
    colours: Mapping[str, Colour],
    shapes: Mapping[str, str],
    is_open: bool,
) -> None:
    for m, budget in point.budget.items():
        axis.plot(
            budget,
            point.contribution[m],
            color=colours[m],
            marker=shapes[m],
            markerfacecolor="w" if is_open else colours[m],
            markersize=5,
            ls="",
        )


def _limits(shares: Sequence[Shares]) -> tuple[float, float]:
    values = [value for of_row in shares for value in of_row.values()]
    low, high = min(values), max(values)
    margin = max(0.1 * (high - low), 2.0)
    return low - margin, high + margin
