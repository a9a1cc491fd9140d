"""What modalities contributed, as a table: text and Markdown for people, CSV and JSON for programs.

For people shares are in percent; several seeds stand as mean and standard deviation. CSV and JSON
hold each run's numbers as they are, shares as fractions.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence

from mmbench.errors import unknown_name
from mmbench.evaluate.balance import Balance, Quantity, Section

FORMATS = ("text", "markdown", "csv", "json")

TITLES: dict[Section, str] = {
    "contribution": "what the fused prediction takes from each modality",
    "encoder": "what each modality's encoder knows",
    "training": "how training treated them",
    "method": "what the method says of them",
    "metrics": "metrics by modality",
    "classes": "class by class",
}

COLUMNS = (
    "dataset",
    "protocol",
    "method",
    "config_hash",
    "seed",
    "quantity",
    "split",
    "modality",
    "value",
)


def rendered(balances: Sequence[Balance], format: str = "text", width: int = 120) -> str:
    """Return the balance of runs of one setting in a format of :data:`FORMATS`."""
    makers: dict[str, Callable[[Sequence[Balance]], str]] = {
        "text": lambda found: _text(found, width),
        "markdown": _markdown,
        "csv": _csv,
        "json": _json,
    }
    if format not in makers:
        raise unknown_name("--format", format, FORMATS)
    return makers[format](balances)


def sentences(balances: Sequence[Balance]) -> list[str]:
    """Return what is not known, and of which seeds where it is not so of all."""
    seeds: dict[str, list[int]] = {}
    for balance in balances:
        for line in balance.missing:
            seeds.setdefault(line, []).append(balance.run.seed)
    return [
        line if len(of) == len(balances) else f"seed {', '.join(map(str, of))}: {line}"
        for line, of in seeds.items()
    ]


# -- for people ------------------------------------------------------------------------------------


def heading(balances: Sequence[Balance]) -> str:
    run = balances[0].run
    seeds = ", ".join(str(balance.run.seed) for balance in balances)
    plural = "seeds" if len(balances) > 1 else "seed"
    return f"{run.method} on {run.dataset} {run.finished.protocol}, {plural} {seeds}"


def summary(balances: Sequence[Balance]) -> list[str]:
    """Return the imbalance, and what is divided, in words."""
    lines = []
    for split in ("test", "val"):
        indices = [b.imbalance[split] for b in balances if split in b.imbalance]
        ends = [b.outcomes[split] for b in balances if split in b.outcomes]
        if not ends:
            continue
        none, every = (_cell([end[i] for end in ends], "%") for i in (0, 1))
        told = f"imbalance {_cell(indices, '')}; " if indices else ""
        lines.append(
            f"{split}: {told}fused accuracy {every} % with all modalities, {none} % with none"
        )
    found = [b.discrepancy for b in balances if b.discrepancy is not None]
    if found:
        lines.append(f"confidence discrepancy over training: {_cell(found, '')}")
    return lines


def explanation(balances: Sequence[Balance]) -> str:
    spread = (
        "Numbers are means over seeds, with the standard deviation in brackets. "
        if len(balances) > 1
        else ""
    )
    return (
        f"{spread}Imbalance is (largest - smallest Shapley value) / sum of their sizes: 0 where "
        "all modalities contribute alike, 1 where one does everything. It says how the prediction "
        "is made, not what a modality could give: see the gap for that. Shares and accuracies in "
        "percent, differences of them in points."
    )


def _table(balances: Sequence[Balance]) -> list[tuple[Section, list[str]]]:
    """Return rows of cells below the header, each with its section."""
    modalities = balances[0].modalities
    merged: dict[tuple[str, str], list[Quantity]] = {}
    for balance in balances:
        for quantity in balance.quantities:
            merged.setdefault((quantity.name, quantity.split), []).append(quantity)
    has_fused = _has_fused(balances)
    rows: list[tuple[Section, list[str]]] = []
    for found in merged.values():
        first = found[0]
        cells = [first.title, first.split, first.unit]
        cells += [
            _cell([q.values[m] for q in found if m in q.values], first.unit) for m in modalities
        ]
        if has_fused:
            cells.append(_cell([q.fused for q in found if q.fused is not None], first.unit))
        rows.append((first.section, cells))
    return sorted(rows, key=lambda row: list(TITLES).index(row[0]))


def _has_fused(balances: Sequence[Balance]) -> bool:
    return any(q.fused is not None for b in balances for q in b.quantities)


def _header(balances: Sequence[Balance]) -> list[str]:
    fused = ["fused"] if _has_fused(balances) else []
    return ["", "split", "unit", *balances[0].modalities, *fused]


def _cell(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    scale, decimals = (100, 1) if unit in ("%", "points") else (1, 3)
    mean = statistics.fmean(values) * scale
    text = _number(mean, decimals)
    if len(values) > 1:
        text += f" ({_number(statistics.stdev(values) * scale, decimals)})"
    return text


def _number(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    if not float(text):
        return text.removeprefix("-") if value == 0 or abs(value) < 1e-12 else f"{value:.2g}"
    return text


def _text(balances: Sequence[Balance], width: int) -> str:
    title = heading(balances)
    lines = [title, "=" * len(title), *summary(balances)]
    rows = _table(balances)
    if rows:
        lines.append("")
        header = _header(balances)
        cells = [header, *(row for _, row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        lines.append(_aligned(header, widths))
        section = None
        for of, row in rows:
            if of != section:
                section = of
                lines += ["", TITLES[of]]
            lines.append(_aligned([f"  {row[0]}", *row[1:]], [widths[0] + 2, *widths[1:]]))
        lines.append("")
        lines += textwrap.wrap(explanation(balances), width)
    missing = sentences(balances)
    if missing:
        lines += ["", "Not told:"]
        for line in missing:
            lines += textwrap.wrap(
                line,
                width,
                initial_indent="- ",
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines).rstrip() + "\n"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    shown = [
        cell.ljust(size) if i < 3 else cell.rjust(size)
        for i, (cell, size) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(shown).rstrip()


def _markdown(balances: Sequence[Balance]) -> str:
    lines = [f"### {_escaped(heading(balances))}", ""]
    lines += [f"- {line}" for line in summary(balances)]
    rows = _table(balances)
    header = _header(balances)
    for section in TITLES:
        chosen = [row for of, row in rows if of == section]
        if chosen:
            lines += ["", f"**{TITLES[section][0].upper()}{TITLES[section][1:]}**", ""]
            lines += [_row(header), _row(["---"] * 3 + ["---:"] * (len(header) - 3))]
            lines += [_row([_escaped(cell) for cell in row]) for row in chosen]
    if rows:
        lines += ["", explanation(balances)]
    missing = sentences(balances)
    if missing:
        lines += ["", "Not told:", "", *(f"- {line}" for line in missing)]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_")


# -- for programs ----------------------------------------------------------------------------------


def _csv(balances: Sequence[Balance]) -> str:
    """Return a row a number; ``modality`` is empty for what belongs to none, and ``(fused)`` for
    the fused prediction."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for balance in balances:
        run = balance.run
        start = [run.dataset, run.finished.protocol, run.method, run.config_hash, run.seed]
        for quantity in balance.quantities:
            for m, value in quantity.values.items():
                writer.writerow([*start, quantity.name, quantity.split, m, _plain(value)])
            if quantity.fused is not None:
                fused = _plain(quantity.fused)
                writer.writerow([*start, quantity.name, quantity.split, "(fused)", fused])
        for split, (none, every) in balance.outcomes.items():
            writer.writerow([*start, "accuracy_without_modalities", split, "", _plain(none)])
            writer.writerow([*start, "accuracy_with_all", split, "", _plain(every)])
        for split, index in balance.imbalance.items():
            writer.writerow([*start, "imbalance", split, "", _plain(index)])
        if balance.discrepancy is not None:
            writer.writerow(
                [*start, "confidence_discrepancy", "val", "", _plain(balance.discrepancy)]
            )
    return stream.getvalue()


def _plain(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


def _json(balances: Sequence[Balance]) -> str:
    return json.dumps([_as_dict(balance) for balance in balances], indent=1) + "\n"


def _as_dict(balance: Balance) -> dict[str, object]:
    run = balance.run
    return {
        "path": str(run.path),
        "dataset": run.dataset,
        "protocol": run.finished.protocol,
        "method": run.method,
        "config_hash": run.config_hash,
        "seed": run.seed,
        "modalities": list(balance.modalities),
        "imbalance": balance.imbalance,
        "confidence_discrepancy": balance.discrepancy,
        "accuracy": {s: {"none": n, "all": a} for s, (n, a) in balance.outcomes.items()},
        "quantities": [
            {
                "name": q.name,
                "section": q.section,
                "split": q.split or None,
                "values": {m: v if math.isfinite(v) else None for m, v in q.values.items()},
                "fused": q.fused,
            }
            for q in balance.quantities
        ],
        "not_told": balance.missing,
    }
