"""What methods share that scale gradients."""

import math

import pytest
import torch

from mmbench.methods.joint import Joint
from mmbench.testing.contract import make_trainer
from mmbench.train.modulation import (
    Scope,
    confidence_ratios,
    scale_gradients,
    scoped_parameters,
)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ratios_are_those_of_loops_over_samples_and_modalities(count: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = {
        f"m{k}": 2 * torch.randn(9, 4, generator=random, dtype=torch.float64) for k in range(count)
    }
    y = torch.randint(4, (9,), generator=random)
    score = {}
    for m, z in logits.items():
        score[m] = 0.0
        for i in range(9):
            terms = [math.exp(float(x)) for x in z[i]]
            score[m] += terms[int(y[i])] / sum(terms)
    for m, ratio in zip(logits, confidence_ratios(logits, y), strict=True):
        others = [s for other, s in score.items() if other != m]
        assert float(ratio) == pytest.approx(score[m] / (sum(others) / len(others)), rel=1e-12)


def test_two_ratios_are_each_others_inverse_and_equal_modalities_have_one() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 3, generator=random, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1])
    first, second = confidence_ratios({"a": a, "b": b}, y)
    assert float(first * second) == pytest.approx(1, rel=1e-12)
    for ratio in confidence_ratios({"a": a, "b": a, "c": a}, y):
        assert float(ratio) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("scope", "dimensions"), [("weights", {2}), ("all", {1, 2}), ("conv", set())]
)
def test_scopes_choose_by_the_number_of_dimensions(scope: Scope, dimensions: set[int]) -> None:
    run = make_trainer(Joint, 2, "concat").run
    run.net(run.train.batch(torch.arange(8), run.modalities)).logits.sum().backward()  # type: ignore[no-untyped-call]
    for m in run.modalities:
        chosen = scoped_parameters(run, m, scope)
        assert {p.dim() for p in chosen} == dimensions
        own = {id(p) for p in run.encoder_params(m)}
        assert all(id(p) in own for p in chosen)


def test_parameters_without_a_gradient_are_left_out() -> None:
    run = make_trainer(Joint, 2, "concat").run
    assert scoped_parameters(run, "view1", "all") == []
    scale_gradients([], torch.tensor(0.5))


def test_gradients_are_scaled_in_place() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    weight.grad = torch.arange(6.0).view(2, 3)
    kept = weight.grad
    scale_gradients([weight], torch.tensor(0.25))
    assert weight.grad is kept
    assert torch.equal(kept, torch.arange(6.0).view(2, 3) / 4)
