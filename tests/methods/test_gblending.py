"""Gradient-Blending: gradients and weights against loops, branches against unimodal runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Splits
from mmbench.errors import RequestError
from mmbench.methods.gblending import GBlending, Losses, blend_weights
from mmbench.methods.joint import Joint
from mmbench.methods.unimodal import Unimodal
from mmbench.options import option
from mmbench.testing import contract
from mmbench.testing.contract import make_splits
from mmbench.train.method import Method, Stage
from mmbench.train.run import Run
from tests.methods.slow import (
    assert_gradients,
    copies,
    features,
    in_double,
    mean_loss,
    reaching_optimizer,
    read,
)
from tests.methods.support import batch_counts, begun, configured, trainer


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_are_those_of_the_blended_loss(
    seed: int, count: int, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = make_splits(count)
    names = list(splits.modalities)
    weights = dict(zip([*names, "joint"], [0.5, 2.0, 0.7, 1.3], strict=False))
    if count == 2:
        weights["joint"] = 1.3
    made = begun(GBlending, splits, fusion, {"mode": "given", "weights": weights})
    made.run.stage = made.method.stages(made.run)[-1]
    batch = in_double(made, monkeypatch, seed)

    values = copies(made)
    h = {m: [features(values, m, batch.inputs[m][i]) for i in range(len(batch))] for m in names}

    def own(m: str) -> Callable[[int], Tensor]:
        return lambda i: read(values, f"method.heads.{m}", h[m][i])

    def fused(i: int) -> Tensor:
        if fusion == "concat":
            return read(values, "fusion.head", torch.cat([h[m][i] for m in names]))
        logits = torch.zeros(3, dtype=torch.float64)
        for m in names:
            logits = logits + read(values, f"fusion.heads.{m}", h[m][i])
        return logits

    total = sum(weights.values())
    loss = weights["joint"] / total * mean_loss(batch, fused)
    for m in names:
        loss = loss + weights[m] / total * mean_loss(batch, own(m))
    loss.backward()  # type: ignore[no-untyped-call]
    expected = {name: value.grad for name, value in values.items()}
    assert all(gradient is not None for gradient in expected.values())
    assert_gradients(reaching_optimizer(made, batch, monkeypatch), expected, values)


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weights_are_those_of_the_formula(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    names = [f"k{i}" for i in range(count)]
    start, end = (
        {
            k: (float(a), float(b))
            for k, (a, b) in zip(names, random.random((count, 2)), strict=True)
        }
        for _ in range(2)
    )
    ratios = []
    for k in names:
        before = start[k][1] - start[k][0]
        after = end[k][1] - end[k][0]
        ratios.append(abs(start[k][1] - end[k][1]) / ((after - before) ** 2 + 1e-8))
    got = blend_weights(start, end, 1e-8)
    assert sum(got.values()) == pytest.approx(1, rel=1e-12)
    for k, ratio in zip(names, ratios, strict=True):
        assert got[k] == pytest.approx(ratio / sum(ratios), rel=1e-9)


def test_a_branch_that_overfits_twice_as_much_counts_a_quarter() -> None:
    start: dict[str, Losses] = {"a": (2.0, 2.0), "b": (2.0, 2.0)}
    end: dict[str, Losses] = {"a": (0.8, 1.0), "b": (0.6, 1.0)}
    got = blend_weights(start, end, 1e-8)
    assert got["a"] / got["b"] == pytest.approx(4, rel=1e-5)


def test_branches_that_have_not_moved_share_alike() -> None:
    still: dict[str, Losses] = {"a": (1.0, 1.0), "b": (0.5, 0.7), "c": (0.1, 2.0)}
    assert blend_weights(still, still, 1e-8) == {k: pytest.approx(1 / 3) for k in still}


def test_epsilon_limits_what_a_branch_gets_that_does_not_overfit() -> None:
    start: dict[str, Losses] = {"a": (2.0, 2.0), "b": (2.0, 2.0)}
    end: dict[str, Losses] = {"a": (1.0, 1.0), "b": (0.9, 1.0)}
    assert blend_weights(start, end, 1e-8)["a"] > 0.999999
    assert blend_weights(start, end, 0.01)["a"] == pytest.approx(2 / 3)


def test_a_note_says_when_the_fused_logits_hardly_learn() -> None:
    notes = []
    for weight in (0.001, 0.5):
        weights = {"joint": weight, "view1": 1 - weight}
        method = configured(GBlending, {"mode": "given", "weights": weights})
        notes.append(trainer(method, make_splits(2), fusion="concat").fit().run.notes)
    (note,) = notes[0]
    assert "fused logits" in note
    assert notes[1] == []


class Twice(GBlending):
    """Its held-out rows are duplicated."""

    def setup(self, run: Run) -> None:
        super().setup(run)
        self.held = np.repeat(self.held, 2)


@pytest.mark.parametrize(
    "options", [{"mode": "offline"}, {"mode": "online", "super_epoch": 2}], ids=str
)
def test_weights_do_not_change_when_the_held_out_rows_are_duplicated(
    options: dict[str, Any],
) -> None:
    once, twice = (
        trainer(configured(kind, options), make_splits(2), fusion="concat", epochs=3).fit().method
        for kind in (GBlending, Twice)
    )
    assert isinstance(once, GBlending)
    assert isinstance(twice, GBlending)
    assert len(twice.held) == 2 * len(once.held)
    assert len(set(once.weights.values())) == 3
    assert twice.weights == pytest.approx(once.weights, rel=1e-6)


# -- branches --------------------------------------------------------------------------------------


def on_rows(kind: type[Method], rows: np.ndarray, options: dict[str, Any]) -> Method:
    """Return a control that trains on some rows."""

    class OnRows(kind):  # type: ignore[misc, valid-type]
        def stages(self, run: Run) -> list[Stage]:
            return [Stage("train", run.recipe.epochs, rows=rows)]

    return configured(OnRows, options)


def slow_loss(method: Method, run: Run, rows: np.ndarray) -> float:
    run.network.eval()
    total = 0.0
    for row in rows:
        batch = run.train.batch(torch.tensor([row]), run.modalities)
        logits = method.predict(run, run.network(batch.inputs))[0].tolist()
        total += math.log(sum(math.exp(z) for z in logits)) - logits[int(batch.y)]
    return total / len(rows)


@pytest.mark.parametrize("fusion", ["concat", "gated"])
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_branches_are_the_controls_trained_on_the_kept_rows(mode: str, fusion: str) -> None:
    """A branch trained alone from fresh weights is unimodal (or joint) training: offline for all
    epochs, online in a first super-epoch as long as the run."""
    splits, epochs = make_splits(3), 3
    options = {"mode": mode} | ({"super_epoch": epochs} if mode == "online" else {})
    fitted = trainer(configured(GBlending, options), splits, fusion=fusion, epochs=epochs).fit()
    blended = fitted.method
    assert isinstance(blended, GBlending)
    for k in (*splits.modalities, "joint"):
        is_joint = k == "joint"
        kind, own = (Joint, {}) if is_joint else (Unimodal, {"modality": k})
        made = trainer(
            on_rows(kind, blended.kept, own),
            splits,
            fusion=fusion if is_joint else "sum",
            epochs=epochs,
        )
        for when, losses in (("start", blended.start[k]), ("end", blended.end[k])):
            if when == "end":
                made.fit()
            for rows, loss in zip((blended.kept, blended.held), losses, strict=True):
                assert loss == pytest.approx(slow_loss(made.method, made.run, rows), rel=1e-4)
    assert blended.weights == blend_weights(blended.start, blended.end, 1e-8)


def test_weights_are_estimated_on_rows_that_branches_do_not_learn_from() -> None:
    for mode in ("offline", "online"):
        made = begun(GBlending, make_splits(2), "concat", {"mode": mode, "holdout": 0.2})
        method = made.method
        assert isinstance(method, GBlending)
        *branches, main = method.stages(made.run)
        assert len(branches) == (3 if mode == "offline" else 0)
        assert len(method.held) == 12
        assert sorted([*method.kept, *method.held]) == list(range(60))
        for stage in branches:
            assert stage.rows is method.kept
        assert main.rows is (method.kept if mode == "online" else None)


def test_the_work_of_the_branches_is_counted() -> None:
    epochs, rows, kept, size = 5, 60, 54, 16
    for mode, ahead in (("offline", 5), ("online", 5)):
        options = {"mode": mode} | ({"super_epoch": 2} if mode == "online" else {})
        method = configured(GBlending, options)
        fitted = trainer(method, make_splits(2), fusion="concat", epochs=epochs).fit()
        of_branches = 3 * ahead * batch_counts(kept, size)
        of_main = epochs * batch_counts(kept if mode == "online" else rows, size)
        assert fitted.run.counts.updates == of_branches + of_main
        assert fitted.run.counts.backwards == of_branches + of_main


def test_going_ahead_leaves_the_run_as_it_was() -> None:
    """Online, with the weight given to the joint branch alone afterwards, training is joint
    training on the kept rows: branches have left no trace in network, optimiser or order."""

    class JointAlone(GBlending):
        def on_epoch_start(self, run: Run) -> None:
            super().on_epoch_start(run)
            self.weights = {"joint": 1.0}

    splits = make_splits(2)
    method = configured(JointAlone, {"mode": "online", "super_epoch": 2})
    ours = trainer(method, splits, fusion="concat", epochs=4).fit()
    assert isinstance(method, GBlending)
    joint = trainer(on_rows(Joint, method.kept, {}), splits, fusion="concat", epochs=4).fit()
    expected = joint.run.network.state_dict()
    for name, value in ours.run.network.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_online_weights_change_with_every_super_epoch_and_only_then() -> None:
    method = configured(GBlending, {"mode": "online", "super_epoch": 2})
    history = trainer(method, make_splits(2), fusion="concat", epochs=5).fit().history
    for k in ("view1", "view2", "joint"):
        weights = [row[f"weight.{k}"] for row in history]
        assert weights[0] == weights[1] != weights[2] == weights[3] != weights[4]
    for row in history:
        total = sum(float(row[f"weight.{k}"]) for k in ("view1", "view2", "joint"))
        assert total == pytest.approx(1, rel=1e-6)


class Online(GBlending):
    """The contract's runs in the other mode."""

    class Config(GBlending.Config):
        mode: Any = option("online", "")
        super_epoch: int = option(2, "")


