"""LFM: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch, Modality, Rows, Split, Splits
from mmbench.errors import RequestError
from mmbench.methods.joint import Joint
from mmbench.methods.lfm import LFM, misalignment, pair_means
from mmbench.nets.network import Network
from mmbench.planning import check_support
from mmbench.testing import contract
from mmbench.testing.contract import make_splits
from tests.methods.double import (
    Case,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import begun, configured, trainer


class Learned(LFM):
    class Config(LFM.Config):
        schedule: Any = "learned"
        rate: float = 10.0
        """Large enough for the weight to move on small data."""


def slow_unimodal(fusion: Any, kind: str, features: dict[str, Tensor], m: str) -> Tensor:
    """Return a modality's own logits for one sample ``(C,)``."""
    names, h = list(features), features[m]
    if kind in ("late", "sum"):
        own: Tensor = fusion.heads[m].weight @ h + fusion.heads[m].bias
        return own
    if kind == "concat":
        begin = sum(len(features[other]) for other in names[: names.index(m)])
        part: Tensor = fusion.head.weight[:, begin : begin + len(h)] @ h
        share: Tensor = fusion.head.bias / len(names)
        return part + share
    alone = {k: v if k == m else torch.zeros_like(v) for k, v in features.items()}
    ablated: Tensor = fusion({k: v.unsqueeze(0) for k, v in alone.items()})
    return ablated[0]


def slow_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return [KL(q || p) + KL(q || p')] / 2 for the logits of one sample, class by class."""
    p, other = torch.exp(first), torch.exp(second)
    p, other = p / p.sum(), other / other.sum()
    total = torch.zeros((), dtype=torch.float64)
    for c in range(len(p)):
        q = (p[c] + other[c]) / 2
        total = total + q * torch.log(q / p[c]) / 2 + q * torch.log(q / other[c]) / 2
    return total


def slow_terms(network: Network, kind: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and the alignment, sample by sample and pair by pair."""
    features = encode_in_double(network, batch.inputs)
    assert network.fusion is not None
    names, values = list(features), []
    for i in range(len(batch)):
        sample = {m: h[i] for m, h in features.items()}
        own = {m: slow_unimodal(network.fusion, kind, sample, m) for m in names}
        pairs = [(a, b) for a in names for b in names if names.index(a) < names.index(b)]
        values.append(sum(slow_divergence(own[a], own[b]) for a, b in pairs) / len(pairs))
    alignment = torch.stack([torch.as_tensor(v) for v in values]).sum() / len(batch)
    return cross_entropy(network.fusion(features), batch.y), alignment


def released_polynomial(e: float) -> float:
    """The released fit of a_1, by Horner's rule."""
    value = -5.39717505e-11
    for coefficient in (2.23835486e-8, -2.92947416e-6, 1.22989557e-4, 3.35472727e-3, 0.204623704):
        value = value * e + coefficient
    return value


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "epoch", "fusion", "options"),
    [
        (0, 0, "late", {}),
        (1, 4, "late", {"scale": 1.0}),
        (2, 7, "sum", {}),
        (3, 3, "concat", {}),
        (4, 2, "film", {}),
        (5, 9, "attention", {"schedule": "constant", "alignment": 0.6}),
        (6, 1, "late", {"schedule": "constant", "alignment": 1.0}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, epoch: int, fusion: str, options: dict[str, Any]
) -> None:
    of = case(LFM, count, seed, fusion, epochs=10, epoch=epoch, **options)
    batch = of.batch()
    network = of.network()
    if fusion == "attention":  # its parts depend on every modality: taken from the fusion itself
        features = encode_in_double(network, batch.inputs)
        assert network.fusion is not None
        parts = [*network.fusion.parts(features).values()]
        rows = [
            slow_divergence(parts[a][i], parts[b][i])
            for a in range(count)
            for b in range(a + 1, count)
            for i in range(len(batch))
        ]
        classification = cross_entropy(network.fusion(features), batch.y)
        alignment = torch.stack(rows).mean()
    else:
        classification, alignment = slow_terms(network, fusion, batch)
    a_2 = options.get("alignment", 1 - released_polynomial(199 * epoch / 9))
    loss = options.get("scale", 2.0) * ((1 - a_2) * classification + a_2 * alignment)
    assert_close(of.step(batch), gradients_of(loss, named_parameters(network, of.method)))


# -- the fitted schedule ---------------------------------------------------------------------------


def weight_at(epoch: int, epochs: int, **options: Any) -> float:
    of = case(LFM, 2, 0, "late", epochs=epochs, epoch=epoch, **options)
    assert isinstance(of.method, LFM)
    return of.method.alignment_weight(of.run)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.205), (20, 0.301), (50, 0.437), (100, 0.539), (150, 0.821), (199, 0.916)],
)
def test_over_200_epochs_the_schedule_is_the_released_one(epoch: int, expected: float) -> None:
    assert 1 - weight_at(epoch, 200) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("epochs", [2, 30, 300])
