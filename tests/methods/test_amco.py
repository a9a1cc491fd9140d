"""AMCo: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.errors import RequestError
from mmbench.evaluate.readout import read_out
from mmbench.methods.amco import AMCo
from mmbench.methods.joint import Joint
from mmbench.planning import check_support
from mmbench.testing import contract
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
from tests.methods.support import configured, splits_of, trainer


class AsInBalanceBenchmark(AMCo):
    class Config(AMCo.Config):
        variant: Any = "balancebenchmark"


def method_of(of: Case) -> AMCo:
    assert isinstance(of.method, AMCo)
    return of.method


def next_mask(of: Case, masked: int) -> list[bool]:
    """Return the classes that the next step will mask."""
    state = of.run.rng.get_state()
    mask = method_of(of).draw(of.run, masked).tolist()
    of.run.rng.set_state(state)
    return [bool(hidden) for hidden in mask]


def slow_loss(
    of: Case, parts: dict[str, Tensor], y: Tensor, dependent: set[str], mask: list[bool]
) -> Tensor:
    """Return the loss from the modalities' logits ``(B, C)``, entry by entry."""
    options, mixing = of.method.config, method_of(of).mixing
    rows = []
    for i in range(len(y)):
        entries = []
        for c in range(CLASSES):
            shown = [z[i, c] for m, z in parts.items() if not (m in dependent and mask[c])]
            entries.append(torch.stack(shown).sum() if shown else torch.zeros(()).double())
        fused = torch.stack(entries)
        rows.append(fused if mixing is None else mixing.weight @ fused + mixing.bias)
    loss = cross_entropy(torch.stack(rows), y)
    for z in parts.values():
        loss = loss + options.unimodal_weight * cross_entropy(z, y)
    return loss


def slow_shares(parts: dict[str, Tensor]) -> dict[str, float]:
    """Return each modality's share of a softmax over all modalities' logits."""
    shares = dict.fromkeys(parts, 0.0)
    size = len(next(iter(parts.values())))
    for i in range(size):
        mass = {m: sum(math.exp(v) for v in z[i].tolist()) for m, z in parts.items()}
        for m in parts:
            shares[m] += mass[m] / sum(mass.values()) / size
    return shares


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "epoch", "fusion", "masked", "options"),
    [
        (0, 0, "concat", 0, {}),
        (1, 3, "concat", 1, {"sigma": 0.34}),
        (2, 5, "sum", 2, {"sigma": 0.34, "max_share": 0.7, "unimodal_weight": 0.4}),
        (3, 9, "late", 3, {"sigma": 0.3, "max_share": 1.0}),
        (4, 3, "attention", 1, {"sigma": 0.34, "mix": False, "unimodal_weight": 0.0}),
        (5, 4, "concat", 3, {"sigma": 0.34, "variant": "balancebenchmark"}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, epoch: int, fusion: str, masked: int, options: dict[str, Any]
) -> None:
    of = case(AMCo, count, seed, fusion, epoch=epoch, **options)
    sticky = options.get("variant") == "balancebenchmark"
    dependent: set[str] = set()
    ever = False
    for number in range(3):
        batch, network = of.batch(), of.network()
        assert network.fusion is not None
        # l of BalanceBenchmark is 0 in the first batch, and beyond epsilon from the second on.
        size = 0 if sticky and number == 0 else masked
        mask = next_mask(of, size)
        assert sum(mask) == size
        parts = network.fusion.parts(encode_in_double(network, batch.inputs))
        loss = slow_loss(of, parts, batch.y, dependent, mask)
        expected = gradients_of(loss, named_parameters(network, of.method))
        ever = ever or bool(dependent and size)
        seen = {m for m, share in slow_shares(parts).items() if share > options.get("sigma", 0.5)}
        dependent = seen | dependent if sticky else seen
        got = of.step(batch)
        assert_close(got, expected)
        of.descend(got, rate=0.02)
    assert ever == (masked > 0)


# -- the mask --------------------------------------------------------------------------------------


def masked_at(epoch: int, epochs: int, batch: int = 0, classes: int = 10, **options: Any) -> int:
    method = configured(AMCo, options)
    y = np.arange(3 * classes) % classes
    views = {m: np.ones((len(y), 2), dtype=np.float32) for m in "ab"}
    made = trainer(method, splits_of(views, y, classes), fusion="concat", epochs=epochs)
    assert isinstance(method, AMCo)
    method.setup(made.run)
    made.run.stage = method.stages(made.run)[0]
    made.run.begin_epoch(epoch)
    method.batches_done = batch
    return method.masked_classes(made.run)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    # sin(pi/2 * e / 30) of 10 classes: .05, .21, .41, .54, and from there on the limit of 5.
    [(0, 0), (1, 0), (4, 2), (8, 4), (11, 5), (30, 5), (99, 5)],
)
def test_the_mask_grows_with_the_epochs_to_half_of_the_classes(epoch: int, expected: int) -> None:
    assert masked_at(epoch, 100) == expected


def test_the_mask_is_as_large_at_the_same_share_of_a_shorter_training() -> None:
    for epoch in range(20):
        assert masked_at(epoch, 20) == masked_at(5 * epoch, 100)


