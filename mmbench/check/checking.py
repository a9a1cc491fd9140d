"""The verdict on each stored value, and on all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mmbench.check.baseline import Settings, Stored
from mmbench.check.measuring import Measured, Problem
from mmbench.check.quantities import Quantity
from mmbench.check.tolerance import (
    FALSE_ALARMS,
    FEWEST_SEEDS,
    Given,
    derived,
    derived_for_a_seed,
    exceeds,
)
from mmbench.errors import RequestError, unknown_name

Verdict = Literal["worse", "moved", "cannot tell", "better", "ok"]
"""``moved`` is the regression of a quantity that has no better side."""

REGRESSIONS = ("worse", "moved")

ENVIRONMENT = ("device", "device_name", "threads", "python", "torch", "numpy", "scikit-learn")
"""What may change the last bits of a result, by its names in ``record.json``."""


@dataclass(frozen=True)
class Finding:
    """One quantity of one row: means over the seeds that both have."""

    row: str
    quantity: Quantity
    seeds: tuple[int, ...]
    stored: float = math.nan
    now: float = math.nan
    allowed: float | None = None
    """Largest worsening of the mean that passes; None where it cannot be told."""
    verdict: Verdict = "cannot tell"
    reason: str = ""
    """Why it cannot be told, or what the means do not show."""

    @property
    def change(self) -> float:
        return self.now - self.stored

    @property
    def name(self) -> str:
        return f"{self.row} {self.quantity.name}"

    @property
    def sentence(self) -> str:
        """Return what happened, with the numbers."""
        if self.verdict == "cannot tell":
            return f"{self.name}: cannot tell: {self.reason}"
        show = self.quantity
        change = "stays" if self.verdict == "ok" else f"is {self.verdict}"
        words = f"{self.name} {change}: {show.value(self.stored)} -> {show.value(self.now)}"
        if self.reason:
            return f"{words} ({self.reason})"
        limit = "" if self.allowed is None else f", allowed {allowed_text(self)}"
        return f"{words} ({show.change(self.change)}{limit})"


def allowed_text(finding: Finding) -> str:
    """Return the tolerance with the sign of a worsening."""
    if finding.allowed is None:
        return "-"
    if finding.quantity.better == "neither":
        return "±" + finding.quantity.change(finding.allowed).removeprefix("+")
    towards = -1 if finding.quantity.better == "higher" else 1
    return finding.quantity.change(towards * finding.allowed)


@dataclass(frozen=True)
class Check:
    """Everything that a check found."""

    findings: tuple[Finding, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    tests: int
    """Values of the whole baseline whose tolerance is derived: what the false alarms are shared out
    over, also where only some rows are looked at."""
    false_alarms: float

    @property
    def regressions(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.verdict in REGRESSIONS)

    @property
    def untold(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.verdict == "cannot tell")

    @property
    def improvements(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.verdict == "better")

    @property
    def is_unchanged(self) -> bool:
        """Whether every mean is the stored one but for rounding."""
        return not self.problems and all(f.change == 0 for f in self.findings)

    @property
    def exit_code(self) -> int:
        """Return 1 for a regression, 2 if there is none and something cannot be told, else 0."""
        if self.regressions:
            return 1
        return 2 if self.untold or self.problems else 0


def check(
    settings: Settings,
    stored: Stored,
    measured: Measured,
    rows: Sequence[str],
    given: Mapping[str, Given] | None = None,
    false_alarms: float = FALSE_ALARMS,
) -> Check:
    """Compare measured values with the stored ones of some rows.

    ``given`` are tolerances in place of those of the settings. Seeds are paired; a row is judged by
    the seeds that it has, and what is missing is a problem. Raises :class:`RequestError` for a
    tolerance that fits no quantity.
    """
    limits = {**settings.given(), **(given or {})}
    unjudged = [
        _paired(row, Quantity(name), settings, values, measured)
        for row in rows
        for name, values in stored.values[row].items()
    ]
    everything = [Quantity(name) for values in stored.values.values() for name in values]
    _refuse_unused(limits, everything)
    tests = sum(_limit(quantity, limits) is None for quantity in everything)
    findings = [_judged(*paired, limits, tests, false_alarms) for paired in unjudged]
    new = [
        Problem(row, f"'{name}' has no stored value; store it with --update")
        for row in rows
        for name in measured.values.get(row, {})
        if name not in stored.values[row]
    ]
    notes = _environment_notes(stored.environment, measured.environment)
    return Check(tuple(findings), (*measured.problems, *new), notes, tests, false_alarms)


Paired = tuple[Finding, list[float], list[float]]
"""A finding without verdict, and its stored and present values by seed."""


def _paired(
    row: str, quantity: Quantity, settings: Settings, values: Sequence[float], measured: Measured
) -> Paired:
    now = measured.values.get(row, {}).get(quantity.name, {})
    before = dict(zip(settings.seeds, values, strict=True))
    seeds = tuple(seed for seed in settings.seeds if seed in now)
    left, right = [before[s] for s in seeds], [now[s] for s in seeds]
    finding = Finding(row, quantity, seeds)
    if seeds:
        means = float(np.mean(left)), float(np.mean(right))
        is_same = not exceeds(abs(means[1] - means[0]), 0.0, left)
        finding = replace(finding, stored=means[0], now=means[0] if is_same else means[1])
    return finding, left, right


def _limit(quantity: Quantity, limits: Mapping[str, Given]) -> Given | None:
    """Return the tolerance given for a quantity, or for all of its kind."""
    for name in _kinds(quantity.name):
        if name in limits:
            return limits[name]
    return None


def _kinds(name: str) -> list[str]:
    """Return a dotted name and every shorter one that it is a part of, the longest first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _judged(
    finding: Finding,
    stored: Sequence[float],
    now: Sequence[float],
    limits: Mapping[str, Given],
    tests: int,
    false_alarms: float,
) -> Finding:
    quantity = finding.quantity
    limit = _limit(quantity, limits)
    bad: Verdict = "moved" if quantity.better == "neither" else "worse"
    if not stored:
        return replace(finding, reason="no run has it")
    lost = [seed for seed, value in zip(finding.seeds, now, strict=True) if math.isnan(value)]
    if lost:
        which = ", ".join(map(str, lost))
        return replace(finding, verdict=bad, reason=f"not a finite number in seed {which}")
    if limit is not None:
        allowed = limit.allowed(quantity, stored)
    elif len(stored) >= FEWEST_SEEDS:
        allowed = derived(stored, now, quantity, tests, false_alarms)
    else:
        reason = (
            f"a tolerance needs {FEWEST_SEEDS} seeds, not {len(stored)}; run more, or give one "
            f"with --fail {quantity.name}:..."
        )
        return replace(finding, reason=reason)
    finding = replace(finding, allowed=allowed)
    worsening = quantity.worsening(finding.change)
    if exceeds(worsening, allowed, stored):
        return replace(finding, verdict=bad)
    if limit is None:
        of_one = derived_for_a_seed(stored, quantity, tests, false_alarms)
        if reason := _broken_seed(finding, stored, now, of_one):
            return replace(finding, verdict=bad, reason=reason)
    is_better = exceeds(-worsening, allowed, stored)
    return replace(finding, verdict="better" if is_better else "ok")


