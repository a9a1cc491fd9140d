"""Notices that training has broken down, and says where it began.

Looking at a number makes the host wait for a GPU. So there the losses stay on the device and are
looked at every few steps, and until then the features that each encoder gave are kept: should a
loss be broken, they tell whose gradient was. That is soon enough, as nothing is evaluated or stored
before the look at the end of the epoch, so that the last checkpoint is a good one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmbench.errors import RunFailed
from mmbench.train.run import Run

LOOK_EVERY = 50
"""Steps between looks on a GPU; on the host each loss is looked at."""

MEND = "lower the learning rate (-t lr=...) or clip (-t clip_norm=1)"


class Watch:
    """What one epoch's steps left behind."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.losses: list[Tensor] = []
        self.features: list[list[dict[str, Tensor]]] = []
        """Of each step since the last look, those of its forward passes."""
        self._looked_at = 0
        run.take_features()

    def step(self, loss: Tensor) -> None:
        """Note a step's loss; raise :class:`RunFailed` if it or one shortly before is broken."""
        self.losses.append(loss.detach())
        self.features.append(self.run.take_features())
        if self.run.device.type == "cpu" and math.isfinite(loss.item()):
            self.features, self._looked_at = [], len(self.losses)
        elif self.run.device.type == "cpu" or len(self.losses) % LOOK_EVERY == 0:
            self._look()

    def finish(self) -> float:
        """Return the mean loss of the epoch; raise :class:`RunFailed` if anything is broken, the
        parameters after the last step included."""
        self._look()
        if broken := self._broken_parts():
            raise RunFailed(
                f"the gradient of {broken} was not finite {self._place(len(self.losses))}; {MEND}"
            )
        return float(torch.stack(self.losses).mean())

    def _look(self) -> None:
        start, self._looked_at = self._looked_at, len(self.losses)
        if start == self._looked_at:
            return
        sound = torch.stack(self.losses[start:]).isfinite()
        kept, self.features = self.features, []
        if sound.all():
            return
        for step, passes in enumerate(kept, start):
            if bad := [m for m in self.run.modalities if not _are_finite(passes, m)]:
                raise RunFailed(f"{self._features_broke(bad, step)}; {MEND}")
            if not sound[step - start]:
                raise RunFailed(f"{self._loss_broke(step)}; {MEND}")

    def _features_broke(self, modalities: list[str], step: int) -> str:
        names = " and ".join(f"'{m}'" for m in modalities)
        if step == 0:
            return f"the encoder of {names} gave features that are not finite {self._place(1)}"
        return (
            f"the gradient of the encoder of {names} was not finite, or its update too large, "
            f"{self._place(step)} (loss {float(self.losses[step - 1]):.4g})"
        )

    def _loss_broke(self, step: int) -> str:
        last = f"{float(self.losses[step - 1]):.4g}" if step else "none this epoch"
        loss = float(self.losses[step])
        return f"the loss became {loss} {self._place(step + 1)} (last finite loss: {last})"

    def _place(self, step: int) -> str:
        return f"in stage '{self.run.stage.name}', epoch {self.run.epoch + 1}, step {step}"

    def _broken_parts(self) -> str:
        encoders = self.run.network.encoders
        broken = [f"the encoder of '{m}'" for m, part in encoders.items() if not is_finite(part)]
        if self.run.network.fusion is not None and not is_finite(self.run.network.fusion):
            broken.append("the fusion")
        return " and ".join(broken)


def is_finite(module: nn.Module) -> bool:
    """Tell whether all parameters and buffers of a module are finite."""
    tensors = [*module.parameters(), *module.buffers()]
    # A sum is several times as fast as a look at each number.
    sums = [t.detach().sum().double() for t in tensors]
    return not sums or bool(torch.stack(sums).isfinite().all())


def _are_finite(passes: list[dict[str, Tensor]], modality: str) -> bool:
    return all(bool(h[modality].isfinite().all()) for h in passes if modality in h)
