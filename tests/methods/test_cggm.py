"""CGGM: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.cggm import CGGM
from mmbench.methods.joint import Joint
from mmbench.nets.network import Network
from mmbench.options import option
from mmbench.planning import check_support
from mmbench.testing import contract
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
from tests.methods.support import begun, configured, trainer

EPSILON = 1e-8


class SlowCGGM:
    """The equations, with what they remember from step to step."""

    def __init__(self, of: Case, **options: Any) -> None:
        self.of = of
        self.options: dict[str, Any] = {
            "rho": 1.3,
            "smoothing": 0.99,
            "low": 0.0,
            "high": 3.0,
            "direction": "none",
            "direction_weight": 0.1,
        } | options
        self.accuracies = dict.fromkeys(of.run.modalities, 0.0)
        self.late: Gradients = {}

    def gradients(self, batch: Batch) -> Gradients:
        network = self.of.network()
        parameters = named_parameters(network, self.of.method)
        assert network.fusion is not None
        features = encode_in_double(network, batch.inputs)
        guesses = self.guesses(features)
        shares = self.shares(guesses, batch)
        fused = cross_entropy(network.fusion(features), batch.y)
        own = {m: cross_entropy(c, batch.y) for m, c in guesses.items()}
        total = fused
        for loss in own.values():
            total = total + loss
        if self.options["direction"] == "second_order":
            pairs = {}
            for m, (weight, columns) in self.layers(network).items():
                (v,) = torch.autograd.grad(fused, weight, create_graph=True)
                u_weight = self.classifier(m).weight
                (u,) = torch.autograd.grad(own[m], u_weight, retain_graph=True)
                pairs[m] = (v[:, columns], u.detach())
            total = total + self.direction_loss(pairs, shares)
        found = gradients_of(total, parameters)
        if self.options["direction"] == "weights":
            found |= {name: found[name] + late for name, late in self.late.items()}
            pairs = {
                m: (weight[:, columns], self.classifier(m).weight.detach())
                for m, (weight, columns) in self.layers(network).items()
            }
            of_weights = gradients_of(self.direction_loss(pairs, shares), parameters)
            self.late = {name: g for name, g in of_weights.items() if bool(g.any())}
        for m, share in shares.items():
            for name in found:
                if name.startswith(f"network.encoders.{m}."):
                    found[name] = self.options["rho"] * share * found[name]
        return found

    def classifier(self, m: str) -> Any:
        method: Any = self.of.method
        return method.classifiers[m]

    def guesses(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        guesses = {}
        for m, h in features.items():
            layer = self.classifier(m)
            rows = [torch.stack([(w * x).sum() for w in layer.weight]) for x in h.detach()]
            guesses[m] = torch.stack([row + layer.bias for row in rows])
        return guesses

    def shares(self, guesses: dict[str, Tensor], batch: Batch) -> dict[str, float]:
        gains = {}
        for m, c in guesses.items():
            right = 0
            for row, label in zip(c.tolist(), batch.y.tolist(), strict=True):
                right += row.index(max(row)) == label
            mu = self.options["smoothing"]
            newest = mu * self.accuracies[m] + (1 - mu) * right / len(batch)
            gains[m] = newest - self.accuracies[m]
            self.accuracies[m] = newest
        total = sum(gains.values()) + EPSILON
        return {
            m: min(max((total - gain) / total, self.options["low"]), self.options["high"])
            for m, gain in gains.items()
        }

    def direction_loss(
        self, pairs: dict[str, tuple[Tensor, Tensor]], shares: dict[str, float]
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for m, (v, u) in pairs.items():
            cosine = (v * u).sum() / ((v * v).sum().sqrt() * (u * u).sum().sqrt())
            total = total + abs(shares[m]) - shares[m] * cosine
        weight: float = self.options["direction_weight"]
        return weight * total / len(pairs)

    @staticmethod
    def layers(network: Network) -> dict[str, tuple[Tensor, slice]]:
        """Return the output weight of each modality and its columns in it."""
        fusion: Any = network.fusion
        layers, start = {}, 0
        for m, width in network.widths.items():
            if hasattr(fusion, "heads"):
                layers[m] = (fusion.heads[m].weight, slice(None))
            else:
                layers[m] = (fusion.head.weight, slice(start, start + width))
                start += width
        return layers


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "options"),
    [
        (0, "concat", {}),
        (1, "film", {"rho": 2.0, "smoothing": 0.5, "largest": 0.7}),
        (2, "attention", {"smoothing": 0.0}),
        (3, "concat", {"direction": "second_order", "direction_weight": 0.5}),
        (4, "sum", {"direction": "second_order", "smoothing": 0.0}),
        (5, "late", {"direction": "second_order"}),
        (6, "concat", {"direction": "weights", "direction_weight": 0.5}),
        (7, "sum", {"direction": "weights", "smoothing": 0.5}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, fusion: str, options: dict[str, Any]
) -> None:
    of = case(CGGM, count, seed, fusion, **options)
    slow = SlowCGGM(of, **options, high=options.get("largest", 3.0))
    for _ in range(3):
        batch = of.batch()
        expected = slow.gradients(batch)
        got = of.step(batch)
        assert_close(got, expected)
        of.descend(got, rate=0.02)
    assert of.method.get_buffer("accuracies").tolist() == pytest.approx(
        list(slow.accuracies.values())
    )


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("direction", ["none", "weights"])
def test_released_gradients_are_those_of_the_equations(count: int, direction: str) -> None:
    of = case(CGGM, count, 8, variant="released", direction=direction)
    free = {"smoothing": 0.0, "low": -math.inf, "high": math.inf, "direction": direction}
    slow = SlowCGGM(of, **free)
    for _ in range(5):
        batch = of.batch()
        expected = slow.gradients(batch)
        got = of.step(batch)
        assert_close(got, expected)
        of.descend({name: g.clamp(-1, 1) for name, g in got.items()}, rate=0.02)


def shares_of(options: dict[str, Any], *accuracies: tuple[float, ...]) -> list[Tensor]:
    """Return ``B`` of each of several batches of ten rows with given accuracies."""
    of = case(CGGM, len(accuracies[0]), 0, **options)
    method = of.method
    assert isinstance(method, CGGM)
    y = torch.zeros(10, dtype=torch.long)
    found = []
    for batch in accuracies:
        own = {}
        for m, accuracy in zip(of.run.modalities, batch, strict=True):
            wrong = (torch.arange(10) >= round(10 * accuracy)).double()
            own[m] = torch.stack([1 - wrong, wrong, 0 * wrong], dim=1)
        found.append(method.shares(own, y))
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_the_encoder_that_gains_less_learns_more(smoothing: float) -> None:
    (first,) = shares_of({"smoothing": smoothing}, (0.9, 0.3))
    assert first.tolist() == pytest.approx([0.25, 0.75], abs=1e-6)
    (three,) = shares_of({"smoothing": smoothing}, (0.6, 0.3, 0.1))
    assert three.tolist() == pytest.approx([0.4, 0.7, 0.9], abs=1e-6)


def test_without_any_change_of_accuracy_every_share_is_one() -> None:
    _, second = shares_of({"smoothing": 0.0}, (0.5, 0.7), (0.5, 0.7))
    assert second.tolist() == [1.0, 1.0]


def test_changes_that_cancel_stay_in_bounds_where_the_released_code_climbs_or_explodes() -> None:
    batches = (0.5, 0.5), (0.6, 0.4)
    _, clipped = shares_of({"smoothing": 0.0}, *batches)
    assert clipped.tolist() == [0.0, 3.0]
    _, free = shares_of({"variant": "released"}, *batches)
    assert free[0] < -1e6
    assert free[1] > 1e6


@pytest.mark.parametrize("fusion", ["concat", "gated"])
@pytest.mark.parametrize("count", [2, 3])
def test_encoders_keep_their_plain_direction_and_the_fusion_its_gradient(
    count: int, fusion: str
) -> None:
    of, plain = case(CGGM, count, 1, fusion), case(Joint, count, 1, fusion)
    batch = plain.batch()
    expected, got = plain.step(batch), of.step(batch)
    for name, g in expected.items():
        if name.startswith("network.fusion."):
            assert_close({name: got[name]}, {name: g})
    factors = []
    for m in of.run.modalities:
        start = f"network.encoders.{m}."
        mine = [name for name in expected if name.startswith(start)]
        norms = [
            math.sqrt(sum(float(g[name].square().sum()) for name in mine)) for g in (got, expected)
        ]
        factors.append(norms[0] / norms[1])
        assert_close({n: got[n] for n in mine}, {n: factors[-1] * expected[n] for n in mine})
    assert sum(factors) == pytest.approx(1.3 * (count - 1), rel=1e-5)


def test_the_released_direction_turns_the_output_layer_alone_and_a_step_late() -> None:
    of, plain = (case(CGGM, 2, 2, direction=d) for d in ("weights", "none"))
    batch = plain.batch()
    first, expected = of.step(batch), plain.step(batch)
    assert_close(first, expected)
    second, expected = of.step(batch), plain.step(batch)
    moved = [n for n in expected if not torch.allclose(second[n], expected[n], rtol=1e-9, atol=0)]
    assert moved == ["network.fusion.head.weight"]


def test_the_intended_direction_reaches_the_encoders_and_not_the_classifiers() -> None:
    of, plain = (case(CGGM, 2, 2, direction=d) for d in ("second_order", "none"))
    batch = plain.batch()
    got, expected = of.step(batch), plain.step(batch)
    for name, g in expected.items():
        is_same = torch.allclose(got[name], g, rtol=1e-9, atol=1e-15)
        assert is_same == name.startswith("method."), name


def test_classifiers_learn_at_a_rate_of_their_own() -> None:
    plain: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0, "batch_size": 60, "epochs": 1}
    splits = make_splits(2)
    before = begun(CGGM, splits, "concat", {})
    fitted = trainer(
        configured(CGGM, {"classifier_rate": 0.25}), splits, fusion="concat", lr=0.2, **plain
    ).fit()
    start: Any = before.method
    end: Any = fitted.method
    batch = before.run.train.batch(torch.arange(60), before.run.modalities)
    for m in before.run.modalities:
        layer = start.classifiers[m]
        h = before.run.network.encoders[m](batch.inputs[m]).detach()
        (slope,) = torch.autograd.grad(cross_entropy(layer(h), batch.y), layer.weight)
        moved = end.classifiers[m].weight - layer.weight
        torch.testing.assert_close(moved, -0.25 * 0.2 * slope, rtol=1e-3, atol=1e-6)


class Weights(CGGM):
    class Config(CGGM.Config):
        direction: Any = option("weights", "")


class SecondOrder(CGGM):
    class Config(CGGM.Config):
        direction: Any = option("second_order", "")


@pytest.mark.parametrize("kind", [Weights, SecondOrder])
def test_with_a_direction_it_resumes_exactly(kind: type[CGGM]) -> None:
    contract.check_resumes(kind, 2)


def test_a_step_costs_one_forward_and_one_backward_for_any_number_of_modalities() -> None:
    for count in (2, 3):
        fitted = trainer(configured(CGGM), make_splits(count), epochs=1).fit()
        counts = fitted.run.counts
        assert (counts.forwards, counts.backwards, counts.updates) == (4, 4, 4)
        for m in fitted.run.modalities:
            assert 0 <= float(fitted.history[0][f"coefficient.{m}"]) <= 1.3 * 3
        learned = fitted.method.report(fitted.run)["classifier_accuracy"]
        assert set(learned) == set(fitted.run.modalities)


@pytest.mark.parametrize("fusion", ["film", "gated", "attention"])
@pytest.mark.parametrize("direction", ["weights", "second_order"])
def test_a_direction_without_output_layers_of_the_modalities_is_refused(
    fusion: str, direction: str
) -> None:
    with pytest.raises(RequestError, match=f"direction={direction} needs .* '{fusion}' has not"):
        begun(CGGM, make_splits(2), fusion, {"direction": direction})


@pytest.mark.parametrize(
    ("option", "value"),
    [("rho", 0), ("smoothing", 1), ("largest", 0), ("direction", "cosine"), ("rho", "x")],
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of cggm"):
        configured(CGGM, {option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "released", "smoothing": 0.5}, "smoothing is not used by variant=released"),
        ({"variant": "released", "largest": 2.0}, "largest is not used by variant=released"),
        ({"direction_weight": 0.2}, "direction_weight is not used by direction=none"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        configured(CGGM, options)


def test_a_single_modality_is_refused_before_training() -> None:
    with pytest.raises(RequestError, match="'cggm' needs at least 2 modalities"):
        check_support(CGGM, "concat", 1)


def test_an_optimiser_that_undoes_the_scaling_is_noted() -> None:
    for optimizer, where, noted in (
        ("adamw", "gradient", True),
        ("adamw", "update", False),
        ("sgd", "gradient", False),
    ):
        made = trainer(
            configured(CGGM, {"scale_where": where}), make_splits(2), optimizer=optimizer
        )
        made.method.setup(made.run)
        assert bool(made.run.notes) == noted
