"""Labels of rows: broken where they are too long, with room for each of their lines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from mmbench.report.rows import Row
from mmbench.report.tables import MARK

LABEL_WIDTH = 34
"""Characters of a row's label before it is broken into lines."""
LINE = 0.55
"""Room of a further line of a label, where a row of one line takes 1."""


def labels(rows: Sequence[Row]) -> list[str]:
    """Return the label of each row, broken into lines, with the mark of a model that was selected
    on the test set."""
    return [broken(marked(row), LABEL_WIDTH) for row in rows]


def marked(row: Row) -> str:
    return f"{row.label} {MARK}" if row.selected_on_test else row.label


def broken(label: str, width: int) -> str:
    """Break a label that is too long: at blanks and after underscores, and first before its
    settings if a word of them does not fit behind the method."""
    method, bracket, settings = label.partition("[")
    first = settings.partition(" ")[0]
    if bracket and len(label) > width and len(method) + 1 + len(first) > width:
        return f"{wrapped(method, width)}\n{wrapped(bracket + settings, width)}"
    return wrapped(label, width)


def wrapped(text: str, width: int) -> str:
    """Break a text at blanks; words that are too long, after an underscore if they have one."""
    lines: list[str] = []
    for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
        lines += [line] if len(line) <= width else _cut(line, width)
    return "\n".join(lines)


def _cut(word: str, width: int) -> list[str]:
    """Return a word in parts that are as long as the width allows."""
    lines = []
    while len(word) > width:
        end = word.rfind("_", 0, width) + 1 or width
        lines.append(word[:end])
        word = word[end:]
    return [*lines, word]


def places_of(labels: Sequence[str]) -> np.ndarray:
    """Return the place of each row from the top: a label of more lines takes more room."""
    lines = np.array([label.count("\n") for label in labels], dtype=float)
    room = 1 + LINE * lines
    return np.cumsum(room) - room / 2


def rows_axis(axis: Axes, labels: Sequence[str], places: np.ndarray) -> None:
    """Write the rows down the side, the first at the top."""
    axis.set_yticks(places, labels)
    axis.set_ylim(places[-1] + 0.7, places[0] - 0.7)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
