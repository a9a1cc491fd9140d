"""The gate over modalities: safe where it cannot help, and useful where it can."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.nets.fusion import FUSIONS, Fusion
from mmbench.nets.gate import (
    Gate,
    HeldOut,
    fit_gate,
    summarise,
    weighted_logits,
)
from mmbench.seeds import torch_stream

CLASSES = 3


def made_gate(
    start: float = 1.0,
    *,
    prior: bool = True,
    uncertainty: bool = True,
    net: bool = True,
    temperature: bool = True,
) -> Gate:
    return Gate(start, prior, uncertainty, net, temperature, 2, 0)


def last_layer(gate: Gate) -> nn.Linear:
    layer = gate.net[2]
    assert isinstance(layer, nn.Linear)
    return layer


def identity_fusion(count: int) -> Fusion:
    """A sum fusion whose own heads hand their features on: feature vectors are logits."""
    fusion = FUSIONS["sum"]({f"m{k}": CLASSES for k in range(count)}, CLASSES, 0)
    with torch.no_grad():
        for name, parameter in fusion.named_parameters():
            parameter.copy_(torch.eye(CLASSES) if name.endswith("weight") else torch.zeros(CLASSES))
    return fusion


def held_out(logits: Tensor, y: Tensor, nearest: Tensor | None = None) -> HeldOut:
    """Return held-out rows with given logits of the modalities ``(N, M, C)``."""
    rows, count = logits.shape[:2]
    fusion = identity_fusion(count)
    kept = HeldOut(fusion, {f"m{k}": CLASSES for k in range(count)}, rows)
    near = torch.ones(rows, count) if nearest is None else nearest
    features = {f"m{k}": logits[:, k] for k in range(count)}
    kept.fill(fusion, features, summarise(logits, near), y)
    return kept


def independent_evidence(rows: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return Gaussian log-likelihoods of independent modalities: their plain sum is the best."""
    random = np.random.default_rng(seed)
    y = random.integers(CLASSES, size=rows)
    x = random.normal(size=(rows, count, CLASSES)) + 1.2 * np.eye(CLASSES)[y][:, None]
    return torch.as_tensor(1.2 * x, dtype=torch.float32), torch.as_tensor(y)


