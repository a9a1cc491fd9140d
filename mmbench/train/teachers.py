"""Teachers: a network of each modality alone, trained before the run's own and then kept as it is.

A method that learns from them derives from :class:`Distillation`: it says in ``needs_teachers``
whether its options ask for any, and reads what they say of a batch from ``taught``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.data.dataset import Batch
from mmbench.nets.network import Network, Output
from mmbench.train.method import Method, Stage
from mmbench.train.run import Run


class Teachers(nn.Module):
    """Frozen unimodal networks: the encoder and own head that `unimodal` and `ensemble` train, with
    their recipe and selection.

    They are always in evaluation mode, whatever mode the method is in, so that their batch norms
    keep the statistics of their own training.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({m: run.fresh_network((m,), "sum") for m in run.modalities})
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def stages(self, run: Run) -> list[Stage]:
        """Return the stages that train the teachers."""
        return [
            Stage(
                f"teacher/{m}",
                run.recipe.epochs,
                modalities=(m,),
                fusion="sum",
                fresh=True,
                select="protocol",
            )
            for m in self.networks
        ]

    def owns(self, stage: Stage) -> bool:
        return stage.name.startswith("teacher/")

    def collect(self, run: Run) -> None:
        """Keep the network of a teacher's stage that has just ended."""
        (m,) = run.modalities
        self.networks[m].load_state_dict(run.network.state_dict())

    @torch.no_grad()
    def forward(self, run: Run, batch: Batch) -> dict[str, Output]:
        """Return what each modality's teacher says of a batch. It counts as a forward of each."""
        outputs: dict[str, Output] = {}
        for m, network in self.networks.items():
            assert isinstance(network, Network)
            run.counts.forwards += 1
            run.counts.encoder_forwards += 1
            with run.autocast():
                outputs[m] = network(batch.inputs)
        return outputs


class Distillation(Method, ABC):
    """Trains a teacher for each modality, and then the run's own network with their guidance."""

    @abstractmethod
    def needs_teachers(self) -> bool:
        """Whether the options give the teachers anything to do; if not, none is trained."""

    def setup(self, run: Run) -> None:
        self.teachers = Teachers(run) if self.needs_teachers() else None

    def stages(self, run: Run) -> list[Stage]:
        before = [] if self.teachers is None else self.teachers.stages(run)
        return [*before, *super().stages(run)]

    def param_groups(self, run: Run) -> list[dict[str, Any]]:
        return [{"params": list(run.network.parameters())}]

    def on_stage_end(self, run: Run) -> None:
        if self.teachers is not None and self.teachers.owns(run.stage):
            self.teachers.collect(run)

    def taught(self, run: Run, batch: Batch) -> dict[str, Output] | None:
        """Return what the teachers say of a batch by modality; None where there are none, and
        while they are trained themselves."""
        if self.teachers is None or self.teachers.owns(run.stage):
            return None
        outputs: dict[str, Output] = self.teachers(run, batch)
        return outputs


def feature_distances(run: Run, out: Output, taught: Mapping[str, Output]) -> list[Tensor]:
    """Return the mean square of ``h_m - t_m`` over the batch and the width, for each modality, and
    log it. ``t_m`` are the teachers' features ``(B, width_m)``."""
    distances = []
    for m, teacher in taught.items():
        distances.append(functional.mse_loss(out.features[m], teacher.features[m]))
        run.log(f"feature_distance.{m}", distances[-1])
    return distances
