"""Which method to use, and whether that is certain: for a reader of the first screen only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mmbench.report.columns import device_kind
from mmbench.report.comparison import Group
from mmbench.report.remarks import in_words
from mmbench.report.rows import METRICS, Metric, Row
from mmbench.report.standing import standings
from mmbench.report.statistics import LEVEL, Difference, fewest_seeds

Certain = Literal["Yes", "In part", "No", "Not yet", "Cannot be said"]

TITLES: dict[Certain, str] = {
    "Yes": "",
    "In part": ", or another that cannot be told from it",
    "No": ", but not distinguishable from others",
    "Not yet": ", not certain yet",
    "Cannot be said": "",
}
"""What the title adds to a recommendation."""

LISTED = 6
"""Rows named in a sentence; the table below has the rest."""

WORTH = 0.8
"""A row is named as the cheaper one below this share of the best row's training time: seconds of
the same training differ by some percent from run to run."""


@dataclass(frozen=True)
class Answer:
    """The verdict on a group."""

    best: tuple[Row, ...]
    """Rows with the best mean: more than one where they are equal, none where no row has one."""
    headline: str
    """The recommendation, without a full stop."""
    reasons: tuple[str, ...]
    certain: Certain
    grounds: tuple[str, ...]
    """Why it is as certain as that."""

    @property
    def title(self) -> str:
        """Return the recommendation with how certain it is, for a reader of one line."""
        return f"{self.headline}{TITLES[self.certain]}"


def answer(group: Group) -> Answer:
    """Return what to use on a group's data. Nothing is called better without a paired test that
    says so, corrected for the number of rows."""
    rows = eligible(group.rows)
    if not rows:
        return Answer(
            (),
            "No method has a result that is a number.",
            (),
            "Cannot be said",
            (f"The {group.metric.title} of every row is infinite or missing.",),
        )
    standing = standings(group.rows, group.metric)
    leading = _leading(rows, group.metric)
    top = [row for row in rows if row.value.mean == leading]
    against = [(row, d) for row in group.rows if (d := standing[row.label].against_best)]
    certain, grounds = _certainty(group, rows, top, against)
    return Answer(
        tuple(top),
        _headline(top, rows, certain),
        tuple(_reasons(group, top, len(rows))),
        certain,
        (*grounds, *_cheaper(group, top[0], against), *_to_reference(group, top[0])),
    )


def eligible(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that can be recommended: those with a mean, and of these the ones whose model
    was not selected on the test set, if there are such."""
    finite = [row for row in rows if math.isfinite(row.value.mean)]
    return [row for row in finite if not row.selected_on_test] or finite


def _leading(rows: Sequence[Row], metric: Metric) -> float:
    means = [row.value.mean for row in rows]
    return max(means) if metric.higher_is_better else min(means)


def _headline(top: Sequence[Row], rows: Sequence[Row], certain: Certain) -> str:
    names = " or ".join(row.label for row in top[:LISTED])
    if len(rows) == 1:
        return f"{names} is the only method with results"
    if all(row.method == "majority" for row in top):
        return "Nothing was learned: always guessing one class does as well"
    if certain in ("Yes", "In part"):
        return f"Use {names}"
    return f"{names} {'is' if len(top) == 1 else 'are'} ahead so far"


def _reasons(group: Group, top: Sequence[Row], count: int) -> Iterable[str]:
    metric, first = group.metric, top[0]
    reached = metric.with_unit(first.value.mean)
    runs = f"mean of {_times(first.value.count, 'run')}"
    said = (
        f"{reached} of the test samples are classified correctly ({runs})"
        if metric == METRICS["accuracy"]
        else f"its test {metric.title} is {reached} ({runs})"
    )
    word = "highest" if metric.higher_is_better else "lowest"
    among = f", the {word} of the {count} compared" if count > 1 else ""
    yield f"{said[0].upper()}{said[1:]}{among}."
    chance = next((row for row in group.rows if row.method == "majority"), None)
    if chance is not None and chance not in top and math.isfinite(chance.value.mean):
        yield (
            "Always guessing the most frequent class would give "
            f"{metric.with_unit(chance.value.mean)}."
        )


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


# -- certainty -------------------------------------------------------------------------------------

Against = Sequence[tuple[Row, Difference]]


