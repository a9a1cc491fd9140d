"""From stored runs to rows that can be compared: grouping, labels, pairing with a reference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmbench.errors import RequestError, StoreError, unknown_name
from mmbench.evaluate.stored import with_metric
from mmbench.report import remarks
from mmbench.report.rows import (
    CONTROLS,
    DEFAULT_REFERENCE,
    METRICS,
    TRAINING,
    Metric,
    Row,
    best,
    best_first,
    difference,
    metric_named,
    shown,
)
from mmbench.report.statistics import corrected, summarise
from mmbench.store.frame import StoredRun, load_runs


@dataclass(frozen=True)
class Group:
    """Rows that may stand in one table: one dataset with one set of options, one protocol."""

    dataset: str
    protocol: str
    dataset_options: dict[str, Any]
    metric: Metric
    modalities: tuple[str, ...]
    rows: tuple[Row, ...]
    common: dict[str, Any]
    """Settings that all rows which train share."""
    reference: str | None
    """Label of the row that the others are compared with; None where none is stored."""
    unimodal: dict[str, Row]
    """The row of each modality trained alone, shown or not."""
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """What the dataset says of this split."""
    unfinished: tuple[StoredRun, ...] = ()

    @property
    def name(self) -> str:
        options = "".join(f" {k}={shown(v)}" for k, v in self.dataset_options.items())
        return f"{self.dataset} {self.protocol}{options}"

    @property
    def best_unimodal(self) -> Row | None:
        return best(self.unimodal.values(), self.metric)


@dataclass(frozen=True)
class Comparison:
    """What `mmbench compare` found: a group a table, and a line for every record left out."""

    root: Path
    metric: Metric
    groups: tuple[Group, ...]
    left_out: tuple[str, ...] = field(default=())


def compare(
    root: Path | str,
    dataset: str | None = None,
    protocol: str | None = None,
    methods: Sequence[str] | None = None,
    reference: str = DEFAULT_REFERENCE,
    metric: str = "accuracy",
) -> Comparison:
    """Return the stored runs as groups of comparable rows, with differences to a reference.

    ``methods`` are names of methods or labels of rows to show; reference and controls always are.
    ``reference`` is a method or a row's label, ``metric`` one of
    :data:`~mmbench.report.rows.METRICS` or a modality's accuracy by a readout (``probe.audio``).
    Runs are paired by seed where split and data are the same by their fingerprints. Raises
    :class:`RequestError` for a name that no stored run has and :class:`StoreError` where there is
    nothing to compare.
    """
    if methods is not None and not methods:
        raise RequestError("no method named: leave the methods out to compare all that are stored")
    runs = load_runs(Path(root))
    left_out = tuple(run.reason or "" for run in runs if run.status == "unreadable")
    runs = [run for run in runs if run.status != "unreadable"]
    runs = _of(runs, "dataset", dataset)
    runs = _of(runs, "protocol", protocol)
    done = [run for run in runs if run.status == "done"]
    if not done:
        causes = [f"{run.name} {run.status}: {run.reason}" for run in runs] + list(left_out)
        raise StoreError(f"{root}: no finished run to compare ({causes[0]})")
    measure = metric_named(metric, done)
    done = [with_metric(run, metric) for run in done]
    lacking = Counter(r.method for r in done if measure.read(r.finished) is None)
    left_out += tuple(f"{method}, {n} runs: no {metric}" for method, n in lacking.items())
    keyed: dict[tuple[str, str, str], list[StoredRun]] = {}
    for run in (run for run in done if measure.read(run.finished) is not None):
        keyed.setdefault(_key(run), []).append(run)
    drafts = [_draft(found, measure) for _, found in sorted(keyed.items())]
    _check_names(drafts, methods, reference)
    groups = [
        _finish(draft, [r for r in runs if r.status != "done"], methods, reference)
        for draft in drafts
        if methods is None or any(_named(row, methods) for row in draft.rows)
    ]
    return Comparison(Path(root), measure, tuple(groups), left_out)


def labels_of(runs: Sequence[StoredRun]) -> dict[tuple[str, str], str]:
    """Return the label of each setting, by method and hash, as it stands in a table of these
    finished runs alone."""
    keyed: dict[tuple[str, str, str], list[StoredRun]] = {}
    for run in runs:
        keyed.setdefault(_key(run), []).append(run)
    drafts = (_draft(found, METRICS["accuracy"]) for found in keyed.values())
    return {(row.method, row.config_hash): row.label for draft in drafts for row in draft.rows}


def _of(runs: list[StoredRun], attribute: str, wanted: str | None) -> list[StoredRun]:
    if wanted is None:
        return runs
    known = {name for run in runs if (name := getattr(run, attribute)) is not None}
    if wanted not in known:
        raise unknown_name(f"stored {attribute}", wanted, known)
    # The protocol of a killed run may be unknown; it is reported wherever it may belong.
    return [run for run in runs if getattr(run, attribute) in (wanted, None)]


def _key(run: StoredRun) -> tuple[str, str, str]:
    options = {k: v for k, v in run.finished.changed.items() if k.startswith("dataset.")}
    return run.dataset, run.finished.protocol, json.dumps(options, sort_keys=True)


# -- rows ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draft:
    """A group before rows are chosen and compared."""

    metric: Metric
    modalities: tuple[str, ...]
    common: dict[str, Any]
    rows: tuple[Row, ...]


def _draft(runs: list[StoredRun], metric: Metric) -> _Draft:
    settings: dict[tuple[str, str], list[StoredRun]] = {}
    for run in runs:
        settings.setdefault((run.method, run.config_hash), []).append(run)
    lists = sorted((run.finished.modalities for run in runs), key=len, reverse=True)
    modalities = tuple(dict.fromkeys(m for names in lists for m in names))
    rows = [
        Row(
            method,
            method,
            config_hash,
            {k: v for k, v in found[0].finished.changed.items() if not k.startswith("dataset.")},
            tuple(sorted(found, key=lambda run: run.seed)),
            summarise(value for r in found if (value := metric.read(r.finished)) is not None),
        )
        for (method, config_hash), found in settings.items()
    ]
    common = _common(rows)
    return _Draft(metric, modalities, common, _ordered(_labelled(rows, common), modalities, metric))


def _common(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the settings that every row shares; rows that train nothing have no say."""
    voting = [row for row in rows if row.trains] or list(rows)
    first = voting[0].settings
    return {
        k: v
        for k, v in first.items()
        if k != "modality" and all(k in row.settings and row.settings[k] == v for row in voting)
    }


