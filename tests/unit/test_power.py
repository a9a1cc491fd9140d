"""Seeds that a difference would need, against statsmodels and simulation."""

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from mmbench.report.power import MOST_SEEDS, fewest_pairs, seeds_needed, t_test_power
from mmbench.report.resampling import sign_flip_p, smallest_sign_flip_p


@pytest.mark.parametrize("comparisons", [1, 2, 8, 40, 200])
def test_the_fewest_pairs_can_reach_the_level_and_one_less_cannot(comparisons: int) -> None:
    n = fewest_pairs(comparisons)
    assert comparisons * smallest_sign_flip_p(n) < 0.05
    assert comparisons * smallest_sign_flip_p(n - 1) >= 0.05


def test_power_is_that_of_statsmodels() -> None:
    effects = np.array([0.0, 0.1, 0.4, 0.8, 1.5, 3.0, 10.0])
    for n in (2, 5, 20, 300):
        for level in (0.05, 0.05 / 8):
            expected = np.array([TTestPower().power(e, n, level) for e in effects])
            found = t_test_power(effects, np.full(len(effects), n), level)
            # statsmodels gives NaN for some of the largest effects.
            assert np.all(np.isfinite(expected[:3]))
            assert np.nanmax(np.abs(found - expected)) < 1e-6
            assert np.all(np.diff(found) >= -1e-9)


def test_small_effects_need_as_many_seeds_as_statsmodels_says() -> None:
    effects = np.array([0.15, 0.3, 0.5, 0.8])
    for comparisons in (1, 8):
        expected = [
            int(np.ceil(TTestPower().solve_power(e, power=0.8, alpha=0.05 / comparisons)))
            for e in effects
        ]
        assert seeds_needed(effects, comparisons) == expected


def test_the_largest_and_the_smallest_effects_have_an_answer() -> None:
    assert seeds_needed(np.array([np.inf, 50.0, 0.0, 1e-6]), 8) == [9, 9, None, None]
    (found,) = seeds_needed(np.array([0.0887]), 1)
    assert found is not None
    assert 990 < found <= MOST_SEEDS
    assert seeds_needed(np.array([]), 3) == []


@pytest.mark.parametrize("comparisons", [1, 8])
@pytest.mark.parametrize("effect", [0.8, 1.2, 1.6, 2.5])
def test_the_sign_flip_test_finds_such_an_effect_with_about_the_stated_power(
    comparisons: int, effect: float
) -> None:
    (n,) = seeds_needed(np.array([effect]), comparisons)
    assert n is not None
    x = np.random.default_rng(n).normal(effect, 1, (400, n))
    found = np.mean([sign_flip_p(row) < 0.05 / comparisons for row in x])
    assert found > 0.7
    if n > fewest_pairs(comparisons) + 1:
        assert found < 0.9
