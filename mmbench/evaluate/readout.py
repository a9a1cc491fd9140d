"""Predictions of a method for a split: fused and per modality, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.data.dataset import Split
from mmbench.nets.fusion import Features
from mmbench.nets.network import Output

if TYPE_CHECKING:
    from mmbench.train.method import Method
    from mmbench.train.run import Run


@dataclass
class Readout:
    """What was predicted for ``N`` rows; tensors are on the CPU, logits ``(N, C)`` float32."""

    y: Tensor
    logits: Tensor
    parts: dict[str, Tensor]
    """Per modality: the fusion's part of the logits (exact, or a zero-feature ablation)."""
    own: dict[str, Tensor]
    """Per modality: logits of its own head, where the method has one."""
    features: dict[str, Tensor]
    """Per modality ``(N, width_m)``, read without the others where encoders gate each other; so is
    ``own``."""

    def accuracy(self, logits: Tensor | None = None) -> float:
        """Return the share of rows whose largest logit is that of their class."""
        chosen = (self.logits if logits is None else logits).argmax(dim=1)
        return float((chosen == self.y).double().mean())

    def nll(self) -> float:
        """Return the mean negative log-likelihood of the fused prediction in nats."""
        return float(functional.cross_entropy(self.logits.double(), self.y))

    def confidence(self, logits: Tensor) -> float:
        """Return the mean probability of the true class."""
        probability = logits.double().softmax(dim=1).gather(1, self.y.unsqueeze(1))
        return float(probability.mean())


def read_out(
    run: Run,
    method: Method,
    split: Split,
    rows: np.ndarray | None = None,
    keep: Sequence[str] | None = None,
) -> Readout:
    """Return the predictions for rows of a split (default all), without dropping any. For the
    fused ones and the parts, modalities outside ``keep`` (default all) are absent.

    The network and the method are put into evaluation mode, and back afterwards.
    """
    from mmbench.train.run import batches, evaluation_batch

    network = run.network
    chosen = np.arange(len(split)) if rows is None else rows
    # A network without modalities still needs a batch's size, so it is given any one modality.
    names = network.modalities or tuple(split.inputs)[:1]
    collected: list[Readout] = []
    with evaluating(network, method):
        size = evaluation_batch(run.modality_specs)
        for batch in batches(split, chosen, names, size, run.device):
            with run.autocast():
                out = network(batch.inputs, keep)
                alone = out
                if network.bridges is not None:
                    features = network.encode_alone(batch.inputs)
                    alone = Output(out.logits, features, out.fusion)
            collected.append(
                Readout(
                    batch.y.cpu(),
                    method.predict(run, out).float().cpu(),
                    {m: part.float().cpu() for m, part in out.parts.items()},
                    {m: own.float().cpu() for m, own in method.own_logits(run, alone).items()},
                    {m: feature.float().cpu() for m, feature in alone.features.items()},
                )
            )
    return _joined(collected)


def predict_from(run: Run, method: Method, features: Features) -> Tensor:
    """Return the fused logits ``(N, C)`` on the CPU for given features of all modalities,
    ``{m: (N, width_m)}``: the fusion and the method's inference without the encoders."""
    from mmbench.train.run import EVALUATION_BATCH

    collected: list[Tensor] = []
    with evaluating(run.network, method):
        for start in range(0, len(next(iter(features.values()))), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            with run.autocast():
                out = run.network.fuse({m: h[rows].to(run.device) for m, h in features.items()})
            collected.append(method.predict(run, out).float().cpu())
    return torch.cat(collected)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode, without gradients, inside the block; afterwards each
    submodule is in the mode it was in."""
    modes = {part: part.training for module in modules for part in module.modules()}
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def _joined(parts: list[Readout]) -> Readout:
    def joined(name: str) -> dict[str, Tensor]:
        dicts = [getattr(part, name) for part in parts]
        return {m: torch.cat([d[m] for d in dicts]) for m in dicts[0]}

    return Readout(
        torch.cat([part.y for part in parts]),
        torch.cat([part.logits for part in parts]),
        joined("parts"),
        joined("own"),
        joined("features"),
    )
