"""Statistics over seeds, against scipy, statsmodels, enumeration and simulation."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mmbench.report.resampling import bca_interval
from mmbench.report.statistics import (
    BCA_FROM,
    Difference,
    corrected,
    fewest_seeds,
    holm,
    interquartile_estimate,
    paired_difference,
    summarise,
)

values = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=12)


def difference_of(steps: np.ndarray, higher_is_better: bool = True) -> Difference:
    """Return the paired difference with these differences by seed."""
    zero = dict.fromkeys(range(len(steps)), 0.0)
    return paired_difference(dict(enumerate(steps.tolist())), zero, higher_is_better)


def table_of(*rows: np.ndarray) -> list[Difference]:
    """Return the rows' differences as a table has them."""
    return [d for d in corrected([difference_of(row) for row in rows]) if d is not None]


# -- values over seeds -----------------------------------------------------------------------------


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
        assert found.interval_kind == "Student-t"


def test_one_value_has_no_interval() -> None:
    found = summarise([0.8])
    assert (found.mean, found.deviation, found.low, found.high) == (0.8, None, None, None)
    assert found.interval_kind is None
    assert (found.interquartile.value, found.interquartile.low) == (0.8, None)


def test_equal_values_have_an_interval_of_no_width() -> None:
    for n in (2, BCA_FROM):
        found = summarise([0.75] * n)
        assert (found.mean, found.low, found.high) == (0.75, 0.75, 0.75)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_no_number_leaves_no_number_to_print(bad: float) -> None:
    found = summarise([0.8, bad, 0.7])
    assert not math.isfinite(found.mean)
    assert (found.deviation, found.low, found.high) == (None, None, None)
    assert math.isnan(found.interquartile.value)


def test_from_enough_values_on_the_interval_is_bca() -> None:
    x = np.random.default_rng(0).gamma(1.0, 1.0, BCA_FROM)
    few, many = summarise(x[:-1]), summarise(x)
    t = stats.t.interval(0.95, BCA_FROM - 2, loc=np.mean(x[:-1]), scale=stats.sem(x[:-1]))
    assert (few.low, few.high) == pytest.approx(t)
    assert (many.low, many.high) == bca_interval(x)
    assert (few.interval_kind, many.interval_kind) == ("Student-t", "BCa")
    zero = dict.fromkeys(range(BCA_FROM), 0.0)
    d = paired_difference(dict(enumerate(x.tolist())), zero)
    assert (d.low, d.high, d.interval_kind) == (many.low, many.high, "BCa")


def coverage(draw: str, n: int, trials: int) -> float:
    rng = np.random.default_rng(n)
    covered = 0
    for _ in range(trials):
        if draw == "normal":
            x, true = rng.normal(0.8, 0.01, n), 0.8
        elif draw == "accuracies":
            x, true = rng.binomial(400, rng.normal(0.8, 0.01, n)) / 400, 0.8
        else:
            x, true = 0.9 - rng.gamma(2, 0.01, n), 0.88
        found = summarise(x)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= true <= found.high
    return covered / trials


@pytest.mark.parametrize("draw", ["normal", "accuracies"])
@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_printed_intervals_cover(draw: str, n: int) -> None:
    trials = 2000
    assert coverage(draw, n, trials) == pytest.approx(0.95, abs=3 * (0.0475 / trials) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["normal", "accuracies", "skewed"])
@pytest.mark.parametrize("n", [BCA_FROM, 2 * BCA_FROM])
def test_bca_intervals_cover_from_where_they_are_used(draw: str, n: int) -> None:
    trials = 1000
    assert coverage(draw, n, trials) > 0.94 - 3 * (0.0475 / trials) ** 0.5


@given(st.lists(values, min_size=1, max_size=3))
def test_the_interquartile_mean_lies_in_its_interval(strata: list[list[float]]) -> None:
    found = interquartile_estimate(strata)
    assert found.low is not None
    assert found.high is not None
    assert min(map(min, strata)) - 1e-12 <= found.value <= max(map(max, strata)) + 1e-12
    assert found.low <= found.value <= found.high


# -- paired differences ----------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=10))
def test_interval_and_t_test_are_scipys_and_p_counts_the_signs(
    pairs: list[tuple[int, int]],
) -> None:
    steps = np.array(pairs) @ [1, -1]
    if np.ptp(steps) == 0:
        return
    x, y = np.array(pairs).T / 1000
    found = paired_difference(dict(enumerate(x)), dict(enumerate(y)))
    expected = stats.ttest_rel(x, y)
    interval = expected.confidence_interval(0.95)
    assert found.pairs == len(pairs)
    assert found.p_t == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(float(np.mean(x - y)))
    signs = np.array(list(itertools.product((-1, 1), repeat=len(pairs))))
    assert found.p == np.mean(np.abs(signs @ steps) >= abs(steps.sum()))


