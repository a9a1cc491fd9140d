"""The norm of each encoder's gradient in the history: what it is, and that it changes nothing."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.config import Recipe
from mmbench.data.dataset import Batch, Modality, Rows, Split, Splits
from mmbench.methods.joint import Joint
from mmbench.nets.network import NetworkSpec
from mmbench.train.method import Method, Output
from mmbench.train.run import Run
from mmbench.train.trainer import Fitted, Trainer

MODALITIES = ("x", "y")


def train(method: type[Method] = Joint, **recipe: Any) -> Fitted:
    rng = np.random.default_rng(0)

    def split(rows: int) -> Split:
        inputs = {m: Rows(rng.normal(size=(rows, 4))) for m in MODALITIES}
        return Split(inputs, torch.arange(rows) % 3, np.array([str(i) for i in range(rows)]))

    specs = {m: Modality("vector", (4,)) for m in MODALITIES}
    splits = Splits(split(40), split(6), split(6), specs, ("a", "b", "c"))
    spec = NetworkSpec(specs, dict.fromkeys(MODALITIES, "mlp"), 3, "concat", seed=3)
    defaults: dict[str, Any] = {"epochs": 3, "batch_size": 16, "lr": 0.05, "select": "last"}
    settings = Recipe(**(defaults | recipe))
    return Trainer(method(method.Config()), splits, spec, settings, torch.device("cpu")).fit()


class Recording(Joint):
    """Computes the norms on its own, at every step, and halves the gradients of ``y`` before."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.norms: dict[int, list[dict[str, float]]] = {}

    def modulate(self, run: Run, out: Output, batch: Batch) -> None:
        for parameter in run.encoder_params("y"):
            assert parameter.grad is not None
            parameter.grad *= 0.5
        norms = {}
        for m in MODALITIES:
            gradients = [p.grad for p in run.network.encoders[m].parameters()]
            total = sum(float((g.double() ** 2).sum()) for g in gradients if g is not None)
            norms[m] = math.sqrt(total)
        self.norms.setdefault(run.epoch, []).append(norms)


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_it_is_the_gradient_of_the_first_batch_as_the_method_left_it(
    clip_norm: float | None,
) -> None:
    fitted = train(Recording, clip_norm=clip_norm)
    assert isinstance(fitted.method, Recording)
    for epoch, row in enumerate(fitted.history):
        first, second = fitted.method.norms[epoch][:2]
        for m in MODALITIES:
            assert row[f"gradient_norm.{m}"] == pytest.approx(first[m], rel=1e-5)
            assert row[f"gradient_norm.{m}"] != pytest.approx(second[m], rel=1e-5)


def test_measuring_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = train().run.network.state_dict()
    monkeypatch.setattr(Run, "_log_gradient_norms", lambda self: None)
    plain = train()
    assert not any(name.startswith("gradient_norm") for name in plain.history[0])
    for name, tensor in plain.run.network.state_dict().items():
        assert torch.equal(tensor, measured[name]), name


class FreezingX(Joint):
    def on_epoch_start(self, run: Run) -> None:
        if run.epoch == 1:
            run.freeze("x")


def test_an_encoder_without_gradients_has_an_empty_cell() -> None:
    history = train(FreezingX).history
    assert ["gradient_norm.x" in row for row in history] == [True, False, True]
    assert all("gradient_norm.y" in row for row in history)


class Alternating(Joint):
    """Two updates a batch, one for each modality; and one of another network before them."""

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        other = run.fresh_network()
        with run.aside(other, list(other.parameters())):
            run.backward(1000 * super().loss(run, run.net(batch), batch))
            run.step()
        for m in MODALITIES:
            loss = super().loss(run, run.net(batch, keep=[m]), batch)
            run.backward(loss)
            for other_name in MODALITIES:
                if other_name != m:
                    for parameter in run.encoder_params(other_name):
                        parameter.grad = None
            run.step()
        return loss


def test_networks_trained_aside_do_not_count_and_each_update_tells_of_its_encoders() -> None:
    row = train(Alternating, epochs=1).history[0]
    assert all(0 < float(row[f"gradient_norm.{m}"]) < 20 for m in MODALITIES)
