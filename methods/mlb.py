"""MLB: multi-loss balancing, which speeds encoders up as well as it slows them down.

    L   = CE(z, y) + w * sum_m CE(u_m, y),    u_m = h_m U_m^T + c_m    own heads beside the fusion
    s_m = sum_i softmax(u_m)[i, y_i]
    r_m = mean_(j != m) s_j / s_m
    k_m = 1 + (beta_m - 1) tanh( alpha (r_m - 1) ),   beta_m = beta_max  if r_m > 1  else 2
    g  <- k_m g                               for every parameter of encoder m

K. Kontras, C. Chatzichristos, M. Blaschko, M. De Vos: Improving Multimodal Learning with Multi-Loss
Gradient Modulation, BMVC 2024. A modality behind the others is sped up, at most ``beta_max`` times;
one ahead is slowed down, never below ``1 - tanh(alpha)``. As all heads come to know the training
rows, every r_m and k_m goes to 1, and multi-loss is left.
"""

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.nets.fusion import own_heads
from mmbench.options import option, refuse_unused
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.modulation import (
    SCALE_WHERE_MEANING,
    ScaleWhere,
    confidence_ratios,
    note_undone_scaling,
    scale,
)
from mmbench.train.run import Run


class MLB(Method):
    """Scales each encoder's gradient by how far its own head is behind or ahead of the others."""

    info = MethodInfo(
        title="Multi-loss gradient modulation (multi-loss balanced)",
        family="gradient",
        summary="multi-loss whose encoders are sped up where their own head is behind the others, "
        "and slowed down where it is ahead",
        acts="in the loss and on encoder gradients, at every step",
        cost="1 forward, 1 backward",
        authors="K. Kontras, C. Chatzichristos, M. Blaschko, M. De Vos",
        venue="BMVC",
        year=2024,
        arxiv="2405.07930",
        departures=(
            "One rule for any number of modalities, the paper's; the released code has a class for "
            "two and another for three.",
            "The released code also scales a linear layer that its models have between encoder and "
            "fusion; there is none here.",
        ),
        neutral={"weight": 0.0, "alpha": 0.0},
    )

    class Config(Options):
        weight: float = option(
            1.0, "weight w of each unimodal loss; 1 as released", ge=0, search=[0.3, 1.0, 3.0]
        )
        alpha: float = option(
            1.5,
            "strength, 1.5 in the README of the released code; 0 is multi-loss",
            ge=0,
            search=[0.5, 0.8, 1.5, 3.0],
        )
        beta_max: float = option(
            2.0,
            "largest speed-up, never quite reached; 2 unless told otherwise in the released code, "
            "1 slows down only",
            ge=1,
            search=[1.5, 2.0, 3.0, 5.0],
        )
        scale_where: ScaleWhere = option("gradient", SCALE_WHERE_MEANING)

        @model_validator(mode="after")
        def _settings_are_used(self) -> "MLB.Config":
            if self.alpha == 0:
                refuse_unused(self, ["beta_max", "scale_where"], "by alpha=0")
            elif self.weight == 0:
                raise ValueError(
                    "weight=0 leaves the heads that alpha needs untrained: add alpha=0"
                )
            return self

    def setup(self, run: Run) -> None:
        self.heads = own_heads(run.network.widths, run.classes, run.seed)
        if self.config.alpha > 0:
            note_undone_scaling(run, self.config.scale_where)

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        out = run.net(batch)
        own = self.own_logits(run, out)
        loss = functional.cross_entropy(out.logits, batch.y)
        for logits in own.values():
            loss = loss + self.config.weight * functional.cross_entropy(logits, batch.y)
        run.backward(loss)
        if self.config.alpha > 0:
            factors = self.coefficients(1 / confidence_ratios(own, batch.y)).unbind()
            for m, factor in zip(own, factors, strict=True):
                run.log(f"coefficient.{m}", factor)
                scale(run, run.encoder_params(m), factor, self.config.scale_where)
        run.step()
        return loss

    def coefficients(self, ratios: Tensor) -> Tensor:
        """Return ``k (M,)`` from ``r (M,)``."""
        change = torch.tanh(self.config.alpha * (ratios - 1))
        return 1 + torch.where(ratios > 1, (self.config.beta_max - 1) * change, change)

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return {m: self.heads[m](h) for m, h in out.features.items()}