def test_only_common_seeds_are_paired() -> None:
    found = paired_difference({0: 0.9, 2: 0.8, 7: 0.1}, {2: 0.7, 0: 0.85, 3: 0.0})
    assert found.pairs == 2
    assert found.mean == pytest.approx((0.05 + 0.1) / 2)


def test_one_pair_is_a_difference_without_a_test() -> None:
    found = paired_difference({0: 0.9}, {0: 0.8, 1: 0.7})
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high, found.p, found.p_t) == (None, None, None, None)
    assert found.verdict == "not distinguishable"
    assert found.remark == "one seed: no interval; add --seed"


def test_two_pairs_are_tested_and_never_distinguishable() -> None:
    (found,) = table_of(np.array([0.5, 0.6]))
    assert found.p == found.smallest_p == 0.5
    assert found.verdict == "not distinguishable"
    assert found.low is not None
    assert found.seeds_needed == 6


def test_no_common_seed_is_no_difference() -> None:
    found = paired_difference({0: 0.9}, {1: 0.8})
    assert (found.pairs, found.mean, found.p, found.smallest_p) == (0, None, None, None)
    assert found.verdict == "not distinguishable"


def test_equal_values_are_not_distinguishable() -> None:
    found = paired_difference({0: 0.9, 1: 0.8}, {0: 0.9, 1: 0.8})
    assert (found.mean, found.low, found.high, found.p, found.p_t) == (0, 0, 0, 1, 1)
    assert found.verdict == "not distinguishable"
    assert found.improvement is not None
    assert found.improvement.value == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_pair_that_is_no_number_leaves_no_difference(bad: float) -> None:
    found = paired_difference({0: 0.9, 1: bad, 2: 0.8}, {0: 0.8, 1: bad, 2: 0.7})
    assert (found.pairs, found.mean, found.p, found.low) == (3, None, None, None)
    assert found.verdict == "not distinguishable"
    assert found.remark == "not a number in seed 1: no difference"


@pytest.mark.parametrize("n", [2, 3, 5, 6, 8])
def test_the_same_difference_in_every_pair_has_a_test_and_no_interval(n: int) -> None:
    x = {s: 0.5 + s / 30 for s in range(n)}
    y = {s: v + 0.1 for s, v in x.items()}  # rounding makes the differences unequal by about 1e-17
    found = paired_difference(y, x)
    means = [abs(np.mean(signs)) for signs in itertools.product((-1, 1), repeat=n)]
    assert found.p == np.mean(np.array(means) >= 1)
    assert found.p == found.smallest_p
    assert (found.low, found.high, found.p_t) == (None, None, None)
    assert found.remark == "the same difference in every pair: no interval"
    assert found.verdict == ("better" if n >= 6 else "not distinguishable")


def test_differences_that_tie_but_for_rounding_are_ties() -> None:
    x = {s: 0.1 * s + 0.7 for s in range(6)}
    y = {s: v + step for (s, v), step in zip(x.items(), [0.1, -0.1, 0.1, 0.1, 0, 0], strict=True)}
    steps = [1, -1, 1, 1, 0, 0]
    sums = [
        abs(sum(s * d for s, d in zip(signs, steps, strict=True)))
        for signs in itertools.product((-1, 1), repeat=6)
    ]
    assert paired_difference(y, x).p == np.mean(np.array(sums) >= 2)


@pytest.mark.parametrize(
    ("shift", "higher_is_better", "verdict"),
    [(0.1, True, "better"), (-0.1, True, "worse"), (0.1, False, "worse"), (-0.1, False, "better")],
)
def test_the_verdict_follows_the_direction_of_the_metric(
    shift: float, higher_is_better: bool, verdict: str
) -> None:
    noise = [0.001, -0.002, 0.0015, 0.0, -0.001, 0.002]
    x = {s: 0.5 + shift + e for s, e in enumerate(noise)}
    y = dict.fromkeys(range(6), 0.5)
    found = paired_difference(x, y, higher_is_better)
    assert found.verdict == verdict
    assert found.improvement is not None
    assert found.improvement.value == (1 if verdict == "better" else 0)