def test_online_it_resumes_within_and_between_super_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contract, "EPOCHS", 5)
    contract.check_resumes(Online, 2)
    contract.check_state_is_complete(Online, 2)
    contract.check_sees_training_rows_only(Online, 2)


# -- wrong requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "sometimes"}, "mode"),
        ({"mode": "given"}, "belong together"),
        ({"weights": {"joint": 1.0}}, "belong together"),
        ({"mode": "given", "weights": {"joint": -1.0}}, "at least 0"),
        ({"mode": "given", "weights": {}}, "one is above"),
        ({"mode": "given", "weights": {"joint": 0.0}}, "one is above"),
        ({"mode": "given", "weights": {"joint": 1.0}, "holdout": 0.2}, "holdout is not used"),
        ({"super_epoch": 5}, "super_epoch is not used"),
        ({"mode": "online", "super_epoch": 0}, "super_epoch"),
        ({"holdout": 1.0}, "holdout"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(GBlending, options)
    assert "\n" not in str(caught.value)


def test_a_weight_of_no_branch_is_named_before_training() -> None:
    with pytest.raises(RequestError, match=r"branch in weights 'view3'"):
        begun(GBlending, make_splits(2), "sum", {"mode": "given", "weights": {"view3": 1.0}})


def test_a_modality_of_the_fused_branchs_name_is_refused() -> None:
    splits = make_splits(2)

    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {"joint" if m == "view1" else m: value for m, value in values.items()}

    for split in (splits.train, splits.val, splits.test):
        split.inputs = renamed(split.inputs)
    other = Splits(
        splits.train, splits.val, splits.test, renamed(splits.modalities), splits.classes
    )
    with pytest.raises(RequestError, match="rename the modality"):
        begun(GBlending, other, "concat", {})


def test_too_few_rows_to_hold_out_are_named_before_training() -> None:
    with pytest.raises(RequestError, match=r"gblending: a holdout of 0\.02 leaves 1 "):
        begun(GBlending, make_splits(2), "concat", {"holdout": 0.02})
