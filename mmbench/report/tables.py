"""Tables of a comparison: text, Markdown and LaTeX for people, CSV for programs.

For people, shares are in percent with one decimal. CSV holds fractions and full precision, each
number in a column of its own.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mmbench.errors import RequestError, unknown_name
from mmbench.report.comparison import Comparison, Group
from mmbench.report.remarks import p_in_words
from mmbench.report.rows import READOUTS, Readout, Row, shown
from mmbench.report.statistics import Difference, Summary

FORMATS = {"text": "txt", "markdown": "md", "csv": "csv", "latex": "tex"}
"""Names of the formats and the suffix of their files."""

Subject = Literal["outcome", "modalities", "cost"]

MARK = "†"
"""Stands after the label of a row whose model was selected on the test set."""

READOUT_TITLES: dict[Readout, str] = {
    "probe": "fresh linear probe on the encoder's features",
    "split": "the modality's part of the fused logits",
    "own_head": "the modality's own classifier",
    "zero_feature": "fused logits with the other features set to zero",
}

COSTS = {
    "updates": "updates",
    "encoder_forwards": "encoder forwards",
    "train_seconds": "train seconds",
    "parameters": "parameters",
}


@dataclass(frozen=True)
class Column:
    """A column for people: a cell a row, already text."""

    title: str
    cells: tuple[str, ...]
    subject: Subject = "outcome"
    numeric: bool = True


def columns(group: Group, readout: Readout = "probe", shapley: bool = False) -> list[Column]:
    """Return the columns of a table for people; what is not known is an empty cell."""
    metric, rows = group.metric, group.rows

    def column(
        title: str, cell: Callable[[Row], str], subject: Subject = "outcome", numeric: bool = True
    ) -> Column:
        return Column(title, tuple(cell(row) for row in rows), subject, numeric)

    unit = f" ({metric.unit})" if metric.unit else ""
    step = f" ({metric.step})" if metric.step else ""
    reference = group.reference or "reference"
    made = [
        column(
            "method", lambda r: r.label + (f" {MARK}" if r.selected_on_test else ""), numeric=False
        ),
        column("seeds", lambda r: str(len(r.runs))),
        column(f"test {metric.title}{unit}", lambda r: metric.value(r.value.mean)),
        column("95 % interval", lambda r: _interval(r.value, metric.value)),
        column(f"difference to {reference}{step}", lambda r: _change(r, metric.change)),
        column("p", lambda r: _p(r.difference)),
        column("verdict", _verdict, numeric=False),
    ]
    for m in group.modalities:
        made.append(
            column(
                f"{m} {readout} (%)",
                lambda r, m=m: _percent(r.readout(m, readout)),  # type: ignore[misc]
                "modalities",
            )
        )
    if shapley:
        for m in group.modalities:
            made.append(
                column(
                    f"{m} Shapley share (%)",
                    lambda r, m=m: _share(r, m, group.modalities),  # type: ignore[misc]
                    "modalities",
                )
            )
    for name, title in COSTS.items():
        decimals = 1 if name == "train_seconds" else 0
        made.append(
            column(
                title,
                lambda r, name=name, decimals=decimals: f"{r.cost(name):,.{decimals}f}",  # type: ignore[misc]
                "cost",
            )
        )
    return made


def shapley_share(row: Row, modality: str, modalities: Sequence[str]) -> float | None:
    """Return a modality's Shapley value over the sum of all, from means over seeds; None where it
    is not known or the modalities together add nothing."""
    values = {m: value for m in modalities if (value := row.shapley(m)) is not None}
    total = sum(values.values())
    return values[modality] / total if modality in values and abs(total) > 1e-9 else None


def _share(row: Row, modality: str, modalities: Sequence[str]) -> str:
    share = shapley_share(row, modality, modalities)
    return "" if share is None else f"{100 * share:.1f}"


def _percent(summary: Summary | None) -> str:
    return "" if summary is None else f"{100 * summary.mean:.1f}"


def _interval(found: Summary | Difference | None, number: Callable[[float], str]) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"[{number(found.low)}, {number(found.high)}]"


def _change(row: Row, number: Callable[[float], str]) -> str:
    if row.difference is None or row.difference.mean is None:
        return ""
    return f"{number(row.difference.mean)} {_interval(row.difference, number)}".rstrip()


def _p(difference: Difference | None) -> str:
    return "" if difference is None or difference.p is None else p_in_words(difference.p)


def _verdict(row: Row) -> str:
    if row.is_reference:
        return "(reference)"
    return "" if row.difference is None else row.difference.verdict


# -- what stands above and below -------------------------------------------------------------------


def caption(group: Group, readout: Readout = "probe") -> str:
    """Return what the numbers of a table are."""
    metric = group.metric
    unit = {"%": "in percent", "nats": "in nats"}.get(metric.unit, "as it is")
    parts = [
        f"{group.name}: test {metric.title} {unit}, mean over seeds with the 95 % Student-t "
        "interval of the mean."
    ]
    if group.reference is not None:
        parts.append(
            f"Differences are to {group.reference}, paired by seed, with their 95 % interval and "
            "the two-sided p-value of a paired t-test, not corrected for the number of rows."
        )
    parts.append(f"{readout}: test accuracy of a modality, read by {READOUT_TITLES[readout]}.")
    parts.append("Costs are means over seeds.")
    if group.common:
        common = ", ".join(f"{k}={shown(v)}" for k, v in group.common.items())
        parts.append(f"Same in all rows: {common}.")
    if any(row.selected_on_test for row in group.rows):
        parts.append(f"{MARK} model selected on the test set.")
    return " ".join(parts)


def remarks_of(group: Group) -> list[str]:
    """Return warnings and the dataset's notes, a sentence each."""
    return [f"warning: {w}" for w in group.warnings] + [f"note: {n}" for n in group.notes]


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


