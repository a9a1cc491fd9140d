"""The trainer: what every method can count on, whatever it does."""

from __future__ import annotations

import gc
import math
import types
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.config import Recipe
from mmbench.data.dataset import Split, Splits
from mmbench.errors import RunFailed, StoreError
from mmbench.evaluate.readout import read_out
from mmbench.nets.network import NetworkSpec
from mmbench.nets.network import Output as NetworkOutput
from mmbench.registry import load_method
from mmbench.testing.contract import CLASSES, make_splits
from mmbench.train import trainer as trainer_module
from mmbench.train.checkpoint import Checkpointer, State
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run, batches
from mmbench.train.trainer import Trainer

CPU = torch.device("cpu")


class Plain(Method):
    info = MethodInfo("Plain", "control", "joint training", "never", "1 forward, 1 backward")


def make(
    method: type[Method] = Plain,
    splits: Splits | None = None,
    fusion: str = "concat",
    seed: int = 0,
    checkpointer: Checkpointer | None = None,
    **recipe: Any,
) -> Trainer:
    data = splits or make_splits(2)
    spec = NetworkSpec(
        data.modalities, dict.fromkeys(data.modalities, "mlp"), CLASSES, fusion, seed
    )
    settings = Recipe.model_validate({"epochs": 3, "batch_size": 16, "lr": 0.01, **recipe})
    options = method.Config()
    assert isinstance(options, Options)
    return Trainer(method(options), data, spec, settings, CPU, checkpointer=checkpointer)


def rows_seen(trainer: Trainer) -> list[list[int]]:
    """Train, and return the rows of every batch that went through the network."""
    seen: list[list[int]] = []
    net = trainer.run.net

    def watched(batch: Batch, keep: Any = None) -> Output:
        seen.append(batch.rows.tolist())
        return net(batch, keep)

    trainer.run.net = watched  # type: ignore[method-assign]
    trainer.fit()
    return seen


# -- pairing -------------------------------------------------------------------------------------


