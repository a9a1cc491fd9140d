"""Columns of a table, chosen by name: one source for all formats.

A column holds each of its numbers twice, as text for people and as it is for programs, so that
every format says the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from mmbench.errors import RequestError
from mmbench.evaluate.stored import with_metric
from mmbench.report.comparison import Group
from mmbench.report.remarks import p_in_words
from mmbench.report.reported import Printed, Source, beside_rows
from mmbench.report.rows import METRICS, READOUTS, Metric, Readout, Row
from mmbench.report.standing import Mark, mean_of, standings
from mmbench.report.statistics import Difference, Estimate, Summary, summarise

ON_TEST = "†"
"""Stands after the label of a row whose model was selected on the test set."""
OTHER_PROTOCOL = "≠"
"""Stands after a number in print that is not comparable."""

Subject = Literal["outcome", "modalities", "cost"]

READOUT_TITLES: dict[Readout, str] = {
    "probe": "fresh linear probe on the encoder's features",
    "split": "the modality's part of the fused logits",
    "own_head": "the modality's own classifier",
    "zero_feature": "fused logits with the other features set to zero",
}


@dataclass(frozen=True)
class View:
    """What a reader of a comparison asks to see."""

    readout: Readout = "probe"
    """What reads a modality, where no columns are named."""
    shapley: bool = False
    """Whether each modality's share is among the columns, where none are named."""
    columns: tuple[str, ...] | None = None
    """Names of columns, in order; None for the usual ones. See :func:`known_columns`."""
    reported: tuple[Source, ...] = ()
    """Accuracies in print, to stand in a column of their own."""
    width: int = 100
    """Characters of a line of text."""


