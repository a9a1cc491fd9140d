"""Tables of a comparison: text, Markdown, LaTeX and HTML for people, CSV for programs.

All are made of the same columns (:mod:`mmbench.report.columns`). For people, shares are in percent
with one decimal. CSV holds fractions and full precision, each number in a column of its own.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence

from mmbench.errors import RequestError, unknown_name
from mmbench.report.columns import (
    ON_TEST,
    OTHER_PROTOCOL,
    READOUT_TITLES,
    Column,
    View,
    columns,
    everything,
    source_letters,
)
from mmbench.report.comparison import Comparison, Group
from mmbench.report.ranking import Ranking
from mmbench.report.reported import beside_rows, without_rows
from mmbench.report.rows import READOUTS, Readout, shown
from mmbench.report.standing import Mark
from mmbench.report.statistics import LEVEL

FORMATS = {"text": "txt", "markdown": "md", "csv": "csv", "latex": "tex", "html": "html"}
"""Names of the formats and the suffix of their files."""

MARK = ON_TEST
TIED = "~"
"""Stands after a number that is not distinguishable from the best."""


# -- what stands above and below -------------------------------------------------------------------


def caption(group: Group, view: View | None = None) -> str:
    """Return what the numbers of a table are, and its marks where the best is bold."""
    return caption_of(group, columns(group, view))


def caption_of(group: Group, made: Sequence[Column], best: str = "bold") -> str:
    """Return the caption of columns. ``best`` is how the best number is marked."""
    names = {column.name for column in made}
    parts = [*_on_outcome(group, names), *_on_marks(made, best)]
    readouts = [name for name in READOUTS if any(n.startswith(f"{name}.") for n in names)]
    parts += [
        f"{name}: test accuracy of a modality, read by {READOUT_TITLES[name]}." for name in readouts
    ]
    if any(name.startswith("share.") for name in names):
        parts.append("Shapley share: a modality's Shapley value of accuracy over the sum of all.")
    if any(column.subject == "cost" for column in made):
        parts.append("Costs are means over seeds.")
    if "step_flops" in names:
        parts.append(
            "FLOP: matrix products and convolutions of one training step, backward passes "
            "included, summed over the models that are tested."
        )
    if group.common:
        common = ", ".join(f"{k}={shown(v)}" for k, v in group.common.items())
        parts.append(f"Same in all rows: {common}.")
    if any(row.selected_on_test for row in group.rows):
        parts.append(f"{ON_TEST} model selected on the test set; not eligible as best.")
    return " ".join(parts)


def _on_outcome(group: Group, names: set[str]) -> list[str]:
    metric = group.metric
    unit = {"%": "in percent", "nats": "in nats"}.get(metric.unit, "as it is")
    first = f"{group.name}: test {metric.title} {unit}, mean over seeds"
    if "interval" in names:
        kinds = {kind for row in group.rows if (kind := row.value.interval_kind) is not None}
        first += (
            f" with the 95 % {' or '.join(sorted(kinds))} interval of the mean" if kinds else ""
        )
    parts = [f"{first}."]
    if group.reference is not None and "difference" in names:
        parts.append(
            f"Differences are to {group.reference}, paired by seed, with their 95 % interval."
        )
    if "p" in names:
        parts.append("p: two-sided sign-flip test, not corrected for the number of rows.")
    if "p_holm" in names:
        parts.append("p (Holm): corrected for it; the verdict follows it.")
    if "p_t" in names:
        parts.append("p (t-test): two-sided paired t-test, not corrected.")
    if "improvement" in names:
        parts.append(
            f"Probability of improvement: share of pairs ahead of {group.reference}, ties half, "
            "with its Clopper-Pearson interval."
        )
    if "seeds_needed" in names:
        parts.append(
            "Seeds needed: paired seeds that would show the observed difference with a chance of "
            "80 %."
        )
    return parts


def _on_marks(made: Sequence[Column], best: str) -> list[str]:
    marks = {mark for column in made for mark in column.marks}
    if "best" not in marks:
        return []
    said = f"Best mean: {best}"
    if "tied" in marks:
        said += (
            f"; {TIED}: not distinguishable from it (paired sign-flip test, p ≥ {LEVEL:g} after "
            "Holm's correction)"
        )
        said += "; the others are distinguishable" if "" not in marks else ""
    elif marks == {"best", "apart"}:
        said += "; every other row is distinguishable from it"
    elif marks != {"best"}:
        said += "; too few paired seeds to test the other rows against it"
    return [f"{said}."]


def footnotes(group: Group, view: View) -> list[str]:
    """Return a note for each source of the column ``reported``: what it is, how its numbers were
    read, under which protocol, and what speaks against comparing them."""
    letters = source_letters(group, view)
    if view.reported and not letters:
        return [f"in print: no {group.metric.title} on {group.dataset} of any method in the table."]
    found = []
    for number, letter in letters.items():
        source = view.reported[number]
        own = [v for v in source.values if v.dataset == group.dataset]
        own = [v for v in own if v.metric == group.metric.name]
        words = [f"{letter}: {_sentence(source.source)}", _sentence(f"Read: {source.read}")]
        words += [_sentence(f"Protocol: {source.protocol}"), *map(_sentence, source.caveats)]
        words += [_sentence(f"{v.printed_as}: {v.caveat}") for v in own if v.caveat]
        if missing := without_rows(group, source):
            words.append(f"In print there, without a row here: {', '.join(missing)}.")
        found.append(" ".join(words))
    beside = beside_rows(group, view.reported)
    if any(not printed.is_comparable for row in beside.values() for printed in row):
        found.insert(
            0, f"{OTHER_PROTOCOL} not comparable: the protocol differs from that of this table."
        )
    return found


def _sentence(words: str) -> str:
    return " ".join(words.split()).rstrip(".") + "."


def remarks_of(group: Group, view: View | None = None) -> list[str]:
    """Return warnings, the dataset's notes and footnotes of numbers in print, a paragraph each."""
    said = [f"warning: {w}" for w in group.warnings] + [f"note: {n}" for n in group.notes]
    return said + footnotes(group, view or View())