def test_the_schedule_is_stretched_over_the_epochs_of_the_run(epochs: int) -> None:
    assert weight_at(0, epochs) == pytest.approx(weight_at(0, 200))
    assert weight_at(epochs - 1, epochs) == pytest.approx(weight_at(199, 200))


def test_a_single_epoch_has_the_first_weight() -> None:
    assert weight_at(0, 1) == weight_at(0, 200)


def test_the_weight_never_rewards_disagreement_unless_as_released() -> None:
    assert min(weight_at(e, 200) for e in range(170, 200)) == 0
    assert weight_at(183, 200, variant="released") == pytest.approx(-0.0105, abs=1e-4)
    assert weight_at(50, 200, variant="released") == weight_at(50, 200)


# -- the alignment ---------------------------------------------------------------------------------


def alignment_of(logits: Tensor) -> Tensor:
    pairs = pair_means(len(logits)).to(logits.dtype)
    return misalignment(logits.log_softmax(dim=2).transpose(1, 2), pairs)


def test_modalities_that_agree_have_no_misalignment() -> None:
    logits = torch.randn(1, 5, 4, dtype=torch.float64).expand(3, -1, -1)
    assert float(alignment_of(logits)) == pytest.approx(0, abs=1e-15)


def test_misalignment_does_not_depend_on_the_order_of_the_modalities() -> None:
    logits = torch.randn(3, 5, 4, dtype=torch.float64)
    assert float(alignment_of(logits)) == pytest.approx(float(alignment_of(logits.flip(0))))


def test_predictions_too_sure_for_a_float_have_finite_gradients() -> None:
    logits = torch.tensor([[[300.0, -300.0, 0.0]], [[-300.0, -300.0, 300.0]]], requires_grad=True)
    value = alignment_of(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite()
    assert value > 10
    assert gradient.isfinite().all()


def test_alone_it_draws_predictions_together() -> None:
    gaps = {}
    for weight in (0.0, 0.95):
        options = {"schedule": "constant", "alignment": weight}
        fitted = trainer(configured(LFM, options), make_splits(2), fusion="late", epochs=8).fit()
        parts = [z * 2 for z in fitted.run.logits(np.arange(60)).values()]
        gaps[weight] = float(alignment_of(torch.stack(parts)))
    assert gaps[0.95] < 0.5 * gaps[0.0]


def test_without_alignment_the_gradients_are_twice_those_of_joint_training() -> None:
    options: dict[str, Any] = {"schedule": "constant", "alignment": 0.0}
    of, plain = case(LFM, 2, 0, "late", **options), case(Joint, 2, 0, "late")
    batch = of.batch()
    assert_close(of.step(batch), {name: 2 * g for name, g in plain.step(batch).items()})


# -- the learned schedule --------------------------------------------------------------------------


def gradient_at(network: Network, batch: Batch, weight: float) -> list[Tensor]:
    """Return the gradient of the weighed loss, zero where there is none."""
    classification, alignment = slow_terms(network, "late", batch)
    loss = (1 - weight) * classification + weight * alignment
    return [*gradients_of(loss, dict(network.named_parameters())).values()]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("variant", ["corrected", "released"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_hessian_product_is_the_change_of_the_gradient_along_that_of_the_loss(
    count: int, variant: str, seed: int
) -> None:
    weight = 0.3
    of = case(LFM, count, seed, "late", schedule="learned", alignment=weight, variant=variant)
    assert isinstance(of.method, LFM)
    batch, network = of.batch(), of.network()
    direction = gradient_at(network, batch, 0.0)
    sides = []
    for step in (1e-5, -1e-5):
        moved = copy.deepcopy(network)
        with torch.no_grad():
            for p, g in zip(moved.parameters(), direction, strict=True):
                p.add_(step * g)
        sides.append(gradient_at(moved, batch, weight))
    products = [(up - down) / 2e-5 for up, down in zip(*sides, strict=True)]
    total = sum(float(product.sum()) for product in products)
    expected = total / sum(p.numel() for p in network.parameters())
    if variant == "released":
        expected = float(products[0].mean())
    with patch.object(Network, "encode", encode_in_double):
        got = of.method.hessian_product(of.run, batch)
    assert got == pytest.approx(expected, rel=1e-5)
    assert of.run.network.training
    assert all(p.grad is None for p in of.run.network.parameters())


def learning(of: Case, product: float) -> float:
    """Return a_2 after the start of an epoch in which the mean of H g is given."""
    assert isinstance(of.method, LFM)
    with patch.object(of.method, "hessian_product", return_value=product):
        of.method.on_epoch_start(of.run)
    return of.method.learned


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.01), (19, 0.01), (20, 0.005), (60, 0.00125)])
def test_the_weight_goes_against_the_product_at_a_rate_that_is_halved(
    epoch: int, rate: float
) -> None:
    options: dict[str, Any] = {"schedule": "learned", "alignment": 0.5, "rate": 0.01}
    of = case(LFM, 2, 0, "late", epochs=100, epoch=epoch, **options)
    assert learning(of, 3.0) == pytest.approx(0.5 - 3 * rate)
    assert learning(of, -1.0) == pytest.approx(0.5 - 2 * rate)