def planted_reliability(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return logits of two modalities each of which is wrong on its own random half of the rows,
    where its logits are flatter, but far from flat: entropy tells whom to believe."""
    random = np.random.default_rng(seed)
    y = random.integers(CLASSES, size=rows)
    reliable = random.random((rows, 2)) < 0.5
    shown = np.where(reliable, y[:, None], random.integers(CLASSES, size=(rows, 2)))
    height = np.where(reliable, 4.0, 2.5)
    logits = height[..., None] * np.eye(CLASSES)[shown]
    logits += 0.3 * random.normal(size=logits.shape)
    return torch.as_tensor(logits, dtype=torch.float32), torch.as_tensor(y)


def loss_of(gate: Gate, logits: Tensor, y: Tensor, log_prior: Tensor) -> float:
    with torch.no_grad():
        weights = gate(log_prior, summarise(logits, torch.ones(logits.shape[:2])))
        fused = (weights.unsqueeze(-1) * logits).sum(dim=1) / gate.temperature
        return float(functional.cross_entropy(fused, y))


def test_weights_are_those_of_the_equation() -> None:
    gate = made_gate()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        gate.prior_weight.fill_(0.7)
        gate.entropy_weight.fill_(1.3)
        last_layer(gate).weight.copy_(torch.randn(1, 32, generator=random))
    log_prior = torch.tensor([0.2, 0.5, 0.3]).log()
    summary = torch.rand(5, 3, 3, generator=random)
    weights = gate(log_prior, summary).detach()
    first, last = gate.net[0], last_layer(gate)
    assert isinstance(first, nn.Linear)
    for i in range(5):
        scores = []
        for m in range(3):
            hidden = (first.weight @ summary[i, m] + first.bias).clamp(min=0)
            learned = float((last.weight @ hidden + last.bias).detach())
            scores.append(0.7 * float(log_prior[m]) - 1.3 * float(summary[i, m, 0]) + learned)
        terms = [math.exp(s) for s in scores]
        for m in range(3):
            assert float(weights[i, m]) == pytest.approx(3 * terms[m] / sum(terms), rel=1e-5)


def test_at_the_start_weights_are_the_prior_times_the_number_of_modalities() -> None:
    prior = torch.tensor([0.1, 0.6, 0.3])
    summary = torch.rand(7, 3, 3, generator=torch.Generator().manual_seed(1))
    for start, expected in ((1.0, 3 * prior), (0.0, torch.ones(3))):
        weights = made_gate(start)(prior.log(), summary)
        torch.testing.assert_close(weights, expected.expand(7, 3))


def test_summary_of_known_distributions() -> None:
    flat = torch.zeros(4)
    half = torch.tensor([0.0, 0.0, -40.0, -40.0])
    sharp = torch.tensor([40.0, 0.0, 0.0, 0.0])
    logits = torch.stack([flat, half, sharp]).unsqueeze(0)
    nearest = torch.tensor([[0.25, 0.9, 1.0]])
    expected = [[1.0, 0.0, 0.75], [0.5, 0.0, 0.1], [0.0, 1.0, 0.0]]
    torch.testing.assert_close(summarise(logits, nearest)[0], torch.tensor(expected))


@pytest.mark.parametrize("seed", range(3))
def test_a_gate_that_cannot_help_stays_static(seed: int) -> None:
    logits, y = independent_evidence(600, 2, seed)
    log_prior = torch.tensor([0.5, 0.5]).log()
    gate = made_gate()
    gain = fit_gate(gate, [held_out(logits, y)], log_prior, 0.1, 100, seed)
    assert 0 <= gain < 0.01
    fresh, fresh_y = independent_evidence(4000, 2, 100 + seed)
    with torch.no_grad():
        weights = gate(log_prior, summarise(fresh, torch.ones(4000, 2)))
    assert float((weights - 1).abs().mean()) < 0.15
    optimum = loss_of(made_gate(), fresh, fresh_y, log_prior)
    assert loss_of(gate, fresh, fresh_y, log_prior) < optimum + 0.01


def test_modalities_that_always_agree_are_weighed_alike() -> None:
    """Every weighting of equal logits gives the same logits, so there is nothing to gain."""
    one, y = independent_evidence(300, 1, 0)
    logits = one.expand(300, 2, CLASSES).contiguous()
    log_prior = torch.tensor([0.5, 0.5]).log()
    gate = made_gate()
    # The pull grows with any change of the weights, and rounding decides no epoch beside it.
    gain = fit_gate(gate, [held_out(logits, y)], log_prior, 1.0, 100, 0)
    part = held_out(logits, y)
    with torch.no_grad():
        torch.testing.assert_close(gate(log_prior, part.summary), torch.ones(300, 2))
    assert gain < 1e-6


def test_random_improvement_is_not_kept_when_the_watched_rows_get_worse() -> None:
    """Rows fitted and rows watched that contradict each other: the start is kept, to the bit."""
    logits, y = planted_reliability(500, 6)
    log_prior = torch.tensor([0.5, 0.5]).log()
    order = torch.randperm(500, generator=torch_stream(9, "gate rows"))
    watched = order[:100]
    # On the watched rows the modalities trade places where they disagree: the flatter is right.
    y = y.clone()
    flatter = logits[watched].amax(dim=2).argmin(dim=1)
    y[watched] = logits[watched, flatter].argmax(dim=1)
    gate = made_gate()
    start = {name: value.clone() for name, value in gate.state_dict().items()}
    assert fit_gate(gate, [held_out(logits, y)], log_prior, 0.0, 100, 9) == 0
    for name, value in gate.state_dict().items():
        assert name == "temperature" or torch.equal(value, start[name]), name


@pytest.mark.parametrize("net", [True, False])
def test_planted_reliability_is_found(net: bool) -> None:
    logits, y = planted_reliability(1500, 0)
    log_prior = torch.tensor([0.5, 0.5]).log()
    gate = made_gate(net=net)
    gain = fit_gate(gate, [held_out(logits, y)], log_prior, 0.1, 100, 0)
    assert gain > 0.01
    fresh, fresh_y = planted_reliability(3000, 1)
    only_temperature = made_gate(uncertainty=False, prior=False)
    fit_gate(only_temperature, [held_out(logits, y)], log_prior, 0.1, 100, 0)
    gained = loss_of(only_temperature, fresh, fresh_y, log_prior) - loss_of(
        gate, fresh, fresh_y, log_prior
    )
    assert gained > 0.01
    # The certain modality gets more weight than the uncertain one.
    certain, doubtful = torch.tensor([4.0, 0, 0]), torch.tensor([2.5, 0, 0])
    pair = summarise(torch.stack([certain, doubtful]).unsqueeze(0), torch.ones(1, 2))
    weights = gate(log_prior, pair)[0].detach()
    assert float(weights[0]) > float(weights[1]) + 0.1
    if not net:
        assert float(gate.entropy_weight.detach()) > 0.1


def test_a_prior_that_is_wrong_loses_its_weight_and_the_weights_stay_non_negative() -> None:
    logits, y = independent_evidence(1500, 2, 0)
    log_prior = torch.tensor([0.9, 0.1]).log()  # equals: the uniform sum is the best
    gate = made_gate(uncertainty=True, net=False)
    fit_gate(gate, [held_out(logits, y)], log_prior, 0.0, 100, 0)
    assert 0 <= float(gate.prior_weight.detach()) < 0.9
    assert float(gate.entropy_weight.detach()) >= 0


def test_a_strong_pull_keeps_the_mean_weights_at_the_prior() -> None:
    logits, y = independent_evidence(1500, 2, 0)
    log_prior = torch.tensor([0.8, 0.2]).log()
    moved = []
    for pull in (0.0, 100.0):
        gate = made_gate()
        part = held_out(logits, y)
        fit_gate(gate, [part], log_prior, pull, 60, 0)
        with torch.no_grad():
            mean = gate(log_prior, part.summary).mean(dim=0) / 2
        moved.append(float((mean - log_prior.exp()).abs().max()))
    assert moved[1] < 0.02 < moved[0]


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_takes_out_a_common_factor(factor: float) -> None:
    logits, y = independent_evidence(20_000, 2, 4)
    log_prior = torch.tensor([0.5, 0.5]).log()
    gate = made_gate(prior=False, uncertainty=False)
    gain = fit_gate(gate, [held_out(factor * logits, y)], log_prior, 0.1, 10, 0)
    assert gain == 0
    assert float(gate.temperature) == pytest.approx(factor, rel=0.06)
    cold = made_gate(prior=False, uncertainty=False, temperature=False)
    fit_gate(cold, [held_out(factor * logits, y)], log_prior, 0.1, 10, 0)
    assert float(cold.temperature) == 1


def test_switched_off_parts_stay_at_their_start() -> None:
    logits, y = planted_reliability(400, 2)
    log_prior = torch.tensor([0.7, 0.3]).log()
    no_net = made_gate(net=False)
    fit_gate(no_net, [held_out(logits, y)], log_prior, 0.0, 30, 0)
    assert not last_layer(no_net).weight.any()
    no_prior = made_gate(0.0, prior=False)
    fit_gate(no_prior, [held_out(logits, y)], log_prior, 0.0, 30, 0)
    assert float(no_prior.prior_weight.detach()) == 0
    assert last_layer(no_prior).weight.any()


def test_folds_are_fitted_as_one_set_of_rows_with_their_own_fusions() -> None:
    """Rows divided into parts give the gate that the undivided rows give."""
    logits, y = planted_reliability(300, 3)
    log_prior = torch.tensor([0.6, 0.4]).log()
    whole, divided = made_gate(), made_gate()
    fit_gate(whole, [held_out(logits, y)], log_prior, 0.1, 5, 0)
    parts = [
        held_out(logits[rows], y[rows])
        for rows in (slice(0, 100), slice(100, 150), slice(150, 300))
    ]
    fit_gate(divided, parts, log_prior, 0.1, 5, 0)
    summary = held_out(logits, y).summary
    with torch.no_grad():
        one, other = whole(log_prior, summary), divided(log_prior, summary)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    static = made_gate()(log_prior, summary).detach()
    assert float((one - static).abs().max()) > 1e-2


def test_no_gradients_are_left_behind() -> None:
    logits, y = planted_reliability(100, 4)
    gate = made_gate()
    fit_gate(gate, [held_out(logits, y)], torch.tensor([0.5, 0.5]).log(), 0.1, 3, 0)
    assert all(p.grad is None for p in gate.parameters())


def test_the_fit_depends_on_its_key_alone() -> None:
    logits, y = planted_reliability(200, 5)
    log_prior = torch.tensor([0.5, 0.5]).log()
    states = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        gate = made_gate()
        fit_gate(gate, [held_out(logits, y)], log_prior, 0.1, 5, 0)
        states.append(gate.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("name", list(FUSIONS))
def test_weights_of_one_change_nothing_and_weights_of_zero_silence(name: str) -> None:
    widths = {"a": 4, "b": 5}
    fusion = FUSIONS[name](widths, CLASSES, 0)
    random = torch.Generator().manual_seed(0)
    features = {m: torch.randn(6, w, generator=random) for m, w in widths.items()}
    torch.testing.assert_close(
        weighted_logits(fusion, features, torch.ones(6, 2)), fusion(features)
    )
    weights = torch.tensor([[0.0, 1.0]]).expand(6, 2)
    if fusion.parts_are_exact:
        expected = fusion.parts(features)["b"]
    else:  # the features are gated, as they enter the fusion
        expected = fusion(features | {"a": torch.zeros(6, 4)})
    torch.testing.assert_close(weighted_logits(fusion, features, weights), expected)


def test_weights_act_row_by_row() -> None:
    widths = {"a": 4, "b": 4}
    random = torch.Generator().manual_seed(0)
    features = {m: torch.randn(6, 4, generator=random) for m in widths}
    weights = torch.rand(6, 2, generator=random)
    for name in ("concat", "film"):
        fusion = FUSIONS[name](widths, CLASSES, 0)
        together = weighted_logits(fusion, features, weights)
        for i in range(6):
            row = {m: h[i : i + 1] for m, h in features.items()}
            if fusion.parts_are_exact:
                parts = fusion.parts(row)
                alone = weights[i, 0] * parts["a"] + weights[i, 1] * parts["b"]
            else:
                alone = fusion({m: weights[i, k] * row[m] for k, m in enumerate(row)})
            torch.testing.assert_close(together[i : i + 1], alone)