def rendered(
    groups: Sequence[Group],
    format: str,
    readout: Readout = "probe",
    shapley: bool = False,
    width: int = 100,
) -> str:
    """Return the tables of all groups in one of :data:`FORMATS`; CSV is one table with all rows."""
    if format == "csv":
        return csv_text(groups)
    if format == "markdown":
        return "\n".join(markdown(group, readout, shapley) for group in groups)
    if format == "latex":
        return "\n".join(latex(group, readout, shapley) for group in groups)
    if format == "text":
        return "\n".join(text(group, readout, shapley, width) for group in groups)
    raise unknown_name("format", format, FORMATS)


def text(group: Group, readout: Readout = "probe", shapley: bool = False, width: int = 100) -> str:
    """Return verdict, table and remarks as plain text. A table wider than ``width`` is set as
    blocks that repeat the first column."""
    made = columns(group, readout, shapley)
    blocks = [made] if _width(made) <= width else _blocks(made, width)
    paragraphs = [group.name + "\n" + "=" * len(group.name)]
    paragraphs.append("\n".join(_wrapped(line, width) for line in group.verdict))
    paragraphs += ["\n".join(_aligned(block)) for block in blocks]
    paragraphs.append(_wrapped(caption(group, readout), width))
    if found := remarks_of(group):
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


def _aligned(made: Sequence[Column]) -> list[str]:
    heads = [_stacked(c) for c in made]
    height = max(map(len, heads))
    heads = [[""] * (height - len(head)) + head for head in heads]
    widths = [max(map(len, [*h, *c.cells])) for h, c in zip(heads, made, strict=True)]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.rjust(w) if column.numeric else cell.ljust(w)
            for cell, w, column in zip(cells, widths, made, strict=True)
        ]
        return "  ".join(placed).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [line([c.cells[i] for c in made]) for i in range(len(made[0].cells))]
    return [*(line([h[i] for h in heads]) for i in range(height)), rule, *body]


def _stacked(column: Column) -> list[str]:
    """Break a title into lines about as wide as its cells."""
    widest = max([len(cell) for cell in column.cells] + [8])
    return textwrap.wrap(column.title, widest, break_long_words=False, break_on_hyphens=False)


