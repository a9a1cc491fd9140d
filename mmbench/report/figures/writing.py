"""Writing figures as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from mmbench.errors import StoreError
from mmbench.report.comparison import Group
from mmbench.report.figures.budgets import budget_figure
from mmbench.report.figures.confidence import confidence_figure
from mmbench.report.figures.contributions import contribution_figure
from mmbench.report.figures.cost import cost_figure
from mmbench.report.figures.learning_curves import learning_curve_figure
from mmbench.report.figures.outcomes import outcome_figure
from mmbench.report.figures.reliability import reliability_figure
from mmbench.report.figures.robustness import group_robustness_figure
from mmbench.report.figures.style import style

Draw = Callable[[Group], Figure | None]

FIGURES: dict[str, Draw] = {
    "contributions": contribution_figure,
    "learning_curves": learning_curve_figure,
    "confidence_ratio": confidence_figure,
    "reliability": reliability_figure,
    "robustness": group_robustness_figure,
    "cost": cost_figure,
    "budgets": budget_figure,
}
"""Figures of a group beside that of the metric, by the name of their files."""


def write_figures(group: Group, folder: Path) -> tuple[list[Path], list[str]]:
    """Write `<metric>` and each of :data:`FIGURES` as PNG and SVG; return the files, and the names
    of figures for which the stored runs hold nothing. Raises :class:`StoreError` where the folder
    cannot be written."""
    written: list[Path] = []
    empty: list[str] = []
    for name, draw in {group.metric.name: outcome_figure, **FIGURES}.items():
        figure = draw(group)
        if figure is None:
            empty.append(name)
        else:
            written += save(figure, folder, name)
    return written, empty


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``<name>.png`` and ``<name>.svg`` and return the files; the same figure is the same
    file. Raises :class:`StoreError` where the folder cannot be written."""
    # Find the places once: it takes longer than drawing.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    files = []
    for suffix in ("png", "svg"):
        file = folder / f"{name}.{suffix}"
        try:
            with style():
                figure.savefig(file, metadata={"Date": None} if suffix == "svg" else {})
        except OSError as error:
            raise StoreError(
                f"{file}: cannot be written ({error.strerror}); choose another --output"
            ) from error
        files.append(file)
    return files
