"""MMPareto: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.mmpareto import MMPareto, multimodal_weight
from mmbench.methods.multiloss import MultiLoss
from mmbench.nets.network import Network
from mmbench.planning import check_support
from mmbench.testing.contract import make_splits
from tests.methods.double import (
    Case,
    Gradients,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import configured, trainer


def slow_losses(of: Case, network: Network, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the fused loss and that of each own head."""
    method: Any = of.method
    features = encode_in_double(network, batch.inputs)
    assert network.fusion is not None
    own = {}
    for m, h in features.items():
        head = method.heads[m]
        rows = [torch.stack([(w * x).sum() for w in head.weight]) + head.bias for x in h]
        own[m] = cross_entropy(torch.stack(rows), batch.y)
    return cross_entropy(network.fusion(features), batch.y), own


def product(a: Gradients, b: Gradients) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)


def length(a: Gradients) -> float:
    return math.sqrt(product(a, a))


def of_encoder(gradients: Gradients, m: str) -> Gradients:
    start = f"network.encoders.{m}."
    return {name: g for name, g in gradients.items() if name.startswith(start)}


def slow_min_norm(g: Gradients, u: Gradients) -> float:
    """Return the weight of ``g`` at the shortest point of the segment, by a golden-section search
    over the squared length, a parabola."""
    gg, gu, uu = product(g, g), product(g, u), product(u, u)
    low, high = 0.0, 1.0
    ratio = (math.sqrt(5) - 1) / 2

    def squared(a: float) -> float:
        return a * a * gg + 2 * a * (1 - a) * gu + (1 - a) * (1 - a) * uu

    def slope(a: float) -> float:
        return 2 * a * gg + 2 * (1 - 2 * a) * gu - 2 * (1 - a) * uu

    for _ in range(20):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if squared(left) < squared(right) else (left, high)
    for _ in range(60):  # the length is too flat near its minimum for more digits: its slope is not
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (low + high) / 2


def slow_gradients(
    of: Case, batch: Batch, gamma: float, rescale: str
) -> tuple[Gradients, list[bool]]:
    """Return the gradients of a step, and which encoders have a conflict."""
    network = of.network()
    parameters = named_parameters(network, of.method)
    fused, own = slow_losses(of, network, batch)
    total = fused
    for loss in own.values():
        total = total + loss
    result = gradients_of(total, parameters)
    conflicts = []
    for m, loss in own.items():
        g = of_encoder(gradients_of(fused, parameters), m)
        u = of_encoder(gradients_of(loss, parameters), m)
        conflicts.append(product(g, u) <= 0)
        a = slow_min_norm(g, u) if conflicts[-1] else 0.5
        n = {name: 2 * a * g[name] + 2 * (1 - a) * u[name] for name in g}
        plain = {name: g[name] + u[name] for name in g}
        for name in g:
            if rescale == "tensor":
                ratio = length({name: plain[name]}) / length({name: n[name]})
            else:
                ratio = length(plain) / length(n)
            result[name] = gamma * max(ratio, 1.0) * n[name]
    return result, conflicts


def turned(of: Case, seed: int) -> Case:
    """Turn the own heads of every second encoder against the fused classifier and the others along
    with it, so that there are conflicts as well as agreements."""
    method: Any = of.method
    fusion: Any = of.run.network.fusion
    with torch.no_grad():
        for i, m in enumerate(of.run.modalities):
            columns = fusion.head.weight[:, 128 * i : 128 * (i + 1)]
            method.heads[m].weight.copy_((-2 if (i + seed) % 2 == 0 else 1) * columns)
    return of


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rescale", ["encoder", "tensor"])
@pytest.mark.parametrize(("seed", "gamma"), [(0, 1.5), (1, 1.0), (2, 2.0)])
def test_gradients_are_those_of_the_equations(
    count: int, rescale: str, seed: int, gamma: float
) -> None:
    of = turned(case(MMPareto, count, seed, gamma=gamma, rescale=rescale), seed)
    seen: set[bool] = set()
    for _ in range(2):
        batch = of.batch()
        expected, conflicts = slow_gradients(of, batch, gamma, rescale)
        got = of.step(batch)
        assert_close(got, expected)
        of.descend(got, rate=0.01)
        seen.update(conflicts)
    assert seen == {True, False}


@pytest.mark.parametrize("fusion", ["film", "attention", "sum"])
def test_gradients_are_those_of_the_equations_with_other_fusions(fusion: str) -> None:
    of = case(MMPareto, 2, 7, fusion)
    batch = of.batch()
    expected, _ = slow_gradients(of, batch, 1.5, "encoder")
    assert_close(of.step(batch), expected)


@pytest.mark.parametrize("seed", range(4))
def test_without_conflict_and_enlargement_it_is_multiloss(seed: int) -> None:
    of, plain = case(MMPareto, 2, seed, gamma=1.0), case(MultiLoss, 2, seed)
    method: Any = of.method
    other: Any = plain.method
    for one in (of, plain):
        fusion: Any = one.run.network.fusion
        heads: Any = one.method.heads
        with torch.no_grad():
            for i, m in enumerate(one.run.modalities):
                heads[m].weight.copy_(fusion.head.weight[:, 128 * i : 128 * (i + 1)])
    assert method.heads.state_dict().keys() == other.heads.state_dict().keys()
    batch = of.batch()
    _, conflicts = slow_gradients(of, batch, 1.0, "encoder")
    assert not any(conflicts)
    assert_close(of.step(batch), plain.step(batch))