def markdown(group: Group, readout: Readout = "probe", shapley: bool = False) -> str:
    """Return verdict, table and remarks as GitHub Markdown."""
    made = columns(group, readout, shapley)
    lines = [f"### {_markdown(group.name)}", ""]
    lines += [f"- {_markdown(line)}" for line in group.verdict]
    lines += ["", "| " + " | ".join(_markdown(c.title) for c in made) + " |"]
    lines.append("|" + "|".join("---:" if c.numeric else ":---" for c in made) + "|")
    for i in range(len(group.rows)):
        lines.append("| " + " | ".join(_markdown(c.cells[i]) for c in made) + " |")
    lines += ["", _markdown(caption(group, readout))]
    if found := remarks_of(group):
        lines += ["", *(f"- {_markdown(line)}" for line in found)]
    return "\n".join(lines) + "\n"


def _markdown(words: str) -> str:
    for character in "\\|*_<>":
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
    MARK: r"\textdagger{}",
    "≤": r"$\leq$",
    "±": r"$\pm$",
}


def latex(group: Group, readout: Readout = "probe", shapley: bool = False) -> str:
    """Return the table for LaTeX with the packages booktabs and graphicx; verdict and remarks are
    comments above it."""
    made = columns(group, readout, shapley)
    lines = ["% needs \\usepackage{booktabs,graphicx}"]
    lines += [f"% {' '.join(line.split())}" for line in (*group.verdict, *remarks_of(group))]
    lines += [r"\begin{table*}", r"\centering", rf"\caption{{{_latex(caption(group, readout))}}}"]
    lines += [r"\resizebox{\textwidth}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{''.join('r' if c.numeric else 'l' for c in made)}}}"]
    lines += [r"\toprule", " & ".join(_latex(c.title) for c in made) + r" \\", r"\midrule"]
    for i in range(len(group.rows)):
        lines.append(" & ".join(_latex_number(c.cells[i], c.numeric) for c in made) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table*}"]
    return "\n".join(lines) + "\n"


def _latex(words: str) -> str:
    return "".join(LATEX.get(character, character) for character in words)


def _latex_number(cell: str, numeric: bool) -> str:
    """Escape a cell; in a number a hyphen is a minus sign."""
    escaped = _latex(cell)
    return escaped.replace("-", "$-$") if numeric else escaped


def csv_text(groups: Sequence[Group]) -> str:
    """Return the rows of all groups as CSV: fractions, nats and counts in full precision, an empty
    field for what is not known. Every readout and Shapley value that some row has is there."""
    found = [_csv_row(group, row) for group in groups for row in group.rows]
    names = list(dict.fromkeys(name for row in found for name in row))
    for name in [name for name in names if "." in name]:
        if all(row.get(name) is None for row in found):
            names.remove(name)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def _csv_row(group: Group, row: Row) -> dict[str, object]:
    value, d = row.value, row.difference
    cells: dict[str, object] = {
        "dataset": group.dataset,
        "protocol": group.protocol,
        "dataset_options": " ".join(f"{k}={shown(v)}" for k, v in group.dataset_options.items()),
        "label": row.label,
        "method": row.method,
        "config_hash": row.config_hash,
        "selected_on_test": row.selected_on_test,
        "metric": group.metric.name,
        "seeds": " ".join(map(str, row.seeds)),
        "mean": value.mean,
        "deviation": value.deviation,
        "low": value.low,
        "high": value.high,
        "reference": group.reference,
        "pairs": d.pairs if d else None,
        "difference": d.mean if d else None,
        "difference_low": d.low if d else None,
        "difference_high": d.high if d else None,
        "p": d.p if d else None,
        "verdict": d.verdict if d else None,
    }
    for readout in READOUTS:
        for m in group.modalities:
            accuracy = row.readout(m, readout)
            cells[f"{readout}.{m}"] = accuracy.mean if accuracy else None
    for m in group.modalities:
        cells[f"shapley.{m}"] = row.shapley(m)
    return cells | {name: row.cost(name) for name in COSTS}
