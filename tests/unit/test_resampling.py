"""Sign flips and the bootstrap: against enumeration and scipy, and at their nominal rates."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmbench.report.resampling import (
    EXACT_PAIRS,
    FLIPS,
    bca_interval,
    interquartile_mean,
    share_interval,
    sign_flip_p,
    smallest_sign_flip_p,
    stratified_interval,
)

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

SYMMETRIC: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_cauchy(shape),
    "unequal variances": lambda rng, shape: rng.normal(size=shape) * 4.0 ** np.arange(shape[-1]),
    "ties": lambda rng, shape: rng.integers(-2, 3, shape) / 400,
}
"""Differences without an effect: as likely to have one sign as the other."""


def margin(rate: float, trials: int) -> float:
    """Three standard errors of a rate."""
    return 3 * float(np.sqrt(rate * (1 - rate) / trials))


# -- sign flips ------------------------------------------------------------------------------------


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=9))
def test_the_exact_test_counts_every_assignment_of_signs(steps: list[int]) -> None:
    differences = np.array(steps) / 400
    sums = [
        abs(sum(s * d for s, d in zip(signs, steps, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(steps))
    ]
    expected = np.mean(np.array(sums) >= abs(sum(steps)))
    assert sign_flip_p(differences, 1e-12) == expected


def test_the_exact_test_is_scipys_permutation_test() -> None:
    x = np.random.default_rng(0).normal(0.4, 1, 9)
    expected = stats.permutation_test(
        (x,), np.mean, permutation_type="samples", n_resamples=10_000
    ).pvalue
    assert sign_flip_p(x) == pytest.approx(expected)


def test_beyond_the_exact_test_p_is_near_that_of_all_assignments() -> None:
    n = EXACT_PAIRS + 2
    x = np.random.default_rng(1).normal(0.45, 1, n)
    sums = np.zeros(1)
    for d in x:
        sums = np.concatenate([sums + d, sums - d])
    expected = float(np.mean(np.abs(sums) >= abs(x.sum()) - 1e-12))
    assert 0.001 < expected < 0.3
    assert sign_flip_p(x, 1e-12) == pytest.approx(expected, abs=margin(expected, FLIPS))
    assert sign_flip_p(x, 1e-12) == sign_flip_p(x, 1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 10, EXACT_PAIRS, EXACT_PAIRS + 1, 40])
def test_differences_of_one_sign_reach_the_smallest_p(n: int) -> None:
    found = sign_flip_p(np.linspace(1, 2, n))
    assert found == pytest.approx(smallest_sign_flip_p(n), abs=2e-4 if n > EXACT_PAIRS else 0)
    assert found >= smallest_sign_flip_p(n)
    assert smallest_sign_flip_p(5) == 0.0625


@pytest.mark.parametrize("n", [3, 30])
def test_no_difference_at_all_has_p_1(n: int) -> None:
    assert sign_flip_p(np.zeros(n)) == 1


@pytest.mark.parametrize("n", [5, 8, 12, 20])
@pytest.mark.parametrize("kind", SYMMETRIC)
def test_a_true_null_is_not_rejected_more_often_than_the_level_says(kind: str, n: int) -> None:
    trials = 1500 if n <= EXACT_PAIRS else 400
    x = SYMMETRIC[kind](np.random.default_rng(n), (trials, n))
    p = np.array([sign_flip_p(row, 1e-12) for row in x])
    for level in (0.01, 0.05, 0.1, 0.5):
        assert np.mean(p <= level) <= level + margin(level, trials)


def test_few_seeds_do_not_reject_although_the_t_test_would() -> None:
    """The reason for the sign-flip test: a t-test of 5 differences leans on their being normal.
    Here the seeds differ in variance, as a seed with a hard split does, and no effect is there."""
    rng = np.random.default_rng(3)
    x = rng.choice([-1.0, 1.0], (4000, 5)) * (1 + 0.05 * rng.normal(size=(4000, 5)))
    assert np.mean(stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05) > 0.055
    assert all(sign_flip_p(row) > 0.05 for row in x[:200])


# -- intervals -------------------------------------------------------------------------------------


def test_the_bca_interval_follows_efrons_formula() -> None:
    """With the bootstrap distribution of a large sample of resamples, drawn here."""
    rng = np.random.default_rng(5)
    x = rng.gamma(1.0, 1.0, 60)
    means = x[rng.integers(0, 60, (40_000, 60))].mean(axis=1)
    bias = stats.norm.ppf(np.mean(means < x.mean()))
    left_out = (x.sum() - x) / 59
    d = left_out.mean() - left_out
    acceleration = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
    z = stats.norm.ppf([0.025, 0.975])
    levels = stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
    expected = np.quantile(means, levels)
    found = bca_interval(x)
    assert found is not None
    assert found == pytest.approx(tuple(expected), abs=0.12 * (expected[1] - expected[0]))
    assert found[1] - x.mean() > x.mean() - found[0]  # skewed as the values are


def test_values_that_hardly_differ_have_no_bca_interval_or_a_finite_one() -> None:
    x = np.full(60, 0.8)
    assert bca_interval(x) is None
    x[0] = 0.3
    found = bca_interval(x)
    assert found is None or np.all(np.isfinite(found))


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (5, 5), (3, 5), (17, 40)])
def test_the_interval_of_a_share_is_scipys_clopper_pearson(hits: int, count: int) -> None:
    expected = stats.binomtest(hits, count).proportion_ci(0.95, "exact")
    assert share_interval(hits / count, count) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("n", [2, 5, 10, 30])
@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_the_interval_of_a_share_covers_with_and_without_ties(n: int, ties: float) -> None:
    rng = np.random.default_rng(n)
    trials = 1000
    for wins in (0.05, 0.35, 0.6):
        won = rng.choice([1.0, 0.5, 0.0], (trials, n), p=[wins, ties, 1 - wins - ties])
        ends = np.array([share_interval(share, n) for share in won.mean(axis=1)])
        true = wins + ties / 2
        covered = np.mean((ends[:, 0] <= true) & (true <= ends[:, 1]))
        assert covered >= 0.95 - margin(0.95, trials)


# -- the interquartile mean ------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=12))
def test_it_is_the_trimmed_mean_of_every_value_taken_four_times(values: list[float]) -> None:
    expected = stats.trim_mean(np.repeat(values, 4), 0.25)
    assert interquartile_mean([np.array(values)]) == pytest.approx(expected, abs=1e-12)


def test_datasets_weigh_the_same_whatever_their_seeds() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.random(3), rng.random(8)
    repeated = np.concatenate([np.repeat(few, 4 * 8), np.repeat(many, 4 * 3)])
    expected = stats.trim_mean(repeated, 0.25)
    assert interquartile_mean([few, many]) == pytest.approx(expected)


def test_an_outlying_seed_does_not_move_it() -> None:
    x = np.array([0.80, 0.81, 0.82, 0.83])
    assert interquartile_mean([np.array([0.1, *x[1:]])]) == interquartile_mean([x])


def test_one_value_in_each_stratum_has_no_interval() -> None:
    assert stratified_interval([np.array([0.8]), np.array([0.9])]) is None


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    "levels", [(0.8,), (0.80, 0.82), (0.5, 0.6, 0.7, 0.8, 0.9)], ids=["one", "two", "five"]
)
def test_its_interval_covers(levels: tuple[float, ...], seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    base = np.array(levels)[:, None]
    true = stats.trim_mean((base + rng.normal(0, 0.01, (len(levels), 200_000))).ravel(), 0.25)
    trials = 150 if seeds == 10 else 300
    covered = 0
    for _ in range(trials):
        found = stratified_interval(list(base + rng.normal(0, 0.01, (len(levels), seeds))))
        assert found is not None
        covered += bool(found[0] <= true <= found[1])
    assert covered / trials >= 0.95 - margin(0.95, trials)
