"""Freezing an encoder, ending a stage early, and scaling updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmbench.config import Recipe
from mmbench.data.dataset import Batch, Modality, Rows, Split, Splits
from mmbench.methods.joint import Joint
from mmbench.methods.mslr import MSLR
from mmbench.methods.ogm import OGM
from mmbench.methods.ogm_ge import OGMGE
from mmbench.nets.network import NetworkSpec, Output
from mmbench.options import Options
from mmbench.testing import contract
from mmbench.train.checkpoint import Checkpointer
from mmbench.train.method import Method, MethodInfo
from mmbench.train.run import Run
from mmbench.train.trainer import Fitted, Trainer
from tests.methods.support import configured, trainer

OPTIMISERS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "adam", "weight_decay": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "sgd", "clip_norm": 0.5},
]


def pictures(rows: int = 24) -> Splits:
    """Two image modalities, so that the encoders have batch norms."""

    def split(name: str, size: int) -> Split:
        random = torch.Generator().manual_seed(size)
        inputs = {m: Rows(torch.randn(size, 1, 8, 8, generator=random)) for m in ("a", "b")}
        return Split(inputs, torch.arange(size) % 3, np.array([f"{name}-{i}" for i in range(size)]))

    specs = {m: Modality("image", (1, 8, 8)) for m in ("a", "b")}
    return Splits(split("train", rows), split("val", 6), split("test", 6), specs, ("x", "y", "z"))


def fitted_on_pictures(method: Method, **recipe: Any) -> Fitted:
    splits = pictures()
    spec = NetworkSpec(splits.modalities, {"a": "small_cnn", "b": "small_cnn"}, 3, "sum", 0)
    settings = {"epochs": 4, "batch_size": 8, "lr": 0.01, "select": "last"} | recipe
    recipe_of_run = Recipe.model_validate(settings)
    return Trainer(method, splits, spec, recipe_of_run, torch.device("cpu")).fit()


class Freezing(Method):
    """Joint training in which a modality is frozen in some epochs."""

    info = MethodInfo("test", "control", "", "", "", default_fusion="sum")

    def __init__(self, config: Options) -> None:
        super().__init__(config)
        self.frozen_epochs: tuple[int, ...] = (1, 2)
        self.with_head = False
        self.states: list[dict[str, Tensor]] = []
        self.gradients: list[bool] = []

    def on_epoch_start(self, run: Run) -> None:
        self.states.append({k: v.clone() for k, v in run.network.state_dict().items()})
        if run.epoch in self.frozen_epochs:
            first = run.modalities[0]
            run.freeze(first, *([run.own_head(first)] if self.with_head else []))

    def modulate(self, run: Run, out: Output, batch: Batch) -> None:
        first = run.modalities[0]
        self.gradients.append(any(p.grad is not None for p in run.encoder_params(first)))
        list(run.outputs(np.arange(6)))  # looking at rows between two steps

    def on_epoch_end(self, run: Run) -> None:
        if run.epoch == 3:
            self.states.append({k: v.clone() for k, v in run.network.state_dict().items()})


def changed_in_epoch(method: Freezing, epoch: int) -> set[str]:
    before, after = method.states[epoch], method.states[epoch + 1]
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("recipe", OPTIMISERS)
@pytest.mark.parametrize("with_head", [False, True])
def test_nothing_of_a_frozen_encoder_changes_and_afterwards_it_learns_on(
    with_head: bool, recipe: dict[str, Any]
) -> None:
    """Momentum, weight decay and batch norm statistics included, which a zero gradient lets go on
    (the first epoch fills the momentum)."""
    method = configured(Freezing)
    assert isinstance(method, Freezing)
    method.with_head = with_head
    fitted = fitted_on_pictures(method, **recipe)
    frozen = {n for n in method.states[0] if n.startswith("encoders.a.")}
    assert any("running_mean" in name for name in frozen)
    if with_head:
        frozen |= {n for n in method.states[0] if n.startswith("fusion.heads.a.")}
    everything = set(method.states[0])
    assert [changed_in_epoch(method, e) for e in (0, 3)] == [everything, everything]
    assert [changed_in_epoch(method, e) for e in (1, 2)] == [everything - frozen] * 2
    steps = 3
    assert method.gradients == [True] * steps + [False] * 2 * steps + [True] * steps
    assert all(p.requires_grad for p in fitted.run.network.parameters())


def test_what_is_frozen_in_the_last_epoch_is_thawed_afterwards() -> None:
    method = configured(Freezing)
    assert isinstance(method, Freezing)
    method.frozen_epochs = (3,)
    fitted = fitted_on_pictures(method)
    assert all(p.requires_grad for p in fitted.run.network.parameters())


def test_a_frozen_encoder_is_frozen_again_after_a_resume() -> None:
    contract.check_resumes(Freezing, 2)


def test_unfreezing_in_the_epoch_lets_batch_norm_learn_again() -> None:
    splits = pictures()
    spec = NetworkSpec(splits.modalities, {"a": "small_cnn", "b": "small_cnn"}, 3, "sum", 0)
    run = Trainer(configured(Joint), splits, spec, Recipe(), torch.device("cpu")).run
    run.network.train()
    modes = {name: part.training for name, part in run.network.named_modules()}
    run.freeze("a")
    resting = [part for part in run.network.modules() if not part.training]
    norms = [p for p in run.network.encoders["a"].modules() if isinstance(p, nn.BatchNorm2d)]
    assert resting == norms
    assert len(norms) == 3
    run.unfreeze()
    assert {name: part.training for name, part in run.network.named_modules()} == modes
    assert all(p.requires_grad for p in run.network.parameters())


# -- ending a stage --------------------------------------------------------------------------------


class Ending(Method):
    """Joint training that has nothing to learn after its first epoch."""

    info = MethodInfo("test", "control", "", "", "")

    def on_epoch_end(self, run: Run) -> None:
        run.end_stage()


def test_a_stage_that_ends_early_is_as_long_as_it_says_and_resumes() -> None:
    made = trainer(configured(Ending), contract.make_splits(2), fusion="concat", epochs=5)
    fitted = made.fit()
    once = trainer(configured(Joint), contract.make_splits(2), fusion="concat", epochs=1).fit()
    assert len(fitted.history) == 1
    assert fitted.run.counts == once.run.counts
    for name, value in once.run.network.state_dict().items():
        assert torch.equal(fitted.run.network.state_dict()[name], value), name
    contract.check_resumes(Ending, 2)


class Noting(Method):
    """Joint training with something to say in its first epoch."""

    info = MethodInfo("test", "control", "", "", "")

    def on_epoch_start(self, run: Run) -> None:
        if run.epoch == 0:
            run.note("something happened")


def test_notes_outlast_a_resume(tmp_path: Path) -> None:
    splits = contract.make_splits(2)
    keeper = Checkpointer(tmp_path, seconds=0)
    for _ in range(2):  # the second time all is done already
        made = contract.make_trainer(Noting, 2, "concat", checkpointer=keeper, splits=splits)
        assert made.fit().run.notes == ["something happened"]


# -- scaling updates -------------------------------------------------------------------------------


class Scaling(Method):
    """Joint training in which the first modality's updates are multiplied by a factor."""

    info = MethodInfo("test", "control", "", "", "")
    factor: Tensor | float = 0.3
    by_groups = False

    def param_groups(self, run: Run) -> list[dict[str, Any]]:
        first, *others = run.modalities
        rest = [*run.head_params(), *(p for m in others for p in run.encoder_params(m))]
        slow = {"lr": float(self.factor) * run.recipe.lr} if self.by_groups else {}
        return [{"params": run.encoder_params(first), **slow}, {"params": rest}]

    def modulate(self, run: Run, out: Output, batch: Batch) -> None:
        if not self.by_groups:
            run.scale_update(run.encoder_params(run.modalities[0]), self.factor)