def _certainty(
    group: Group, rows: Sequence[Row], top: Sequence[Row], against: Against
) -> tuple[Certain, list[str]]:
    if len(rows) == 1:
        return "Cannot be said", ["There is nothing to compare it with: run other methods too."]
    if all(row.selected_on_test for row in rows):
        return "Cannot be said", [
            "Every model was selected on the test set: the results are too good to say how any of "
            "them does on new data."
        ]
    worse = [row for row, d in against if d.verdict == "worse"]
    tied = [row for row, d in against if _could_differ(d) and d.verdict == "not distinguishable"]
    open_still = [(row, d) for row, d in against if not _could_differ(d)]
    if not worse and not tied:
        return _too_few(top, open_still)
    grounds = []
    if worse:
        pairs = sorted({d.pairs for _, d in against if d.verdict == "worse"})
        over = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
        grounds.append(
            f"{_all_or(worse, against)} distinguishably worse: paired tests over {over} runs, "
            f"with at most a {100 * LEVEL:.0f} % chance of any such verdict where there is no "
            "difference."
        )
    if tied:
        grounds.append(f"Not distinguishable from it: {_named(tied)}.")
    if open_still:
        grounds.append(
            f"Too few paired runs for any verdict: {_named([row for row, _ in open_still])}."
        )
    if len(top) > 1:
        grounds.append("They have exactly the same mean.")
    if worse and not tied and not open_still and len(top) == 1:
        return "Yes", grounds
    return ("In part" if worse else "No"), grounds


def _could_differ(d: Difference) -> bool:
    return d.attainable_p is not None and d.attainable_p < LEVEL


def _all_or(worse: Sequence[Row], against: Against) -> str:
    if len(worse) == len(against):
        return "The other row is" if len(worse) == 1 else f"All {len(worse)} other rows are"
    return f"{_named(worse)} {'is' if len(worse) == 1 else 'are'}"


def _too_few(top: Sequence[Row], against: Against) -> tuple[Certain, list[str]]:
    if not against:
        return "No", ["All rows have the same mean."]
    most = max((d for _, d in against), key=lambda d: d.pairs)
    if most.pairs < 2:
        return "Cannot be said", [
            "There is one paired run of a method or none: nothing is known of how much results "
            "vary from run to run. Add --seed 0-9 and run again."
        ]
    grounds = [
        f"With {most.pairs} paired runs of each method no difference could be proven, however "
        f"large: {_times(len(against), 'comparison')} at once would take "
        f"{fewest_seeds(most.comparisons)} runs of each or more (--seed)."
    ]
    clear = [row for row, d in against if _is_clear(d)]
    close = [row for row, d in against if not _is_clear(d)]
    if close:
        grounds.append(f"Close to it: {_named(close)}.")
    if clear:
        grounds.append(
            f"Further behind (95 % intervals of the difference without 0; a hint, no verdict): "
            f"{_named(clear)}."
        )
    return "Not yet", grounds


def _is_clear(d: Difference) -> bool:
    return d.low is not None and d.high is not None and d.low * d.high > 0


def plainly(d: Difference, metric: Metric) -> str:
    """Return a difference with its interval and what can be said of it, without p-values."""
    if d.mean is None or d.p is None:
        return in_words(d, metric)
    between = ""
    if d.low is not None and d.high is not None:
        between = f" [{metric.change(d.low)}, {metric.change(d.high)}]"
    return f"{metric.change(d.mean)} {metric.step}".rstrip() + f"{between}, {conclusion(d)}"


def conclusion(d: Difference) -> str:
    """Return what can be said of a difference, or that there are too few runs to say it."""
    if not _could_differ(d):
        return "too few runs for a verdict"
    return d.verdict if d.verdict == "not distinguishable" else "distinguishable"


def _named(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
    return ", ".join(row.label for row in rows[:LISTED]) + more


def _cheaper(group: Group, top: Row, against: Against) -> Iterable[str]:
    """Name the quickest of the trained rows that stand behind the best without a difference."""
    kind = device_kind(group)
    equals = [
        row
        for row, d in against
        if row.trains and d.verdict == "not distinguishable" and not _is_clear(d)
    ]
    if not equals or not top.trains or kind == "training":
        return
    quickest = min(equals, key=lambda row: row.cost("train_seconds"))
    ours, theirs = top.cost("train_seconds"), quickest.cost("train_seconds")
    if theirs < WORTH * ours:
        yield (
            f"Cheapest of those that are as good as far as can be told: {quickest.label}, "
            f"{theirs:.3g} against {ours:.3g} {kind} seconds of training."
        )


def _to_reference(group: Group, top: Row) -> Iterable[str]:
    if top.difference is not None and group.reference is not None:
        yield f"Against {group.reference}: {plainly(top.difference, group.metric)}."
