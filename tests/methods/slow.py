"""Slow references in double precision: networks sample by sample, and what reaches the optimiser.

The encoders are MLPs, written out here from their two layers; gradients come from autograd through
these loops, not through the network's own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.train.run import Run
from mmbench.train.trainer import Trainer

Named = dict[str, Tensor]


def in_double(made: Trainer, monkeypatch: pytest.MonkeyPatch, seed: int) -> Batch:
    """Make a trainer that is set up compute in float64, with random weights, in its stage 'train';
    return a batch of its training rows."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    run, method = made.run, made.method
    run.network.double().train()
    method.double().train()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*run.network.parameters(), *method.parameters()]:
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter.copy_(0.3 * noise)
    rows = torch.randperm(len(run.train), generator=random)[:7]
    batch = run.train.batch(rows, run.modalities)
    return Batch({m: x.double() for m, x in batch.inputs.items()}, batch.y, batch.rows)


def reaching_optimizer(
    made: Trainer, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor | None]:
    """Return the gradients of the network (by name) and of the method's own parameters (after
    ``method.``) when a training step comes to the optimiser."""
    run, method, found = made.run, made.method, dict[str, Tensor | None]()

    def seize(self: Run) -> None:
        for name, parameter in run.network.named_parameters():
            found[name] = None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in method.named_parameters():
            found[f"method.{name}"] = None if parameter.grad is None else parameter.grad.clone()

    monkeypatch.setattr(Run, "step", seize)
    method.train_step(run, batch)
    return found


def copies(made: Trainer) -> Named:
    """Return the weights as leaves of a graph of their own, named as above."""
    named = {
        **dict(made.run.network.named_parameters()),
        **{f"method.{name}": p for name, p in made.method.named_parameters()},
    }
    return {name: p.detach().clone().requires_grad_() for name, p in named.items()}


def features(weights: Mapping[str, Tensor], m: str, x: Tensor) -> Tensor:
    """Return ``relu(W' relu(W x + b) + b')`` for one sample."""
    hidden = x
    for layer in (0, 2):
        name = f"encoders.{m}.layers.{layer}"
        hidden = (weights[f"{name}.weight"] @ hidden + weights[f"{name}.bias"]).clamp(min=0)
    return hidden


def read(weights: Mapping[str, Tensor], layer: str, h: Tensor) -> Tensor:
    """Return ``W h + b`` for one sample."""
    return weights[f"{layer}.weight"] @ h + weights[f"{layer}.bias"]


def loss_of(logits: Tensor, label: int) -> Tensor:
    """Return ``-log softmax(logits)[label]`` for one sample."""
    return torch.log(torch.exp(logits).sum()) - logits[label]


def mean_loss(batch: Batch, logits: Callable[[int], Tensor]) -> Tensor:
    """Return the mean of the loss over samples, whose logits are given by their number."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(batch)):
        total = total + loss_of(logits(i), int(batch.y[i]))
    return total / len(batch)


def assert_gradients(
    found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], names: Iterable[str]
) -> None:
    """Compare gradients by name to 1e-6 relative; an absent one counts as zero."""
    for name in names:
        got, wanted = found[name], expected[name]
        if got is None or wanted is None:
            assert got is None or not got.any(), name
            assert wanted is None or not wanted.any(), name
            continue
        assert got.dtype == torch.float64
        difference = (got - wanted).norm()
        assert difference <= 1e-6 * wanted.norm() + 1e-14, f"{name}: off by {difference:.2e}"