@pytest.mark.parametrize(
    ("epoch", "batch", "expected"),
    # l = 0.1 e for each batch before this one; epsilon 0.3: sin(pi/3) = .87.
    [(0, 50, 0), (1, 0, 0), (1, 2, 8), (2, 1, 8), (1, 3, 10), (1, 9, 10), (3, 0, 0), (3, 1, 10)],
)
def test_in_balancebenchmark_the_mask_grows_anew_in_every_epoch(
    epoch: int, batch: int, expected: int
) -> None:
    assert masked_at(epoch, 100, batch, variant="balancebenchmark") == expected


def test_two_classes_leave_one() -> None:
    assert masked_at(9, 10, classes=2) == 1


def test_every_class_is_masked_as_often() -> None:
    of = case(AMCo, 2, 0)
    counts = torch.zeros(CLASSES)
    for _ in range(3000):
        counts += method_of(of).draw(of.run, 1)
    assert int(counts.sum()) == 3000
    assert float((counts - 1000).abs().max()) < 5 * math.sqrt(3000 * 2 / 9)


# -- dependence ------------------------------------------------------------------------------------


def looked(of: Case, first: float, second: float) -> list[bool]:
    """Return who is dependent after a batch in which the logits of the two modalities are these."""
    parts = torch.stack([torch.full((4, CLASSES), value) for value in (first, second)])
    method_of(of).look(of.run, parts, 0)
    return [bool(depends) for depends in method_of(of).dependent]


def test_the_modality_with_the_larger_share_of_the_last_batch_is_dependent() -> None:
    of = case(AMCo, 2, 0)
    assert looked(of, 1.0, 0.0) == [True, False]
    assert looked(of, 0.0, 1.0) == [False, True]
    assert looked(of, 1.0, 1.0) == [False, False]
    assert of.run.take_logged()["share.view1"] == pytest.approx(0.5)


def test_in_balancebenchmark_it_stays_dependent_until_the_epoch_ends() -> None:
    of = case(AMCo, 2, 0, variant="balancebenchmark")
    assert looked(of, 1.0, 0.0) == [True, False]
    assert looked(of, 0.0, 1.0) == [True, True]
    of.method.on_epoch_start(of.run)
    assert not method_of(of).dependent.any()


def test_only_the_dependent_modality_is_masked() -> None:
    """Without unimodal losses, a modality whose classes are all masked has no gradient."""
    options: dict[str, Any] = {"max_share": 1.0, "unimodal_weight": 0.0, "mix": False}
    of = case(AMCo, 2, 0, epoch=9, **options)
    method_of(of).dependent.copy_(torch.tensor([False, True]))
    gradients = of.step(of.batch())
    assert not any(g.any() for n, g in gradients.items() if ".encoders.view2." in n)
    assert all(g.any() for n, g in gradients.items() if ".encoders.view1." in n)


def test_nothing_is_masked_when_the_model_predicts() -> None:
    method = configured(AMCo)
    fitted = trainer(method, make_splits(2), fusion="concat", epochs=3).fit()
    assert isinstance(method, AMCo)
    assert method.mixing is not None
    expected = []
    for out, _ in fitted.run.outputs(np.arange(24)):
        expected.append(out.logits @ method.mixing.weight.T + method.mixing.bias)
    method.dependent.fill_(True)
    readout = read_out(fitted.run, method, fitted.run.train, np.arange(24))
    torch.testing.assert_close(readout.logits, torch.cat(expected).detach())


def test_before_the_mask_grows_it_is_multi_loss_on_the_parts() -> None:
    options: dict[str, Any] = {"unimodal_weight": 0.0, "mix": False}
    of, plain = case(AMCo, 2, 1, epoch=0, **options), case(Joint, 2, 1)
    method_of(of).dependent.fill_(True)
    batch = of.batch()
    assert_close(of.step(batch), plain.step(batch))


def test_as_in_balancebenchmark_it_trains_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "EPOCHS", 4)
    contract.check_trains(AsInBalanceBenchmark, 3, "concat")
    contract.check_resumes(AsInBalanceBenchmark, 2)


def test_it_resumes_with_what_the_last_batch_depended_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "EPOCHS", 4)
    contract.check_resumes(AMCo, 2)
    fitted = contract.make_trainer(AMCo, 2, "concat").fit()
    assert sum(float(fitted.history[-1][f"masked_classes.view{i}"]) for i in (1, 2)) > 0


def test_cost_is_that_of_joint_training() -> None:
    fitted = trainer(configured(AMCo), make_splits(3), fusion="concat", epochs=2).fit()
    counts = fitted.run.counts
    assert counts.forwards == counts.backwards == counts.updates == 8


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "released"}, "option 'variant' of amco"),
        ({"sigma": 1.0}, "option 'sigma' of amco"),
        ({"epsilon": 0}, "option 'epsilon' of amco"),
        ({"max_share": 1.5}, "option 'max_share' of amco"),
        ({"unimodal_weight": -1}, "option 'unimodal_weight' of amco"),
        ({"variant": "balancebenchmark", "max_share": 0.7}, "max_share is not used by variant"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(AMCo, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fusion", ["film", "gated"])
def test_fusions_without_exact_parts_are_refused_before_training(fusion: str) -> None:
    with pytest.raises(RequestError, match=f"'amco' cannot use fusion '{fusion}': use concat"):
        check_support(AMCo, fusion, 2)


def test_a_single_modality_is_refused_before_training() -> None:
    with pytest.raises(RequestError, match="'amco' needs at least 2 modalities"):
        check_support(AMCo, "concat", 1)
