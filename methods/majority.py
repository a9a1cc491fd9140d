"""Majority: the class frequencies of the training rows, whatever the input.

    p(y) = (n_y + 1) / (N + C)

The floor: a method at or below it has learned nothing. One is added to each count so that a class
keeps a finite loss.
"""

import torch
from torch import Tensor

from mmbench.train.method import Method, MethodInfo, Output, Stage
from mmbench.train.run import Run


class Majority(Method):
    """Uses no modality and trains nothing."""

    info = MethodInfo(
        title="Majority class",
        family="control",
        summary="predicts the training class frequencies, without looking at the input",
        acts="never",
        cost="nothing is trained",
        min_modalities=1,
    )

    prior: Tensor

    def modalities(self, available: tuple[str, ...]) -> tuple[str, ...]:
        return ()

    def setup(self, run: Run) -> None:
        counts = torch.bincount(run.train.y, minlength=run.classes) + 1.0
        self.register_buffer("prior", torch.log(counts / counts.sum()))

    def stages(self, run: Run) -> list[Stage]:
        return []

    def predict(self, run: Run, out: Output) -> Tensor:
        return out.logits + self.prior
