"""A run that breaks down says where, and leaves the last good checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mmbench.config import Recipe
from mmbench.errors import RunFailed
from mmbench.nets.network import NetworkSpec
from mmbench.testing.contract import CLASSES, make_splits
from mmbench.train.checkpoint import Checkpointer
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run
from mmbench.train.trainer import Trainer

STEPS = 6
"""Batches of an epoch in these tests."""


class Poisoned(Method):
    """Puts a bad number into one gradient, at one step."""

    info = MethodInfo("Poisoned", "control", "joint training", "never", "1 forward, 1 backward")
    part = "encoder"
    epoch = 1
    step = 3
    value = float("nan")

    def on_epoch_start(self, run: Run) -> None:
        self.steps = 0

    def modulate(self, run: Run, out: Output, batch: Batch) -> None:
        self.steps += 1
        if (run.epoch + 1, self.steps) == (self.epoch, self.step):
            second = run.modalities[1]
            group = run.encoder_params(second) if self.part == "encoder" else run.head_params()
            assert group[0].grad is not None
            group[0].grad.view(-1)[0] = self.value


def make(method: type[Method], checkpointer: Checkpointer | None = None) -> Trainer:
    splits = make_splits(2)
    encoders = dict.fromkeys(splits.modalities, "mlp")
    spec = NetworkSpec(splits.modalities, encoders, CLASSES, "concat", 0)
    size = -(-len(splits.train) // STEPS)
    recipe = Recipe.model_validate({"epochs": 3, "batch_size": size, "lr": 0.01})
    cpu = torch.device("cpu")
    return Trainer(method(Options()), splits, spec, recipe, cpu, checkpointer=checkpointer)


def failure(trainer: Trainer) -> str:
    with pytest.raises(RunFailed) as caught:
        trainer.fit()
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, 3), (2, STEPS - 1), (2, STEPS)])
def test_a_gradient_that_is_not_finite_is_named_with_modality_and_step(
    epoch: int, step: int, value: float
) -> None:
    kind = type("Bad", (Poisoned,), {"epoch": epoch, "step": step, "value": value})
    said = failure(make(kind))
    assert re.search(rf"gradient of the encoder of .\w+. was not finite.* step {step}\b", said)
    first, second = make_splits(2).modalities
    assert f"'{second}'" in said
    assert f"'{first}'" not in said
    assert f"stage 'train', epoch {epoch}, step {step}" in said


def test_a_broken_classifier_is_not_laid_to_an_encoder() -> None:
    kind = type("Bad", (Poisoned,), {"part": "head", "step": STEPS})
    assert "the gradient of the fusion was not finite" in failure(make(kind))
    kind = type("Bad", (Poisoned,), {"part": "head", "step": 2})
    said = failure(make(kind))
    assert "the loss became nan in stage 'train', epoch 1, step 3" in said
    assert "encoder" not in said


def test_the_last_good_checkpoint_is_kept(tmp_path: Path) -> None:
    keeper = Checkpointer(tmp_path, seconds=0)
    kind = type("Bad", (Poisoned,), {"epoch": 2, "step": STEPS})
    failure(make(kind, keeper))
    state = keeper.load()
    assert state is not None
    assert (state["stage"], state["epoch"]) == (0, 1)
    assert all(t.isfinite().all() for t in state["main"].values())


def test_healthy_training_is_not_disturbed() -> None:
    assert len(make(type("Good", (Poisoned,), {"epoch": 9})).fit().history) == 3
