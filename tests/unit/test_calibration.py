"""Temperatures in cases whose answer is known, and against a grid."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmbench.evaluate.calibration import COOLEST, HOTTEST, fit_temperature


def calibrated(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits and labels drawn from their very probabilities."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2, size=(rows, classes))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (chance.cumsum(axis=1) > random.random((rows, 1))).argmax(axis=1)
    return torch.from_numpy(logits), torch.from_numpy(labels)


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5, 6.0])
def test_the_factor_of_scaled_logits_is_recovered(factor: float) -> None:
    logits, y = calibrated(4000, 5)
    unscaled = fit_temperature(logits, y)
    assert unscaled == pytest.approx(1, abs=0.06)
    assert fit_temperature(factor * logits, y) == pytest.approx(factor * unscaled, rel=1e-3)


@pytest.mark.parametrize("right", [0.6, 0.75, 0.9])
def test_two_classes_of_one_margin_have_a_closed_form(right: float) -> None:
    """Logits +-m/2, a share q of them right: at the optimum exp(m / T) is q / (1 - q)."""
    rows, margin = 1000, 3.0
    y = torch.zeros(rows, dtype=torch.long)
    y[: round((1 - right) * rows)] = 1
    logits = torch.tensor([margin / 2, -margin / 2]).repeat(rows, 1)
    expected = margin / math.log(right / (1 - right))
    assert fit_temperature(logits, y) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_no_temperature_of_a_fine_grid_is_better(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(60, 3, generator=random)
    y = (logits + 4 * torch.randn(60, 3, generator=random)).argmax(dim=1)

    def loss(temperature: float) -> float:
        return float(functional.cross_entropy(logits.double() / temperature, y))

    grid = np.geomspace(COOLEST, HOTTEST, 400)
    assert loss(fit_temperature(logits, y)) <= min(map(loss, grid)) + 1e-6


def test_the_bounds_hold_where_the_optimum_is_at_infinity() -> None:
    y = torch.tensor([0, 1, 0, 1])
    right = torch.eye(2)[y]
    assert fit_temperature(right, y) == pytest.approx(COOLEST, rel=1e-3)
    assert fit_temperature(-5 * right, y) == pytest.approx(HOTTEST, rel=1e-3)
