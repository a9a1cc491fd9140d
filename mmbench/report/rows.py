"""Rows of a table: the runs of a setting over seeds, the metrics they are read by, and pairing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mmbench.errors import unknown_name
from mmbench.report.statistics import Difference, Summary, paired_difference, summarise
from mmbench.store.frame import Finished, StoredRun

CONTROLS = ("majority", "unimodal", "ensemble", "joint", "multiloss")
"""Controls in the order of the table; every other method comes after them."""

DEFAULT_REFERENCE = "joint"

Readout = Literal["probe", "split", "own_head", "zero_feature"]
READOUTS: tuple[Readout, ...] = get_args(Readout)

TRAINING = ("recipe.", "encoder.", "precision")
"""Settings of training rather than of a method: rows should agree in them."""


@dataclass(frozen=True)
class Metric:
    """A metric and how people read it."""

    name: str
    title: str
    scale: int
    """Factor for display: 100 shows a share in percent."""
    unit: str
    step: str
    """Unit of a difference."""
    decimals: int
    higher_is_better: bool

    def read(self, record: Finished, split: str = "test") -> float | None:
        """Return the metric of a run on a split; None where the record has none."""
        readout, dot, modality = self.name.partition(".")
        if dot:
            return record.per_modality.get(modality, {}).get(readout, {}).get(split)
        scores = record.metrics.get(split)
        score = None if scores is None else getattr(scores, readout)
        return None if score is None else float(score)

    def value(self, number: float) -> str:
        return f"{number * self.scale:.{self.decimals}f}"

    def change(self, number: float) -> str:
        """Return a difference with its sign; one that rounds to zero has none."""
        text = f"{number * self.scale:+.{self.decimals}f}"
        return text if float(text) else text[1:]

    def with_unit(self, number: float) -> str:
        return f"{self.value(number)} {self.unit}".rstrip()


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", 100, "%", "points", 1, True),
        Metric("macro_f1", "macro F1", 100, "%", "points", 1, True),
        Metric("weighted_f1", "weighted F1", 100, "%", "points", 1, True),
        Metric("mean_average_precision", "mean average precision", 100, "%", "points", 1, True),
        Metric("auroc", "area under the ROC curve", 100, "%", "points", 1, True),
        Metric("nll", "negative log-likelihood", 1, "nats", "nats", 3, False),
        Metric("ece", "expected calibration error", 100, "%", "points", 1, False),
        Metric("adaptive_ece", "adaptive calibration error", 100, "%", "points", 1, False),
        Metric("brier", "Brier score", 1, "", "", 3, False),
    )
}


def metric_named(name: str, runs: Iterable[StoredRun]) -> Metric:
    """Return one of :data:`METRICS`, or the accuracy of a modality by a readout, such as
    ``probe.audio``. Raises :class:`RequestError` for a name that no run has."""
    if name in METRICS:
        return METRICS[name]
    stored = dict.fromkeys(
        f"{readout}.{m}"
        for run in runs
        for m, readouts in run.finished.per_modality.items()
        for readout in readouts
    )
    if name not in stored:
        raise unknown_name("metric", name, [*METRICS, *stored])
    readout, _, modality = name.partition(".")
    return Metric(name, f"{readout} accuracy of {modality}", 100, "%", "points", 1, True)


@dataclass(frozen=True)
class Row:
    """One setting of one method: its runs over seeds, and what they say."""

    label: str
    method: str
    config_hash: str
    settings: dict[str, Any]
    """Settings that differ from the defaults, those of the dataset left out."""
    runs: tuple[StoredRun, ...]
    value: Summary
    difference: Difference | None = None
    """To the reference; None for the reference itself and where there is none."""
    is_reference: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def trains(self) -> bool:
        """Return whether anything was trained, so that the recipe mattered."""
        return any(run.finished.cost.updates > 0 for run in self.runs)

    @property
    def selected_on_test(self) -> bool:
        """Return whether the tested model was chosen on the test set in any of the runs."""
        return any(
            any(kept.get("rule") == "best-test" for kept in run.finished.selected)
            or run.finished.changed.get("recipe.select") == "best-test"
            for run in self.runs
        )

    def metric(self, metric: Metric, split: str = "test") -> dict[int, float]:
        """Return a metric by seed."""
        found = {run.seed: metric.read(run.finished, split) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}

    def readout(self, modality: str, name: str, split: str = "test") -> Summary | None:
        """Return a modality's accuracy by a readout; None unless every run has it."""
        found = [
            run.finished.per_modality.get(modality, {}).get(name, {}).get(split)
            for run in self.runs
        ]
        numbers = [number for number in found if number is not None]
        return summarise(numbers) if len(numbers) == len(self.runs) else None

    def shapley(self, modality: str, split: str = "test") -> float | None:
        """Return the mean Shapley value of a modality in accuracy; None unless every run has it."""
        found = [self._shapley(run, modality, split) for run in self.runs]
        numbers = [number for number in found if number is not None]
        return summarise(numbers).mean if len(numbers) == len(self.runs) else None

    @staticmethod
    def _shapley(run: StoredRun, modality: str, split: str) -> float | None:
        values = run.finished.contributions.shapley.get(split)
        return None if values is None else values.values.get(modality)

    def cost(self, name: str) -> float:
        """Return a cost, mean over the runs."""
        return summarise(float(getattr(run.finished.cost, name)) for run in self.runs).mean


def best(rows: Iterable[Row], metric: Metric) -> Row | None:
    """Return the row with the best mean, or None of none; a mean that is not a number is last."""
    return min(rows, key=lambda r: best_first(r.value.mean, metric), default=None)


def best_first(mean: float, metric: Metric) -> tuple[bool, float]:
    """Return what puts means in order, the best first and what is not a number last."""
    if not math.isfinite(mean):
        return True, 0.0
    return False, -mean if metric.higher_is_better else mean


def shown(value: Any) -> str:
    """Return a setting's value as a label shows it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "+".join(shown(v) for v in value)
    return str(value)


def same_data(run: StoredRun, other: StoredRun) -> bool:
    ours, theirs = run.finished.fingerprints, other.finished.fingerprints
    return all(ours.get(name) == theirs.get(name) for name in ("split", "data"))


def _pairs(row: Row, base: Row) -> set[int]:
    """Return the seeds in which both rows saw the same split and data."""
    theirs = {run.seed: run for run in base.runs}
    return {r.seed for r in row.runs if r.seed in theirs and same_data(r, theirs[r.seed])}


def difference(row: Row, base: Row, metric: Metric) -> Difference:
    """Return the paired difference of two rows on the test set."""
    seeds = _pairs(row, base)
    values = {s: v for s, v in row.metric(metric).items() if s in seeds}
    return paired_difference(values, base.metric(metric), metric.higher_is_better)