def _labelled(rows: Sequence[Row], common: Mapping[str, Any]) -> list[Row]:
    labels = [_label(row, common) for row in rows]
    counts = Counter(labels)
    return [
        replace(row, label=label if counts[label] == 1 else _with_hash(label, row))
        for row, label in zip(rows, labels, strict=True)
    ]


def _label(row: Row, common: Mapping[str, Any]) -> str:
    """Return the method and the settings that tell the row apart from others of the table."""
    words = [
        shown(v) if k == "modality" else f"{k}={shown(v)}"
        for k, v in sorted(row.settings.items(), key=lambda item: (item[0] != "modality", item[0]))
        if k not in common and (row.trains or not k.startswith((*TRAINING, "fusion")))
    ]
    return f"{row.method}[{', '.join(words)}]" if words else row.method


def _with_hash(label: str, row: Row) -> str:
    """Tell apart settings that differ in what a record does not list, such as older defaults."""
    short = f"#{row.config_hash[:6]}"
    return f"{label[:-1]}, {short}]" if label.endswith("]") else f"{label}[{short}]"


def _ordered(rows: Sequence[Row], modalities: Sequence[str], metric: Metric) -> tuple[Row, ...]:
    """Controls first in their fixed order, then methods from best to worst, the variants of a
    method together with the plainest of them first."""
    places = {row.label: best_first(row.value.mean, metric) for row in rows}
    leading: dict[str, tuple[bool, float]] = {}
    for row in rows:
        leading[row.method] = min(leading.get(row.method, (True, 0.0)), places[row.label])

    def key(row: Row) -> tuple[Any, ...]:
        control = CONTROLS.index(row.method) if row.method in CONTROLS else len(CONTROLS)
        modality = row.settings.get("modality")
        place = modalities.index(modality) if modality in modalities else len(modalities)
        leader = leading[row.method] if control == len(CONTROLS) else (False, 0.0)
        return (
            control,
            leader,
            row.method,
            len(row.settings),
            place,
            places[row.label],
            row.label,
        )

    return tuple(sorted(rows, key=key))


