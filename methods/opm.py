"""OPM: on-the-fly prediction modulation.

    s_m     = sum_i softmax(z_m)[i, y_i]        z_m: the modality's part of the fused logits
    rho_m   = s_m / mean_(j != m) s_j
    delta_m = tanh( relu(rho_m - 1) )
    q_m     = clip( q_base (1 + lambda delta_m), 0, 1 )  if delta_m > 0  else 0
    theta   = sum_m d_m q_m / sum_m d_m         d_m: width of h_m
    k_m,i   ~ Bernoulli(1 - q_m)                for each sample; a batch has this with chance p_exe
    h_m,i  <- k_m,i h_m,i / (1 - theta)
    L       = CE(z, y)                          z: the fusion of these features

Y. Wei, D. Hu, H. Du, J.-R. Wen: On-the-fly Modulation for Balanced Multimodal Learning, TPAMI 2024.
q and theta are constants in the backward pass. The modality with the smallest score is never
dropped, so that every sample keeps at least one and theta stays below 1.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.nets.fusion import Features, add
from mmbench.options import option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run

SMALLEST_SCORE = 1e-12
"""Keeps the ratio and its gradient finite where the other modalities have no probability left."""


class OPM(Method):
    """Drops the features of the modality that predicts the true class better."""

    info = MethodInfo(
        title="On-the-fly prediction modulation",
        family="forward",
        summary="drops the features of the modality that is ahead, the more often the further it "
        "is ahead",
        acts="in the forward pass of training, after a warm-up, in a share of the batches",
        cost="1 forward, 1 backward; the fusion twice",
        authors="Y. Wei, D. Hu, H. Du, J.-R. Wen",
        venue="TPAMI",
        year=2024,
        arxiv="2410.11582",
        departures=(
            "q and theta are constants: in the released code they depend on the features, and the "
            "encoders get an additional gradient of theta^2 / 2 (variant=released repeats it).",
            "More than two modalities: each is compared with the mean of the others, and every "
            "one that is ahead of it is dropped.",
            "Samples that lost all modalities, which the released code removes from the batch, "
            "cannot occur: the modality with the smallest score is never dropped.",
            "The warm-up is 6 in 100 of all epochs, as in the released 100 epochs; the released "
            "code warms up for 6 epochs however many there are (warmup_epochs=6).",
            "Film and gated fusion use zero-feature ablations as the modalities' logits.",
        ),
        neutral={"base_rate": 0.0},
    )

    class Config(Options):
        variant: Literal["corrected", "released"] = option(
            "corrected", "constants q and theta, or, as released, with the gradient of theta^2 / 2"
        )
        base_rate: float = option(
            0.5,
            "q_base; 0.5 in the released script, 0.4 in its configuration",
            ge=0,
            le=1,
            search=[0.3, 0.5, 0.7],
        )
        strength: float = option(0.5, "lambda, as released", ge=0, search=[0.25, 0.5, 1.0])
        batch_share: float = option(
            0.7, "p_exe, chance of a batch to have features dropped, as released", gt=0, le=1
        )
        warmup_epochs: int | None = option(
            None, "first epochs without; none is 6 in 100 of all, as 6 of 100 when released", ge=0
        )

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        if self.config.base_rate == 0 or run.epoch < self.warmup_epochs(run):
            loss: Tensor = functional.cross_entropy(out.logits, batch.y)
            return loss
        chance, draws = self.draws(run, len(batch))
        is_released = self.config.variant == "released"
        features = {m: h.detach().requires_grad_(is_released) for m, h in out.features.items()}
        with torch.set_grad_enabled(is_released):
            assert out.fusion is not None, "a method for two modalities or more"
            rates = self.rates(out.fusion.parts(features), batch.y)
            rates = rates * (chance < self.config.batch_share)
            theta = mean_rate(features, rates)
        for m, rate in zip(run.modalities, rates, strict=True):
            run.log(f"drop_rate.{m}", rate)
        thinned = dropped(out.features, rates.detach(), draws)
        loss = functional.cross_entropy(run.network.fuse(thinned).logits, batch.y)
        if is_released:
            slopes = torch.autograd.grad(theta, [*features.values()])
            pairs = zip(out.features.items(), slopes, strict=True)
            pull = add({m: (theta.detach() * slope * h).sum() for (m, h), slope in pairs})
            loss = loss + (pull - pull.detach())
        return loss

    def warmup_epochs(self, run: Run) -> int:
        """Return the number of first epochs in which nothing is dropped."""
        chosen: int | None = self.config.warmup_epochs
        return 6 * run.stage.epochs // 100 if chosen is None else chosen

    def draws(self, run: Run, size: int) -> tuple[Tensor, Tensor]:
        """Return uniform numbers: one for the batch, and one for each sample and modality
        ``(B, M)``."""
        chance = torch.rand((), generator=run.rng, device=run.device)
        each = torch.rand(size, len(run.modalities), generator=run.rng, device=run.device)
        return chance, each

    def rates(self, parts: dict[str, Tensor], y: Tensor) -> Tensor:
        """Return ``q (M,)`` from the modalities' logits ``(B, C)``."""
        truth = y.unsqueeze(1)
        scores = torch.stack([z.softmax(dim=1).gather(1, truth).sum() for z in parts.values()])
        others = (scores.sum() - scores) / (len(scores) - 1)
        ratios = scores / others.clamp(min=SMALLEST_SCORE)
        # Rounding can put the ratios of equal scores all above one.
        is_ahead = (ratios > 1) & (scores > scores.min())
        gaps = torch.tanh(functional.relu(ratios - 1))
        rates = (self.config.base_rate * (1 + self.config.strength * gaps)).clamp(0.0, 1.0)
        return torch.where(is_ahead, rates, 0.0)


def mean_rate(features: Features, rates: Tensor) -> Tensor:
    """Return ``theta``, the mean of the rates ``(M,)`` weighted by the features' widths."""
    widths = {m: h.shape[1] for m, h in features.items()}
    total = sum(widths.values())
    pairs = zip(widths.items(), rates, strict=True)
    return add({m: rate * (width / total) for (m, width), rate in pairs})


def dropped(features: Features, rates: Tensor, draws: Tensor) -> dict[str, Tensor]:
    """Return features ``{m: (B, width_m)}`` that are zero where the uniform ``draws (B, M)`` are
    below the rates ``(M,)``, and divided by ``1 - theta`` elsewhere."""
    factors = (draws >= rates) / (1 - mean_rate(features, rates))
    return {m: h * factors[:, i : i + 1] for i, (m, h) in enumerate(features.items())}
