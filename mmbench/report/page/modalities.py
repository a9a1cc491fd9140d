"""What each modality did: what its encoder knows, alone and in company, and its share of credit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmbench.report.columns import shapley_share
from mmbench.report.comparison import Group
from mmbench.report.page.answer import conclusion, eligible, plainly
from mmbench.report.page.sheet import Cell, Head, Sheet
from mmbench.report.rows import CONTROLS, METRICS, Metric, Row, best, difference
from mmbench.report.statistics import Difference, corrected

CAPTION = "What each encoder knows (%)"

NOTE = (
    "Test accuracy of a fresh linear classifier on the encoder's features, trained alone and "
    "within a method."
)


@dataclass(frozen=True)
class Modalities:
    """What is said of the modalities on the first screen."""

    sentences: tuple[str, ...]
    sheet: Sheet | None
    """None where the records hold nothing on modalities."""


def modalities(group: Group) -> Modalities:
    """Return what each modality did in the best row that fuses, beside its training alone and the
    reference."""
    focus = fused(group)
    sentences = [
        *_worth_of_fusing(group, focus),
        *_credit(group, focus),
        *_learned_together(group),
    ]
    return Modalities(tuple(sentences), _sheet(group, focus))


def fused(group: Group) -> Row | None:
    """Return the best row that uses all modalities; None where there is none."""
    rows = [r for r in eligible(group.rows) if r.method not in ("majority", "unimodal")]
    return best(rows, group.metric)


def _worth_of_fusing(group: Group, focus: Row | None) -> Iterable[str]:
    alone, metric = group.best_unimodal, group.metric
    if alone is None or focus is None:
        return
    others = list(group.unimodal.values())
    tested = corrected([difference(focus, row, metric) for row in others])
    d = tested[others.index(alone)]
    assert d is not None
    yield (
        f"The best single modality, {alone.settings['modality']}, reaches "
        f"{metric.with_unit(alone.value.mean)}; all together, in {focus.label}, "
        f"{metric.with_unit(focus.value.mean)}: {plainly(d, metric)}."
    )


def _credit(group: Group, focus: Row | None) -> Iterable[str]:
    if focus is None:
        return
    if listed := credit(group, focus):
        yield f"Credit for the accuracy of {focus.label} above guessing: {listed}."


def credit(group: Group, row: Row) -> str:
    """Return the share of each modality in a row's Shapley values, the largest first; empty where
    the row has no two of them."""
    shares = {m: shapley_share(row, m, group.modalities) for m in group.modalities}
    known = {m: share for m, share in shares.items() if share is not None}
    ordered = sorted(known, key=lambda m: -known[m])
    return ", ".join(f"{m} {100 * known[m]:.0f} %" for m in ordered) if len(known) > 1 else ""


def _learned_together(group: Group) -> Iterable[str]:
    """Say what training together changed in each encoder, in the reference row."""
    row = next((r for r in group.rows if r.is_reference and r.method not in CONTROLS[:3]), None)
    tested = {} if row is None else encoder_differences(group, row)
    if row is None or not tested:
        return
    metric = METRICS["accuracy"]
    said = "; ".join(f"{m} {plainly(d, metric)}" for m, d in tested.items())
    endings = {conclusion(d) for d in tested.values()}
    if len(endings) == 1:  # say once what holds for all
        (ending,) = endings
        short = [f"{m} {plainly(d, metric).removesuffix(f', {ending}')}" for m, d in tested.items()]
        said = f"{', '.join(short)}: {ending}"
    yield (
        f"What can be read from each encoder after training together ({row.label}), minus that "
        f"after training alone: {said}."
    )


def encoder_differences(group: Group, row: Row) -> dict[str, Difference]:
    """Return for each modality the probe accuracy of its encoder in a row, minus that of its
    encoder trained alone, paired by seed and corrected for the number of modalities."""
    names, found = [], []
    for m, alone in group.unimodal.items():
        if row.readout(m, "probe") is not None and alone.readout(m, "probe") is not None:
            metric = Metric(f"probe.{m}", f"probe accuracy of {m}", 100, "%", "points", 1, True)
            names.append(m)
            found.append(difference(row, alone, metric))
    tested = corrected(found)
    return {m: d for m, d in zip(names, tested, strict=True) if d is not None and d.pairs}


def _sheet(group: Group, focus: Row | None) -> Sheet | None:
    base = next((row for row in group.rows if row.is_reference), None)
    company = [row for row in group.rows if row is base or row is focus]
    columns: list[tuple[str, list[float | None]]] = []
    alone = [_probe(group.unimodal.get(m), m) for m in group.modalities]
    columns.append(("alone", alone))
    columns += [(row.label, [_probe(row, m) for m in group.modalities]) for row in company]
    if focus is not None:
        shares = [shapley_share(focus, m, group.modalities) for m in group.modalities]
        columns.append(("credit", shares))
    kept = [(title, cells) for title, cells in columns if any(c is not None for c in cells)]
    if not kept:
        return None
    return Sheet(
        CAPTION,
        (Head("modality"), *(Head(title, True) for title, _ in kept)),
        tuple(
            (Cell(m), *(_percent(cells[i]) for _, cells in kept))
            for i, m in enumerate(group.modalities)
        ),
        f"{NOTE} Credit: Shapley value over the sum of all, in {focus.label}." if focus else NOTE,
    )


def _probe(row: Row | None, modality: str) -> float | None:
    found = None if row is None else row.readout(modality, "probe")
    return None if found is None else found.mean


def _percent(share: float | None) -> Cell:
    return Cell("") if share is None else Cell(f"{100 * share:.1f}", share)
