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

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.nets.probabilities import log_probabilities, of_class
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
        options: MBSD.Config = self.config
        if not (
            options.unimodal_weight or options.similarity_weight or options.distillation_weight
        ):
            return functional.cross_entropy(out.logits, batch.y)
        parts = torch.stack([*out.parts.values()])
        # The same fused logits from the parts at hand: one backward pass through the head, not two.
        logits = parts.sum(dim=0) if out.parts_are_exact else out.logits
        unimodal, similarity, distillation = self.terms(parts, batch.y)
        run.log("similarity", similarity)
        run.log("distillation", distillation)
        loss = functional.cross_entropy(logits, batch.y)
        loss = loss + options.unimodal_weight * unimodal
        loss = loss + options.similarity_weight * similarity
        loss = loss + options.distillation_weight * distillation
        return loss

    def terms(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum of CE(z_m), and RS and KD averaged over pairs, from the modalities' logits
        ``(M, B, C)``."""
        logs = log_probabilities(z)
        of_truth = of_class(logs, y)
        a, b = torch.triu_indices(len(z), len(z), 1, device=z.device)  # of each pair
        strong, weak, weights = roles(of_truth.detach().exp(), z.argmax(dim=2) == y, a, b)
        x = z.transpose(1, 2) if self.config.distance == "logits" else logs.exp()
        apart = (x.index_select(0, a) - x.index_select(0, b)).square().mean(dim=1)
        # Of each sample and pair, the logarithms that teach and those that are taught.
        teacher = logs.detach().gather(0, strong.unsqueeze(1).expand(-1, z.shape[2], -1))
        taught = logs.gather(0, weak.unsqueeze(1).expand(-1, z.shape[2], -1))
        divergence = (teacher.exp() * (teacher - taught)).sum(dim=1)
        return (
            -of_truth.sum() / len(y),
            (weights * apart).mean(),
            (weights * divergence).mean(),
        )


@torch.no_grad()
def roles(truth: Tensor, is_right: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each pair and sample the stronger modality, the weaker one, and ``w``, from
    ``t`` and from whether a modality predicts the class, both ``(M, B)``."""
    lead = truth[a] - truth[b]
    strong = torch.where(lead > 0, a.unsqueeze(1), b.unsqueeze(1))
    weak = (a + b).unsqueeze(1) - strong
    return strong, weak, lead.abs() * (is_right[a] | is_right[b])
