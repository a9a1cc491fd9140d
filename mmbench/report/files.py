"""Writing a comparison: tables in every format and figures, a folder for each group of several."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from mmbench.errors import RequestError, StoreError
from mmbench.report import tables
from mmbench.report.columns import View
from mmbench.report.comparison import Comparison, Group

WIDTH = 120
"""Characters of a line in table.txt."""


def write_comparison(
    comparison: Comparison, folder: Path, view: View | None = None
) -> tuple[list[Path], list[str]]:
    """Write ``table.txt``, ``.md``, ``.csv``, ``.tex``, ``.html`` and the figures of each group.

    One group is written into ``folder``, several into a folder each within it, beside ``ranks.md``
    and ``critical_differences`` over all of them. Returns the files, and a sentence for each figure
    for which the stored runs hold nothing. Raises :class:`StoreError` where the folder cannot be
    written.
    """
    from mmbench.report.figures import critical_difference_figure, save, write_figures
    from mmbench.report.ranking import rank

    written: list[Path] = []
    remarks: list[str] = []
    for group, place in zip(comparison.groups, _folders(comparison, folder), strict=True):
        for name, suffix in tables.FORMATS.items():
            content = tables.rendered([group], name, replace(view or View(), width=WIDTH))
            written.append(_write(place / f"table.{suffix}", content))
        files, empty = write_figures(group, place)
        written += files
        remarks += [f"{group.name}: nothing is stored for the figure {name}" for name in empty]
    if len(comparison.groups) > 1:
        try:
            ranking = rank(comparison.groups)
        except RequestError as error:
            return written, [*remarks, f"no ranks over datasets: {error}"]
        content = tables.over_datasets(ranking, "markdown", WIDTH)
        written.append(_write(folder / "ranks.md", content))
        written += save(critical_difference_figure(ranking), folder, "critical_differences")
    return written, remarks


def _folders(comparison: Comparison, folder: Path) -> list[Path]:
    if len(comparison.groups) == 1:
        return [folder]
    taken: dict[str, int] = {}
    places = []
    for group in comparison.groups:
        slug = _slug(group)
        taken[slug] = taken.get(slug, 0) + 1
        places.append(folder / (slug if taken[slug] == 1 else f"{slug}-{taken[slug]}"))
    return places


def _slug(group: Group) -> str:
    """Return a group's name as a folder can be called everywhere."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", group.name).strip("-.")[:100]


def _write(file: Path, content: str) -> Path:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StoreError(
            f"{file}: cannot be written ({error.strerror}); choose another --output"
        ) from error
    return file