def test_the_learned_weight_stays_in_the_released_range() -> None:
    of = case(LFM, 2, 0, "late", schedule="learned")
    assert learning(of, -1e9) == 0.95
    assert learning(of, 1e9) == 0.05


def test_weights_are_learned_on_half_a_batch_of_rows_that_are_not_trained_on() -> None:
    method = configured(LFM, {"schedule": "learned", "holdout": 0.3})
    assert isinstance(method, LFM)
    seen: list[np.ndarray] = []
    trained: list[np.ndarray] = []
    product, step = LFM.hessian_product, LFM.train_step

    def watched(self: LFM, run: Any, batch: Batch) -> float:
        seen.append(batch.rows.numpy())
        return product(self, run, batch)

    def noted(self: LFM, run: Any, batch: Batch) -> Tensor:
        trained.append(batch.rows.numpy())
        return step(self, run, batch)

    with patch.object(LFM, "hessian_product", watched), patch.object(LFM, "train_step", noted):
        fitted = trainer(method, make_splits(2), fusion="late", epochs=3).fit()
    assert [len(rows) for rows in seen] == [8, 8, 8]  # batches of 16
    assert not set(np.concatenate(seen)) & set(np.concatenate(trained))
    assert len(set(np.concatenate(trained))) == 42
    assert seen[0].tolist() != seen[1].tolist()
    counts = fitted.run.counts
    assert counts.forwards == 3 * 3 + 3
    assert counts.backwards == 3 * 3 + 3 * 3
    assert counts.updates == 9


def test_learned_weights_resume_and_see_training_rows_only() -> None:
    contract.check_resumes(Learned, 2)
    contract.check_state_is_complete(Learned, 2)
    contract.check_sees_training_rows_only(Learned, 2)
    fitted = contract.make_trainer(Learned, 2, "late").fit()
    assert fitted.method.report(fitted.run)["alignment_weight"] != 0.05


def sequences() -> Splits:
    random = np.random.default_rng(0)

    def part(name: str, size: int) -> Split:
        inputs = {m: Rows(random.normal(size=(size, 5, 3)).astype(np.float32)) for m in "ab"}
        ids = np.array([f"{name}-{i}" for i in range(size)])
        return Split(inputs, torch.arange(size) % 3, ids)

    kinds = {m: Modality("sequence", (5, 3)) for m in "ab"}
    return Splits(part("train", 60), part("val", 6), part("test", 6), kinds, ("x", "y", "z"))


def test_weights_are_learned_through_attention_as_well() -> None:
    method = configured(Learned)
    made = trainer(method, sequences(), fusion="late", encoder="transformer", epochs=2)
    fitted = made.fit()
    assert all(math.isfinite(float(row["hessian_product"])) for row in fitted.history)
    assert fitted.history[0]["hessian_product"] != 0


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": "heuristic"}, "option 'schedule' of lfm"),
        ({"schedule": "constant", "alignment": 1.1}, "option 'alignment' of lfm"),
        ({"scale": 0}, "option 'scale' of lfm"),
        ({"schedule": "learned", "rate": 0}, "option 'rate' of lfm"),
        ({"schedule": "learned", "halving_epochs": 0}, "option 'halving_epochs' of lfm"),
        ({"alignment": 0.3}, "alignment is not used by schedule=fitted"),
        ({"rate": 1.0}, "rate is not used by schedule=fitted"),
        ({"schedule": "constant", "variant": "released"}, "variant is not used by schedule=const"),
        ({"schedule": "constant", "holdout": 0.2}, "holdout is not used by schedule=constant"),
    ],
)
def test_wrong_options_give_one_line(options: Mapping[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(LFM, options)
    assert "\n" not in str(caught.value)


def test_too_few_rows_to_hold_out_are_named_before_training() -> None:
    with pytest.raises(RequestError, match=r"lfm: a holdout of 0\.02 leaves 1 training rows"):
        begun(LFM, make_splits(2), "late", {"schedule": "learned", "holdout": 0.02})


def test_a_single_modality_is_refused_before_training() -> None:
    with pytest.raises(RequestError, match="'lfm' needs at least 2 modalities"):
        check_support(LFM, "late", 1)
