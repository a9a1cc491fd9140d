"""Optimisers and schedules against their published update rules, written out."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from mmbench.config import Recipe
from mmbench.errors import RequestError
from mmbench.options import validated
from mmbench.train.optim import build_optimizer, build_schedule


def recipe(**settings: Any) -> Recipe:
    return validated(Recipe, settings, "the recipe")


def trajectory(settings: Recipe, gradients: list[float], start: float = 1.0) -> list[float]:
    weight = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = build_optimizer([{"params": [weight]}], settings)
    values = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        values.append(float(weight.detach()))
    return values


GRADIENTS = [0.5, -0.2, 0.9, 0.1]


@pytest.mark.parametrize("momentum", [None, 0.0, 0.5])
def test_sgd_is_heavy_ball_with_l2_decay_and_a_momentum_of_nine_tenths(
    momentum: float | None,
) -> None:
    settings = recipe(optimizer="sgd", lr=0.1, momentum=momentum, weight_decay=0.01)
    kept = 0.9 if momentum is None else momentum
    weight, velocity, expected = 1.0, 0.0, []
    for gradient in GRADIENTS:
        velocity = kept * velocity + gradient + 0.01 * weight
        weight -= 0.1 * velocity
        expected.append(weight)
    assert trajectory(settings, GRADIENTS) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_and_adamw_differ_in_where_the_decay_goes(name: str) -> None:
    settings = recipe(optimizer=name, lr=0.1, weight_decay=0.05)
    weight, first, second, expected = 1.0, 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS, start=1):
        gradient = g
        if name == "adam":
            gradient += 0.05 * weight
        else:
            weight -= 0.1 * 0.05 * weight
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9**t) / (math.sqrt(second / (1 - 0.999**t)) + 1e-8)
        weight -= 0.1 * unbiased
        expected.append(weight)
    assert trajectory(settings, GRADIENTS) == pytest.approx(expected, rel=1e-9)


def test_parameters_without_gradients_are_left_alone() -> None:
    """Weight decay too: frozen and unused parts of a method keep their bits."""
    for name in ("sgd", "adam", "adamw"):
        used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        settings = recipe(optimizer=name, weight_decay=0.5)
        optimizer = build_optimizer([{"params": [used, unused]}], settings)
        used.grad = torch.ones(1)
        optimizer.step()
        assert float(unused.detach()) == 1
        assert float(used.detach()) != 1


def rates(epochs: int, **settings: Any) -> list[float]:
    chosen = recipe(lr=0.1, epochs=epochs, **settings)
    optimizer = build_optimizer([{"params": [nn.Parameter(torch.ones(1))]}], chosen)
    schedule = build_schedule(optimizer, chosen, epochs)
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_schedules_follow_their_formulas() -> None:
    assert rates(5, schedule="constant") == [0.1] * 5
    cosine = [0.05 * (1 + math.cos(math.pi * e / 8)) for e in range(8)]
    assert rates(8, schedule="cosine") == pytest.approx(cosine)
    steps = [0.1 * 0.5 ** (e // 3) for e in range(8)]
    assert rates(8, schedule="step", step_epochs=3, step_factor=0.5) == pytest.approx(steps)
    customary = [0.1 * 0.1 ** (e // 70) for e in range(75)]
    assert rates(75, schedule="step") == pytest.approx(customary)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": "adam", "momentum": 0.9}, "momentum is not used by optimizer=adam"),
        ({"schedule": "cosine", "step_epochs": 3}, "step_epochs is not used by schedule=cosine"),
        ({"lr": 0.0}, "lr"),
        ({"optimizer": "lamb"}, "optimizer"),
        ({"train_on": "train+val"}, "select=last"),
    ],
)
def test_settings_that_are_not_used_or_out_of_range_are_refused(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        recipe(**settings)
    assert "\n" not in str(caught.value)
