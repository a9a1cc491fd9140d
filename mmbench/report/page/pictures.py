"""Figures as parts of the page: inlined, with a text for those who do not see them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmbench.report.comparison import Group
from mmbench.report.ranking import Ranking
from mmbench.report.rows import CONTROLS, Row, best_first

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 30
"""Rows in a figure: more cannot be told apart in one."""

MOST_PANELS = 12
"""Rows in a figure that has a panel for each: they take time to draw, and room."""

PANELS = ("learning_curves", "confidence_ratio", "reliability")

TOLD = 12
"""Rows whose numbers are told in the text of a figure."""

LARGEST_SVG = 400_000
"""Bytes; a figure that would be larger is inlined as PNG."""

TITLES = {
    "contributions": "What each modality knows and adds",
    "learning_curves": "Learning curves",
    "confidence_ratio": "Confidence of each modality over training",
    "reliability": "Reliability: confidence against accuracy",
    "robustness": "Robustness to missing and corrupted modalities",
    "cost": "Result against cost",
    "budgets": "Budget against contribution",
}

EXPLAINED = {
    "contributions": "A panel for each modality: the accuracy that a linear probe reads from its "
    "encoder in each method, beside a dashed line for its training alone; then Shapley values.",
    "learning_curves": "Validation accuracy over epochs, fused and of each modality.",
    "confidence_ratio": "How confident each modality is of the true class, relative to the others, "
    "over epochs.",
    "reliability": "Share of correct predictions by how confident they are; on the diagonal "
    "confidence is what it says.",
    "robustness": "Accuracy as one modality is corrupted more and more, or missing.",
    "cost": "The result of each row over its updates and its training time; the upper left is "
    "better.",
    "budgets": "The share that each modality was allotted, and the share that it contributed.",
}
"""How to read a figure."""


@dataclass(frozen=True)
class Picture:
    """A figure, and what is said of it."""

    title: str
    text: str
    """In words, for readers who do not see it."""
    source: str
    """The whole image, as an address that begins with ``data:``."""
    explained: str = ""
    """How to read it."""


def pictures(group: Group) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """Return the figures of a group, and remarks on rows and figures that are left out. Raises
    :class:`StoreError` where a file of a run that a figure needs cannot be read."""
    from mmbench.report.figures.outcomes import outcome_figure
    from mmbench.report.figures.writing import FIGURES

    shown = trimmed(group, MOST_ROWS)
    few = trimmed(group, MOST_PANELS)
    title = f"Test {group.metric.title} of each row"
    found = [Picture(title, _outcome_text(shown), _inlined(outcome_figure(shown)))]
    empty = []
    for name, draw in FIGURES.items():
        figure = draw(few if name in PANELS else shown)
        if figure is None:
            empty.append(_title(name))
        else:
            text = f"{_title(name)} on {group.name}; the numbers stand in the tables."
            found.append(Picture(_title(name), text, _inlined(figure), EXPLAINED.get(name, "")))
    return tuple(found), (*_on_rows(group, shown, few), *_on_empty(empty))


def ranking_picture(ranking: Ranking) -> Picture:
    """Return the critical-difference diagram."""
    from mmbench.report.figures.ranks import critical_difference_figure

    said = ", ".join(f"{row.label} {row.average_rank:.2f}" for row in ranking.rows[:TOLD])
    text = f"Average ranks over {len(ranking.datasets)} datasets, 1 is best: {said}."
    return Picture("Average ranks", text, _inlined(critical_difference_figure(ranking)))


def trimmed(group: Group, most: int) -> Group:
    """Return the group with no more rows than a figure takes: controls and the reference, then the
    best of the others, in the order of the table."""
    if len(group.rows) <= most:
        return group

    def place(row: Row) -> tuple[bool, tuple[bool, float]]:
        leads = row.is_reference or row.method in CONTROLS
        return not leads, best_first(row.value.mean, group.metric)

    kept = {row.label for row in sorted(group.rows, key=place)[:most]}
    return replace(group, rows=tuple(row for row in group.rows if row.label in kept))


def _on_rows(group: Group, shown: Group, few: Group) -> list[str]:
    if few is group:
        return []
    among = "the controls and the best of the others"
    if shown is group:
        return [f"Figures with a panel a row show {len(few.rows)} of {len(group.rows)}: {among}."]
    return [
        f"The figures show {len(shown.rows)} of {len(group.rows)} rows, those with a panel a row "
        f"{len(few.rows)}: {among}."
    ]


def _on_empty(names: list[str]) -> list[str]:
    return [f"Nothing is stored for: {'; '.join(names)}."] if names else []


def _title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " ").capitalize())


def _inlined(figure: Figure) -> str:
    # Find the places once: it takes longer than drawing.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    content = _saved(figure, "svg", {"Date": None})
    if len(content) <= LARGEST_SVG:
        return _address("image/svg+xml", content)
    return _address("image/png", _saved(figure, "png", {}))


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    from mmbench.report.figures.style import style

    stream = io.BytesIO()
    with style():
        figure.savefig(stream, format=kind, metadata=metadata)
    return stream.getvalue()


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _outcome_text(group: Group) -> str:
    metric = group.metric
    said = [
        f"{row.label} {metric.with_unit(row.value.mean)}"
        + (
            f" ({metric.value(row.value.low)} to {metric.value(row.value.high)})"
            if row.value.low is not None and row.value.high is not None
            else ""
        )
        for row in group.rows[:TOLD]
    ]
    more = f"; {len(group.rows) - TOLD} more in the table" if len(group.rows) > TOLD else ""
    return (
        f"Test {metric.title} on {group.name}, with 95 % intervals where there are several runs: "
        f"{'; '.join(said)}{more}."
    )
