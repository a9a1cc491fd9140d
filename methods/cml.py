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

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.nets.probabilities import log_probabilities
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
        if self.config.weight == 0 and self.config.classify == "full":
            return functional.cross_entropy(out.logits, batch.y)
        logs = log_probabilities(self.chain(run, out))
        hinges = self.penalties(logs, batch.y)
        penalty = hinges.sum() / len(batch.y)
        run.log("penalty", penalty)
        run.log("violations", (hinges > 0).float().mean())
        classified = logs if self.config.classify == "chain" else logs[:1]
        loss = functional.nll_loss(classified, batch.y.expand(len(classified), -1))
        weight: float = self.config.weight
        return loss + weight * penalty

    def chain(self, run: Run, out: Output) -> Tensor:
        """Return the logits ``(M, B, C)`` of ``S_0 .. S_(M-1)``."""
        removed = torch.arange(1, len(run.modalities), device=run.device).view(-1, 1, 1)
        is_left = (self.turns(run, len(out.logits)) >= removed).to(out.logits.dtype).unsqueeze(3)
        left = {
            m: (h * is_left[:, :, i]).flatten(0, 1) for i, (m, h) in enumerate(out.features.items())
        }
        smaller = run.network.fuse(left).logits
        return torch.cat([out.logits, smaller]).view(-1, *out.logits.shape)

    def turns(self, run: Run, size: int) -> Tensor:
        """Return when each sample loses each modality, ``(B, M)``: a random order of 0 .. M - 1 in
        every row. The modality whose turn is last stays."""
        draws = torch.rand(size, len(run.modalities), generator=run.rng, device=run.device)
        return draws.argsort(dim=1)

    def penalties(self, logs: Tensor, y: Tensor) -> Tensor:
        """Return the hinges ``(M - 1, B)`` from the log-probabilities ``(M, C, B)``."""
        surest, chosen = logs.max(dim=1)
        confidence = surest.exp()
        of_larger, of_smaller = confidence[:-1], confidence[1:]
        is_wrong = chosen != y
        if self.config.exempt == "release-miwae":
            both_wrong = is_wrong[:-1] & is_wrong[1:]
            of_larger = torch.where(both_wrong, of_larger.detach(), of_larger)
        hinges = functional.relu(of_smaller - of_larger)
        if self.config.exempt == "none":
            return hinges
        return torch.where(is_wrong[:-1] & ~is_wrong[1:], 0.0, hinges)