# -- choosing rows ---------------------------------------------------------------------------------


def _named(row: Row, names: Sequence[str]) -> bool:
    return row.method in names or row.label in names


def _check_names(drafts: Sequence[_Draft], methods: Sequence[str] | None, reference: str) -> None:
    rows = [row for draft in drafts for row in draft.rows]
    known = {row.method for row in rows} | {row.label for row in rows}
    for name in methods or ():
        if name not in known:
            raise unknown_name("stored method", name, known)
    if reference != DEFAULT_REFERENCE and reference not in known:
        raise unknown_name("stored reference", reference, known)


def _reference_row(rows: Sequence[Row], name: str) -> Row | None:
    """Return the row with this label, else the plainest of the method's rows."""
    labelled = [row for row in rows if row.label == name]
    candidates = labelled or [row for row in rows if row.method == name]
    return min(candidates, key=lambda r: len(r.settings)) if candidates else None


def _unimodal_rows(rows: Sequence[Row]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:  # the plainest comes first
        modality = row.settings.get("modality")
        if row.method == "unimodal" and isinstance(modality, str):
            found.setdefault(modality, row)
    return {m: found[m] for m in sorted(found, key=lambda m: rows.index(found[m]))}


def _controls(rows: Sequence[Row]) -> list[Row]:
    """Return the plainest row of each control, of the unimodal ones one for each modality."""
    found: dict[tuple[str, object], Row] = {}
    for row in rows:  # the plainest comes first
        if row.method in CONTROLS:
            found.setdefault((row.method, row.settings.get("modality")), row)
    return list(found.values())


def _finish(
    draft: _Draft, unfinished: Sequence[StoredRun], methods: Sequence[str] | None, reference: str
) -> Group:
    metric = draft.metric
    base = _reference_row(draft.rows, reference)
    always = [base, *_controls(draft.rows)]
    chosen = [r for r in draft.rows if methods is None or _named(r, methods) or r in always]
    rows = tuple(chosen if base is None else _compared(chosen, base, metric))
    first = rows[0].runs[0]
    missing = tuple(run for run in unfinished if _belongs(run, first))
    name, protocol = first.dataset, first.finished.protocol
    options = {
        k.removeprefix("dataset."): v
        for k, v in first.finished.changed.items()
        if k.startswith("dataset.")
    }
    return Group(
        dataset=name,
        protocol=protocol,
        dataset_options=options,
        metric=metric,
        modalities=draft.modalities,
        rows=rows,
        common=draft.common,
        reference=base.label if base else None,
        unimodal=_unimodal_rows(draft.rows),
        verdict=remarks.verdict(rows, base, reference, metric),
        warnings=remarks.warnings(rows, draft.rows, base, reference, metric)
        + remarks.about_unfinished(missing, methods),
        notes=tuple(
            dict.fromkeys(note for row in rows for run in row.runs for note in run.finished.notes)
        ),
        unfinished=missing,
    )


def _belongs(run: StoredRun, first: StoredRun) -> bool:
    """Whether an unfinished run would have been in the group; in doubt it is."""
    if run.dataset != first.dataset or run.protocol not in (first.protocol, None):
        return False
    if run.changed is not None:
        ours = {k: v for k, v in first.finished.changed.items() if k.startswith("dataset.")}
        return ours == {k: v for k, v in run.changed.items() if k.startswith("dataset.")}
    return True


def _compared(rows: Sequence[Row], base: Row, metric: Metric) -> list[Row]:
    """Return the rows with their differences to one of them, corrected for their number."""
    found = [None if row is base else difference(row, base, metric) for row in rows]
    return [
        replace(row, difference=d, is_reference=row is base)
        for row, d in zip(rows, corrected(found), strict=True)
    ]
