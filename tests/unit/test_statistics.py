"""Statistics over seeds, against scipy, enumeration and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmbench.report.statistics import paired_difference, summarise

values = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=12)


@given(values)
def test_a_summary_is_scipys_t_interval(x: list[float]) -> None:
    found = summarise(x)
    assert found.count == len(x)
    assert found.mean == pytest.approx(np.mean(x))
    assert found.deviation == pytest.approx(np.std(x, ddof=1))
    scale = stats.sem(x)
    if scale > 1e-9:
        low, high = stats.t.interval(0.95, len(x) - 1, loc=np.mean(x), scale=scale)
        assert (found.low, found.high) == pytest.approx((low, high))


def test_one_value_has_no_interval() -> None:
    found = summarise([0.8])
    assert (found.mean, found.deviation, found.low, found.high) == (0.8, None, None, None)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=10))
def test_a_difference_is_scipys_paired_t_test(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs).T / 1000
    if np.ptp(np.array(pairs) @ [1, -1]) == 0:
        return
    found = paired_difference(dict(enumerate(x)), dict(enumerate(y)))
    expected = stats.ttest_rel(x, y)
    interval = expected.confidence_interval(0.95)
    assert found.pairs == len(pairs)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(float(np.mean(x - y)))


def test_only_common_seeds_are_paired() -> None:
    found = paired_difference({0: 0.9, 2: 0.8, 7: 0.1}, {2: 0.7, 0: 0.85, 3: 0.0})
    assert found.pairs == 2
    assert found.mean == pytest.approx((0.05 + 0.1) / 2)


def test_one_pair_is_a_difference_without_a_test() -> None:
    found = paired_difference({0: 0.9}, {0: 0.8, 1: 0.7})
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.verdict == "not distinguishable"
    assert found.remark == "one seed: no interval; add --seed"


def test_no_common_seed_is_no_difference() -> None:
    found = paired_difference({0: 0.9}, {1: 0.8})
    assert (found.pairs, found.mean, found.p, found.smallest_p) == (0, None, None, None)
    assert found.verdict == "not distinguishable"


def test_equal_values_are_not_distinguishable() -> None:
    found = paired_difference({0: 0.9, 1: 0.8}, {0: 0.9, 1: 0.8})
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.verdict == "not distinguishable"


@pytest.mark.parametrize("n", [2, 3, 5, 6, 8])
def test_the_same_difference_in_every_pair_is_judged_by_sign_flips(n: int) -> None:
    x = {s: 0.5 + s / 30 for s in range(n)}
    y = {s: v + 0.1 for s, v in x.items()}  # rounding makes the differences unequal by about 1e-17
    found = paired_difference(y, x)
    means = [abs(np.mean(signs)) for signs in itertools.product((-1, 1), repeat=n)]
    assert found.p == np.mean(np.array(means) >= 1)
    assert found.p == found.smallest_p
    assert (found.low, found.high) == (None, None)
    assert found.verdict == ("better" if n >= 6 else "not distinguishable")


def test_the_smallest_p_is_that_of_the_most_extreme_signs() -> None:
    differences = np.array([0.3, 0.1, 0.2, 0.05, 0.4])
    flipped = [abs(differences @ s) for s in itertools.product((-1, 1), repeat=5)]
    expected = np.mean(np.array(flipped) >= differences.sum() - 1e-12)
    found = paired_difference(dict(enumerate(differences)), dict.fromkeys(range(5), 0.0))
    assert found.smallest_p == expected == 2 / 32


@pytest.mark.parametrize(
    ("shift", "higher_is_better", "verdict"),
    [(0.1, True, "better"), (-0.1, True, "worse"), (0.1, False, "worse"), (-0.1, False, "better")],
)
def test_the_verdict_follows_the_direction_of_the_metric(
    shift: float, higher_is_better: bool, verdict: str
) -> None:
    noise = [0.001, -0.002, 0.0015, 0.0, -0.001]
    x = {s: 0.5 + shift + e for s, e in enumerate(noise)}
    y = dict.fromkeys(range(5), 0.5)
    assert paired_difference(x, y, higher_is_better).verdict == verdict


def test_intervals_cover_and_false_positives_come_at_their_nominal_rate() -> None:
    """Normal values of seeds with a common part, as split and initial weights give; 5 seeds."""
    rng = np.random.default_rng(0)
    trials, seeds = 1500, 5
    covered = wrong = covered_difference = 0
    for _ in range(trials):
        common = rng.normal(0, 0.02, seeds)
        x, y = (0.8 + common + rng.normal(0, 0.01, seeds) for _ in range(2))
        summary = summarise(x)
        assert summary.low is not None
        assert summary.high is not None
        covered += summary.low <= 0.8 <= summary.high
        d = paired_difference(dict(enumerate(x)), dict(enumerate(y)))
        assert d.low is not None
        assert d.high is not None
        covered_difference += d.low <= 0 <= d.high
        wrong += d.verdict != "not distinguishable"
    # Three standard errors of a share of 0.05 in so many trials.
    margin = 3 * (0.05 * 0.95 / trials) ** 0.5
    assert covered / trials == pytest.approx(0.95, abs=margin)
    assert covered_difference / trials == pytest.approx(0.95, abs=margin)
    assert wrong / trials == pytest.approx(0.05, abs=margin)
    assert wrong == trials - covered_difference
