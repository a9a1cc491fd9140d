"""What a table has to say in words: the verdict first, then what a reader must be warned of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mmbench.report.power import MOST_SEEDS, POWER
from mmbench.report.rows import (
    CONTROLS,
    TRAINING,
    Metric,
    Row,
    best,
    difference,
    same_data,
    shown,
)
from mmbench.report.statistics import LEVEL, Difference, fewest_seeds, seeds_in_words
from mmbench.store.frame import StoredRun

LISTED = 8
"""Rows named in a sentence; the table has the rest."""

HINTED = 4
"""Rows named where a sentence is only a hint."""


def in_words(d: Difference, metric: Metric) -> str:
    """Return a difference as ``+1.4 points [+0.4, +2.4], p = 0.021``."""
    if d.mean is None:
        return d.remark or "no difference"
    text = f"{metric.change(d.mean)} {metric.step}".rstrip()
    if d.low is not None and d.high is not None:
        text += f" [{metric.change(d.low)}, {metric.change(d.high)}]"
    if d.final_p is not None:
        text += f", p {p_in_words(d.final_p, '= ')}"
    return f"{text} ({d.remark})" if d.remark and d.p is not None else text


def p_in_words(p: float, equals: str = "") -> str:
    return "< 0.001" if p < 0.001 else f"{equals}{p:.3f}"


def verdict(
    rows: Sequence[Row], base: Row | None, reference: str, metric: Metric
) -> tuple[str, ...]:
    """Return what can be said of the rows against the reference row, in sentences.

    Where there are too few seeds for any verdict, that is said first, then what the intervals hint
    at. In either case the rows nearest to a verdict are named with the seeds that it would take.
    """
    if base is None:
        return (_without_reference(rows, reference, metric),)
    others = [(row, row.difference) for row in rows if row.difference is not None]
    said = f"{base.label} (test {metric.title} {metric.with_unit(base.value.mean)})"
    if not others:
        return (f"Only {said} is here: run other methods to compare.",)
    tested = [(row, d) for row, d in others if d.p is not None]
    found = [(row, d) for row, d in tested if d.verdict != "not distinguishable"]
    open_still = [(row, d) for row, d in tested if d.verdict == "not distinguishable"]
    hopeless = [(row, d) for row, d in tested if not _is_attainable(d)]
    count = (
        f"{len(found)} of {len(others)} rows {'is' if len(found) == 1 else 'are'} distinguishable "
        f"from {said}"
    )
    if tested and len(hopeless) == len(tested):
        sentences = [f"{count}: {_too_few(tested)}", *_hints(tested, metric)]
    else:
        sentences = [f"{count}{_after_correction(tested)}.", *_found(found, metric)]
        if open_still:
            sentences.append(f"Not distinguishable: {_listed([r.label for r, _ in open_still])}.")
        sentences += _out_of_reach(hopeless)
    sentences += _needed(open_still)
    untested = [f"{row.label} ({d.remark})" for row, d in others if d.p is None]
    if untested:
        sentences.append(f"Not tested: {_listed(untested, '; ')}.")
    return tuple(sentences)


Tested = Sequence[tuple[Row, Difference]]


def _is_attainable(d: Difference) -> bool:
    return d.attainable_p is None or d.attainable_p < LEVEL


def _after_correction(tested: Tested) -> str:
    if len(tested) < 2:
        return ""
    return f"; p after Holm's correction for {len(tested)} tests"


def _found(found: Tested, metric: Metric) -> Iterable[str]:
    for word in ("better", "worse"):
        named = [f"{r.label} {in_words(d, metric)}" for r, d in found if d.verdict == word]
        if named:
            yield f"{word.capitalize()}: {_listed(named, '; ')}."


def _too_few(tested: Tested) -> str:
    """Say that nothing could have been found, and how many seeds it takes."""
    most = max((d for _, d in tested), key=lambda d: d.pairs)
    k, smallest = most.comparisons, most.smallest_p or 1.0
    after = f" ({min(1.0, k * smallest):.3g} corrected for {k} tests)" if k > 1 else ""
    return (
        f"with {most.pairs} paired seeds none could be, however large its difference, as p cannot "
        f"fall below {smallest:.3g}{after}. A verdict takes {fewest_seeds(k)} seeds or more."
    )


def _hints(tested: Tested, metric: Metric) -> Iterable[str]:
    clear = [
        (row, d)
        for row, d in tested
        if d.low is not None and d.high is not None and d.low * d.high > 0
    ]
    if clear:
        named = [
            f"{row.label} {metric.change(d.mean)} {metric.step}".rstrip()
            for row, d in sorted(clear, key=lambda pair: pair[0].method in CONTROLS)
            if d.mean is not None
        ]
        yield (
            "Hints, not verdicts (95 % intervals without 0, uncorrected, for normal differences): "
            f"{_listed(named, most=HINTED)}."
        )


def _out_of_reach(hopeless: Tested) -> Iterable[str]:
    if hopeless:
        named = [f"{row.label} ({d.pairs} pairs)" for row, d in hopeless]
        yield f"Too few pairs for a verdict, however large the difference: {_listed(named)}."


def _needed(open_still: Tested) -> Iterable[str]:
    """Name the rows that are nearest to a verdict, methods before controls, and the seeds that it
    would take."""
    moved = [(d.seeds_needed, row) for row, d in open_still if d.mean]
    asked = [pair for pair in moved if pair[1].method not in CONTROLS] or moved
    near = sorted((n, row.label) for n, row in asked if n is not None)
    if near:
        named = [f"{label} {n}" for n, label in near[:HINTED]]
        yield (
            "Paired seeds that would show a difference like the observed one "
            f"({100 * POWER:.0f} % power), about: {', '.join(named)}."
        )
    elif asked:
        labels = _listed([row.label for _, row in asked], most=HINTED)
        yield (
            f"More than {MOST_SEEDS:,} seeds would be needed to show differences as small as those "
            f"of {labels}."
        )


def _listed(words: Sequence[str], comma: str = ", ", most: int = LISTED) -> str:
    more = f"{comma}and {len(words) - most} more" if len(words) > most else ""
    return comma.join(words[:most]) + more


def _without_reference(rows: Sequence[Row], reference: str, metric: Metric) -> str:
    top = best(rows, metric)
    assert top is not None
    return (
        f"Best test {metric.title}: {top.label} with {metric.with_unit(top.value.mean)}; without "
        f"runs of {reference} nothing is said about differences."
    )


def warnings(
    rows: Sequence[Row],
    stored: Sequence[Row],
    base: Row | None,
    reference: str,
    metric: Metric,
) -> tuple[str, ...]:
    """Return what a reader of the rows must know; ``stored`` are the rows shown or not."""
    return (
        *_about_selection(rows),
        *_about_controls(stored, metric),
        *_about_reference(stored, base, reference),
        *_about_pairs(rows, base),
        *_about_numbers(rows, metric),
        *_about_training(rows),
        *_about_versions(rows),
        *_about_seeds(rows),
    )


def _about_selection(rows: Sequence[Row]) -> Iterable[str]:
    marked = [row.label for row in rows if row.selected_on_test]
    if marked:
        yield (
            f"{', '.join(marked)}: the model was selected on the test set "
            "(recipe.select=best-test), so its numbers are too good to be estimates of "
            "performance on new data."
        )


def _about_controls(rows: Sequence[Row], metric: Metric) -> Iterable[str]:
    """Say where a control without fusion is ahead of everything that fuses."""
    fused = best((r for r in rows if r.method not in CONTROLS[:3]), metric)
    unimodal = best((r for r in rows if r.method == "unimodal"), metric)
    ensemble = best((r for r in rows if r.method == "ensemble"), metric)
    if fused is None:
        return
    for control, what in ((unimodal, "the best unimodal model"), (ensemble, "the ensemble")):
        if control is None:
            continue
        ahead = control.value.mean - fused.value.mean
        if ahead > 0 if metric.higher_is_better else ahead < 0:
            rivals = sum(row.method == control.method for row in rows)
            d = _corrected_for(rivals, difference(control, fused, metric))
            apart = d.verdict != "not distinguishable"
            tested = f"paired {in_words(d, metric)}" if d.p is not None else "not tested"
            yield (
                f"{what}, {control.label} ({metric.with_unit(control.value.mean)}), "
                f"{'beats' if apart else 'is ahead of'} the best fused method, {fused.label} "
                f"({metric.with_unit(fused.value.mean)}): {tested}, "
                f"{'distinguishable' if apart else 'not distinguishable'}."
            )


def _corrected_for(count: int, d: Difference) -> Difference:
    """Return a difference of the best of so many rows: its p-value times their number."""
    return d if d.p is None else replace(d, p_holm=min(1.0, count * d.p), comparisons=count)


def _about_reference(rows: Sequence[Row], base: Row | None, name: str) -> Iterable[str]:
    if base is None:
        yield (
            f"no run of {name} is stored here: differences are left blank; run it with the same "
            f"seeds (`mmbench run --method {name.partition('[')[0]}`) or name another row with "
            "--reference."
        )
        return
    others = [row.label for row in rows if row.method == base.method and row is not base]
    if others and base.label != name:
        yield f"{name} has several rows; differences are to {base.label}, choose with --reference."
    elif others and base.method == name:
        yield (
            f"differences are to {base.label}; other rows of {name}: {', '.join(others)}. "
            "Choose with --reference."
        )


def _about_pairs(rows: Sequence[Row], base: Row | None) -> Iterable[str]:
    if base is None:
        return
    theirs = {run.seed: run for run in base.runs}
    for row in rows:
        alone = [run.seed for run in row.runs if run.seed not in theirs]
        other = [r.seed for r in row.runs if r.seed in theirs and not same_data(r, theirs[r.seed])]
        if alone:
            yield (
                f"{row.label}: {seeds_in_words(alone)} not paired, as {base.label} has no such "
                "run; counted in the mean, not in the difference."
            )
        if other:
            yield (
                f"{row.label}: {seeds_in_words(other)} not paired, as split or data differ from "
                f"those of {base.label} (fingerprints); run both again on the same data."
            )


def _about_numbers(rows: Sequence[Row], metric: Metric) -> Iterable[str]:
    for row in rows:
        bad = [seed for seed, value in row.metric(metric).items() if not math.isfinite(value)]
        if bad:
            yield (
                f"{row.label}: {metric.title} of {seeds_in_words(bad)} is not a number (infinite); "
                "the row has no mean, no interval and no test."
            )


def _about_training(rows: Sequence[Row]) -> Iterable[str]:
    trained = [row for row in rows if row.trains]
    names = sorted({k for row in trained for k in row.settings if k.startswith(TRAINING)})
    for name in names:
        by_value: dict[str, list[str]] = {}
        for row in trained:
            value = shown(row.settings[name]) if name in row.settings else "default"
            by_value.setdefault(value, []).append(row.label)
        if len(by_value) > 1:
            ordered = sorted(by_value.items(), key=lambda item: len(item[1]))
            said = [f"{value} in {', '.join(labels)}" for value, labels in ordered[:-1]]
            rest = ordered[-1][0]
            yield f"rows were not trained alike: {name} is {'; '.join(said)}; {rest} elsewhere."


def _about_versions(rows: Sequence[Row]) -> Iterable[str]:
    runs = [run.finished for row in rows for run in row.runs]
    versions = sorted({str(run.environment.get("mmbench", "unknown")) for run in runs})
    if len(versions) > 1:
        yield f"the runs were made by different versions of mmbench: {', '.join(versions)}."
    for row in rows:
        files = {
            tuple(
                sorted(i for i in r.finished.fingerprints.items() if i[0] not in ("split", "data"))
            )
            for r in row.runs
        }
        if len(files) > 1:
            yield (
                f"{row.label}: its seeds were run with different versions of a method or dataset "
                "file, or of prepared data; run them again."
            )


def _about_seeds(rows: Sequence[Row]) -> Iterable[str]:
    single = [row.label for row in rows if len(row.runs) == 1]
    if single:
        yield f"one seed only: {', '.join(single)}: no interval and no test; add --seed."


def about_unfinished(runs: Sequence[StoredRun], methods: Sequence[str] | None) -> tuple[str, ...]:
    """Return a sentence each on the failed and on the interrupted runs of the methods shown."""
    sentences = []
    for status in ("failed", "interrupted"):
        found = [r for r in runs if r.status == status and (methods is None or r.method in methods)]
        if found:
            listed = "; ".join(f"{run.name} ({run.reason})" for run in found)
            count = f"{len(found)} run{'s' if len(found) > 1 else ''}"
            sentences.append(f"{count} {status} and not in the table: {listed}.")
    return tuple(sentences)
