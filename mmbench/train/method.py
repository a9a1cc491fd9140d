"""The contract of a method. A method file defines one subclass of :class:`Method`.

Every hook has a default, so that most methods override one to three of them. The hooks are called
in this order::

    setup, stages
    for each stage: on_stage_start, param_groups
        for each epoch: on_epoch_start
            for each batch: train_step = net, loss, backward, modulate, step
            on_epoch_end
        on_stage_end
    predict, own_logits                  whenever the method is evaluated
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from mmbench.data.dataset import Batch
from mmbench.info import MethodInfo
from mmbench.nets.network import Output
from mmbench.options import OptionRow, Options, option_rows

if TYPE_CHECKING:
    from mmbench.train.run import Run

__all__ = ["Batch", "Method", "MethodInfo", "Options", "Output", "Stage"]


@dataclass(frozen=True)
class Stage:
    """A part of training with its own optimiser and schedule."""

    name: str
    epochs: int
    rows: np.ndarray | None = None
    """Rows of train to learn from; None for all of them."""
    modalities: tuple[str, ...] | None = None
    """With ``fresh``: the modalities of the stage's network; None for all."""
    fusion: str | None = None
    """With ``fresh``: the fusion of the stage's network; None for the run's."""
    fresh: bool = False
    """Train a newly initialised network that is dropped after the stage, not the run's own."""
    select: Literal["protocol", "rows", "last"] = "last"
    """How the epoch to keep is chosen: by the protocol's rule, by the loss on ``select_rows``, or
    the last one."""
    select_rows: np.ndarray | None = None
    """Rows of train, outside ``rows``, to select on."""


class Method(nn.Module):
    """A way to train a multimodal network: subclass, fill ``info`` and ``Config``, override hooks.

    Everything a method learns or remembers is in its ``state_dict`` (parameters, buffers, or
    ``get_extra_state`` made of tensors and plain values), so that a run resumes exactly.
    """

    info: ClassVar[MethodInfo]

    class Config(Options):
        """Options of the method (`-o key=value`); a subclass with options replaces it."""

    def __init__(self, config: Options) -> None:
        super().__init__()
        self.config: Any = config

    @classmethod
    def name(cls) -> str:
        """Return the registered name: that of the file which defines the class."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def space(cls) -> dict[str, tuple[Any, ...]]:
        """Return the values a tuner may try for each option; empty when nothing is to be tuned."""
        rows: Iterable[OptionRow] = option_rows(cls.Config)
        return {row.name: row.search for row in rows if row.search}

    @classmethod
    def variants(cls, options: Options, modalities: tuple[str, ...]) -> list[Options]:
        """Return the option sets to run when a user asks for ``options``; usually just these."""
        return [options]

    def modalities(self, available: tuple[str, ...]) -> tuple[str, ...]:
        """Return the modalities that the run's network is built over."""
        return available

    def setup(self, run: Run) -> None:
        """Create own heads, prototypes and buffers, once, before any stage."""

    def stages(self, run: Run) -> list[Stage]:
        """Return the stages in order. The last one that is not fresh trains the tested network."""
        return [Stage("train", run.recipe.epochs, select="protocol")]

    def param_groups(self, run: Run) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups for the stage that begins."""
        return [{"params": [*run.network.parameters(), *self.parameters()]}]

    def on_stage_start(self, run: Run) -> None: ...

    def on_stage_end(self, run: Run) -> None: ...

    def on_epoch_start(self, run: Run) -> None: ...

    def on_epoch_end(self, run: Run) -> None: ...

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar in nats."""
        return functional.cross_entropy(out.logits, batch.y)

    def modulate(self, run: Run, out: Output, batch: Batch) -> None:
        """Edit the gradients after the backward pass and before the update."""

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        """Learn from a batch and return its loss."""
        out = run.net(batch)
        loss = self.loss(run, out, batch)
        run.backward(loss)
        self.modulate(run, out, batch)
        run.step()
        return loss

    def predict(self, run: Run, out: Output) -> Tensor:
        """Return the fused logits ``(B, C)`` at inference."""
        return out.logits

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        """Return the logits of each modality's own classifier, ``{m: (B, C)}``, if there is one."""
        return {}

    def report(self, run: Run) -> dict[str, Any]:
        """Return what the method learned of interest, as plain numbers and texts for the record."""
        return {}