def check_readout(comparison: Comparison, readout: Readout) -> None:
    """Raise :class:`RequestError` when no row of any table has the readout."""
    stored = [
        name
        for name in READOUTS
        if any(
            row.readout(m, name) is not None
            for group in comparison.groups
            for row in group.rows
            for m in group.modalities
        )
    ]
    if stored and readout not in stored:
        raise RequestError(
            f"--readout {readout}: no stored run has it; stored are {', '.join(stored)}"
        )


# -- formats ---------------------------------------------------------------------------------------


def rendered(groups: Sequence[Group], format: str, view: View | None = None) -> str:
    """Return the tables of all groups in one of :data:`FORMATS`; CSV is one table with all rows."""
    if format == "csv":
        return csv_text(groups, view)
    if format == "html":
        from mmbench.report.html_table import html

        return "\n".join(html(group, view) for group in groups)
    makers = {"text": text, "markdown": markdown, "latex": latex}
    if format not in makers:
        raise unknown_name("format", format, FORMATS)
    return "\n".join(makers[format](group, view) for group in groups)


def text(group: Group, view: View | None = None) -> str:
    """Return verdict, table and remarks as plain text. A table wider than the view is set as
    blocks that repeat the first column."""
    view = view or View()
    made = columns(group, view)
    width = view.width
    blocks = [made] if _width(made) <= width else _blocks(made, width)
    paragraphs = [group.name + "\n" + "=" * len(group.name)]
    paragraphs.append("\n".join(_wrapped(line, width) for line in group.verdict))
    paragraphs += ["\n".join(_aligned(block)) for block in blocks]
    paragraphs.append(_wrapped(caption_of(group, made, "*"), width))
    if found := remarks_of(group, view):
        paragraphs.append("\n".join(_wrapped(line, width) for line in found))
    return "\n\n".join(paragraphs) + "\n"


