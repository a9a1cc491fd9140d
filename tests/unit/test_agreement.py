"""When reported and obtained accuracies agree: closed forms, and the rate at which the interval
covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mmbench.reproduce.agreement import Agreement, Finding, exit_code

OURS = (80.0, 82.0, 84.0)


def test_the_interval_is_that_of_a_new_mean() -> None:
    """t(2) at 97.5 % is √(2·0.95²/(1 − 0.95²)); deviation 2, three runs of ours, one of theirs."""
    interval = Agreement(81.0, OURS, runs=1).interval
    assert interval is not None
    quantile = math.sqrt(2 * 0.95**2 / (1 - 0.95**2))
    half = quantile * 2 * math.sqrt(1 / 3 + 1)
    assert interval == pytest.approx((82 - half, 82 + half))


@pytest.mark.parametrize(("n", "k"), [(2, 1), (3, 4), (5, 1), (5, 4)])
def test_the_interval_covers_at_its_nominal_rate(n: int, k: int) -> None:
    rng = np.random.default_rng([n, k])
    trials = 4000
    ours = rng.normal(80, 2, (trials, n))
    theirs = rng.normal(80, 2, (trials, k)).mean(axis=1)
    inside = 0
    for values, value in zip(ours, theirs, strict=True):
        interval = Agreement(float(value), tuple(map(float, values)), runs=k).interval
        assert interval is not None
        inside += interval[0] <= value <= interval[1]
    least, most = stats.binom(trials, 0.95).ppf([0.0005, 0.9995])
    assert least <= inside <= most


def test_a_value_inside_the_interval_agrees_and_one_beyond_differs() -> None:
    interval = Agreement(82.0, OURS).interval
    assert interval is not None
    low, high = interval
    assert Agreement(low + 0.01, OURS).verdict == "agrees"
    assert Agreement(high - 0.01, OURS).verdict == "agrees"
    assert Agreement(low - 0.1, OURS).verdict == "differs"
    assert Agreement(high + 0.1, OURS).verdict == "differs"


def test_the_tolerance_counts_where_the_spread_is_small() -> None:
    tight = (80.0, 80.1, 80.2)
    assert Agreement(81.5, tight).verdict == "differs"
    assert Agreement(81.5, tight, tolerance=1.5).verdict == "agrees"
    assert Agreement(81.7, tight, tolerance=1.5).verdict == "differs"


def test_values_equal_but_for_rounding_agree() -> None:
    """571 of 704 in print as 81.11; every run of ours the same."""
    ours = (100 * 571 / 704,) * 3
    assert Agreement(81.11, ours).verdict == "agrees"
    assert Agreement(81.3, ours).verdict == "differs"


def test_one_seed_tells_nothing_beyond_the_tolerance() -> None:
    assert Agreement(82.0, (70.0,)).interval is None
    assert Agreement(82.0, (70.0,)).verdict == "cannot tell"
    assert Agreement(82.0, (81.0,), tolerance=1.5).verdict == "agrees"
    assert Agreement(82.0, (70.0,), tolerance=1.5).verdict == "cannot tell"


def test_no_run_tells_nothing() -> None:
    nothing = Agreement(82.0, ())
    assert (nothing.mean, nothing.points, nothing.verdict) == (None, None, "cannot tell")


def test_a_failed_run_among_good_ones_tells_nothing() -> None:
    assert Finding("joint", "accuracy", Agreement(82.0, OURS)).verdict == "agrees"
    failed = Finding("joint", "accuracy", Agreement(82.0, OURS), ("seed 3 failed: NaN",))
    assert failed.verdict == "cannot tell"


@pytest.mark.parametrize(
    ("reported", "code"), [((82.0,), 0), ((82.0, 10.0), 1), ((), 2), ((82.0, None, 10.0), 1)]
)
def test_what_differs_outweighs_what_cannot_be_told(
    reported: tuple[float | None, ...], code: int
) -> None:
    findings = [
        Finding("joint", "accuracy", Agreement(82.0 if value is None else value, ours))
        for value in reported
        for ours in [() if value is None else OURS]
    ]
    assert exit_code(findings) == code
    assert exit_code([Finding("joint", "accuracy", Agreement(82.0, ()))]) == 2
