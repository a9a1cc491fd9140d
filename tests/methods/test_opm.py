"""OPM: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.evaluate.readout import read_out
from mmbench.methods.joint import Joint
from mmbench.methods.opm import OPM, dropped, mean_rate
from mmbench.nets.network import Network
from mmbench.testing.contract import CLASSES, make_splits
from tests.methods.double import (
    Case,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import configured, trainer


def method_of(of: Case) -> OPM:
    assert isinstance(of.method, OPM)
    return of.method


def next_draws(of: Case, size: int) -> tuple[float, list[list[float]]]:
    """Return the random numbers that the next step will draw."""
    state = of.run.rng.get_state()
    chance, each = method_of(of).draws(of.run, size)
    of.run.rng.set_state(state)
    return float(chance), each.tolist()


def slow_part(fusion: Any, name: str, features: dict[str, Tensor], m: str) -> Tensor:
    """Return a modality's part of one sample's logits ``(C,)``."""
    names, h = list(features), features[m]
    if name == "concat":
        begin = sum(len(features[other]) for other in names[: names.index(m)])
        weight = fusion.head.weight[:, begin : begin + len(h)]
        part: Tensor = weight @ h + fusion.head.bias / len(names)
    elif name == "sum":
        part = fusion.heads[m].weight @ h + fusion.heads[m].bias
    elif name == "attention":
        similar = {k: fusion.query @ fusion.keys[k](v) for k, v in features.items()}
        scale = fusion.query.shape[0] ** 0.5
        total = torch.stack([torch.exp(x / scale) for x in similar.values()]).sum()
        value = torch.exp(similar[m] / scale) / total * fusion.values[m](h)
        part = fusion.head.weight @ value + fusion.head.bias / len(names)
    else:
        alone = {k: (v if k == m else torch.zeros_like(v)) for k, v in features.items()}
        part = fusion({k: v.unsqueeze(0) for k, v in alone.items()})[0]
    return part


def slow_rates(of: Case, fusion: Any, features: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    """Return ``q_m``, sample by sample."""
    options, names = of.method.config, list(features)
    scores = {m: torch.zeros((), dtype=torch.float64) for m in names}
    for i, label in enumerate(y.tolist()):
        sample = {m: h[i] for m, h in features.items()}
        for m in names:
            terms = torch.exp(slow_part(fusion, of.run.network.spec.fusion, sample, m))
            scores[m] = scores[m] + terms[label] / terms.sum()
    rates = {}
    for m in names:
        others = [scores[other] for other in names if other != m]
        ratio = scores[m] / (torch.stack(others).sum() / len(others))
        if float(ratio.detach()) > 1:
            rate = options.base_rate * (1 + options.strength * torch.tanh(ratio - 1))
            rates[m] = rate if float(rate.detach()) < 1 else torch.ones((), dtype=torch.float64)
        else:
            rates[m] = torch.zeros((), dtype=torch.float64)
    return rates


def slow_loss(of: Case, network: Network, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Return the loss and the rates; the released term is ``theta^2 / 2`` of a fusion whose
    weights are constants."""
    options, names = of.method.config, list(of.run.modalities)
    chance, each = next_draws(of, len(batch))
    features = encode_in_double(network, batch.inputs)
    assert network.fusion is not None
    if chance >= options.batch_share:
        return cross_entropy(network.fusion(features), batch.y), {}
    constant = copy.deepcopy(network.fusion).requires_grad_(False)
    rates = slow_rates(of, constant, features, batch.y)
    width = sum(h.shape[1] for h in features.values())
    theta = torch.zeros((), dtype=torch.float64)
    for m, h in features.items():
        theta = theta + h.shape[1] * rates[m] / width
    numbers = {m: float(rate.detach()) for m, rate in rates.items()}
    kept = {m: torch.zeros_like(h) for m, h in features.items()}
    for i in range(len(batch)):
        for k, m in enumerate(names):
            if each[i][k] >= numbers[m]:
                kept[m][i] = features[m][i] / (1 - theta.detach())
    loss = cross_entropy(network.fusion(kept), batch.y)
    if options.variant == "released":
        loss = loss + theta**2 / 2
    return loss, numbers


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "options"),
    [
        (0, "concat", {}),
        (1, "sum", {"base_rate": 0.3, "strength": 1.0}),
        (2, "film", {"base_rate": 0.9, "strength": 3.0}),
        (3, "attention", {"base_rate": 0.7}),
        (4, "concat", {"base_rate": 1.0}),
        (5, "concat", {"variant": "released", "strength": 2.0, "base_rate": 0.3}),
        (6, "sum", {"variant": "released"}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, fusion: str, options: dict[str, Any]
) -> None:
    of = case(OPM, count, seed, fusion, batch_share=1.0, **options)
    batch = of.batch()
    network = of.network()
    loss, rates = slow_loss(of, network, batch)
    expected = gradients_of(loss, named_parameters(network, of.method))
    assert_close(of.step(batch), expected)
    assert min(rates.values()) == 0 < max(rates.values())


def test_it_acts_on_a_share_of_the_batches() -> None:
    of = case(OPM, 2, 3, batch_share=0.5)
    acted = []
    for _ in range(12):
        batch, network = of.batch(4), of.network()
        loss, rates = slow_loss(of, network, batch)
        expected = gradients_of(loss, named_parameters(network, of.method))
        assert_close(of.step(batch), expected)
        acted.append(bool(rates))
    assert 0 < sum(acted) < 12
    chances = torch.stack([method_of(of).draws(of.run, 1)[0] for _ in range(2000)])
    assert float((chances < 0.7).float().mean()) == pytest.approx(0.7, abs=0.05)


def test_the_released_term_changes_encoders_but_not_the_fusion() -> None:
    steps = []
    for variant in ("corrected", "released"):
        of = case(OPM, 2, 5, variant=variant, batch_share=1.0)
        steps.append(of.step(of.batch()))
    for name, gradient in steps[0].items():
        same = torch.allclose(gradient, steps[1][name], rtol=1e-9, atol=1e-15)
        assert same == name.startswith("network.fusion."), name


def rates_for(scores: list[float], **options: Any) -> list[float]:
    """Return the rates of modalities that give the true class these probabilities."""
    method = configured(OPM, options)
    assert isinstance(method, OPM)
    y = torch.zeros(8, dtype=torch.int64)
    parts = {}
    for i, score in enumerate(scores):
        row = torch.log(torch.tensor([score, (1 - score) / 2, (1 - score) / 2]))
        parts[f"m{i}"] = row.expand(8, CLASSES)
    return [float(rate) for rate in method.rates(parts, y)]


def test_only_modalities_ahead_of_the_mean_of_the_others_are_dropped() -> None:
    assert [rate > 0 for rate in rates_for([0.8, 0.4])] == [True, False]
    assert [rate > 0 for rate in rates_for([0.3, 0.4])] == [False, True]
    assert [rate > 0 for rate in rates_for([0.8, 0.5, 0.2])] == [True, False, False]
    assert [rate > 0 for rate in rates_for([0.8, 0.2, 0.7])] == [True, False, True]


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("score", [0.1, 1 / 3, 0.7])
def test_equal_scores_drop_nothing(count: int, score: float) -> None:
    assert rates_for([score] * count) == [0.0] * count


def test_a_modality_without_any_probability_leaves_the_rates_finite() -> None:
    assert rates_for([1.0, 0.0]) == pytest.approx([0.75, 0.0])
    assert rates_for([0.0, 0.0]) == [0.0, 0.0]


def test_the_expectation_is_preserved_when_theta_is_the_rate() -> None:
    features = {"only": torch.ones(20_000, 1, dtype=torch.float64)}
    rates = torch.tensor([0.6], dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    got = dropped(features, rates, torch.rand(20_000, 1, generator=random))["only"]
    assert set(got.flatten().round(decimals=9).tolist()) == {0.0, 2.5}
    # A standard deviation of one draw is sqrt(0.6 / 0.4).
    assert float(got.mean()) == pytest.approx(1.0, abs=5 * (0.6 / 0.4 / 20_000) ** 0.5)


def test_theta_is_weighted_by_widths() -> None:
    features = {"a": torch.zeros(2, 30), "b": torch.zeros(2, 10)}
    assert float(mean_rate(features, torch.tensor([0.4, 0.0]))) == pytest.approx(0.3)
    assert float(mean_rate(features, torch.tensor([0.0, 0.4]))) == pytest.approx(0.1)


def test_every_sample_keeps_a_modality_even_at_the_highest_rate() -> None:
    for scores in ([0.9, 0.1], [0.9, 0.8, 0.1], [0.5, 0.5, 0.4]):
        rates = torch.tensor(rates_for(scores, base_rate=1.0))
        features = {f"m{i}": torch.ones(50, 2) for i in range(len(scores))}
        kept = dropped(features, rates, torch.rand(50, len(scores)))
        assert all(h.isfinite().all() for h in kept.values())
        assert torch.stack([*kept.values()]).sum(dim=(0, 2)).min() > 0


def test_a_modality_without_any_probability_has_a_finite_released_gradient() -> None:
    method = configured(OPM, {"variant": "released"})
    assert isinstance(method, OPM)
    certain = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True)
    wrong = torch.tensor([[-500.0, 0.0, 0.0]], requires_grad=True)
    rates = method.rates({"a": certain, "b": wrong}, torch.tensor([0]))
    slopes = torch.autograd.grad(rates.sum(), [certain, wrong])
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize(
    ("epochs", "epoch", "options", "acts"),
    [
        (100, 5, {}, False),
        (100, 6, {}, True),
        (10, 0, {}, True),
        (10, 3, {"warmup_epochs": 4}, False),
        (10, 4, {"warmup_epochs": 4}, True),
    ],
)
def test_during_the_warm_up_it_is_joint_training(
    epochs: int, epoch: int, options: dict[str, Any], acts: bool
) -> None:
    of = case(OPM, 2, 1, epochs=epochs, epoch=epoch, batch_share=1.0, **options)
    plain = case(Joint, 2, 1)
    batch = of.batch()
    got, expected = of.step(batch), plain.step(batch)
    assert all(torch.equal(got[name], expected[name]) for name in expected) != acts


def test_nothing_is_dropped_at_inference() -> None:
    splits = make_splits(2)
    fitted = trainer(configured(OPM, {"base_rate": 1.0}), splits, fusion="concat").fit()
    read = read_out(fitted.run, fitted.method, splits.test)
    torch.testing.assert_close(read.logits, torch.stack([*read.parts.values()]).sum(dim=0))
    again = read_out(fitted.run, fitted.method, splits.test)
    assert torch.equal(read.logits, again.logits)


def test_cost_is_one_pass_forward_and_one_backward_a_step() -> None:
    counts = trainer(configured(OPM), make_splits(3)).fit().run.counts
    assert counts.forwards == counts.backwards == counts.updates == 2 * 4  # 60 rows in fours of 16


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("base_rate", 1.5),
        ("strength", -1),
        ("batch_share", 0),
        ("warmup_epochs", -1),
        ("variant", "code"),
    ],
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of opm"):
        configured(OPM, {option: value})