def _width(made: Sequence[Column]) -> int:
    return max(map(len, _aligned(made)))


def _blocks(made: Sequence[Column], width: int) -> list[list[Column]]:
    """Divide columns into blocks that fit, each with the first column and one subject."""
    first, *rest = made
    blocks = [[first]]
    for column in rest:
        block = blocks[-1]
        full = len(block) > 1 and _width([*block, column]) > width
        if full or (len(block) > 1 and block[-1].subject != column.subject):
            blocks.append([first, column])
        else:
            block.append(column)
    return blocks


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(
        line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


SIGNS: dict[Mark, str] = {"": "  ", "best": " *", "tied": f" {TIED}", "apart": "  "}
"""What stands behind a number in text; blanks keep the numbers of a column in line."""


def _aligned(made: Sequence[Column]) -> list[str]:
    bodies = [
        [c.cells[i] + SIGNS[c.mark(i)] for i in range(len(c.cells))] if any(c.marks) else c.cells
        for c in made
    ]
    heads = [_stacked(c) for c in made]
    height = max(map(len, heads))
    heads = [[""] * (height - len(head)) + head for head in heads]
    widths = [max(map(len, [*h, *body])) for h, body in zip(heads, bodies, strict=True)]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.rjust(w) if column.is_number else cell.ljust(w)
            for cell, w, column in zip(cells, widths, made, strict=True)
        ]
        return "  ".join(placed).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [line([cells[i] for cells in bodies]) for i in range(len(made[0].cells))]
    return [*(line([h[i] for h in heads]) for i in range(height)), rule, *body]


def _stacked(column: Column) -> list[str]:
    """Break a title into lines about as wide as its cells."""
    widest = max([len(cell) for cell in column.cells] + [8])
    return textwrap.wrap(column.title, widest, break_long_words=False, break_on_hyphens=False)


# -- over all tables -------------------------------------------------------------------------------


def over_datasets(ranking: Ranking, format: str, width: int = 100) -> str:
    """Return the average ranks of rows over several datasets, as text or Markdown: what they allow
    to be said, and a table."""
    title = "Average ranks over datasets"
    made = ranking_columns(ranking)
    if format == "markdown":
        said = [f"- {_markdown(line)}" for line in ranking.sentences]
        return "\n".join([f"### {title}", "", *said, "", *_markdown_lines(made)]) + "\n"
    said = [_wrapped(line, width) for line in ranking.sentences]
    blocks = ["\n".join(_aligned(block)) for block in _blocks(made, width)]
    return "\n\n".join([title + "\n" + "=" * len(title), "\n".join(said), *blocks]) + "\n"


def ranking_columns(ranking: Ranking) -> list[Column]:
    """Return the columns of a ranking: label, average rank, and the rank in each dataset."""
    labels = tuple(row.label for row in ranking.rows)
    average = tuple(row.average_rank for row in ranking.rows)
    made = [
        Column("method", "method", labels, labels, is_number=False),
        Column("rank", "average rank", tuple(f"{r:.2f}" for r in average), average),
    ]
    for i, name in enumerate(ranking.datasets):
        ranks = tuple(row.ranks[i] for row in ranking.rows)
        made.append(Column(f"rank.{name}", name, tuple(f"{r:g}" for r in ranks), ranks))
    return made


# -- Markdown --------------------------------------------------------------------------------------


def markdown(group: Group, view: View | None = None) -> str:
    """Return verdict, table and remarks as GitHub Markdown."""
    made = columns(group, view)
    lines = [f"### {_markdown(group.name)}", ""]
    lines += [f"- {_markdown(line)}" for line in group.verdict]
    lines += ["", *_markdown_lines(made)]
    lines += ["", _markdown(caption_of(group, made))]
    if found := remarks_of(group, view):
        lines += ["", *(f"- {_markdown(line)}" for line in found)]
    return "\n".join(lines) + "\n"


