"""MBSD: modality-balanced self-distillation.

    p_m   = softmax(z_m)                        z_m: the modality's part of the fused logits
    for each pair (a, b) of modalities and sample i, with t_m = p_m[i, y_i]:
    w_i   = |t_a - t_b|  if a or b predicts y_i  else 0
    RS    = mean_i w_i |z_a - z_b|^2 / C        similarity
    KD    = mean_i w_i KL( sg[p_strong] || p_weak )          strong: the one with the larger t
    L     = CE(z, y) + u sum_m CE(z_m, y) + mean over pairs ( r RS + k KD )

S. Liu, L. Li, J. Song, Y. Yang, X. Zeng: Multimodal Pre-Training with Self-Distillation for Product
Understanding in E-Commerce, WSDM 2023. The equations are those of BalanceBenchmark, which carried
the idea over to classification, with the distillation that its code intends. w_i is a constant in
the backward pass.
"""

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.options import option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run


class MBSD(Method):
    """Teaches each sample's weaker modality what the stronger one predicts."""

    info = MethodInfo(
        title="Modality-balanced self-distillation",
        family="loss",
        summary="adds unimodal losses, and for each sample draws the modality that is unsure to "
        "the prediction of the one that is right",
        acts="in the loss, at every step",
        cost="1 forward, 1 backward",
        authors="S. Liu, L. Li, J. Song, Y. Yang, X. Zeng",
        venue="WSDM",
        year=2023,
        departures=(
            "No official code was found; the paper is about pre-training, and the form for "
            "classification is BalanceBenchmark's.",
            "The divergence is over classes, from the stronger modality as a constant teacher: "
            "BalanceBenchmark takes that of the true class's two probabilities, one of them not "
            "as a logarithm, and lets gradients into the teacher and the weights w.",
            "More than two modalities: the terms are averaged over pairs. BalanceBenchmark then "
            "takes RS on probabilities in place of logits (distance=probabilities).",
        ),
        neutral={"unimodal_weight": 0.0, "similarity_weight": 0.0, "distillation_weight": 0.0},
    )

    class Config(Options):
        unimodal_weight: float = option(
            1.0, "u, of each CE(z_m), as in BalanceBenchmark", ge=0, search=[0.1, 0.3, 1.0]
        )
        similarity_weight: float = option(
            1.0, "r, of RS, as in BalanceBenchmark", ge=0, search=[0.1, 0.3, 1.0, 3.0]
        )
        distillation_weight: float = option(
            1.0, "k, of KD, as in BalanceBenchmark", ge=0, search=[0.3, 1.0, 3.0]
        )
        distance: Literal["logits", "probabilities"] = option(
            "logits", "what RS is the distance of: z_m or p_m"
        )

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        loss: Tensor = functional.cross_entropy(out.logits, batch.y)
        options: MBSD.Config = self.config
        if not (
            options.unimodal_weight or options.similarity_weight or options.distillation_weight
        ):
            return loss
        unimodal, similarity, distillation = self.terms([*out.parts.values()], batch.y)
        run.log("similarity", similarity)
        run.log("distillation", distillation)
        loss = loss + options.unimodal_weight * unimodal
        loss = loss + options.similarity_weight * similarity
        loss = loss + options.distillation_weight * distillation
        return loss

    def terms(self, parts: list[Tensor], y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum of CE(z_m), and RS and KD averaged over pairs, from the modalities' logits
        ``(B, C)``."""
        z = torch.stack(parts)
        logs = z.log_softmax(dim=2)
        of_truth = logs.gather(2, y.view(1, -1, 1).expand(len(z), -1, 1)).squeeze(2)
        truth = of_truth.detach().exp()
        is_right = z.argmax(dim=2) == y
        x = z if self.config.distance == "logits" else logs.exp()
        similarities, divergences = [], []
        for a, b in combinations(range(len(z)), 2):
            weights = (truth[a] - truth[b]).abs() * (is_right[a] | is_right[b])
            similarities.append((weights * (x[a] - x[b]).square().mean(dim=1)).mean())
            a_leads = (truth[a] > truth[b]).unsqueeze(1)
            strong = torch.where(a_leads, logs[a], logs[b]).detach()
            weak = torch.where(a_leads, logs[b], logs[a])
            divergence = (strong.exp() * (strong - weak)).sum(dim=1)
            divergences.append((weights * divergence).mean())
        return (
            -of_truth.mean(dim=1).sum(),
            torch.stack(similarities).mean(),
            torch.stack(divergences).mean(),
        )
