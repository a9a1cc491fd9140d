"""What a method sees of a run: the training rows, the network, and the two verbs that train it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmbench.config import Recipe
from mmbench.data.dataset import Batch, Modality, Split
from mmbench.data.splits import carve, folds
from mmbench.nets.network import Network, NetworkSpec, Output
from mmbench.seeds import Key, derive, torch_stream
from mmbench.train.method import Stage

EVALUATION_BATCH = 512
"""Rows per forward pass outside training."""


@dataclass
class Counts:
    """What training has done so far."""

    forwards: int = 0
    """Forward passes of the network over a batch."""
    encoder_forwards: int = 0
    """Forward passes of single encoders over a batch: M for a pass over all modalities."""
    backwards: int = 0
    updates: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Run:
    """Handed to every hook of a method.

    ``backward`` and ``step`` are the only places that know of precision, clipping and the
    optimiser; with ``net`` they count what training costs. Validation and test rows are not here.
    """

    def __init__(
        self, train: Split, spec: NetworkSpec, recipe: Recipe, device: torch.device, precision: str
    ) -> None:
        self.train = train
        self.spec = spec
        self.recipe = recipe
        self.device = device
        self.precision = precision
        self.counts = Counts()
        self.main: Network
        """The run's own network, which is tested in the end."""
        self.network: Network
        """The network in training: ``main``, or that of a fresh stage."""
        self.stage = Stage("setup", 0)
        self.epoch = 0
        """Epochs of the stage that are finished: 0 in the first."""
        self.optimizer: Optimizer | None = None
        self.rng = self.stream("setup")
        """Random numbers for the method, on the device; a new stream each epoch."""
        self._logged: dict[str, tuple[Tensor, int]] = {}

    @property
    def seed(self) -> int:
        return self.spec.seed

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the network in training."""
        return self.network.modalities

    @property
    def modality_specs(self) -> Mapping[str, Modality]:
        return self.spec.modalities

    @property
    def classes(self) -> int:
        return self.spec.classes

    # -- the verbs of a training step --------------------------------------------------------

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def net(self, batch: Batch, keep: Sequence[str] | None = None) -> Output:
        """Return the network's output; modalities outside ``keep`` count as absent."""
        self.counts.forwards += 1
        self.counts.encoder_forwards += len(self.network.modalities if keep is None else keep)
        with self.autocast():
            return self.network(batch.inputs, keep)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Add the gradients of a scalar loss to the parameters."""
        self.counts.backwards += 1
        loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Clip if the recipe says so, update the parameters, and clear the gradients."""
        assert self.optimizer is not None, "no optimiser outside of a stage's epochs"
        if self.recipe.clip_norm is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.counts.updates += 1

    def log(self, name: str, value: Tensor | float) -> None:
        """Record a number; the history gets its mean over the epoch. Tensors are not waited for."""
        number = value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
        if (logged := self._logged.get(name)) is not None:
            self._logged[name] = (logged[0] + number, logged[1] + 1)
        else:
            self._logged[name] = (number, 1)

    def take_logged(self) -> dict[str, float]:
        """Return the means of what was logged since the last call, and forget it."""
        means = {name: float(total) / count for name, (total, count) in self._logged.items()}
        self._logged = {}
        return means

    # -- parameters --------------------------------------------------------------------------

    def encoder_params(self, modality: str) -> list[nn.Parameter]:
        """Return the parameters of one modality's encoder."""
        return list(self.network.encoders[modality].parameters())

    def head_params(self) -> list[nn.Parameter]:
        """Return the parameters of the fusion, its classifier included."""
        return [] if self.network.fusion is None else list(self.network.fusion.parameters())

    def fresh_network(
        self, modalities: Sequence[str] | None = None, fusion: str | None = None
    ) -> Network:
        """Return a newly initialised network on the device; its weights are those that the run's
        own network started from."""
        return self.spec.build(modalities, fusion).to(self.device)

    # -- rows --------------------------------------------------------------------------------

    def stream(self, *key: Key) -> torch.Generator:
        """Return a generator on the device that depends on the run's seed and the key alone."""
        return torch_stream(self.seed, *key, device=self.device)

    def folds(self, count: int, *key: Key) -> list[np.ndarray]:
        """Return training rows in ``count`` folds: stratified by class, or whole by group."""
        return folds(self._labels(), self.train.groups, count, self.seed, "folds", *key)

    def holdout(self, fraction: float, *key: Key) -> tuple[np.ndarray, np.ndarray]:
        """Return the training rows as (kept, held out); validation and test play no part."""
        held = carve(self._labels(), self.train.groups, fraction, self.seed, "holdout", *key)
        return np.setdiff1d(np.arange(len(self.train)), held), held

    def outputs(self, rows: np.ndarray) -> Iterator[tuple[Output, Batch]]:
        """Yield outputs of the network for training rows in order, in evaluation mode and without
        gradients. They count as forwards."""
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad():
            for batch in batches(self.train, rows, self.modalities, EVALUATION_BATCH, self.device):
                yield self.net(batch), batch
        self.network.train(was_training)

    def logits(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return the parts of the logits for training rows, ``{m: (N, C)}``, as in `outputs`."""
        parts = [out.parts for out, _ in self.outputs(rows)]
        return {m: torch.cat([part[m].float() for part in parts]) for m in self.modalities}

    def _labels(self) -> np.ndarray:
        return self.train.y.cpu().numpy()

    # -- kept by the trainer -----------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """Give the epoch its own random streams, so that it is the same after a resume."""
        self.epoch = epoch
        self.rng = self.stream("method", self.stage.name, epoch)
        torch.manual_seed(derive(self.seed, "layers", self.stage.name, epoch))


def batches(
    split: Split,
    rows: np.ndarray | Tensor,
    modalities: Sequence[str],
    size: int,
    device: torch.device,
    augment: torch.Generator | None = None,
) -> Iterator[Batch]:
    """Yield the rows of a split, in the order given, in batches. A last batch of a single row,
    which batch norm cannot train on, joins the one before."""
    order = torch.as_tensor(rows).to(device)
    starts = list(range(0, len(order), size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        yield split.batch(order[start:end], modalities, augment)
