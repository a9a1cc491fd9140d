"""ARL: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.arl import ARL
from mmbench.methods.joint import Joint
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


def slow_alone(network: Network, batch: Batch, absent: str) -> dict[str, Tensor]:
    """Return ``u_m`` by passes of the whole fusion, and for concat from its block of the weight."""
    features = encode_in_double(network, batch.inputs)
    fusion: Any = network.fusion
    own, start = {}, 0
    for m, h in features.items():
        if network.spec.fusion == "concat":
            block = fusion.head.weight[:, start : start + h.shape[1]]
            rows = [torch.stack([(w * x).sum() for w in block]) + fusion.head.bias for x in h]
            own[m] = torch.stack(rows)
            start += h.shape[1]
        else:
            own[m] = fusion(
                {
                    other: h if other == m or absent == "same" else 0 * features[other].detach()
                    for other in features
                }
            )
    return own


def slow_certainties(own: dict[str, Tensor]) -> dict[str, float]:
    entropies = {}
    for m, u in own.items():
        total = 0.0
        for row in u.tolist():
            whole = sum(math.exp(z) for z in row)
            total -= sum(math.exp(z) / whole * math.log(math.exp(z) / whole) for z in row)
        entropies[m] = total / len(u)
    floor = 0.6 / len(own)
    inverse = {m: 1 / max(e / sum(entropies.values()), floor) for m, e in entropies.items()}
    return {m: i / sum(inverse.values()) for m, i in inverse.items()}


def slow_dependences(own: dict[str, Tensor]) -> dict[str, float]:
    sizes = {m: sum(abs(z) for row in u.tolist() for z in row) / len(u) for m, u in own.items()}
    return {m: size / sum(sizes.values()) for m, size in sizes.items()}


def slow_weights(own: dict[str, Tensor], temperature: float) -> dict[str, float]:
    w, d = slow_certainties(own), slow_dependences(own)
    if len(own) == 2:  # as released
        a, b = own
        powers = {a: math.exp(temperature * w[a] * d[b]), b: math.exp(temperature * w[b] * d[a])}
        return {m: power / sum(powers.values()) for m, power in powers.items()}
    powers = {m: math.exp(temperature * (w[m] - d[m]) / 2) for m in own}
    return {m: len(own) / 2 * power / sum(powers.values()) for m, power in powers.items()}


def slow_gradients(
    of: Case, batch: Batch, gamma: float, temperature: float | None, absent: str = "zero"
) -> Gradients:
    """Return the gradients of a step; without a temperature k is one half."""
    network = of.network()
    assert network.fusion is not None
    total = cross_entropy(network.fusion(encode_in_double(network, batch.inputs)), batch.y)
    own = slow_alone(network, batch, absent)
    for u in own.values():
        total = total + gamma * cross_entropy(u, batch.y)
    found = gradients_of(total, named_parameters(network, of.method))
    weights = dict.fromkeys(own, 0.5) if temperature is None else slow_weights(own, temperature)
    for m, weight in weights.items():
        for name in found:
            if name.startswith(f"network.encoders.{m}."):
                found[name] = (1 + weight) * found[name]
    return found


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "gamma", "temperature", "absent"),
    [
        (0, "concat", 4.0, 8.0, "zero"),
        (1, "concat", 0.5, 40.0, "zero"),
        (2, "sum", 3.0, 4.0, "zero"),
        (3, "late", 1.0, 8.0, "zero"),
        (4, "attention", 4.0, 8.0, "zero"),
        (5, "film", 2.0, 8.0, "same"),
        (6, "gated", 2.0, 8.0, "same"),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, fusion: str, gamma: float, temperature: float, absent: str
) -> None:
    of = case(ARL, count, seed, fusion, epoch=3, gamma=gamma, temperature=temperature)
    for _ in range(2):
        batch = of.batch()
        expected = slow_gradients(of, batch, gamma, temperature, absent)
        got = of.step(batch)
        assert_close(got, expected)
        of.descend(got, rate=0.01)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_released_every_encoder_has_half_as_much_again(count: int, seed: int) -> None:
    of = case(ARL, count, seed, variant="released", gamma=3.0)
    batch = of.batch()
    assert_close(of.step(batch), slow_gradients(of, batch, 3.0, None))


def test_a_temperature_of_zero_is_the_released_method() -> None:
    of, released = case(ARL, 3, 1, temperature=0.0), case(ARL, 3, 1, variant="released")
    batch = of.batch()
    assert_close(of.step(batch), released.step(batch))


@pytest.mark.parametrize("count", [2, 3])
def test_in_the_warm_up_no_gradient_is_scaled_and_gamma_is_one(count: int) -> None:
    for epochs, epoch, given, is_warm in (
        (100, 5, None, False),
        (100, 6, None, True),
        (10, 0, None, True),
        (10, 1, 2, False),
        (10, 2, 2, True),
    ):
        of = case(
            ARL, count, 2, epochs=epochs, epoch=epoch, warmup_epochs=given, variant="released"
        )
        batch = of.batch()
        expected = slow_gradients(of, batch, 4.0 if is_warm else 1.0, None)
        if not is_warm:
            for name in expected:
                if name.startswith("network.encoders."):
                    expected[name] = expected[name] / 1.5
        assert_close(of.step(batch), expected)


def test_without_unimodal_losses_it_is_joint_training_with_faster_encoders() -> None:
    of, plain = case(ARL, 2, 3, gamma=0.0, variant="released"), case(Joint, 2, 3)
    batch = of.batch()
    expected = plain.step(batch)
    for name in expected:
        if name.startswith("network.encoders."):
            expected[name] = 1.5 * expected[name]
    assert_close(of.step(batch), expected)


def weights_of(*logits: Tensor, **options: Any) -> list[float]:
    of = case(ARL, len(logits), 0, **options)
    method = of.method
    assert isinstance(method, ARL)
    found: list[float] = method.weights(torch.stack(logits)).tolist()
    return found


LEANING = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, -2.0]], dtype=torch.float64)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_equal_modalities_are_weighted_equally_with_a_mean_of_one_half(count: int) -> None:
    found = weights_of(*[LEANING.roll(i, dims=1) for i in range(count)])
    assert found == pytest.approx([0.5] * count)


@pytest.mark.parametrize("count", [2, 3])
def test_of_two_that_are_as_certain_the_one_depended_on_less_learns_more(count: int) -> None:
    """A constant added to all logits of a row changes their size and not their certainty."""
    first, *rest = weights_of(*[LEANING + 10 * i for i in range(count)])
    assert first > 0.5 > rest[-1]
    assert sum([first, *rest]) == pytest.approx(count / 2)


def test_of_two_depended_on_alike_the_more_certain_learns_more() -> None:
    sure = torch.tensor([[2.0, -1.0, -1.0]], dtype=torch.float64)
    unsure = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64)
    first, second = weights_of(sure, unsure)
    assert first > 0.5 > second


def test_no_certainty_outweighs_another_by_more_than_the_floor_allows() -> None:
    """Shares of entropy are at least 0.3 of 1 for two modalities: 1/0.3 against 1/1."""
    sure = torch.tensor([[60.0, -30.0, -30.0]], dtype=torch.float64)
    unsure = torch.tensor([[40.0, 40.0, 40.0]], dtype=torch.float64)
    most = 1 / 0.3 / (1 / 0.3 + 1)
    expected = 1 / (1 + math.exp(-8 * (most - 0.5)))
    assert weights_of(sure, unsure)[0] == pytest.approx(expected)


def test_logits_of_zero_give_finite_weights() -> None:
    zero = torch.zeros(4, 3, dtype=torch.float64)
    assert weights_of(zero, zero) == pytest.approx([0.5, 0.5])
    sure = torch.tensor([[500.0, -500.0, -500.0]], dtype=torch.float64)
    assert weights_of(sure, sure) == pytest.approx([0.5, 0.5])


def test_a_step_costs_one_forward_and_one_backward_for_any_number_of_modalities() -> None:
    for count in (2, 3):
        fitted = trainer(configured(ARL), make_splits(count), epochs=1).fit()
        counts = fitted.run.counts
        assert (counts.forwards, counts.backwards, counts.updates) == (4, 4, 4)
        factors = [float(fitted.history[0][f"coefficient.{m}"]) for m in fitted.run.modalities]
        assert sum(factors) == pytest.approx(1.5 * count, rel=1e-5)


def test_features_of_unequal_width_cannot_take_each_others_place() -> None:
    made = trainer(configured(ARL), make_splits(2), fusion="gated")
    made.run.network.widths["view2"] = 64
    with pytest.raises(RequestError, match=r"arl with fusion 'gated' .* -o absent=zero"):
        made.method.setup(made.run)


@pytest.mark.parametrize(
    ("option", "value"),
    [("gamma", -1), ("temperature", -1), ("warmup_epochs", -1), ("variant", "code"), ("absent", 0)],
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of arl"):
        configured(ARL, {option: value})


def test_an_option_that_nothing_reads_is_refused() -> None:
    with pytest.raises(RequestError, match="temperature is not used by variant=released"):
        configured(ARL, {"variant": "released", "temperature": 4.0})


def test_a_single_modality_is_refused_before_training() -> None:
    with pytest.raises(RequestError, match="'arl' needs at least 2 modalities"):
        check_support(ARL, "concat", 1)


def test_an_optimiser_that_undoes_the_scaling_is_noted() -> None:
    for optimizer, noted in (("adamw", True), ("sgd", False)):
        made = trainer(configured(ARL), make_splits(2), optimizer=optimizer)
        made.method.setup(made.run)
        assert bool(made.run.notes) == noted
