"""CML: calibrating multimodal learning.

    S_0 = all modalities;  S_k = S_(k-1) without one, in a random order for each sample, down to one
    z_S       = the fused logits when the features outside S are zero       (b stays whole in z_S)
    conf(S)_i = max_c softmax(z_S)[i, c]
    penalty_k = mean_i relu( conf(S_k)_i - conf(S_(k-1))_i )                         k = 1 .. M - 1
    L         = mean_k CE(z_(S_k), y) + lambda sum_k penalty_k              the mean from S_0 on

H. Ma, Q. Zhang, C. Zhang, B. Wu, H. Fu, J. T. Zhou, Q. Hu: Calibrating Multimodal Learning, ICML
2023. A prediction should not become surer when a modality is taken away. In concat fusion z_S is
``z_(S + m) - z_m + b / M`` with the parts ``z_m``.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.options import option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run


class CML(Method):
    """Trains on shrinking sets of modalities and keeps confidence from rising as they shrink."""

    info = MethodInfo(
        title="Calibrating multimodal learning",
        family="loss",
        summary="takes modalities away from each sample one by one, and penalises confidence that "
        "rises when one is missing",
        acts="in the loss, at every step",
        cost="1 forward, 1 backward; the fusion M times",
        authors="H. Ma, Q. Zhang, C. Zhang, B. Wu, H. Fu, J. T. Zhou, Q. Hu",
        venue="ICML",
        year=2023,
        arxiv="2306.01265",
        departures=(
            "The penalty is averaged over the batch, where the released code sums it: its weight "
            "of 0.1 is 0.1 B here, 6.4 for batches of 64.",
            "The plain penalty counts every sample; the released code exempts those that the "
            "larger set gets wrong and the smaller one right (exempt=release), and its MIWAE "
            "variant, where both are wrong, only lowers the smaller set's confidence "
            "(exempt=release-miwae).",
            "Each sample has a new order in every batch, as in the released MIWAE variant; the "
            "CPM-Nets variant draws one per sample before training.",
            "An absent modality has zero features in the fusion, where the released models "
            "reconstruct it or take the training mean of its input.",
        ),
        neutral={"weight": 0.0, "classify": "full"},
    )

    class Config(Options):
        weight: float = option(
            6.4,
            "lambda, of the penalty's mean over the batch; 0.1 for each sample as released, at a "
            "batch of 64",
            ge=0,
            search=[0.5, 2.0, 6.4, 20.0],
        )
        classify: Literal["chain", "full"] = option(
            "chain", "cross-entropy of every S_k, averaged, or of all modalities alone"
        )
        exempt: Literal["none", "release", "release-miwae"] = option(
            "none", "samples without a penalty: none, or those of the released code"
        )

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        full: Tensor = functional.cross_entropy(out.logits, batch.y)
        if self.config.weight == 0 and self.config.classify == "full":
            return full
        chain = self.chain(run, out)
        hinges = torch.stack(
            [self.penalties(larger, smaller, batch.y) for larger, smaller in pairwise(chain)]
        )
        penalty = hinges.mean(dim=1).sum()
        run.log("penalty", penalty)
        run.log("violations", (hinges > 0).float().mean())
        loss = full
        if self.config.classify == "chain":
            loss = torch.stack([functional.cross_entropy(z, batch.y) for z in chain]).mean()
        weight: float = self.config.weight
        return loss + weight * penalty

    def chain(self, run: Run, out: Output) -> list[Tensor]:
        """Return the logits ``(B, C)`` of ``S_0 .. S_(M-1)``."""
        turn = self.turns(run, len(out.logits))
        logits = [out.logits]
        for removed in range(1, len(run.modalities)):
            left = {
                m: h * (turn[:, i : i + 1] >= removed)
                for i, (m, h) in enumerate(out.features.items())
            }
            logits.append(run.network.fuse(left).logits)
        return logits

    def turns(self, run: Run, size: int) -> Tensor:
        """Return when each sample loses each modality, ``(B, M)``: a random order of 0 .. M - 1 in
        every row. The modality whose turn is last stays."""
        draws = torch.rand(size, len(run.modalities), generator=run.rng, device=run.device)
        return draws.argsort(dim=1)

    def penalties(self, larger: Tensor, smaller: Tensor, y: Tensor) -> Tensor:
        """Return the hinge of each sample ``(B,)`` from the logits of two sets ``(B, C)``."""
        of_larger, chosen = larger.softmax(dim=1).max(dim=1)
        of_smaller, chosen_without = smaller.softmax(dim=1).max(dim=1)
        if self.config.exempt == "release-miwae":
            both_wrong = (chosen != y) & (chosen_without != y)
            of_larger = torch.where(both_wrong, of_larger.detach(), of_larger)
        hinge = functional.relu(of_smaller - of_larger)
        if self.config.exempt == "none":
            return hinge
        return torch.where((chosen != y) & (chosen_without == y), 0.0, hinge)
