"""ReconBoost: gradients against the equations written as loops, and the order of its training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.config import Recipe
from mmbench.data.dataset import Batch, Modality, Rows, Split, Splits
from mmbench.errors import RequestError
from mmbench.evaluate.readout import read_out
from mmbench.methods.reconboost import ReconBoost
from mmbench.methods.unimodal import Unimodal
from mmbench.nets.network import NetworkSpec
from mmbench.nets.shared_head import branch_of
from mmbench.planning import check_support
from mmbench.testing.contract import make_splits, make_trainer
from mmbench.train.run import Run
from mmbench.train.trainer import Trainer
from tests.methods.double import (
    Case,
    Gradients,
    assert_close,
    case,
    encode_in_double,
    gradients_of,
)
from tests.methods.support import batch_counts, begun, configured, trainer

QUICK: dict[str, Any] = {"boost_epochs": 1, "rectify_epochs": 1}


def at_stage(count: int, seed: int, number: int, rectifies: bool = False, **options: Any) -> Case:
    """Return the method at the beginning of a boosting stage, or of its rectification."""
    epoch = 2 * number + rectifies
    return case(ReconBoost, count, seed, "sum", epoch=epoch, **QUICK, **options)


def softmax(row: Tensor) -> Tensor:
    return torch.exp(row) / torch.exp(row).sum()


def read(layer: Any, x: Tensor) -> Tensor:
    pairs = zip(layer.weight, layer.bias, strict=True)
    return torch.stack([(w * x).sum() + b for w, b in pairs])


def slow_logits(of: Case, batch: Batch) -> tuple[dict[str, Tensor], Callable[..., Gradients]]:
    """Return each modality's logits from a copy of the network, read sample by sample, and what
    gives the gradients of a loss."""
    network = of.network()
    rate = of.method.get_parameter("rate").detach().clone().requires_grad_()
    logits = {}
    for m, h in encode_in_double(network, batch.inputs).items():
        head: Any = branch_of(network, m).head
        hidden = [read(head[0], x).clamp(min=0) for x in h]
        logits[m] = torch.stack([read(head[2], x) for x in hidden])
    named: dict[str, Tensor] = {f"network.{n}": p for n, p in network.named_parameters()}
    named["method.rate"] = rate

    def gradients(loss: Callable[[Tensor], Tensor]) -> Gradients:
        return gradients_of(loss(rate), named)

    return logits, gradients


def slow_boosting(
    of: Case,
    batch: Batch,
    boosted: str,
    before: str | None,
    *,
    truth: float = 5.0,
    known: float = 1.0,
    agreement: float = 0.5,
) -> Gradients:
    logits, gradients = slow_logits(of, batch)
    classes = 3

    def loss(rate: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, label in enumerate(batch.y.tolist()):
            others = sum(z[i].detach() for m, z in logits.items() if m != boosted)
            assert isinstance(others, Tensor)
            p_others = softmax(rate.detach() * others)
            p = softmax(logits[boosted][i])
            for c in range(classes):
                y = float(c == label)
                total = total - truth * y * torch.log(p[c])
                total = total + known * y * p_others[c] * torch.log(p[c])
            if before is not None:
                gap = p - softmax(logits[before][i]).detach()
                total = total + agreement * (gap * gap).sum()
        return total / (classes * len(batch))

    return gradients(loss)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("number", [0, 1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_boosting_gradients_are_those_of_the_equations(count: int, number: int, seed: int) -> None:
    of = at_stage(count, seed, number)
    batch = of.batch()
    names = of.run.modalities
    before = None if number == 0 else names[(number - 1) % count]
    expected = slow_boosting(of, batch, names[number % count], before)
    got = of.step(batch)
    assert_close(got, expected)
    moved = {".".join(name.split(".")[:3]) for name, g in got.items() if bool(g.any())}
    assert moved == {f"network.encoders.{names[number % count]}", "network.fusion.heads"}


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (
            {"truth_weight": 2.0, "known_weight": 1.5, "agreement": 3.0},
            {"truth": 2.0, "known": 1.5, "agreement": 3.0},
        ),
        ({"agreement": 0.0}, {"agreement": 0.0}),
        ({"variant": "released"}, {"agreement": 0.0}),
        ({"width": 9}, {}),
        ({"hidden": 5}, {}),
    ],
)
def test_options_enter_the_gradients_as_the_equations_say(
    options: dict[str, Any], reference: dict[str, Any]
) -> None:
    of = at_stage(3, 3, 4, **options)
    if "width" in options:
        network = of.run.network
        for m in network.modalities:  # the reference's encoders end in the adapter
            branch = branch_of(network, m)
            network.encoders[m] = torch.nn.Sequential(network.encoders[m], branch.adapter)
            branch.adapter = torch.nn.Identity()
    batch = of.batch()
    expected = slow_boosting(of, batch, "view2", "view1", **reference)
    assert_close(of.step(batch), expected)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_rectification_gradients_are_those_of_the_fused_loss(count: int, seed: int) -> None:
    of = at_stage(count, seed, 1, rectifies=True)
    batch = of.batch()
    logits, gradients = slow_logits(of, batch)

    def loss(rate: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, label in enumerate(batch.y.tolist()):
            fused = sum(rate * z[i] for z in logits.values())
            assert isinstance(fused, Tensor)
            total = total - torch.log(softmax(fused)[label])
        return total / len(batch)

    got = of.step(batch)
    assert_close(got, gradients(loss))
    assert all(bool(g.any()) for g in got.values()), "everything learns"


def test_the_released_agreement_is_in_the_loss_and_not_in_the_gradient() -> None:
    losses = {}
    variants: dict[str, dict[str, Any]] = {
        "released": {"variant": "released"},
        "none": {"agreement": 0.0},
        "corrected": {},
    }
    for name, options in variants.items():
        of = at_stage(2, 0, 1, **options)
        batch = of.batch()
        with patch("mmbench.nets.network.Network.encode", encode_in_double):
            out = of.run.net(batch)
        losses[name] = float(of.method.loss(of.run, out, batch).detach())
    assert losses["released"] == losses["corrected"] > losses["none"]


def test_what_others_know_is_learned_less() -> None:
    """With the others sure of the true class a sample weighs (w_1 - w_2) / C, and w_1 / C with
    them sure of another one."""
    for shift, weight in ((0, 5 - 1), (1, 5)):
        of = at_stage(2, 0, 0)
        batch = of.batch()
        out = of.run.network.fuse(
            {m: torch.zeros(len(batch), 128, dtype=torch.float64) for m in of.run.modalities}
        )
        sure = torch.nn.functional.one_hot((batch.y + shift) % 3, 3) * 60.0
        own = torch.randn(len(batch), 3, generator=of.random, dtype=torch.float64)
        out.parts = {"view1": own, "view2": sure}
        out.logits = own + sure
        expected = weight / 3 * torch.nn.functional.cross_entropy(own, batch.y)
        assert float(of.method.loss(of.run, out, batch).detach()) == pytest.approx(float(expected))


# -- order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "epochs", "options", "lengths", "stages", "noted"),
    [
        (2, 100, {}, (4, 4), 12, False),
        (3, 60, {}, (4, 4), 7, False),
        (3, 20, {}, (3, 3), 3, False),
        (2, 16, {}, (4, 4), 2, False),
        (3, 2, {}, (1, 1), 3, True),
        (3, 20, {"boost_epochs": 5, "rectify_epochs": 0}, (5, 0), 4, False),
        (2, 12, {"boost_epochs": 5}, (5, 3), 2, True),
        (2, 10, {"stages": 1001}, (4, 4), 1001, False),
        (2, 10, {"stages": 3, "boost_epochs": 2}, (2, 4), 3, False),
    ],
)
def test_training_is_as_long_as_the_recipe_allows(
    count: int,
    epochs: int,
    options: dict[str, Any],
    lengths: tuple[int, int],
    stages: int,
    noted: bool,
) -> None:
    made = trainer(configured(ReconBoost, options), make_splits(count), epochs=epochs)
    method, run = made.method, made.run
    assert isinstance(method, ReconBoost)
    method.setup(run)
    *pretraining, last = method.stages(run)
    assert method.lengths(run) == lengths
    assert method.boosting_stages(run) == stages
    assert (last.name, last.epochs) == ("train", stages * sum(lengths))
    assert [stage.epochs for stage in pretraining] == [epochs] * count
    assert bool(run.notes) == noted


def groups_moved(made: Trainer) -> list[tuple[str, int, set[str]]]:
    """Train, and return for each update its stage, epoch, and what it moved."""
    run, seen = made.run, []
    step = run.step

    def watched() -> None:
        named = {**dict(run.network.named_parameters()), **dict(made.method.named_parameters())}
        before = {name: p.clone() for name, p in named.items()}
        step()
        moved = {name for name, p in before.items() if not torch.equal(p, named[name])}
        groups = {".".join(name.split(".")[:2]) for name in moved}
        seen.append((run.stage.name, run.epoch, groups))

    with patch.object(run, "step", watched):
        made.fit()
    return seen


def test_modalities_are_boosted_in_a_cycle_with_rectification_in_between() -> None:
    options = {"stages": 4, "boost_epochs": 2, "rectify_epochs": 1, "pretrain_epochs": 1}
    made = trainer(
        configured(ReconBoost, options), make_splits(3), momentum=0.9, weight_decay=0.1, lr=0.05
    )
    seen = [(epoch, groups) for stage, epoch, groups in groups_moved(made) if stage == "train"]
    everything = {"rate", "fusion.heads", *(f"encoders.view{i}" for i in (1, 2, 3))}
    order = [{f"encoders.view{i}", "fusion.heads"} for i in (1, 2, 3, 1)]
    expected = [groups for one in order for groups in (one, one, everything)]
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)
    for epoch, groups in seen:
        assert groups == expected[epoch], epoch
    assert {epoch for epoch, _ in seen} == set(range(12))


def test_without_rectification_the_rate_stays() -> None:
    options = {"stages": 2, "rectify_epochs": 0, "boost_epochs": 1, "pretrain_epochs": 0}
    made = trainer(configured(ReconBoost, options), make_splits(2))
    assert not any("rate" in groups for _, _, groups in groups_moved(made))
    assert float(made.method.get_parameter("rate").detach()) == 1


def test_each_part_of_a_stage_begins_without_momentum() -> None:
    options = {"stages": 2, "boost_epochs": 2, "rectify_epochs": 2, "pretrain_epochs": 0}
    made = trainer(configured(ReconBoost, options), make_splits(2), momentum=0.9, lr=0.05)
    run, step, plain = made.run, made.run.step, list[tuple[int, bool]]()

    def watched() -> None:
        moving = [p for p in run.network.parameters() if p.grad is not None]
        start = [p.detach().clone() for p in moving]
        slope = [p.grad + 1e-4 * p.detach() for p in moving if p.grad is not None]
        step()
        ends = [a - 0.05 * g for a, g in zip(start, slope, strict=True)]
        is_plain = all(torch.allclose(p, e, atol=1e-7) for p, e in zip(moving, ends, strict=True))
        plain.append((run.epoch, is_plain))

    with patch.object(run, "step", watched):
        made.fit()
    first = {epoch: i for i, (epoch, _) in reversed(list(enumerate(plain)))}
    expected = {first[epoch] for epoch in (0, 2, 4, 6)}
    assert {i for i, (_, is_plain) in enumerate(plain) if is_plain} == expected


@pytest.mark.parametrize("count", [2, 3])
def test_costs_are_counted(count: int) -> None:
    options = {"stages": 3, "boost_epochs": 1, "rectify_epochs": 2, "pretrain_epochs": 2}
    fitted = trainer(configured(ReconBoost, options), make_splits(count)).fit()
    steps = batch_counts(60, 16)
    alone, together = 2 * count * steps, 9 * steps
    assert fitted.run.counts.as_dict() == {
        "forwards": alone + together,
        "encoder_forwards": alone + count * together,
        "backwards": alone + together,
        "updates": alone + together,
    }


# -- unimodal training beforehand ------------------------------------------------------------------


class Watched(ReconBoost):
    """Keeps the encoders that the boosting starts from."""

    def on_stage_start(self, run: Run) -> None:
        if run.stage.name == "train":
            state = run.main.encoders.state_dict()
            self.start = {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize("select", ["best-val", "last"])
@pytest.mark.parametrize("count", [2, 3])
def test_boosting_starts_from_the_encoders_of_unimodal_runs_bit_for_bit(
    count: int, select: str
) -> None:
    splits = make_splits(count)
    made = make_trainer(Watched, count, "sum", select=select, splits=splits)
    made.fit()
    assert isinstance(made.method, Watched)
    expected: dict[str, Tensor] = {}
    for m in splits.modalities:
        alone = make_trainer(Unimodal, count, "sum", {"modality": m}, select=select, splits=splits)
        encoder = alone.fit().run.network.encoders
        expected |= encoder.state_dict()
    assert made.method.start.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(made.method.start[name], value), name


def test_without_pretraining_boosting_starts_from_fresh_encoders() -> None:
    made = make_trainer(Watched, 2, "sum", {"pretrain_epochs": 0})
    fresh = made.run.spec.build().encoders.state_dict()
    fitted = made.fit()
    assert isinstance(made.method, Watched)
    for name, value in fresh.items():
        assert torch.equal(made.method.start[name], value), name
    assert {row["stage"] for row in fitted.history} == {"train"}


# -- prediction ------------------------------------------------------------------------------------


def test_the_rate_multiplies_the_sum_of_the_heads() -> None:
    splits = make_splits(3)
    fitted = trainer(configured(ReconBoost), splits, lr=0.05).fit()
    out = read_out(fitted.run, fitted.method, splits.test)
    rate = fitted.method.report(fitted.run)["rate"]
    assert rate != 1
    for i in range(len(splits.test)):
        for c in range(3):
            expected = rate * math.fsum(float(z[i, c]) for z in out.own.values())
            assert float(out.logits[i, c]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_its_coefficients_are_in_the_history() -> None:
    fitted = trainer(configured(ReconBoost, QUICK | {"stages": 2}), make_splits(2)).fit()
    rows = [row for row in fitted.history if row["stage"] == "train"]
    ours = ("coefficient.", "known_to_others.", "disagreement.")
    logged = [{name for name in row if name.startswith(ours)} for row in rows]
    first = {"coefficient.view1", "known_to_others.view1"}
    second = {"coefficient.view2", "known_to_others.view2", "disagreement.view2"}
    assert logged == [first, set(), second, set()]
    coefficient = rows[0]["coefficient.view1"]
    assert isinstance(coefficient, float)
    assert 4 / 3 < coefficient < 5 / 3
    report = fitted.method.report(fitted.run)
    assert (report["boosting_stages"], report["boost_epochs"], report["rectify_epochs"]) == (
        2,
        1,
        1,
    )


# -- requests --------------------------------------------------------------------------------------


def uneven(options: dict[str, Any]) -> Trainer:
    """Return a trainer of a vector, whose features are 128 wide, and an image, 64 wide."""
    random = np.random.default_rng(0)
    shapes = {"vector": (6,), "image": (1, 8, 8)}

    def part(name: str, rows: int) -> Split:
        inputs = {m: Rows(random.normal(size=(rows, *shape))) for m, shape in shapes.items()}
        ids = np.array([f"{name}-{i}" for i in range(rows)])
        return Split(inputs, torch.arange(rows) % 3, ids)

    specs = {"vector": Modality("vector", (6,)), "image": Modality("image", (1, 8, 8))}
    splits = Splits(part("train", 20), part("val", 6), part("test", 6), specs, ("a", "b", "c"))
    spec = NetworkSpec(specs, {"vector": "mlp", "image": "small_cnn"}, 3, "sum", 0)
    recipe = Recipe.model_validate({"epochs": 2, "batch_size": 10, "lr": 0.01, "select": "last"})
    method = configured(ReconBoost, options)
    return Trainer(method, splits, spec, recipe, torch.device("cpu"))


def test_features_of_unequal_width_are_refused_before_training() -> None:
    with pytest.raises(RequestError, match=r"vector 128, image 64.*-o width=64") as caught:
        uneven({}).fit()
    assert "\n" not in str(caught.value)


def test_a_modality_that_is_not_boosted_keeps_its_batch_norms_and_layer() -> None:
    made = uneven({"width": 16, "stages": 1, "rectify_epochs": 0, "boost_epochs": 2})
    at_start: dict[str, Tensor] = {}
    begin = made.method.on_epoch_start

    def watched(run: Run) -> None:
        begin(run)
        if run.stage.name == "train" and not at_start:
            at_start.update({n: v.clone() for n, v in run.network.state_dict().items()})

    with patch.object(made.method, "on_epoch_start", watched):
        state = made.fit().run.network.state_dict()
    kept = {name for name in state if torch.equal(state[name], at_start[name])}
    images = {n for n in state if n.startswith(("encoders.image", "fusion.heads.image.adapter"))}
    assert any("running_mean" in name for name in images)
    assert kept == images


@pytest.mark.parametrize("fusion", ["concat", "late", "film", "gated", "attention"])
def test_other_fusions_are_refused(fusion: str) -> None:
    with pytest.raises(RequestError, match="use sum"):
        check_support(ReconBoost, fusion, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "release"}, "variant"),
        ({"variant": "released", "agreement": 0.1}, "agreement is not used by variant=released"),
        ({"truth_weight": 0.5}, "known_weight is at most truth_weight"),
        ({"truth_weight": 0}, "truth_weight"),
        ({"known_weight": -1}, "known_weight"),
        ({"agreement": -1}, "agreement"),
        ({"stages": 0}, "stages"),
        ({"boost_epochs": 0}, "boost_epochs"),
        ({"rectify_epochs": -1}, "rectify_epochs"),
        ({"pretrain_epochs": -1}, "pretrain_epochs"),
        ({"hidden": 0}, "hidden"),
        ({"alpha": 1}, "alpha"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(ReconBoost, options)
    assert "\n" not in str(caught.value)


def test_the_head_has_one_hidden_layer_and_serves_all() -> None:
    made = begun(ReconBoost, make_splits(2), "sum", {})
    head = branch_of(made.run.network, "view1").head
    assert head is branch_of(made.run.network, "view2").head
    shapes = [tuple(p.shape) for p in head.parameters() if p.dim() == 2]
    assert shapes == [(256, 128), (3, 256)]
