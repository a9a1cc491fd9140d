"""Operations of a training step: counted right, and without a trace in the results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.config import Recipe
from mmbench.nets.network import NetworkSpec
from mmbench.registry import load_method
from mmbench.testing.contract import CLASSES, make_splits
from mmbench.train import trainer as trainer_module
from mmbench.train.checkpoint import Checkpointer
from mmbench.train.flops import counted
from mmbench.train.trainer import Fitted, Trainer

BATCH = 16


def fit(method: str, keeper: Checkpointer | None = None, fusion: str = "concat") -> Fitted:
    splits = make_splits(2)
    encoders = dict.fromkeys(splits.modalities, "mlp")
    spec = NetworkSpec(splits.modalities, encoders, CLASSES, fusion, 0)
    recipe = Recipe(epochs=3, batch_size=BATCH)
    made = load_method(method)
    cpu = torch.device("cpu")
    return Trainer(made(made.Config()), splits, spec, recipe, cpu, checkpointer=keeper).fit()


def linear_flops(network: nn.Module, first: set[nn.Linear]) -> int:
    """Two for each weight and row in the forward pass, as many for the gradient of the weights,
    and as many again for that of the inputs, which the first layers do not need."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    return sum(2 * BATCH * m.weight.numel() * (2 if m in first else 3) for m in layers)


def test_a_step_of_joint_training_is_counted_as_in_the_closed_form() -> None:
    fitted = fit("joint")
    network = fitted.run.main
    first = {
        next(m for m in encoder.modules() if isinstance(m, nn.Linear))
        for encoder in network.encoders.values()
    }
    assert fitted.step_flops == linear_flops(network, first)


def test_what_a_method_adds_is_counted() -> None:
    joint, multiloss = fit("joint").step_flops, fit("multiloss").step_flops
    assert joint is not None
    assert multiloss is not None
    assert multiloss > joint


def test_the_members_of_an_ensemble_take_together_what_their_sum_takes() -> None:
    assert fit("ensemble", fusion="sum").step_flops == fit("joint", fusion="sum").step_flops


def test_a_method_that_trains_nothing_has_no_step() -> None:
    assert fit("majority").step_flops is None


@pytest.mark.parametrize("method", ["joint", "ogm_ge"])
def test_counting_changes_no_bit(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def uncounted(step: Callable[[], Tensor]) -> tuple[Tensor, int]:
        return step(), 0

    ours = fit(method)
    monkeypatch.setattr(trainer_module, "counted", uncounted)
    plain = fit(method)
    left, right = (f.run.main.state_dict() for f in (ours, plain))
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert [row["train_loss"] for row in ours.history] == [r["train_loss"] for r in plain.history]


def test_a_resumed_run_keeps_the_count(tmp_path: Path) -> None:
    whole = fit("joint", Checkpointer(tmp_path, seconds=0))
    assert fit("joint", Checkpointer(tmp_path, seconds=0)).step_flops == whole.step_flops


def test_a_matrix_product_and_its_gradients_are_counted() -> None:
    x = torch.randn(5, 7, requires_grad=True)
    w = torch.randn(7, 3, requires_grad=True)

    def step() -> Tensor:
        loss = functional.relu(x @ w).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    loss, flops = counted(step)
    assert loss.shape == ()
    assert flops == 3 * 2 * 5 * 7 * 3