def _markdown_lines(made: Sequence[Column]) -> list[str]:
    lines = ["| " + " | ".join(_markdown(c.title) for c in made) + " |"]
    lines.append("|" + "|".join("---:" if c.is_number else ":---" for c in made) + "|")
    for i in range(len(made[0].cells)):
        lines.append("| " + " | ".join(_markdown_cell(c, i) for c in made) + " |")
    return lines


def _markdown_cell(column: Column, i: int) -> str:
    cell, mark = _markdown(column.cells[i]), column.mark(i)
    if mark == "best":
        return f"**{cell}**"
    return f"{cell} {_markdown(TIED)}" if mark == "tied" else cell


def _markdown(words: str) -> str:
    for character in "\\|*_<>~`":
        words = words.replace(character, f"\\{character}")
    return words


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    # A bracket at the start of a cell would be read as the optional argument of \\.
    "[": "{[}",
    "]": "{]}",
    ON_TEST: r"\textdagger{}",
    "≤": r"$\leq$",
    "≠": r"$\neq$",
    "≥": r"$\geq$",
    "±": r"$\pm$",
    "×": r"$\times$",
}


def latex(group: Group, view: View | None = None) -> str:
    """Return the table for LaTeX with the packages booktabs and graphicx; verdict and remarks are
    comments above it."""
    made = columns(group, view)
    lines = ["% needs \\usepackage{booktabs,graphicx}"]
    lines += [f"% {' '.join(line.split())}" for line in (*group.verdict, *remarks_of(group, view))]
    lines += [r"\begin{table*}", r"\centering", rf"\caption{{{_latex(caption_of(group, made))}}}"]
    lines.append(rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', group.name).strip('-')}}}")
    # Only a table wider than the page is made smaller.
    lines.append(r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%")
    lines += [rf"\begin{{tabular}}{{{''.join('r' if c.is_number else 'l' for c in made)}}}"]
    lines += [r"\toprule", " & ".join(_latex(c.title) for c in made) + r" \\", r"\midrule"]
    for i in range(len(group.rows)):
        lines.append(" & ".join(_latex_cell(c, i) for c in made) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table*}"]
    return "\n".join(lines) + "\n"


def _latex_cell(column: Column, i: int) -> str:
    """Escape a cell and mark it; in a number a hyphen is a minus sign."""
    cell, mark = _latex(column.cells[i]), column.mark(i)
    if column.is_number:
        cell = cell.replace("-", "$-$")
    if mark == "best":
        return rf"\textbf{{{cell}}}"
    return rf"{cell} $\sim$" if mark == "tied" else cell


def _latex(words: str) -> str:
    return "".join(LATEX.get(character, character) for character in words)


def csv_text(groups: Sequence[Group], view: View | None = None) -> str:
    """Return the rows of all groups as CSV: fractions, nats and counts in full precision, an empty
    field for what is not known. Unless columns are named, every one that some row has is there."""
    found = [row for group in groups for row in _csv_rows(group, view or View())]
    names = list(dict.fromkeys(name for row in found for name in row))
    for name in [name for name in names if "." in name]:
        if all(row.get(name) is None for row in found):
            names.remove(name)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def _csv_rows(group: Group, view: View) -> list[dict[str, object]]:
    made = everything(group, view) if view.columns is None else columns(group, view)[1:]
    options = " ".join(f"{k}={shown(v)}" for k, v in group.dataset_options.items())
    return [
        {
            "dataset": group.dataset,
            "protocol": group.protocol,
            "dataset_options": options,
            "label": row.label,
            "method": row.method,
            "config_hash": row.config_hash,
            "selected_on_test": row.selected_on_test,
            "metric": group.metric.name,
            "seeds": " ".join(map(str, row.seeds)),
        }
        | {name: numbers[i] for column in made for name, numbers in column.fields.items()}
        for i, row in enumerate(group.rows)
    ]
