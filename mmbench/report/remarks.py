"""What a table has to say in words: the verdict first, then what a reader must be warned of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
from mmbench.report.statistics import Difference
from mmbench.store.frame import StoredRun


def in_words(d: Difference, metric: Metric) -> str:
    """Return a difference as ``+1.4 points [+0.4, +2.4], p = 0.021``."""
    if d.mean is None:
        return "no common seed"
    text = f"{metric.change(d.mean)} {metric.step}".rstrip()
    if d.low is not None and d.high is not None:
        text += f" [{metric.change(d.low)}, {metric.change(d.high)}]"
    if d.p is not None:
        text += f", p {p_in_words(d.p, '= ')}"
    return f"{text} ({d.remark})" if d.remark and d.p is not None else text


def p_in_words(p: float, equals: str = "") -> str:
    return "< 0.001" if p < 0.001 else f"{equals}{p:.3f}"


def verdict(
    rows: Sequence[Row], base: Row | None, reference: str, metric: Metric
) -> tuple[str, ...]:
    """Return what can be said of the rows against the reference row, in sentences."""
    if base is None:
        return (_without_reference(rows, reference, metric),)
    others = [(row, row.difference) for row in rows if row.difference is not None]
    tested = [(row, d) for row, d in others if d.p is not None]
    apart = sum(d.verdict != "not distinguishable" for _, d in tested)
    sentences = [
        f"{apart} of {len(others)} rows {'is' if apart == 1 else 'are'} distinguishable from "
        f"{base.label} (test {metric.title} {metric.with_unit(base.value.mean)})."
    ]
    for word in ("better", "worse"):
        found = [f"{r.label} {in_words(d, metric)}" for r, d in tested if d.verdict == word]
        if found:
            sentences.append(f"{word.capitalize()}: {'; '.join(found)}.")
    same = [r.label for r, d in tested if d.verdict == "not distinguishable"]
    if same:
        sentences.append(f"Not distinguishable: {'; '.join(same)}.")
    untested = [f"{row.label} ({d.remark})" for row, d in others if d.p is None]
    if untested:
        sentences.append(f"Not tested: {'; '.join(untested)}.")
    limits = {d.pairs: d.smallest_p for _, d in tested}
    if limits:
        said = [f"{p:.3g} with {pairs} pairs" for pairs, p in sorted(limits.items())]
        sentences.append(f"Smallest p that a sign-flip test could reach: {', '.join(said)}.")
    return tuple(sentences)


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
            d = difference(control, fused, metric)
            tested = f"paired {in_words(d, metric)}" if d.p is not None else "not tested"
            yield (
                f"{what}, {control.label} ({metric.with_unit(control.value.mean)}), beats the best "
                f"fused method, {fused.label} ({metric.with_unit(fused.value.mean)}): {tested}, "
                f"{_apart(d)}."
            )


def _apart(d: Difference) -> str:
    return "not distinguishable" if d.verdict == "not distinguishable" else "distinguishable"


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
                f"{row.label}: {_seeds(alone)} not paired, as {base.label} has no such run; "
                "counted in the mean, not in the difference."
            )
        if other:
            yield (
                f"{row.label}: {_seeds(other)} not paired, as split or data differ from those of "
                f"{base.label} (fingerprints); run both again on the same data."
            )


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


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
                "file; run them again."
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
