"""DGL: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.dgl import DGL
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
from tests.methods.support import begun, configured, trainer

ENCODERS = "network.encoders."
FUSION = "network.fusion."


def slow_alone(network: Network, batch: Batch, m: str) -> Tensor:
    """Return ``u_m`` of a concat fusion, row by row, from its block of the weight and the bias."""
    head: Any = network.fusion.head  # type: ignore[union-attr]
    h = encode_in_double(network, batch.inputs)[m]
    before = network.modalities[: network.modalities.index(m)]
    start = sum(network.widths[other] for other in before)
    block = head.weight[:, start : start + network.widths[m]]
    return torch.stack([torch.stack([(w * x).sum() for w in block]) + head.bias for x in h])


def put_together(fused: Gradients, own: Gradients, alpha: float) -> Gradients:
    """Return the fusion's gradient of the fused loss, and the encoders' of the unimodal ones."""
    return {name: alpha * own[name] if name.startswith(ENCODERS) else fused[name] for name in fused}


def slow_gradients(of: Case, batch: Batch, alpha: float) -> Gradients:
    network = of.network()
    parameters = named_parameters(network, of.method)
    features = encode_in_double(network, batch.inputs)
    assert network.fusion is not None
    fused = gradients_of(cross_entropy(network.fusion(features), batch.y), parameters)
    own = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for m in network.modalities:
        found = gradients_of(cross_entropy(slow_alone(network, batch, m), batch.y), parameters)
        own = {name: own[name] + found[name] for name in own}
    return put_together(fused, own, alpha)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("seed", "alpha"), [(0, 4.0), (1, 1.0), (2, 0.3)])
def test_gradients_are_those_of_the_equations(count: int, seed: int, alpha: float) -> None:
    of = case(DGL, count, seed, alpha=alpha)
    for _ in range(2):
        batch = of.batch()
        expected = slow_gradients(of, batch, alpha)
        got = of.step(batch)
        assert_close(got, expected)
        of.descend(got, rate=0.01)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("fusion", "absent"),
    [
        ("sum", "zero"),
        ("late", "zero"),
        ("attention", "zero"),
        ("film", "same"),
        ("gated", "same"),
        ("gated", "zero"),
    ],
)
def test_gradients_are_those_of_the_equations_with_other_fusions(
    count: int, fusion: str, absent: str
) -> None:
    asked = "zero" if (fusion, absent) == ("gated", "zero") else None
    of = case(DGL, count, 3, fusion, alpha=2.0, absent=asked)
    batch = of.batch()
    network = of.network()
    parameters = named_parameters(network, of.method)
    features = encode_in_double(network, batch.inputs)
    assert network.fusion is not None
    fused = gradients_of(cross_entropy(network.fusion(features), batch.y), parameters)
    total = torch.zeros((), dtype=torch.float64)
    for m in network.modalities:
        places = {
            other: features[m] if other == m or absent == "same" else 0 * features[other].detach()
            for other in network.modalities
        }
        total = total + cross_entropy(network.fusion(places), batch.y)
    assert_close(of.step(batch), put_together(fused, gradients_of(total, parameters), 2.0))


@pytest.mark.parametrize("fusion", ["concat", "sum", "film", "gated", "attention"])
@pytest.mark.parametrize("count", [2, 3])
def test_the_fusion_learns_as_in_joint_training_whatever_alpha(count: int, fusion: str) -> None:
    plain = case(Joint, count, 4, fusion)
    batch = plain.batch()
    expected = plain.step(batch)
    for alpha in (0.5, 50.0):
        got = case(DGL, count, 4, fusion, alpha=alpha).step(batch)
        names = [name for name in got if name.startswith(FUSION)]
        assert names
        assert_close({n: got[n] for n in names}, {n: expected[n] for n in names})


@pytest.mark.parametrize("count", [2, 3])
def test_an_encoders_gradient_does_not_depend_on_the_other_modalities(count: int) -> None:
    of = case(DGL, count, 5)
    batch = of.batch()
    before = of.step(batch)
    for m in of.run.modalities[1:]:
        batch.inputs[m] = batch.inputs[m] + 1.0
    after = of.step(batch)
    first, *others = of.run.modalities
    mine = [name for name in before if name.startswith(f"{ENCODERS}{first}.")]
    assert_close({n: after[n] for n in mine}, {n: before[n] for n in mine})
    for m in others:
        theirs = [name for name in before if name.startswith(f"{ENCODERS}{m}.")]
        assert any(not torch.allclose(after[name], before[name]) for name in theirs)


def test_with_film_and_gated_every_encoder_learns_from_the_first_step() -> None:
    """Their biases start at zero, so that a modality beside zeros would hardly reach the logits."""
    for fusion in ("film", "gated"):
        made = begun(DGL, make_splits(3), fusion, {})
        run, method = made.run, made.method
        batch = run.train.batch(torch.arange(9), run.modalities)
        run.backward(method.loss(run, run.net(batch), batch))
        for m in run.modalities:
            assert all(p.grad is not None for p in run.encoder_params(m))
            assert any(p.grad.abs().max() > 1e-4 for p in run.encoder_params(m))  # type: ignore[union-attr]


def test_the_fusion_goes_on_learning_after_a_step() -> None:
    of = case(DGL, 2, 0)
    of.step(of.batch())
    assert all(p.requires_grad for p in of.run.network.parameters())


def test_a_step_costs_one_forward_and_one_backward_for_any_number_of_modalities() -> None:
    for count in (2, 3):
        fitted = trainer(configured(DGL), make_splits(count), epochs=1).fit()
        counts = fitted.run.counts
        assert (counts.forwards, counts.backwards, counts.updates) == (4, 4, 4)
        for m in fitted.run.modalities:
            assert float(fitted.history[0][f"own_loss.{m}"]) > 0


def test_features_of_unequal_width_cannot_take_each_others_place() -> None:
    splits = make_splits(2)
    made = trainer(configured(DGL), splits, fusion="film")
    made.run.network.widths["view2"] = 64
    with pytest.raises(RequestError, match=r"view1 128, view2 64\): use -o absent=zero"):
        made.method.setup(made.run)
    for options, fusion in (({"absent": "zero"}, "film"), ({}, "concat")):
        other = trainer(configured(DGL, options), splits, fusion=fusion)
        other.run.network.widths["view2"] = 64
        other.method.setup(other.run)


@pytest.mark.parametrize(("option", "value"), [("alpha", 0), ("alpha", "x"), ("absent", "mean")])
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of dgl"):
        configured(DGL, {option: value})


def test_a_single_modality_is_refused_before_training() -> None:
    with pytest.raises(RequestError, match="'dgl' needs at least 2 modalities"):
        check_support(DGL, "concat", 1)


def test_an_optimiser_that_undoes_the_factor_is_noted() -> None:
    for optimizer, noted in (("adamw", True), ("sgd", False)):
        made = trainer(configured(DGL), make_splits(2), optimizer=optimizer)
        made.method.setup(made.run)
        assert any("alpha" in note for note in made.run.notes) == noted
