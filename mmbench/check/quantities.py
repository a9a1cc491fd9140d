"""The numbers of a run that a check compares, by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmbench.errors import RequestError, unknown_name
from mmbench.report.rows import METRICS, READOUTS
from mmbench.store.frame import Finished, StoredRun, learning_curves

Better = Literal["higher", "lower", "neither"]

COUNTS = ("updates", "forwards", "encoder_forwards", "backwards", "parameters")
"""Costs that are the same on every machine. Seconds are not, and are not compared."""

OF_A_MODALITY = (*READOUTS, "shapley")

ROUNDING = 1e-9
"""Relative difference below which values are equal: baselines keep twelve digits."""

EXAMPLES = {"report": "report.gate.temperature", "history": "history.gradient_norm"}


@dataclass(frozen=True)
class Quantity:
    """One number of a run on the test split, and how people read it."""

    name: str
    """``accuracy`` and the other metrics of ``mmbench compare``; ``probe.<modality>`` and the other
    readouts; ``shapley.<modality>``; ``cost.<count>``; ``report.<path>``, a number that the method
    reports, such as ``report.gate.temperature``; ``history.<column>``, the mean over epochs of a
    column of history.csv, such as ``history.gradient_norm.<modality>``."""

    @property
    def better(self) -> Better:
        """Return the side on which it is better; a change of what has none is a regression."""
        if self.name in METRICS:
            return "higher" if METRICS[self.name].higher_is_better else "lower"
        return "higher" if self._kind in READOUTS else "neither"

    @property
    def is_share(self) -> bool:
        """Whether it is a share, shown in percent."""
        if self.name in METRICS:
            return METRICS[self.name].scale == 100
        return self._kind in OF_A_MODALITY

    @property
    def _kind(self) -> str:
        return self.name.partition(".")[0]

    def value(self, number: float) -> str:
        """Return a value as text, with its unit."""
        return f"{100 * number:.2f} %" if self.is_share else f"{number:.6g}"

    def change(self, number: float) -> str:
        """Return a signed difference as text, with its unit; one that rounds to zero has none."""
        text = f"{100 * number:+.2f}" if self.is_share else f"{number:+.4g}"
        text = text if float(text) else text[1:]
        return f"{text} points" if self.is_share else text

    def worsening(self, change: float) -> float:
        """Return how much worse a change is: positive for worse."""
        if self.better == "neither":
            return abs(change)
        return -change if self.better == "higher" else change


def check_name(name: str) -> str:
    """Return the name of a quantity, or of several that stand for all modalities (``probe``,
    ``history.gradient_norm``).

    Raises :class:`RequestError` for a name that no run can have.
    """
    kind, dot, rest = name.partition(".")
    kinds = (*METRICS, *OF_A_MODALITY, "cost", "report", "history")
    if kind not in kinds:
        raise unknown_name("quantity", name, kinds)
    if kind in METRICS and dot:
        raise RequestError(f"quantity '{name}': '{kind}' is of the fused prediction; write {kind}")
    if kind == "cost" and rest not in COUNTS:
        raise unknown_name("quantity", name, [f"cost.{count}" for count in COUNTS])
    if kind in EXAMPLES and not rest:
        raise RequestError(f"quantity '{kind}': say which number, such as {EXAMPLES[kind]}")
    return name


def read(run: StoredRun, name: str) -> Iterator[tuple[Quantity, float]]:
    """Yield what a name of :func:`check_name` stands for in a finished run; nothing where the run
    lacks it. A value that is not finite is NaN. Raises :class:`StoreError` for a damaged file."""
    for full, value in _found(run, name):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Quantity(full), float(value) if math.isfinite(value) else math.nan


def _found(run: StoredRun, name: str) -> Iterator[tuple[str, Any]]:
    """Yield full names and what the run holds there, whatever it is."""
    record = run.finished
    kind, _, rest = name.partition(".")
    if kind == "cost":
        yield name, getattr(record.cost, rest)
    elif kind == "report":
        yield name, _at(record.report, rest)
    elif kind == "history":
        yield from _of_history(run, rest)
    elif kind in OF_A_MODALITY:
        for m in [rest] if rest else record.modalities:
            yield f"{kind}.{m}", _of_modality(record, kind, m)
    else:
        yield name, METRICS[name].read(record)


def _of_modality(record: Finished, kind: str, m: str) -> float | None:
    if kind == "shapley":
        shapley = record.contributions.shapley.get("test")
        return None if shapley is None else shapley.values.get(m)
    return record.per_modality.get(m, {}).get(kind, {}).get("test")


def _of_history(run: StoredRun, column: str) -> Iterator[tuple[str, float]]:
    """Yield the mean over epochs of a column of numbers, or of the columns ``<column>.<m>``."""
    curves = learning_curves(run).select_dtypes("number")
    for name in (column, *(f"{column}.{m}" for m in run.finished.modalities)):
        if name in curves and curves[name].notna().any():
            yield f"history.{name}", float(curves[name].mean())


def _at(values: Mapping[str, Any], path: str) -> Any:
    """Return what lies at a dotted path in nested dicts; None where nothing does."""
    found: Any = values
    for part in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found