def scaled(factor: Tensor | float, by_groups: bool, recipe: dict[str, Any]) -> dict[str, Tensor]:
    method = configured(Scaling)
    assert isinstance(method, Scaling)
    method.factor, method.by_groups = factor, by_groups
    made = trainer(method, contract.make_splits(2), fusion="concat", **recipe)
    return dict(made.fit().run.network.state_dict())


@pytest.mark.parametrize("recipe", OPTIMISERS)
@pytest.mark.parametrize("factor", [0.3, 1.5, torch.tensor(0.3)])
def test_a_scaled_update_is_that_of_a_learning_rate_of_its_own(
    factor: Tensor | float, recipe: dict[str, Any]
) -> None:
    ours, expected = scaled(factor, False, recipe), scaled(factor, True, recipe)
    plain = scaled(1.0, True, recipe)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(
        ours["encoders.view1.layers.0.weight"], plain["encoders.view1.layers.0.weight"], atol=1e-4
    )


@pytest.mark.parametrize("recipe", OPTIMISERS)
def test_a_factor_of_one_changes_no_bit(recipe: dict[str, Any]) -> None:
    ours, plain = scaled(torch.tensor(1.0), False, recipe), scaled(1.0, True, recipe)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_a_factor_of_zero_stands_still() -> None:
    ours = scaled(0.0, False, OPTIMISERS[0])
    start = trainer(configured(Joint), contract.make_splits(2), fusion="concat").run.network
    for name, value in start.state_dict().items():
        assert torch.equal(ours[name].float(), value) == ("view1" in name), name


@pytest.mark.parametrize("method", [OGM, OGMGE, MSLR])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("where", ["gradient", "update"])
def test_a_note_says_where_the_optimiser_undoes_the_scaling(
    where: str, optimizer: str, method: type[Method]
) -> None:
    made = trainer(
        configured(method, {"scale_where": where}), contract.make_splits(2), optimizer=optimizer
    )
    made.method.setup(made.run)
    made.method.setup(made.run)
    is_undone = where == "gradient" and optimizer != "sgd"
    assert [("scale_where=update" in note) for note in made.run.notes] == [True] * is_undone
    assert all(optimizer in note for note in made.run.notes)


@pytest.mark.parametrize("method", [OGM, MSLR])
def test_under_adam_scaling_the_update_slows_an_encoder_and_scaling_its_gradient_hardly_does(
    method: type[Method],
) -> None:
    """How far the first modality's encoder moves in a few steps, relative to joint training. OGM's
    coefficients are those of a modality that is far ahead; MSLR's factor is 0.1."""

    def moved(kind: type[Method], options: dict[str, Any]) -> float:
        splits = contract.make_splits(2)
        made = trainer(
            configured(kind, options), splits, optimizer="adam", lr=1e-3, weight_decay=0, epochs=1
        )
        weight = made.run.encoder_params("view1")[0]
        if kind is OGM:
            for name, value in made.run.network.fusion.named_parameters():  # type: ignore[union-attr]
                value.data.mul_(0.05 if "view2" in name else 1.0)
        start = weight.detach().clone()
        made.fit()
        return float((weight.detach() - start).norm())

    slow: dict[str, Any] = {"alpha": 3.0, "first_epoch": 0, "last_epoch": 9}
    same: dict[str, Any] = {"alpha": 0.0}
    if method is MSLR:
        slow, same = ({"strategy": "keep", "factors": {"view1": c}} for c in (0.1, 1.0))
    joint = moved(method, same)
    assert moved(method, slow) > 0.6 * joint
    assert moved(method, slow | {"scale_where": "update"}) < 0.3 * joint