@dataclass(frozen=True)
class Column:
    """A column: a cell a row."""

    name: str
    title: str
    cells: tuple[str, ...]
    """For people; what is not known is empty."""
    values: tuple[float | str | None, ...]
    """What the cells are sorted by: shares as fractions, losses in nats, costs as counted."""
    subject: Subject = "outcome"
    is_number: bool = True
    marks: tuple[Mark, ...] = ()
    """Where the column is one of a metric: how each row stands to the best."""
    fields: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The same for CSV, a number a field."""

    def mark(self, i: int) -> Mark:
        return self.marks[i] if self.marks else ""


Maker = Callable[[Group, View], Column]


def usual(group: Group, view: View) -> list[str]:
    """Return the names of the columns of a table for which none are named."""
    names = ["seeds", group.metric.name, "interval"]
    names += ["reported"] if view.reported else []
    names += ["difference", "p", "p_holm", "verdict", view.readout]
    names += ["share"] if view.shapley else []
    return [*names, "cost"]


def columns(group: Group, view: View | None = None) -> list[Column]:
    """Return the columns of a table, the rows' labels first. A modality's column is left out where
    the group lacks the modality."""
    view = view or View()
    names = list(usual(group, view) if view.columns is None else view.columns)
    if view.reported and "reported" not in names:
        names.append("reported")
    makers = {name: maker for asked in names for name, maker in _expanded(group, asked)}
    return [_labels(group), *(maker(group, view) for maker in makers.values())]


def everything(group: Group, view: View) -> list[Column]:
    """Return every column, for programs."""
    others = [name for name in _FIXED if name != "seeds" and (view.reported or name != "reported")]
    names = [group.metric.name, *others, *READOUTS, "shapley", "cost"]
    makers = {name: maker for asked in names for name, maker in _expanded(group, asked)}
    return [maker(group, view) for maker in makers.values()]


def known_columns(groups: Sequence[Group]) -> list[str]:
    """Return every name that a column of these tables can be asked for by. ``cost`` and the name
    of a readout stand for several columns."""
    modalities = list(dict.fromkeys(m for group in groups for m in group.modalities))
    stored = [
        f"{family}.{m}"
        for family in _FAMILIES
        for m in modalities
        if any(m in group.modalities and _has(group, family, m) for group in groups)
    ]
    families = list(dict.fromkeys(name.partition(".")[0] for name in stored))
    metrics = list(dict.fromkeys([*METRICS, *(group.metric.name for group in groups)]))
    return list(dict.fromkeys([*metrics, *_FIXED, *families, *stored, "cost", *COSTS]))


def check_columns(groups: Sequence[Group], view: View) -> None:
    """Raise :class:`RequestError` for a column that none of the tables has."""
    if view.columns is None:
        return
    known = known_columns(groups)
    if not view.columns:
        raise RequestError(f"no column named: columns are {', '.join(known)}")
    for name in view.columns:
        if name not in known and name != "method":
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise RequestError(f"unknown column '{name}': {hint}Columns are {', '.join(known)}")
        if name == "reported" and not view.reported:
            raise RequestError("column 'reported' needs the accuracies in print: add --reported")


def _expanded(group: Group, name: str) -> list[tuple[str, Maker]]:
    """Return the columns that a name stands for: several for ``cost``, which leaves out what no
    run has, and for a family, which has a column a modality."""
    if name == "method":
        return []
    if name == group.metric.name or name in METRICS:
        metric = group.metric if name == group.metric.name else METRICS[name]
        return [(name, partial(_metric, metric=metric))]
    if name in _FIXED:
        return [(name, _FIXED[name])]
    if name == "cost":
        return [
            (cost, partial(_cost, name=cost))
            for cost in COSTS
            if any(_mean_cost(row, cost) is not None for row in group.rows)
        ]
    if name in COSTS:
        return [(name, partial(_cost, name=name))]
    family, dot, modality = name.partition(".")
    wanted = [modality] if dot else list(group.modalities)
    return [
        (f"{family}.{m}", partial(_FAMILIES[family], family=family, modality=m))
        for m in wanted
        if m in group.modalities and f"{family}.{m}" != group.metric.name
    ]


# -- the rows and their outcome --------------------------------------------------------------------


def _labels(group: Group) -> Column:
    labels = tuple(row.label for row in group.rows)
    marked = tuple(f"{r.label} {ON_TEST}" if r.selected_on_test else r.label for r in group.rows)
    return Column("method", "method", marked, labels, is_number=False)


def _seeds(group: Group, view: View) -> Column:
    counts = tuple(len(row.runs) for row in group.rows)
    return Column("seeds", "seeds", tuple(map(str, counts)), counts)


def _metric(group: Group, view: View, metric: Metric) -> Column:
    rows = [
        replace(r, runs=tuple(with_metric(run, metric.name) for run in r.runs)) for r in group.rows
    ]
    means = [mean_of(row, metric) for row in rows]
    standing = standings(rows, metric)
    marks = tuple(standing[row.label].mark for row in rows)
    unit = f" ({metric.unit})" if metric.unit else ""
    name = "mean" if metric.name == group.metric.name else metric.name
    return Column(
        metric.name,
        f"test {metric.title}{unit}",
        tuple("" if mean is None else metric.value(mean) for mean in means),
        tuple(means),
        marks=marks,
        fields={name: means, f"{name}_standing": [mark or None for mark in marks]},
    )


def _interval(group: Group, view: View) -> Column:
    found = [row.value for row in group.rows]
    low, high = [s.low for s in found], [s.high for s in found]
    cells = tuple(_between(s, group.metric.value) for s in found)
    return Column("interval", "95 % interval", cells, tuple(low), fields={"low": low, "high": high})


def _deviation(group: Group, view: View) -> Column:
    found = [row.value.deviation for row in group.rows]
    step = f" ({group.metric.step})" if group.metric.step else ""
    cells = tuple("" if s is None else group.metric.value(s) for s in found)
    return Column(
        "deviation", f"standard deviation{step}", cells, tuple(found), fields={"deviation": found}
    )


def _between(found: Summary | Difference | Estimate, number: Callable[[float], str]) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"[{number(found.low)}, {number(found.high)}]"


def _difference(group: Group, view: View) -> Column:
    metric, found = group.metric, [row.difference for row in group.rows]
    step = f" ({metric.step})" if metric.step else ""
    cells = tuple(
        ""
        if d is None or d.mean is None
        else f"{metric.change(d.mean)} {_between(d, metric.change)}".rstrip()
        for d in found
    )
    means = [d.mean if d else None for d in found]
    return Column(
        "difference",
        f"difference to {group.reference or 'reference'}{step}",
        cells,
        tuple(means),
        fields={
            "reference": [group.reference] * len(found),
            "pairs": [d.pairs if d else None for d in found],
            "difference": means,
            "difference_low": [d.low if d else None for d in found],
            "difference_high": [d.high if d else None for d in found],
        },
    )


def _p_column(group: Group, view: View, name: str, title: str) -> Column:
    found = [getattr(row.difference, name, None) for row in group.rows]
    return _of_p(name, title, found)


def _p_best(group: Group, view: View) -> Column:
    standing = standings(group.rows, group.metric)
    against = [standing[row.label].against_best for row in group.rows]
    return _of_p("p_best", "p (Holm) against best", [d.p_holm if d else None for d in against])


def _of_p(name: str, title: str, found: Sequence[float | None]) -> Column:
    cells = tuple("" if p is None else p_in_words(p) for p in found)
    return Column(name, title, cells, tuple(found), fields={name: found})


def _improvement(group: Group, view: View) -> Column:
    """Return the share of pairs in which the row is ahead of the reference."""
    found = [row.difference.improvement if row.difference else None for row in group.rows]
    cells = tuple(
        "" if e is None else f"{100 * e.value:.0f} {_between(e, lambda x: f'{100 * x:.0f}')}"
        for e in found
    )
    values = [e.value if e else None for e in found]
    return Column(
        "improvement",
        "probability of improvement (%)",
        tuple(cell.rstrip() for cell in cells),
        tuple(values),
        fields={
            "improvement": values,
            "improvement_low": [e.low if e else None for e in found],
            "improvement_high": [e.high if e else None for e in found],
        },
    )


def _seeds_needed(group: Group, view: View) -> Column:
    found = [row.difference.seeds_needed if row.difference else None for row in group.rows]
    cells = tuple("" if n is None else str(n) for n in found)
    return Column(
        "seeds_needed", "seeds needed", cells, tuple(found), fields={"seeds_needed": found}
    )


def _interquartile(group: Group, view: View) -> Column:
    metric, found = group.metric, [row.value.interquartile for row in group.rows]
    unit = f" ({metric.unit})" if metric.unit else ""
    return Column(
        "interquartile",
        f"interquartile mean{unit}",
        tuple(f"{metric.value(e.value)} {_between(e, metric.value)}".rstrip() for e in found),
        tuple(e.value for e in found),
        fields={
            "interquartile": [e.value for e in found],
            "interquartile_low": [e.low for e in found],
            "interquartile_high": [e.high for e in found],
        },
    )


def _verdict(group: Group, view: View) -> Column:
    found = [row.difference.verdict if row.difference else None for row in group.rows]
    cells = tuple(
        "(reference)" if row.is_reference else word or ""
        for row, word in zip(group.rows, found, strict=True)
    )
    return Column(
        "verdict", "verdict", cells, tuple(found), is_number=False, fields={"verdict": found}
    )


def _reported(group: Group, view: View) -> Column:
    beside = beside_rows(group, view.reported)
    found = [beside.get(row.label, []) for row in group.rows]
    letters = source_letters(group, view)
    cells = tuple(", ".join(_in_print(printed, letters) for printed in row) for row in found)
    texts = {
        "reported": [[str(printed.value.value / 100) for printed in row] for row in found],
        "reported_source": [[view.reported[p.source].source for p in row] for row in found],
        "reported_comparable": [[str(p.is_comparable) for p in row] for row in found],
    }
    return Column(
        "reported",
        f"in print{f' ({group.metric.unit})' if group.metric.unit else ''}",
        cells,
        tuple(row[0].value.value / 100 if row else None for row in found),
        fields={name: [" | ".join(row) or None for row in rows] for name, rows in texts.items()},
    )


def source_letters(group: Group, view: View) -> dict[int, str]:
    """Return a letter for each source with a number beside a row, by its place in the view."""
    beside = beside_rows(group, view.reported)
    used = sorted({printed.source for row in beside.values() for printed in row})
    return {number: _letter(i) for i, number in enumerate(used)}


def _letter(i: int) -> str:
    """Return a, b, ..., z, aa, ab, ..."""
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)


def _in_print(printed: Printed, letters: Mapping[int, str]) -> str:
    differs = "" if printed.is_comparable else OTHER_PROTOCOL
    return f"{printed.value.value:g} {letters[printed.source]}{differs}"


# -- modalities ------------------------------------------------------------------------------------


def _readout(group: Group, view: View, family: str, modality: str) -> Column:
    found = [row.readout(modality, family) for row in group.rows]
    means = [summary.mean if summary else None for summary in found]
    return _of_modality(group, f"{modality} {family} (%)", f"{family}.{modality}", means)


def _shapley(group: Group, view: View, family: str, modality: str) -> Column:
    found = [row.shapley(modality) for row in group.rows]
    return _of_modality(group, f"{modality} Shapley value (points)", f"{family}.{modality}", found)


def _share(group: Group, view: View, family: str, modality: str) -> Column:
    found = [shapley_share(row, modality, group.modalities) for row in group.rows]
    return _of_modality(group, f"{modality} Shapley share (%)", f"{family}.{modality}", found)


def _of_modality(group: Group, title: str, name: str, found: Sequence[float | None]) -> Column:
    cells = tuple("" if number is None else f"{100 * number:.1f}" for number in found)
    return Column(name, title, cells, tuple(found), "modalities", fields={name: found})


def shapley_share(row: Row, modality: str, modalities: Sequence[str]) -> float | None:
    """Return a modality's Shapley value over the sum of all, from means over seeds; None where it
    is not known or the modalities together add nothing."""
    values = {m: value for m in modalities if (value := row.shapley(m)) is not None}
    total = sum(values.values())
    return values[modality] / total if modality in values and abs(total) > 1e-9 else None


def _has(group: Group, family: str, modality: str) -> bool:
    if family in ("shapley", "share"):
        return any(row.shapley(modality) is not None for row in group.rows)
    return any(row.readout(modality, family) is not None for row in group.rows)


# -- cost ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostUnit:
    """How people read a cost."""

    title: str
    scale: float = 1
    decimals: int = 0


COSTS = {
    "parameters": CostUnit("parameters"),
    "updates": CostUnit("updates"),
    "forwards": CostUnit("forwards"),
    "encoder_forwards": CostUnit("encoder forwards"),
    "backwards": CostUnit("backwards"),
    "train_seconds": CostUnit("seconds", decimals=1),
    "peak_memory_bytes": CostUnit("peak memory (MiB)", 2**-20),
    "step_flops": CostUnit("MFLOP a step", 1e-6, 1),
}
"""Costs by their name in a record."""


def _cost(group: Group, view: View, name: str) -> Column:
    found = [_mean_cost(row, name) for row in group.rows]
    unit = COSTS[name]
    title = f"{device_kind(group)} {unit.title}".strip() if name == "train_seconds" else unit.title
    cells = tuple("" if x is None else f"{x * unit.scale:,.{unit.decimals}f}" for x in found)
    return Column(name, title, cells, tuple(found), "cost", fields={name: found})


def _mean_cost(row: Row, name: str) -> float | None:
    """Return a cost, mean over the runs; None unless every run has it."""
    found = [getattr(run.finished.cost, name) for run in row.runs]
    numbers = [float(number) for number in found if number is not None]
    return summarise(numbers).mean if len(numbers) == len(found) else None


def device_kind(group: Group) -> str:
    """Return what the seconds of all rows were spent on: ``CPU`` or ``GPU``; else ``training``."""
    kinds = {
        str(run.finished.environment.get("device", "")).partition(":")[0]
        for row in group.rows
        for run in row.runs
    }
    kind = kinds.pop() if len(kinds) == 1 else ""
    return {"cpu": "CPU", "cuda": "GPU"}.get(kind, "training")


_FIXED: dict[str, Maker] = {
    "seeds": _seeds,
    "interval": _interval,
    "deviation": _deviation,
    "interquartile": _interquartile,
    "difference": _difference,
    "p": partial(_p_column, name="p", title="p"),
    "p_holm": partial(_p_column, name="p_holm", title="p (Holm)"),
    "p_t": partial(_p_column, name="p_t", title="p (t-test)"),
    "verdict": _verdict,
    "improvement": _improvement,
    "seeds_needed": _seeds_needed,
    "p_best": _p_best,
    "reported": _reported,
}

_FAMILIES: dict[str, Callable[..., Column]] = {
    **dict.fromkeys(READOUTS, _readout),
    "shapley": _shapley,
    "share": _share,
}
