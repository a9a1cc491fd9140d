"""What a method sees of a run: the training rows, the network, and the two verbs that train it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmbench.config import Recipe
from mmbench.data.dataset import Batch, Modality, Split
from mmbench.data.splits import carve, folds
from mmbench.evaluate.readout import evaluating
from mmbench.nets.fusion import Sum
from mmbench.nets.network import Network, NetworkSpec, Output
from mmbench.seeds import Key, derive, numpy_stream, torch_stream
from mmbench.train.method import Stage
from mmbench.train.optim import build_optimizer

EVALUATION_BATCH = 512
"""Rows per forward pass outside training, at most."""
EVALUATION_VALUES = 2**25
"""Numbers that go into a forward pass outside training, at most: 128 MiB, so that clips of several
frames do not fill the memory."""


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
        self.notes: list[str] = []
        """What has to stand beside the results; see :meth:`note`."""
        self.stage_is_over = False
        self.measured: Network | None = None
        """The network whose gradients the next steps log the norms of; see :meth:`step`."""
        self._logged: dict[str, tuple[Tensor | float, int]] = {}
        self._features: list[dict[str, Tensor]] = []
        self._frozen: list[nn.Module] = []
        self._params: WeakKeyDictionary[nn.Module, list[nn.Parameter]] = WeakKeyDictionary()
        self._scaled: list[tuple[list[nn.Parameter], list[Tensor], Tensor | float]] = []

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
            out: Output = self.network(batch.inputs, keep)
        if self.network.training:
            self._features.append(out.features)
        return out

    def take_features(self) -> list[dict[str, Tensor]]:
        """Return the features that the encoders gave in training since the last call, a dict a
        forward pass, and forget them."""
        features = [{m: h.detach() for m, h in found.items()} for found in self._features]
        self._features = []
        return features

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Add the gradients of a scalar loss to the parameters."""
        self.counts.backwards += 1
        loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Clip if the recipe says so, update the parameters, and clear the gradients.

        In the first batch of an epoch the norm of each encoder's gradient is logged, as the method
        has left it and before it is clipped.
        """
        assert self.optimizer is not None, "no optimiser outside of a stage's epochs"
        if self.measured is not None and self.measured is self.network:
            self._log_gradient_norms()
        if self.recipe.clip_norm is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm)
        self.optimizer.step()
        if self._scaled:
            self._scale_updates()
        self.optimizer.zero_grad(set_to_none=True)
        self.counts.updates += 1

    def _log_gradient_norms(self) -> None:
        """Log the Euclidean norm of all gradients of each encoder that has any."""
        for m in self.network.modalities:
            gradients = [p.grad for p in self.encoder_params(m) if p.grad is not None]
            if gradients:
                self.log(f"gradient_norm.{m}", nn.utils.get_total_norm(gradients))

    def scale_update(self, parameters: Sequence[nn.Parameter], factor: Tensor | float) -> None:
        """Multiply what the next step adds to these parameters by a number, weight decay included:
        the same as a learning rate of their own for one step, under any optimiser. A factor of 1
        changes no bit."""
        moving = [p for p in parameters if p.grad is not None]
        if moving:
            self._scaled.append((moving, [p.detach().clone() for p in moving], factor))

    def _scale_updates(self) -> None:
        with torch.no_grad():
            for parameters, before, factor in self._scaled:
                for parameter, old in zip(parameters, before, strict=True):
                    parameter.copy_(torch.lerp(old, parameter, factor))
        self._scaled = []

    def end_stage(self) -> None:
        """Make the epoch in training the stage's last, because nothing is left to learn."""
        self.stage_is_over = True

    def note(self, text: str) -> None:
        """Add a sentence, once, to what every table says beside the results of this run."""
        if text not in self.notes:
            self.notes.append(text)

    def log(self, name: str, value: Tensor | float) -> None:
        """Record a number; the history gets its mean over the epoch. Tensors are not waited for."""
        number = value.detach() if isinstance(value, Tensor) else float(value)
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
        return self._params_of(self.network.encoders[modality])

    def branch_params(self, modality: str) -> list[nn.Parameter]:
        """Return the parameters of one modality's encoder and of its :meth:`own_head`."""
        return self.encoder_params(modality) + self._params_of(self.own_head(modality))

    def _params_of(self, module: nn.Module) -> list[nn.Parameter]:
        """Return a module's parameters. Walking through modules takes as long as scaling their
        gradients, and methods ask at every step; so each module is walked through once."""
        if module not in self._params:
            self._params[module] = list(module.parameters())
        return self._params[module].copy()

    def head_params(self) -> list[nn.Parameter]:
        """Return the parameters of the fusion, its classifier included."""
        return [] if self.network.fusion is None else list(self.network.fusion.parameters())

    def own_head(self, modality: str) -> nn.Module:
        """Return a modality's classifier in a fusion that adds such classifiers (sum, late)."""
        assert isinstance(self.network.fusion, Sum), "only sum and late fusion have own heads"
        return self.network.fusion.heads[modality]

    def freeze(self, modality: str, *others: nn.Module) -> None:
        """Stop an encoder, and other modules that belong to it, until the epoch ends: they get no
        gradient, the optimiser passes them over (momentum and weight decay included), and their
        batch norms keep their statistics. A method that freezes for longer does so again in each
        ``on_epoch_start``, so that a resumed run is frozen too."""
        for module in (self.network.encoders[modality], *others):
            self._frozen.append(module)
            for parameter in module.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()

    def unfreeze(self) -> None:
        """Let everything that is frozen learn again."""
        for module in self._frozen:
            for parameter in module.parameters():
                parameter.requires_grad_(True)
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.train(self.network.training)
        self._frozen = []

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

    def folds(self, count: int, *key: Key, by_group: bool = True) -> list[np.ndarray]:
        """Return training rows in ``count`` folds: whole by group, or stratified by class where
        there are no groups or they are not to count."""
        groups = self.train.groups if by_group else None
        return folds(self._labels(), groups, count, self.seed, "folds", *key)

    def holdout(
        self, fraction: float, *key: Key, by_group: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the training rows as (kept, held out), divided as :meth:`folds` does; validation
        and test play no part."""
        groups = self.train.groups if by_group else None
        held = carve(self._labels(), groups, fraction, self.seed, "holdout", *key)
        return np.setdiff1d(np.arange(len(self.train)), held), held

    def shuffled(self, rows: np.ndarray, epoch: int) -> Iterator[Batch]:
        """Yield training rows in the batches, order and augmentation of an epoch. Seed and epoch
        alone decide the order, so that every method and stage sees the same."""
        order = numpy_stream(self.seed, "order", epoch).permutation(rows)
        augment = self.stream("augment", epoch)
        size = self.recipe.batch_size
        return batches(self.train, order, self.modalities, size, self.device, augment)

    @contextmanager
    def aside(self, network: Network, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Train another network inside the block, with an optimiser that starts at the learning
        rate of the moment; afterwards the run's network and optimiser are back as they were."""
        assert self.optimizer is not None, "no optimiser outside of a stage's epochs"
        own = self.network, self.optimizer
        rate = self.optimizer.param_groups[0]["lr"]
        self.network = network
        self.optimizer = build_optimizer([{"params": parameters, "lr": rate}], self.recipe)
        try:
            yield
        finally:
            self.network, self.optimizer = own

    def outputs(
        self, rows: np.ndarray, keep: Sequence[str] | None = None
    ) -> Iterator[tuple[Output, Batch]]:
        """Yield outputs of the network for training rows in order, in evaluation mode and without
        gradients; modalities outside ``keep`` count as absent. They count as forwards."""
        with evaluating(self.network):
            size = evaluation_batch(self.modality_specs)
            for batch in batches(self.train, rows, self.modalities, size, self.device):
                yield self.net(batch, keep), batch

    def logits(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return the parts of the logits for training rows, ``{m: (N, C)}``, as in `outputs`."""
        parts = [out.parts for out, _ in self.outputs(rows)]
        return {m: torch.cat([part[m].float() for part in parts]) for m in self.modalities}

    def _labels(self) -> np.ndarray:
        return self.train.y.cpu().numpy()

    # -- kept by the trainer -----------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """Give the epoch its own random streams, so that it is the same after a resume, and
        nothing frozen."""
        self.unfreeze()
        self.epoch = epoch
        self.rng = self.stream("method", self.stage.name, epoch)
        torch.manual_seed(derive(self.seed, "layers", epoch))


def evaluation_batch(modalities: Mapping[str, Modality]) -> int:
    """Return the rows of a forward pass outside training."""
    values = sum(math.prod(spec.shape) for spec in modalities.values())
    return max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // max(values, 1)))


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
