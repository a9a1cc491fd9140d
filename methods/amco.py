"""AMCo: adaptive mask co-optimisation.

    c_m   = mean_i sum_k softmax([z_1 | ... | z_M])[i, (m, k)]   share of modality m; z_m: its part
    d_m   = 1 if c_m > sigma in the batch before, else 0         of the fused logits
    p     = sin( pi/2 min(l / epsilon, 1) ),   l = e / E         grows over epochs e of E
    N     = min( floor(p C), floor(q C) )                        classes masked, q = 0.5
    z     = V sum_m (1 - d_m k) z_m + v                          k: 1 for N random classes, else 0
    L     = CE(z, y) + w sum_m CE(z_m, y)

Y. Zhou, X. Liang, S. Zheng, H. Xuan, T. Kumada: Adaptive Mask Co-optimization for Modal Dependence
in Multimodal Learning, ICASSP 2023. A modality that the model depends on loses part of its
prediction in training, while its own loss keeps it good; the classes are drawn anew for each batch.
The equations are those of BalanceBenchmark, with a schedule of mmbench's own.
"""

from math import floor, pi, sin
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.nets.fusion import linear
from mmbench.options import option, refuse_unused
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run


class AMCo(Method):
    """Masks part of the prediction of the modality that the model depends on."""

    info = MethodInfo(
        title="Adaptive mask co-optimisation",
        family="forward",
        summary="masks random classes in the logits of a modality that the model depends on, more "
        "of them as training goes on, beside unimodal losses",
        acts="in the forward pass of training and in the loss; a linear layer after the fused "
        "logits also at inference",
        cost="1 forward, 1 backward",
        authors="Y. Zhou, X. Liang, S. Zheng, H. Xuan, T. Kumada",
        venue="ICASSP",
        year=2023,
        departures=(
            "No official code was found and the paper's text was not at hand: the equations are "
            "BalanceBenchmark's.",
            "The mask grows with the share of epochs done and covers half of the classes at most. "
            "In BalanceBenchmark l starts at 0 in every epoch e and grows by e / 10 with each "
            "batch, so that nothing is masked in the first epoch and, from the fourth on, all of a "
            "dependent modality from the second batch on (variant=balancebenchmark).",
            "Dependence is that of the batch before: BalanceBenchmark keeps a modality dependent "
            "until the epoch ends (variant=balancebenchmark).",
            "Any number of devices: BalanceBenchmark's mask has a shape for two.",
            "Film and gated fusion, whose parts do not sum to the logits, are not supported.",
        ),
        fusions=("concat", "sum", "late", "attention"),
        neutral={"max_share": 0.0, "unimodal_weight": 0.0, "mix": False},
    )

    class Config(Options):
        variant: Literal["proposed", "balancebenchmark"] = option(
            "proposed", "schedule of the mask, and how long a modality counts as dependent"
        )
        sigma: float = option(
            0.5,
            "share of the prediction above which a modality is dependent; 0.5 as in "
            "BalanceBenchmark, for any number of modalities",
            gt=0,
            lt=1,
            search=[0.4, 0.5, 0.6],
        )
        epsilon: float = option(
            0.3,
            "l at which the mask is largest, as in BalanceBenchmark; by default in epochs done "
            "over all epochs",
            gt=0,
            search=[0.1, 0.3, 1.0],
        )
        max_share: float = option(
            0.5, "q, largest share of the classes that is masked (mmbench's)", ge=0, le=1
        )
        unimodal_weight: float = option(
            1.0, "w, of each CE(z_m), as in BalanceBenchmark", ge=0, search=[0.3, 1.0]
        )
        mix: bool = option(
            True, "have the linear layer V, v after the sum, as in BalanceBenchmark, or the sum"
        )

        @model_validator(mode="after")
        def _settings_are_used(self) -> "AMCo.Config":
            if self.variant == "balancebenchmark":
                refuse_unused(self, ["max_share"], "by variant=balancebenchmark")
            return self

    dependent: Tensor

    def setup(self, run: Run) -> None:
        self.register_buffer("dependent", torch.zeros(len(run.modalities), dtype=torch.bool))
        self.mixing = (
            linear(run.classes, run.classes, run.seed, "amco") if self.config.mix else None
        )
        self.batches_done = 0

    def on_epoch_start(self, run: Run) -> None:
        self.batches_done = 0
        if self.config.variant == "balancebenchmark":
            self.dependent.zero_()

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        parts = torch.stack([*out.parts.values()])
        masked = self.masked_classes(run)
        fused = out.logits
        if masked:
            hidden = self.dependent.view(-1, 1, 1) & self.draw(run, masked)
            fused = parts.masked_fill(hidden, 0.0).sum(dim=0)
        loss: Tensor = functional.cross_entropy(self.mixed(fused), batch.y)
        if self.config.unimodal_weight > 0:
            labels = batch.y.repeat(len(parts))
            own = functional.cross_entropy(parts.flatten(0, 1), labels) * len(parts)
            loss = loss + self.config.unimodal_weight * own
        self.look(run, parts.detach(), masked)
        return loss

    # -- the mask ------------------------------------------------------------------------------

    def masked_classes(self, run: Run) -> int:
        """Return ``N`` for the batch at hand."""
        if self.config.variant == "balancebenchmark":
            return floor(run.classes * self.rise(self.batches_done * run.epoch / 10))
        most: int = floor(self.config.max_share * run.classes)
        return min(floor(run.classes * self.rise(run.epoch / run.stage.epochs)), most)

    def rise(self, done: float) -> float:
        """Return ``p`` from ``l``."""
        return sin(pi / 2 * min(done / self.config.epsilon, 1.0))

    def draw(self, run: Run, masked: int) -> Tensor:
        """Return which classes are masked, ``(C,)``: so many, each as likely as another."""
        return torch.randperm(run.classes, generator=run.rng, device=run.device) < masked

    @torch.no_grad()
    def look(self, run: Run, parts: Tensor, masked: int) -> None:
        """See what the model depends on, from the modalities' logits ``(M, B, C)``."""
        together = parts.transpose(0, 1).flatten(1).softmax(dim=1)
        shares = together.view(-1, len(parts), run.classes).sum(dim=2).mean(dim=0)
        numbers = (self.dependent * masked).unbind()
        for m, share, number in zip(run.modalities, shares.unbind(), numbers, strict=True):
            run.log(f"share.{m}", share)
            run.log(f"masked_classes.{m}", number)
        depends = shares > self.config.sigma
        if self.config.variant == "balancebenchmark":
            depends = depends | self.dependent
        self.dependent.copy_(depends)
        self.batches_done += 1

    # -- inference -----------------------------------------------------------------------------

    def mixed(self, fused: Tensor) -> Tensor:
        """Return ``V z + v`` in float32, or without the layer ``z``."""
        if self.mixing is None:
            return fused
        with torch.autocast(fused.device.type, enabled=False):
            logits: Tensor = self.mixing(fused)
        return logits

    def predict(self, run: Run, out: Output) -> Tensor:
        return self.mixed(out.logits)