def test_the_probability_of_improvement_counts_ties_half() -> None:
    found = difference_of(np.array([0.1, 0.0, -0.2, 0.3, 0.4])).improvement
    assert found is not None
    assert found.value == pytest.approx(3.5 / 5)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 < found.value < found.high <= 1


def test_intervals_of_differences_cover_and_verdicts_do_not_cry_wolf() -> None:
    """Normal values of seeds with a common part, as split and initial weights give."""
    rng = np.random.default_rng(0)
    trials = 1000
    allowed = 3 * (0.0475 / trials) ** 0.5
    for seeds in (5, 8):
        covered = wrong = 0
        for _ in range(trials):
            common = rng.normal(0, 0.02, seeds)
            x, y = (0.8 + common + rng.normal(0, 0.01, seeds) for _ in range(2))
            d = paired_difference(dict(enumerate(x)), dict(enumerate(y)))
            assert d.low is not None
            assert d.high is not None
            covered += d.low <= 0 <= d.high
            wrong += d.verdict != "not distinguishable"
        assert covered / trials == pytest.approx(0.95, abs=allowed)
        assert wrong / trials <= 0.05 + allowed
        assert (wrong == 0) == (seeds == 5)


# -- tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 8, 40])
def test_holm_is_that_of_statsmodels(rows: int) -> None:
    rng = np.random.default_rng(rows)
    for p in (rng.random(rows) ** 4, rng.integers(1, 4, rows) / 64, np.ones(rows)):
        assert holm(list(p)) == pytest.approx(multipletests(p, method="holm")[1])


def test_a_table_says_better_at_most_once_in_twenty_when_nothing_is() -> None:
    """Ten seeds, six rows beside one reference: the rows depend on each other through it."""
    rng = np.random.default_rng(1)
    trials = 400
    wrong = uncorrected = 0
    for _ in range(trials):
        reference = rng.normal(0, 0.01, 10)
        rows = table_of(*(rng.normal(0, 0.01, (6, 10)) - reference))
        wrong += any(d.verdict != "not distinguishable" for d in rows)
        uncorrected += any(d.p is not None and d.p < 0.05 for d in rows)
    assert wrong / trials <= 0.05 + 3 * (0.0475 / trials) ** 0.5
    assert uncorrected / trials > 0.1


def test_rows_without_a_test_do_not_count_in_the_correction() -> None:
    clear = np.array([0.1, 0.11, 0.12, 0.13, 0.14, 0.15])
    single = difference_of(np.array([0.5]))
    found = corrected([None, difference_of(clear), single, difference_of(clear)])
    assert found[0] is None
    assert found[2] is single
    assert found[1] is not None
    assert (found[1].comparisons, found[1].p, found[1].p_holm) == (2, 2 / 64, 4 / 64)
    assert found[1].verdict == "not distinguishable"
    assert difference_of(clear).verdict == "better"
    assert corrected([]) == []
    assert corrected([None, single]) == [None, single]


def test_what_no_number_of_flips_could_reach_is_known() -> None:
    rng = np.random.default_rng(0)
    five = table_of(*rng.normal(0.1, 0.01, (4, 5)))
    assert [d.attainable_p for d in five] == [4 * 2 / 32] * 4
    many = table_of(rng.normal(0.1, 0.01, 5), *rng.normal(0.1, 0.01, (3, 12)))
    assert [d.attainable_p < 0.05 for d in many if d.attainable_p is not None] == [
        False,
        True,
        True,
        True,
    ]
    assert [d.verdict for d in many] == ["not distinguishable"] + ["better"] * 3
    for rows in (1, 4, 40):
        n = fewest_seeds(rows)
        assert rows * 2 ** (1 - n) < 0.05 <= rows * 2 ** (2 - n)


def test_the_seeds_needed_are_more_than_there_are_and_only_where_nothing_is_shown() -> None:
    rng = np.random.default_rng(2)
    shown, small, none = table_of(rng.normal(1, 0.1, 12), rng.normal(0.3, 1, 12), np.zeros(12))
    assert (shown.verdict, shown.seeds_needed) == ("better", None)
    assert small.verdict == "not distinguishable"
    assert small.seeds_needed is not None
    assert small.seeds_needed > 12
    assert none.seeds_needed is None


def test_two_hundred_rows_take_well_under_a_second() -> None:
    rows = list(np.random.default_rng(0).normal(0.01, 0.02, (200, 10)))
    began = time.perf_counter()
    table_of(*rows)
    assert time.perf_counter() - began < 0.8
