"""Budgets from losses: closed forms and loops over rows."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from mmbench.testing.contract import make_splits, make_trainer
from mmbench.train.budgets import (
    BudgetEstimator,
    Budgets,
    Floats,
    estimate_budgets,
    power_prior,
    softmax_prior,
    subset_gains,
)
from mmbench.train.method import Method


def random_losses(seed: int, count: int = 3, rows: int = 50) -> tuple[dict[str, Floats], Floats]:
    random = np.random.default_rng(seed)
    baseline = random.uniform(0.8, 1.6, rows)
    return {f"m{k}": baseline * random.uniform(0, 1.2, rows) for k in range(count)}, baseline


@pytest.mark.parametrize("seed", range(4))
def test_values_and_information_are_those_of_sums_over_rows(seed: int) -> None:
    losses, baseline = random_losses(seed)
    budgets = estimate_budgets(losses, baseline, seed)
    entropy = sum(baseline) / len(baseline)
    assert budgets.entropy == pytest.approx(entropy, rel=1e-9)
    for i, m in enumerate(budgets.modalities):
        information = entropy - sum(losses[m]) / len(baseline)
        assert budgets.information[i] == pytest.approx(information, rel=1e-9)
        assert budgets.values[i] == pytest.approx(min(max(information / entropy, 0), 1), rel=1e-9)
        low, high = budgets.intervals[i]
        assert 0 <= low <= budgets.values[i] <= high <= 1


def test_perfect_useless_and_harmful_predictors_have_known_budgets() -> None:
    baseline = np.full(20, math.log(4))
    losses = {"perfect": np.zeros(20), "useless": baseline, "harmful": baseline + 0.5}
    budgets = estimate_budgets(losses, baseline, 0)
    assert list(budgets.values) == [1, 0, 0]
    assert list(budgets.intervals) == [(1, 1), (0, 0), (0, 0)]
    assert budgets.information == pytest.approx((math.log(4), 0, -0.5))
    assert budgets.tied == ("perfect",)


def test_errors_as_losses_give_chance_corrected_accuracy() -> None:
    classes, rows, right = 5, 40, 28
    errors = np.arange(rows) >= right
    losses = {"m": errors.astype(np.float64)}
    budgets = estimate_budgets(losses, np.full(rows, 1 - 1 / classes), 0)
    accuracy = right / rows
    expected = (accuracy - 1 / classes) / (1 - 1 / classes)
    assert budgets.values[0] == pytest.approx(expected)


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    """With a constant baseline the bootstrap of a mean has the standard error of the mean."""
    random = np.random.default_rng(0)
    baseline = np.ones(400)
    losses = {"m": random.uniform(0, 1, 400)}
    low, high = estimate_budgets(losses, baseline, 0).intervals[0]
    error = losses["m"].std() / math.sqrt(400)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_modalities_share_the_rows_of_a_bootstrap() -> None:
    """A modality that is worse by a little on every row is not tied, however wide the intervals."""
    random = np.random.default_rng(1)
    loss = random.uniform(0, 1, 60)
    budgets = estimate_budgets({"a": loss, "b": loss + 0.01}, np.ones(60), 0)
    assert budgets.tied == ("a",)
    assert budgets.intervals[0][0] < budgets.values[1]


def test_a_copy_ties_and_noise_decides_no_rank() -> None:
    random = np.random.default_rng(2)
    loss, other = random.uniform(0, 1, (2, 60))
    assert estimate_budgets({"a": loss, "b": loss}, np.ones(60), 0).tied == ("a", "b")
    assert estimate_budgets({"a": loss, "b": other}, np.ones(60), 0).tied == ("a", "b")


def test_budgets_do_not_depend_on_the_order_of_modalities_and_repeat_by_key() -> None:
    losses, baseline = random_losses(5)
    one = estimate_budgets(losses, baseline, 7)
    other = estimate_budgets(dict(reversed(losses.items())), baseline, 7)
    assert one == estimate_budgets(losses, baseline, 7)
    assert one.intervals == other.intervals[::-1]
    assert one.values == pytest.approx(other.values[::-1], rel=1e-12)
    assert one.intervals != estimate_budgets(losses, baseline, 8).intervals


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_are_means_over_orders_of_arrival_and_sum_to_the_whole(count: int) -> None:
    names = tuple("abcd"[:count])
    random = np.random.default_rng(count)
    gains = {
        frozenset(chosen): random.normal(size=6)
        for size in range(1, count + 1)
        for chosen in combinations(names, size)
    }
    shares = subset_gains(names, gains)
    for m in names:
        expected = np.zeros(6)
        orders = list(permutations(names))
        for order in orders:
            before = frozenset(order[: order.index(m)])
            expected += (gains[before | {m}] - gains.get(before, np.zeros(6))) / len(orders)
        np.testing.assert_allclose(shares[m], expected, atol=1e-12)
    np.testing.assert_allclose(sum(shares.values()), gains[frozenset(names)], atol=1e-12)


def test_symbols_that_tell_only_together_share_what_they_tell() -> None:
    """Exclusive or: nothing alone, log 2 together; unimodal information would give both zero."""
    gains = {
        frozenset("a"): np.zeros(3),
        frozenset("b"): np.zeros(3),
        frozenset("ab"): np.full(3, math.log(2)),
    }
    for share in subset_gains(("a", "b"), gains).values():
        np.testing.assert_allclose(share, math.log(2) / 2)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_softmax_prior_is_that_of_the_formula(temperature: float) -> None:
    values = np.array([0.1, 0.9, 0.4])
    terms = [math.exp(b / temperature) for b in values]
    expected = [term / sum(terms) for term in terms]
    np.testing.assert_allclose(softmax_prior(values, temperature), expected, rtol=1e-12)


def test_priors_are_uniform_for_equal_budgets_and_finite_for_none() -> None:
    for values in (np.full(4, 0.3), np.zeros(4)):
        for prior in (softmax_prior(values, 0.01), power_prior(values, 2.0)):
            np.testing.assert_allclose(prior, 0.25)
    np.testing.assert_allclose(power_prior(np.array([0.499, 0.249]), 1.0), [2 / 3, 1 / 3])


def test_reversed_budgets_give_the_best_modality_the_worst_ones() -> None:
    losses, baseline = random_losses(3, count=4)
    losses["m2"] = losses["m2"] * 0.1  # clearly the best
    plain = estimate_budgets(losses, baseline, 0)
    turned = plain.reversed()
    assert sorted(turned.values) == sorted(plain.values)
    rank = np.argsort(np.argsort(plain.information))
    turned_rank = np.argsort(np.argsort(turned.information))
    assert np.array_equal(turned_rank, 3 - rank)
    (best,) = turned.tied
    assert turned.values[turned.modalities.index(best)] == max(turned.values)
    for i, takes in enumerate(turned.values):
        source = plain.values.index(takes)
        assert turned.intervals[i] == plain.intervals[source]
        assert turned.information[i] == plain.information[source]


def test_given_budgets_are_certain() -> None:
    budgets = Budgets.certain(("a", "b", "c"), [0.5, 0.2, 0.5], math.log(3))
    assert budgets.intervals == ((0.5, 0.5), (0.2, 0.2), (0.5, 0.5))
    assert budgets.tied == ("a", "c")
    assert not budgets.are_negligible
    assert Budgets.certain(("a",), [0.01], 1.0).are_negligible


def test_the_baseline_is_the_loss_of_the_class_frequencies_of_the_fitted_rows() -> None:
    """With add-one counts, as for `majority`; an imbalanced problem has less than log C to gain."""
    splits = make_splits(2, rows=60)
    splits.train.y = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    run = make_trainer(Method, 2, "sum", splits=splits).run
    estimator = BudgetEstimator(run, 5, 1, linear=True)
    estimator.estimate(run)
    for fold in estimator.folds:
        labels = splits.train.y[torch.as_tensor(fold.fit)].tolist()
        for row in fold.measure:
            label = int(splits.train.y[row])
            chance = (labels.count(label) + 1) / (len(labels) + 3)
            assert float(estimator.baseline[row]) == pytest.approx(-math.log(chance), abs=1e-6)
    assert bool(estimator.measured.all())