def _broken_seed(
    finding: Finding, stored: Sequence[float], now: Sequence[float], allowed: float
) -> str:
    """Say which seed is worse by more than a single one may be, if any."""
    show = finding.quantity
    changes = [show.worsening(b - a) for a, b in zip(stored, now, strict=True)]
    i = int(np.argmax(changes))
    if not exceeds(changes[i], allowed, stored):
        return ""
    return f"seed {finding.seeds[i]}: {show.value(stored[i])} -> {show.value(now[i])}"


def _refuse_unused(limits: Mapping[str, Given], quantities: Sequence[Quantity]) -> None:
    known = {name for quantity in quantities for name in _kinds(quantity.name)}
    for name in limits:
        if name not in known:
            raise unknown_name("quantity of the baseline in --fail", name, known)


def _environment_notes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    others = [
        f"{name} {before.get(name)} -> {now[name]}"
        for name in ENVIRONMENT
        if name in now and now[name] != before.get(name)
    ]
    if not others:
        return ()
    return (f"stored elsewhere: {'; '.join(others)}: last bits may differ by this alone",)


def parse_limits(texts: Sequence[str]) -> dict[str, Given]:
    """Return the tolerances of texts such as ``accuracy:-1.5pp``. Raises :class:`RequestError`."""
    from mmbench.check.quantities import check_name
    from mmbench.check.tolerance import parse_given

    limits: dict[str, Given] = {}
    for text in texts:
        name, colon, amount = text.partition(":")
        if not colon:
            raise RequestError(f"--fail {text}: write QUANTITY:AMOUNT, such as accuracy:-1.5pp")
        if name in limits:
            raise RequestError(f"--fail {text}: '{name}' is given twice")
        limits[check_name(name)] = parse_given(amount)
    return limits
