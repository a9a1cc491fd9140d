"""Training steps in double precision, stopped before the update, for tests with slow references."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from mmbench.data.dataset import Batch
from mmbench.nets.network import Network
from mmbench.testing.contract import make_splits
from mmbench.train.method import Method, Stage
from mmbench.train.run import Run
from tests.methods.support import begun

Gradients = dict[str, Tensor]
"""By parameter, ``network.`` or ``method.`` before its name."""


@dataclass
class Case:
    """A method on a network in double precision with random weights."""

    run: Run
    method: Method
    random: torch.Generator

    def batch(self, rows: int = 9) -> Batch:
        chosen = torch.randperm(len(self.run.train), generator=self.random)[:rows]
        batch = self.run.train.batch(chosen, self.run.modalities)
        return Batch({m: x.double() for m, x in batch.inputs.items()}, batch.y, batch.rows)

    def network(self) -> Network:
        """Return a copy of the network, for a reference to work on."""
        return copy.deepcopy(self.run.network)

    def step(self, batch: Batch) -> Gradients:
        """Return the gradients that reach the optimiser in a training step; nothing is updated
        but batch norm and the method's state."""
        seen: list[Gradients] = []
        parameters = named_parameters(self.run.network, self.method)

        def record() -> None:
            seen.append({name: gradient_of(p) for name, p in parameters.items()})
            for p in parameters.values():
                p.grad = None

        with (
            patch.object(Network, "encode", encode_in_double),
            patch.object(self.run, "step", record),
        ):
            self.method.train_step(self.run, batch)
        assert len(seen) == 1, "one update a step"
        return seen[0]

    def descend(self, gradients: Mapping[str, Tensor], rate: float = 0.1) -> None:
        """Move the weights, so that the next step is another one."""
        with torch.no_grad():
            for name, p in named_parameters(self.run.network, self.method).items():
                p.sub_(rate * gradients[name])


def case(
    kind: type[Method],
    count: int,
    seed: int,
    fusion: str = "concat",
    *,
    epochs: int = 10,
    epoch: int = 0,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    **options: Any,
) -> Case:
    """Return a method at the start of an epoch. ``wrap`` makes other encoders of the same width
    out of those of the network."""
    made = begun(kind, make_splits(count), fusion, options)
    run, method = made.run, made.method
    random = torch.Generator().manual_seed(seed)
    if wrap is not None:
        for m in run.modalities:
            run.network.encoders[m] = wrap(run.network.encoders[m])
    run.network.double().train()
    method.double().train()
    with torch.no_grad():
        for p in named_parameters(run.network, method).values():
            p.add_(0.1 * torch.randn(p.shape, generator=random, dtype=torch.float64))
    run.stage = Stage("train", epochs)
    run.begin_epoch(epoch)
    return Case(run, method, random)


def named_parameters(network: nn.Module, method: nn.Module) -> dict[str, nn.Parameter]:
    return {
        **{f"network.{name}": p for name, p in network.named_parameters()},
        **{f"method.{name}": p for name, p in method.named_parameters()},
    }


def gradient_of(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.clone()


def encode_in_double(network: Network, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`Network.encode` without its last step, which rounds features to float32."""
    return {m: network.encoders[m](inputs[m]) for m in network.modalities if m in inputs}


def output(network: Network, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the fused logits ``(B, C)`` in double precision."""
    assert network.fusion is not None
    logits: Tensor = network.fusion(encode_in_double(network, inputs))
    return logits


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy, sample by sample."""
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits, y.tolist(), strict=True):
        total = total + torch.log(torch.exp(row).sum()) - row[label]
    return total / len(y)


def gradients_of(loss: Tensor, parameters: Mapping[str, Tensor]) -> Gradients:
    """Return the gradient of a loss by parameter, zero where it does not depend on one."""
    found = torch.autograd.grad(
        loss, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def assert_close(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Each tensor agrees to 1e-6 of its own norm."""
    assert got.keys() == expected.keys()
    for name, reference in expected.items():
        error = float((got[name] - reference).norm())
        assert error <= 1e-6 * float(reference.norm()) + 1e-13, (name, error)