@pytest.mark.parametrize("seed", range(4))
def test_what_reaches_an_encoder_opposes_neither_loss_and_is_no_shorter_than_their_sum(
    seed: int,
) -> None:
    of = turned(case(MMPareto, 3, seed, gamma=1.0), seed)
    batch = of.batch()
    network = of.network()
    parameters = named_parameters(network, of.method)
    fused, own = slow_losses(of, network, batch)
    got = of.step(batch)
    for m, loss in own.items():
        g = of_encoder(gradients_of(fused, parameters), m)
        u = of_encoder(gradients_of(loss, parameters), m)
        step = of_encoder(got, m)
        assert product(step, g) >= -1e-9 * length(step) * length(g)
        assert product(step, u) >= -1e-9 * length(step) * length(u)
        plain = {name: g[name] + u[name] for name in g}
        assert length(step) >= length(plain) * (1 - 1e-9)


def test_hand_made_gradients() -> None:
    method = configured(MMPareto, {"gamma": 1.5})
    assert isinstance(method, MMPareto)

    def integrated(g: list[float], u: list[float]) -> list[float]:
        a, b = torch.tensor(g), torch.tensor(u)
        (result,) = method.integrate([a], [b], multimodal_weight(a @ a, b @ b, a @ b))
        found: list[float] = result.tolist()
        return found

    # Aligned: gamma (G + U).
    assert integrated([1.0, 0.0], [1.0, 2.0]) == pytest.approx([3.0, 3.0])
    # At a right angle and of equal length: halfway.
    assert integrated([1.0, 0.0], [0.0, 1.0]) == pytest.approx([1.5, 1.5])
    # (2, 1) against (-1, 1): a = (2 + 1) / (5 + 2 + 2) = 1/3, the point (0, 1) of the segment,
    # n = (0, 2), and |G + U| = sqrt(5) is longer.
    assert integrated([2.0, 1.0], [-1.0, 1.0]) == pytest.approx([0.0, 1.5 * 5**0.5], abs=1e-5)
    # Opposite, the one three times the other: they cancel, and nothing is to be gained.
    assert all(map(math.isfinite, integrated([3.0, 0.0], [-1.0, 0.0])))
    assert integrated([0.0, 0.0], [0.0, 0.0]) == [0.0, 0.0]
    assert integrated([1.0, 0.0], [-1.0, 0.0]) == [0.0, 0.0]


numbers = st.floats(-10, 10, allow_subnormal=False).filter(lambda x: abs(x) > 1e-3)


@settings(max_examples=100, deadline=None)
@given(st.lists(numbers, min_size=3, max_size=3), st.lists(numbers, min_size=3, max_size=3))
def test_the_weight_is_a_share_and_its_direction_opposes_neither_gradient(
    g: list[float], u: list[float]
) -> None:
    a, b = torch.tensor(g, dtype=torch.float64), torch.tensor(u, dtype=torch.float64)
    weight = multimodal_weight(a @ a, b @ b, a @ b)
    assert 0 < float(weight) < 1
    n = weight * a + (1 - weight) * b
    slack = 1e-9 * float(a.norm() + b.norm()) ** 2
    assert float(n @ a) >= -slack
    assert float(n @ b) >= -slack


def test_an_encoder_that_a_loss_does_not_reach_follows_the_other() -> None:
    """With zero own heads, U is zero: the min-norm point is at the end of U, and the enlargement
    gives G back."""
    of = case(MMPareto, 2, 0, gamma=1.0)
    method: Any = of.method
    with torch.no_grad():
        for p in method.heads.parameters():
            p.zero_()
    batch = of.batch()
    network = of.network()
    fused, _ = slow_losses(of, network, batch)
    expected = gradients_of(fused, named_parameters(network, of.method))
    got = of.step(batch)
    for m in of.run.modalities:
        assert_close(of_encoder(got, m), of_encoder(expected, m))


def test_a_step_costs_one_forward_and_two_backwards_for_any_number_of_modalities() -> None:
    for count in (2, 3):
        fitted = trainer(configured(MMPareto), make_splits(count), epochs=1).fit()
        counts = fitted.run.counts
        assert (counts.forwards, counts.backwards, counts.updates) == (4, 8, 4)
        for m in fitted.run.modalities:
            assert 0 <= float(fitted.history[0][f"conflict.{m}"]) <= 1


@pytest.mark.parametrize(("option", "value"), [("gamma", 0), ("rescale", "layer"), ("gamma", "x")])
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of mmpareto"):
        configured(MMPareto, {option: value})


def test_a_single_modality_is_refused_before_training() -> None:
    with pytest.raises(RequestError, match="'mmpareto' needs at least 2 modalities"):
        check_support(MMPareto, "concat", 1)


def test_an_optimiser_that_undoes_the_enlargement_is_noted() -> None:
    for optimizer, noted in (("adamw", True), ("sgd", False)):
        made = trainer(configured(MMPareto), make_splits(2), optimizer=optimizer)
        made.method.setup(made.run)
        assert any("gamma" in note for note in made.run.notes) == noted
