"""ARL: asymmetric representation learning.

    u_m = F(h_m, others absent)                    for concat head([h_m | 0]): the shared head
    H_m = mean_i entropy of softmax(u_m[i]),       as a share of all, at least 0.6 / M
    w_m = (1 / H_m) / sum_j (1 / H_j)              how much m should be depended on
    d_m = sum |u_m| / sum_j sum |u_j|              how much it is
    k_m = (M / 2) softmax_m( T (w_m - d_m) / 2 )   1/2 on average, above it where d_m falls short
    L   = CE(z, y) + gamma sum_m CE(u_m, y)
    g_m <- (1 + k_m) g_m                           for encoder m, as on its output

In the first epochs gamma is 1 and no gradient is scaled. For two modalities k is the released
softmax( T w_1 d_2, T w_2 d_1 ), because w_1 d_2 - w_2 d_1 = w_1 - d_1.

S. Wei, C. Luo, Y. Luo: Improving Multimodal Learning via Imbalanced Learning, ICCV 2025.
"""

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.options import option, refuse_unused
from mmbench.train.alone import ABSENT_MEANING, Absent, alone, alone_losses, stand_in
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.modulation import (
    SCALE_WHERE_MEANING,
    ScaleWhere,
    note_undone_scaling,
    scale,
)
from mmbench.train.run import Run

LEAST_ENTROPY = 0.6
"""Times 1 / M: the released 0.3 of two shares."""


class ARL(Method):
    """Lets the fusion depend on each modality as its predictions' certainty deserves."""

    info = MethodInfo(
        title="Asymmetric representation learning",
        family="gradient",
        summary="adds unimodal losses through the shared head, and enlarges the gradients of the "
        "encoders that are depended on less than their certainty deserves",
        acts="in the loss at every step, and on encoder gradients after a warm-up",
        cost="1 forward, 1 backward; the fusion for M+1 times the rows",
        authors="S. Wei, C. Luo, Y. Luo",
        venue="ICCV",
        year=2025,
        arxiv="2507.10203",
        departures=(
            "The first released script never gives the model its weights, so that k stays at 1/2 "
            "for every modality (variant=released).",
            "Reconstructed: the specification says inverse-entropy weights, gamma, T, the warm-up "
            "and the factor on the encoder's output; how the weights compare certainty with "
            "dependence was read in the released script for two modalities.",
            "More than two modalities are mmbench's: the difference w_m - d_m in the softmax, the "
            "mean of 1/2 for k and the floor of 0.6 / M for shares of entropy.",
            "The warm-up is 6 in 100 of all epochs, as in the released 100; the released code "
            "warms up for 6 however many there are (warmup_epochs=6).",
            "The fusion is the network's own for every modality alone: with sum the biases of the "
            "other heads are in u_m too, and with film and gated a modality takes every place, "
            "each with that place's weights.",
            "The released settings clip the whole gradient at a norm of 40 (-t clip_norm=40).",
        ),
    )

    class Config(Options):
        variant: Literal["corrected", "released"] = option(
            "corrected", "k as above, or, as released, 1/2 for every modality"
        )
        gamma: float = option(
            4.0,
            "weight of the unimodal losses after the warm-up; released: CREMA-D 4, AVE 5, "
            "Kinetics-Sounds 3",
            ge=0,
            search=[1.0, 3.0, 4.0, 5.0],
        )
        temperature: float = option(
            8.0,
            "T; released: CREMA-D 8, AVE and Kinetics-Sounds 4",
            ge=0,
            search=[4.0, 8.0, 16.0],
        )
        warmup_epochs: int | None = option(
            None, "first epochs without; none is 6 in 100 of all, as 6 of 100 when released", ge=0
        )
        absent: Absent | None = option(None, ABSENT_MEANING)
        scale_where: ScaleWhere = option("gradient", SCALE_WHERE_MEANING)

        @model_validator(mode="after")
        def _settings_are_used(self) -> "ARL.Config":
            if self.variant == "released":
                refuse_unused(self, ["temperature"], "by variant=released")
            return self

    def setup(self, run: Run) -> None:
        self.absent = stand_in(run, self.config.absent, "arl")
        note_undone_scaling(run, self.config.scale_where)

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        out = run.net(batch)
        own = self.logits_alone(out)
        is_warm = run.epoch >= self.warmup_epochs(run)
        gamma = self.config.gamma if is_warm else 1.0
        losses = alone_losses(own, batch.y)
        loss = functional.cross_entropy(out.logits, batch.y) + gamma * losses.sum()
        run.backward(loss)
        if is_warm:
            for m, factor in zip(run.modalities, (1 + self.weights(own)).unbind(), strict=True):
                run.log(f"coefficient.{m}", factor)
                scale(run, run.encoder_params(m), factor, self.config.scale_where)
        run.step()
        return loss

    def warmup_epochs(self, run: Run) -> int:
        """Return the number of first epochs in which no gradient is scaled."""
        chosen: int | None = self.config.warmup_epochs
        return 6 * run.stage.epochs // 100 if chosen is None else chosen

    @torch.no_grad()
    def weights(self, logits: Tensor) -> Tensor:
        """Return ``k (M,)`` from the logits of each modality alone ``(M, B, C)``."""
        if self.config.variant == "released":
            return logits.new_full((len(logits),), 0.5)
        dependences = shares(logits.abs().sum(dim=(1, 2)))
        gaps = self.config.temperature / 2 * (certainties(logits) - dependences)
        weights: Tensor = len(logits) / 2 * gaps.softmax(dim=0)
        return weights

    def logits_alone(self, out: Output) -> Tensor:
        """Return ``u (M, B, C)``."""
        assert out.fusion is not None, "a method for two modalities or more"
        return alone(out.fusion, out.features, self.absent)

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return dict(zip(out.features, self.logits_alone(out).unbind(), strict=True))


def certainties(logits: Tensor) -> Tensor:
    """Return ``w (M,)`` from logits ``(M, B, C)``."""
    entropies = torch.special.entr(logits.softmax(dim=2)).sum(dim=2).mean(dim=1)
    return shares(1 / shares(entropies).clamp(min=LEAST_ENTROPY / len(logits)))


def shares(amounts: Tensor) -> Tensor:
    """Return non-negative amounts over their sum; all are zero where the sum is."""
    return amounts / amounts.sum().clamp(min=torch.finfo(amounts.dtype).tiny)