def test_a_seed_gives_every_method_the_same_batches_in_the_same_order() -> None:
    orders = [rows_seen(make(load_method(name))) for name in ("joint", "multiloss", "ogm_ge")]
    assert orders[0] == orders[1] == orders[2]
    assert rows_seen(make(seed=1)) != orders[0]


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    seen = rows_seen(make())
    epochs = [list(chain(*seen[start : start + 4])) for start in range(0, len(seen), 4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(60))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_seed_gives_every_method_and_fusion_the_same_initial_encoders() -> None:
    reference = make().main.encoders.state_dict()
    for name, fusion in [("multiloss", "concat"), ("ogm", "sum"), ("joint", "film")]:
        encoders = make(load_method(name), fusion=fusion).main.encoders.state_dict()
        assert all(torch.equal(encoders[key], value) for key, value in reference.items())
    other = make(seed=1).main.encoders.state_dict()
    assert not all(torch.equal(other[key], value) for key, value in reference.items())


# -- the recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "rate"),
    [
        ({}, lambda e: 0.01),
        ({"schedule": "step", "step_epochs": 2, "step_factor": 0.5},
         lambda e: 0.01 * 0.5 ** (e // 2)),
        ({"schedule": "step"}, lambda e: 0.01),
        ({"schedule": "cosine"}, lambda e: 0.005 * (1 + math.cos(math.pi * e / 5))),
        ({"schedule": "cosine", "optimizer": "adam"},
         lambda e: 0.005 * (1 + math.cos(math.pi * e / 5))),
    ],
)  # fmt: skip
def test_the_learning_rate_of_each_epoch_follows_the_schedule(recipe: Any, rate: Any) -> None:
    history = make(epochs=5, **recipe).fit().history
    assert [row["lr"] for row in history] == pytest.approx([rate(e) for e in range(5)])


def step_length(**recipe: Any) -> float:
    """Return how far one update moves all parameters."""
    trainer = make(
        epochs=1, batch_size=1000, momentum=0, weight_decay=0, select="last", lr=0.1, **recipe
    )
    before = torch.cat([p.detach().clone().flatten() for p in trainer.main.parameters()])
    trainer.fit()
    after = torch.cat([p.detach().flatten() for p in trainer.main.parameters()])
    return float((after - before).norm())


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    norm = step_length() / 0.1
    assert step_length(clip_norm=norm / 4) == pytest.approx(0.1 * norm / 4, rel=1e-4)
    assert step_length(clip_norm=norm * 4) == pytest.approx(0.1 * norm, rel=1e-4)


def test_the_best_validation_epoch_is_kept_and_ties_go_to_the_lower_loss() -> None:
    splits = make_splits(2)
    splits.val.y[:6] = (splits.val.y[:6] + 1) % CLASSES  # so that more confidence is more loss
    trainer = make(splits=splits, epochs=20, lr=0.003)
    fitted = trainer.fit()
    scores = [(row["val_accuracy"], -float(row["val_nll"])) for row in fitted.history]
    best = max(scores)
    assert [accuracy for accuracy, _ in scores].count(best[0]) > 1, "the example has a tie"
    assert fitted.selected == [
        {"stage": "train", "epoch": scores.index(best) + 1, "rule": "best-val"}
    ]
    assert scores.index(best) + 1 < 20, "the last epoch would be no choice"
    kept = read_out(fitted.run, fitted.method, trainer.splits.val)
    assert (kept.accuracy(), -kept.nll()) == best


def test_selecting_the_last_epoch_keeps_the_last() -> None:
    trainer = make(epochs=5, select="last")
    fitted = trainer.fit()
    kept = read_out(fitted.run, fitted.method, trainer.splits.val)
    assert kept.nll() == fitted.history[-1]["val_nll"]
    assert fitted.selected == [{"stage": "train", "epoch": 5, "rule": "last"}]


# -- rows and counts -----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", range(1, 14))
def test_batches_hold_every_row_once_and_no_batch_a_single_leftover(rows: int) -> None:
    split = make_splits(2).train
    order = np.arange(rows)[::-1].copy()
    sizes, seen = [], []
    for batch in batches(split, order, ("view1",), 4, CPU):
        sizes.append(len(batch))
        seen += batch.rows.tolist()
        assert torch.equal(batch.y, split.y[batch.rows])
    assert seen == order.tolist()
    full, left = divmod(rows, 4)
    expected = [4] * full + ([left] if left else [])
    if left == 1 and full:
        expected = [*[4] * (full - 1), 5]
    assert sizes == expected


@pytest.mark.parametrize("rows", [511, 512, 513, 1025])
def test_no_row_is_dropped_at_evaluation(rows: int) -> None:
    trainer = make(splits=make_splits(2, rows))
    trainer.fit()
    whole = read_out(trainer.run, trainer.method, trainer.splits.train)
    assert len(whole.y) == len(whole.logits) == rows
    assert torch.equal(whole.y, trainer.splits.train.y)
    some = np.array([rows - 1, 0, 3])
    few = read_out(trainer.run, trainer.method, trainer.splits.train, some)
    torch.testing.assert_close(few.logits, whole.logits[some])


@pytest.mark.parametrize(
    ("rows", "size", "per_epoch"), [(60, 16, 4), (65, 16, 4), (66, 16, 5), (64, 64, 1), (9, 1, 8)]
)
def test_counts_are_those_of_the_closed_form(rows: int, size: int, per_epoch: int) -> None:
    fitted = make(splits=make_splits(3, rows), batch_size=size).fit()
    updates = 3 * per_epoch
    assert fitted.run.counts.as_dict() == {
        "updates": updates,
        "forwards": updates,
        "encoder_forwards": 3 * updates,
        "backwards": updates,
    }


def reachable(start: object) -> list[object]:
    """Return everything that can be reached from an object by attributes and items."""
    opaque = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    seen: dict[int, object] = {}
    left = [start]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, opaque):
            continue
        seen[id(thing)] = thing
        left += gc.get_referents(thing)
    return list(seen.values())


def test_a_method_cannot_reach_validation_or_test_through_its_run() -> None:
    trainer = make()
    trainer.fit()
    found = {id(thing) for thing in reachable(trainer.run)}
    assert id(trainer.splits.train) in found
    for split in (trainer.splits.val, trainer.splits.test):
        hidden: list[object] = [split, split.y, split.ids, *split.inputs.values()]
        assert not found & {id(thing) for thing in hidden}


# -- time and checkpoints ------------------------------------------------------------------------


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0


class Timed(Method):
    info = Plain.info

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        Clock.now += 1
        return super().train_step(run, batch)

    def predict(self, run: Run, out: NetworkOutput) -> Tensor:
        Clock.now += 1000
        return super().predict(run, out)


class Slow(Checkpointer):
    saved = 0

    def save(self, state: State) -> None:
        Clock.now += 1e6
        self.saved += 1


def test_training_time_leaves_out_evaluation_checkpoints_and_the_step_that_is_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keeper = Slow(tmp_path, seconds=0)
    clock = types.SimpleNamespace(perf_counter=lambda: Clock.now, monotonic=lambda: Clock.now)
    monkeypatch.setattr(trainer_module, "time", clock)
    fitted = make(Timed, checkpointer=keeper).fit()
    assert fitted.seconds == {"train": 3 * 4 - 1}
    assert keeper.saved == 3


@pytest.mark.parametrize(("seconds", "saved"), [(0, 3), (1e9, 0)])
def test_checkpoints_are_written_no_more_often_than_asked(
    tmp_path: Path, seconds: float, saved: int
) -> None:
    keeper = Slow(tmp_path, seconds)
    make(checkpointer=keeper).fit()
    assert keeper.saved == saved


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("main"),
        lambda state: state.update(stage=7),
        lambda state: state.update(stage=0, epoch=99),
        lambda state: state.update(counts={"jumps": 3}),
        lambda state: state["main"].popitem(),
        lambda state: state.update(history=None),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path: Path, spoil: Any) -> None:
    keeper = Checkpointer(tmp_path, seconds=0)
    make(checkpointer=keeper).fit()
    state = keeper.load()
    assert state is not None
    spoil(state)
    keeper.save(state)
    with pytest.raises(StoreError, match="does not fit this run"):
        make(checkpointer=keeper).fit()


class Diverging(Method):
    info = Plain.info
    steps = 0

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        self.steps += 1
        return super().loss(run, out, batch) * (math.nan if self.steps == 58 else 1.0)


def test_a_loss_that_is_not_finite_names_epoch_and_step() -> None:
    # 600 rows in batches of 10: the 58th step is in the first epoch, past the first look at losses.
    with pytest.raises(RunFailed, match=r"nan in stage 'train', epoch 1, step 58 \(last finite"):
        make(Diverging, make_splits(2, 600), batch_size=10).fit()


def test_numbers_logged_are_means_over_the_epoch() -> None:
    class Logging(Method):
        info = Plain.info

        def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
            run.log("rows", len(batch))
            return super().loss(run, out, batch)

    history = make(Logging).fit().history
    assert [row["rows"] for row in history] == [(16 * 3 + 12) / 4] * 3


def test_a_split_is_never_changed_by_training() -> None:
    splits = make_splits(2)
    before = splits.fingerprints()
    make(splits=splits).fit()
    assert splits.fingerprints() == before
    assert isinstance(splits.train, Split)
