"""How much worse a mean may be before it counts as a regression. Reasons: docs/checking.md."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from mmbench.check.quantities import ROUNDING, Quantity
from mmbench.errors import RequestError

FALSE_ALARMS = 0.01
"""Chance that a check without any regression reports one: one in a hundred checks."""

NEGLIGIBLE = 0.2
"""A worsening below this share of the standard deviation over seeds is none, however sure it is:
a small effect in the words of J. Cohen, Statistical Power Analysis (1988)."""

OF_SEEDS = 0.1
"""Share of the false alarms that is left to single seeds: one that breaks down is far out, and with
a small share the means lose little."""

FEWEST_SEEDS = 3
"""With two, the tolerance is beyond 20 times the deviation of the differences even for one row."""


@dataclass(frozen=True)
class Given:
    """A tolerance that somebody chose, in place of the derived one: the largest worsening of the
    mean over seeds that passes."""

    amount: float
    """At least 0; in the quantity's unit (a share for points), or a share of the stored mean."""
    is_relative: bool
    sign: str
    """As written: ``-``, ``+`` or nothing."""
    text: str

    def allowed(self, quantity: Quantity, stored: Sequence[float]) -> float:
        """Return the tolerance. Raises :class:`RequestError` where it does not fit the quantity."""
        towards_worse = {"higher": "-", "lower": "+", "neither": ""}[quantity.better]
        if self.sign not in ("", towards_worse):
            how = {"higher": "by falling", "lower": "by rising", "neither": "on either side"}
            fitting = f"{towards_worse}{self.text.lstrip('+-')}"
            raise RequestError(
                f"--fail {quantity.name}:{self.text}: {quantity.name} gets worse "
                f"{how[quantity.better]}; write {fitting}"
            )
        if self.text.endswith("pp") and not quantity.is_share:
            raise RequestError(
                f"--fail {quantity.name}:{self.text}: {quantity.name} is not in percent; write an "
                "amount without pp"
            )
        if quantity.is_share and not self.is_relative and self.amount > 1:
            raise RequestError(
                f"--fail {quantity.name}:{self.text}: a share cannot change by more than 1; write "
                f"{self.text}pp for points"
            )
        return self.amount * abs(float(np.mean(stored))) if self.is_relative else self.amount


def parse_given(text: str) -> Given:
    """Return the tolerance of a text such as ``-1.5pp`` (points), ``-2%`` (of the stored mean) or
    ``+0.05`` (in the quantity's unit). Raises :class:`RequestError`."""
    match = re.fullmatch(r"([+-]?)(\d+\.?\d*|\.\d+)(pp|%)?", text.strip())
    if match is None:
        raise RequestError(f"tolerance '{text}': write it as -1.5pp, -2% or +0.05")
    sign, digits, unit = match.groups()
    amount = float(digits) / (100 if unit else 1)
    return Given(amount, unit == "%", sign, text.strip())


def derived(
    stored: Sequence[float],
    now: Sequence[float],
    quantity: Quantity,
    tests: int,
    false_alarms: float = FALSE_ALARMS,
) -> float:
    """Return the tolerance for the mean of the paired differences of ``n`` seeds:

        0.2 s + t(n - 1; 1 - q) d / sqrt(n),    q = 0.9 false_alarms / tests

    with ``s`` the standard deviation of the stored values, ``d`` that of the differences ``now -
    stored``, and q halved for a quantity that can be wrong on both sides. ``tests`` is the number
    of values that are judged so. At least two pairs are needed.
    """
    differences = np.asarray(now, dtype=np.float64) - np.asarray(stored, dtype=np.float64)
    n = len(differences)
    bound = _bound(quantity, n, (1 - OF_SEEDS) * false_alarms / tests)
    spread = float(np.std(stored, ddof=1))
    return NEGLIGIBLE * spread + bound * float(differences.std(ddof=1)) / math.sqrt(n)


def derived_for_a_seed(
    stored: Sequence[float],
    quantity: Quantity,
    tests: int,
    false_alarms: float = FALSE_ALARMS,
) -> float:
    """Return the tolerance for the difference of any one of ``n`` seeds, which finds the one that
    breaks down: such a seed makes a spread that its mean hides behind.

        0.2 s + t(n - 1; 1 - q) sqrt(2) s,    q = 0.1 false_alarms / (tests n)

    ``sqrt(2) s`` is what differences spread by if nothing but the data pairs, and less if more
    does.
    """
    n = len(stored)
    bound = _bound(quantity, n, OF_SEEDS * false_alarms / (tests * n))
    return (NEGLIGIBLE + bound * math.sqrt(2)) * float(np.std(stored, ddof=1))


def _bound(quantity: Quantity, n: int, chance: float) -> float:
    """Return the quantile of Student's t that is exceeded with this chance."""
    sides = 2 if quantity.better == "neither" else 1
    return float(special.stdtrit(n - 1, 1 - chance / sides))


def exceeds(worsening: float, allowed: float, stored: Sequence[float]) -> bool:
    """Say whether a mean is worse than allowed by more than rounding."""
    return worsening > allowed + ROUNDING * max(1.0, float(np.abs(stored).max()))
