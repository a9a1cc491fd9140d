"""MSES: what it stops, when, and what it puts back, against the rule written out again."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.errors import RequestError
from mmbench.methods.joint import Joint
from mmbench.methods.mses import MSES
from mmbench.options import option
from mmbench.testing import contract
from mmbench.testing.contract import make_splits
from mmbench.train.run import Run
from mmbench.train.trainer import Fitted
from tests.methods.slow import (
    assert_gradients,
    copies,
    features,
    in_double,
    mean_loss,
    reaching_optimizer,
    read,
)
from tests.methods.support import begun, configured, trainer

Losses = dict[str, list[float]]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_stopped_modality_gets_no_gradient_and_the_others_their_own(
    seed: int, count: int, hard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = begun(MSES, make_splits(count), "sum", {"hard_freeze": hard})
    method, names = made.method, list(made.run.modalities)
    assert isinstance(method, MSES)
    batch = in_double(made, monkeypatch, seed)
    method.stopped = {names[seed % count]: 0}
    method.on_epoch_start(made.run)

    weights = copies(made)

    def fused(i: int) -> Tensor:
        logits = torch.zeros(3, dtype=torch.float64)
        for m in names:
            h = features(weights, m, batch.inputs[m][i])
            logits = logits + read(weights, f"fusion.heads.{m}", h)
        return logits

    mean_loss(batch, fused).backward()  # type: ignore[no-untyped-call]
    expected: dict[str, Tensor | None] = {}
    for name, weight in weights.items():
        (m,) = [m for m in names if f".{m}." in name]
        assert weight.grad is not None
        expected[name] = 0 * weight.grad if m in method.stopped else weight.grad
    found = reaching_optimizer(made, batch, monkeypatch)
    assert_gradients(found, expected, weights)
    if hard:
        assert all(found[n] is None for n in weights if f".{names[seed % count]}." in n)


# -- when it stops ---------------------------------------------------------------------------------


class Scripted(MSES):
    """MSES with given held-out losses per epoch; keeps the weights at every epoch's end, before
    and after what MSES does there."""

    losses: ClassVar[Losses] = {}

    def setup(self, run: Run) -> None:
        super().setup(run)
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.momenta: list[list[Tensor]] = []
        self.rates: list[float] = []

    def held_out_losses(self, run: Run) -> dict[str, float]:
        return {m: values[run.epoch] for m, values in self.losses.items()}

    def on_epoch_end(self, run: Run) -> None:
        self.before.append(weights_of(run))
        super().on_epoch_end(run)
        self.after.append(weights_of(run))
        assert run.optimizer is not None
        states = run.optimizer.state_dict()["state"].values()
        self.momenta.append([s["momentum_buffer"].clone() for s in states])
        self.rates.append(run.optimizer.param_groups[0]["lr"])


def weights_of(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.network.state_dict().items()}


def scripted(losses: Losses, **options: Any) -> tuple[Scripted, Fitted]:
    recipe = options.pop("recipe", {})
    method = configured(Scripted, options)
    assert isinstance(method, Scripted)
    Scripted.losses = losses
    epochs = len(next(iter(losses.values())))
    fitted = trainer(method, make_splits(len(losses)), epochs=epochs, **recipe).fit()
    return method, fitted


def rule(losses: list[float], patience: int, smoothing: float) -> tuple[int | None, int]:
    """Return the epoch in which a modality stops, if it does, and its best epoch by then."""
    smooth = [losses[0]] + [
        smoothing * losses[e - 1] + (1 - smoothing) * losses[e] for e in range(1, len(losses))
    ]
    for e in range(len(losses)):
        best = min(range(e + 1), key=lambda k: (smooth[k], k))
        if e - best > patience:
            return e, best
    return None, min(range(len(losses)), key=lambda k: (smooth[k], k))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("patience", "smoothing"), [(0, 0.6), (1, 0.6), (2, 0.0), (2, 0.9)])
def test_each_modality_stops_by_its_own_losses(count: int, patience: int, smoothing: float) -> None:
    random = np.random.default_rng(patience)
    losses = {f"view{i + 1}": list(1 + random.normal(size=9).cumsum() ** 2) for i in range(count)}
    method, fitted = scripted(losses, patience=patience, smoothing=smoothing)
    expected = {m: rule(values, patience, smoothing) for m, values in losses.items()}
    ends = [9 - 1 if stop is None else stop for stop, _ in expected.values()]
    assert len(fitted.history) == max(ends) + 1, "training ends when all have stopped"
    assert method.stopped == {m: s for m, (s, _) in expected.items() if s is not None}
    assert method.best_epoch == {m: best for m, (_, best) in expected.items()}
    assert method.report(fitted.run)["stopped"] == {m: s + 1 for m, s in method.stopped.items()}


RISING: Losses = {"view1": [1.0, 0.5, 2.0, 3.0, 4.0, 5.0], "view2": [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}
"""The first modality is at its best in epoch 1 and, with a patience of 1, stops in epoch 3."""


def of(weights: dict[str, Tensor], m: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if f".{m}." in name}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_modality_that_stops_gets_the_weights_of_its_best_epoch_back() -> None:
    method, _ = scripted(RISING, patience=1, smoothing=0.0, hard_freeze=True)
    assert method.stopped == {"view1": 3}
    assert not same(of(method.before[3], "view1"), of(method.before[1], "view1"))
    assert same(of(method.after[3], "view1"), of(method.before[1], "view1"))
    assert same(of(method.after[3], "view2"), of(method.before[3], "view2"))
    for e in (4, 5):
        assert same(of(method.after[e], "view1"), of(method.before[1], "view1"))
        assert not same(of(method.after[e], "view2"), of(method.after[e - 1], "view2"))


def test_without_hard_freeze_momentum_and_decay_go_on_changing_it() -> None:
    method, _ = scripted(RISING, patience=1, smoothing=0.0)
    assert same(of(method.after[3], "view1"), of(method.before[1], "view1"))
    assert not same(of(method.after[4], "view1"), of(method.after[3], "view1"))
    gentle = {"momentum": 0.0, "weight_decay": 0.0}
    method, _ = scripted(RISING, patience=1, smoothing=0.0, recipe=gentle)
    assert same(of(method.after[5], "view1"), of(method.after[3], "view1"))


def test_restoring_all_takes_everything_back_but_the_learning_rate() -> None:
    recipe = {"schedule": "step", "step_epochs": 2, "step_factor": 0.5}
    method, _ = scripted(RISING, patience=1, smoothing=0.0, restore="all", recipe=recipe)
    assert method.stopped == {"view1": 3}
    assert same(method.after[3], method.before[1])
    assert not same(method.before[3], method.before[1])
    for then, now in zip(method.momenta[1], method.momenta[3], strict=True):
        assert torch.equal(then, now)
    assert method.rates == [0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025]


class Resumed(Scripted):
    """With what changes the state most: stops in epoch 3, freezes, goes back."""

    class Config(MSES.Config):
        patience: int | None = option(1, "")
        smoothing: float = option(0.0, "")


class ResumedHard(Resumed):
    class Config(Resumed.Config):
        hard_freeze: bool = option(True, "")


class ResumedAll(Resumed):
    class Config(Resumed.Config):
        restore: Any = option("all", "")


@pytest.mark.parametrize("kind", [Resumed, ResumedHard, ResumedAll])
def test_it_resumes_before_and_after_a_stop(
    kind: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "EPOCHS", 6)
    monkeypatch.setattr(Scripted, "losses", RISING)
    contract.check_resumes(kind, 2)


# -- what it measures ------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["sum", "late"])
def test_losses_are_those_of_own_logits_on_rows_held_out(fusion: str) -> None:
    made = begun(MSES, make_splits(3), fusion, {"holdout": 0.25})
    method, run = made.method, made.run
    assert isinstance(method, MSES)
    (stage,) = method.stages(run)
    assert stage.rows is not None
    assert len(method.held) == 15
    assert sorted([*stage.rows, *method.held]) == list(range(60))
    run.network.eval()
    for m, loss in method.held_out_losses(run).items():
        total = 0.0
        for row in method.held:
            batch = run.train.batch(torch.tensor([row]), run.modalities)
            logits = run.own_head(m)(run.network.encode(batch.inputs)[m])[0].tolist()
            total += math.log(sum(math.exp(z) for z in logits)) - logits[int(batch.y)]
        assert loss == pytest.approx(total / len(method.held), rel=1e-5)


def test_a_modality_of_noise_stops_before_an_informative_one() -> None:
    """On real losses: what cannot be learned overfits first."""
    splits = make_splits(2, rows=120)
    noise = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    source = splits.train.inputs["view1"]
    source.tensor.copy_(noise)  # type: ignore[attr-defined]
    method = configured(MSES, {"patience": 2, "hard_freeze": True, "holdout": 0.3})
    fitted = trainer(method, splits, epochs=20, lr=0.05).fit()
    assert isinstance(fitted.method, MSES)
    stopped = fitted.method.stopped
    assert stopped["view1"] < stopped.get("view2", 20)


def test_until_something_stops_it_is_joint_training_on_the_same_rows() -> None:
    splits = make_splits(2)
    fitted = trainer(configured(MSES), splits, epochs=3).fit()
    assert isinstance(fitted.method, MSES)
    kept = fitted.method.kept

    class OnKept(Joint):
        def stages(self, run: Run) -> list[Any]:
            (stage,) = super().stages(run)
            return [type(stage)(stage.name, stage.epochs, rows=kept, select="protocol")]

    joint = trainer(configured(OnKept), splits, epochs=3).fit()
    assert same(weights_of(fitted.run), weights_of(joint.run))
    assert any("nothing stops in 3 epochs" in note for note in fitted.run.notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patience": -1}, "patience"),
        ({"patience": 1.5}, "patience"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"restore": "none"}, "restore"),
        ({"holdout": 0}, "holdout"),
        ({"patience": None, "hard_freeze": True}, "hard_freeze is not used"),
        ({"patience": None, "holdout": 0.2}, "holdout is not used"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(MSES, options)
    assert "\n" not in str(caught.value)


def test_too_few_rows_to_hold_out_are_named_before_training() -> None:
    with pytest.raises(RequestError, match=r"mses: a holdout of 0\.98 .* 1 to learn from"):
        begun(MSES, make_splits(2), "sum", {"holdout": 0.98})
