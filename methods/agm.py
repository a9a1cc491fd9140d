"""AGM: adaptive gradient modulation.

    F(S)    fused logits when the inputs of the modalities outside S are zero;  N: all of them
    phi_m   = sum_(S without m) |S|! (M - |S| - 1)! / M! * (F(S + m) - F(S)),   F of nobody left out
    z       = sum_m phi_m = F(N)
    s_m     = mean_i -log max(softmax(phi_m)[i, y_i], 1e-8)
    r_m     = exp( mean_(j != m) (s_j - s_m) )             how far m is ahead in this batch
    tau_m   = exp( mean_(j != m) (mean s_j - mean s_m) )   and over all steps before it
    kappa_m = exp( alpha * min(tau_m - r_m, cap) )
    d phi_m <- kappa_m * d phi_m                           in the backward pass of CE(z, y)

H. Li, X. Li, P. Hu, Y. Lei, C. Li, Y. Zhou: Boosting Multi-modal Model Performance with Adaptive
Gradient Modulation, ICCV 2023. F(N) is computed in training mode and every other F(S) in evaluation
mode, with gradients, as in the released code. In evaluation mode a modality's features do not
depend on the other modalities, and those of a zero input are the same in every row: the features of
the batch and of one row of zeros, computed in one pass, give F(S) for all S.
"""

from itertools import combinations
from math import factorial, log
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.nets.fusion import Concat, Sum, add
from mmbench.options import option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.modulation import (
    SCALE_WHERE_MEANING,
    ScaleWhere,
    note_undone_scaling,
    scale,
)
from mmbench.train.run import Run

SMALLEST_PROBABILITY = 1e-8
"""As released: bounds the score of a sample by 18.4 nats."""
CLIP_ABOVE = 1.0
"""As released: an entry of the fusion's gradient beyond this calls for clipping."""


class AGM(Method):
    """Makes every modality keep the pace, relative to the others, that it has had so far."""

    info = MethodInfo(
        title="Adaptive gradient modulation",
        family="gradient",
        summary="scales the gradient of each modality's Shapley share of the logits by how far it "
        "is ahead of its own past",
        acts="in the backward pass, in a window of epochs",
        cost="2 forwards (one with a row more), 1 backward; the fusion, or for additive ones the "
        "sum of logits, for 2^M - 1 sets",
        authors="H. Li, X. Li, P. Hu, Y. Lei, C. Li, Y. Zhou",
        venue="ICCV",
        year=2023,
        arxiv="2308.07686",
        departures=(
            "Encoders see the batch and the zero input once each, and only the fusion runs for "
            "every set of modalities, or where it is additive the sum of its parts: the same "
            "logits and gradients as the released passes of the whole network for each set.",
            "The zero input of all modalities, which the released code evaluates and does not "
            "use, is left out.",
            "One cap of 10 and one clipping norm of 1 for any number of modalities: the released "
            "scripts use 7 and 5 for three modalities (cap=7, clip_norm=5), and no cap on MOSEI.",
        ),
        max_modalities=10,
        neutral={"alpha": 0.0},
    )

    class Config(Options):
        alpha: float = option(
            1.0,
            "strength; the released default, 2.5 in its command for AV-MNIST",
            ge=0,
            search=[0.1, 0.5, 1.0, 2.5],
        )
        cap: float = option(10.0, "largest tau_m - r_m, as released for two modalities", gt=0)
        apply: Literal["hook", "param"] = option(
            "hook",
            "what kappa_m scales: the gradient that enters phi_m, as released, or after a plain "
            "backward pass that of encoder m's parameters",
        )
        scale_where: ScaleWhere = option("gradient", f"with apply=param, {SCALE_WHERE_MEANING}")
        clip_norm: float | None = option(
            1.0,
            "largest norm of the whole gradient in a step where an entry of the fusion's exceeds "
            "1, as released; none to not clip",
            gt=0,
        )
        first_epoch: int = option(0, "first epoch, from 0, in which gradients are modulated", ge=0)
        last_epoch: int | None = option(
            None,
            "last such epoch; none ends after a fifth of all epochs: the released default is 20 "
            "and its published command trains 100",
            ge=0,
        )

        @model_validator(mode="after")
        def _settings_are_used(self) -> "AGM.Config":
            if self.apply == "hook" and self.scale_where == "update":
                raise ValueError("scale_where=update needs apply=param: a hook scales gradients")
            return self

    mean_scores: Tensor
    steps: Tensor
    weights: Tensor
    """Of each ``F(S)`` in each ``phi_m``, ``(M, 2^M - 1)``; F(N) is the last."""

    def setup(self, run: Run) -> None:
        names = run.modalities
        note_undone_scaling(run, self.config.scale_where)
        self.register_buffer("mean_scores", torch.zeros(len(names)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        sizes = range(1, len(names) + 1)
        self.coalitions = [members for size in sizes for members in combinations(names, size)]
        self.is_member = {
            m: torch.tensor([m in members for members in self.coalitions[:-1]], device=run.device)
            for m in names
        }
        weights = shapley_weights(names, self.coalitions)
        self.register_buffer("weights", weights, persistent=False)

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        if self.config.alpha == 0 or run.epoch > self.last_epoch(run):
            return super().train_step(run, batch)
        out = run.net(batch)
        is_modulated = run.epoch >= self.config.first_epoch
        by_hook = is_modulated and self.config.apply == "hook"
        with torch.set_grad_enabled(by_hook):
            parts = self.mono_modal_logits(run, out, batch)
        coefficients = self.coefficients(run, parts.detach(), batch.y)
        logits = out.logits
        if by_hook:
            parts.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: gradient * coefficients.view(-1, 1, 1)
            )
            logits = parts.sum(dim=0)
        loss = functional.cross_entropy(logits, batch.y)
        run.backward(loss)
        if is_modulated:
            if not by_hook:
                for m, factor in zip(run.modalities, coefficients, strict=True):
                    scale(run, run.encoder_params(m), factor, self.config.scale_where)
            self.clip(run)
        run.step()
        return loss

    def last_epoch(self, run: Run) -> int:
        """Return the last epoch that is modulated."""
        last: int | None = self.config.last_epoch
        return (run.stage.epochs + 4) // 5 - 1 if last is None else last

    def mono_modal_logits(self, run: Run, out: Output, batch: Batch) -> Tensor:
        """Return ``phi (M, B, C)``, which sum to the fused logits of ``out``."""
        was_training = run.network.training
        run.network.eval()
        seen = run.net(with_blank_row(batch))
        # In an additive fusion each modality's part of the logits is the same in all sets.
        is_additive = isinstance(seen.fusion, Concat | Sum)
        # For each set what the batch gives inside it, and what the blank row gives outside.
        chosen = {
            m: torch.where(self.is_member[m].view(-1, 1, 1), x[:-1], x[-1]).flatten(0, 1)
            for m, x in (seen.parts if is_additive else seen.features).items()
        }
        values = add(chosen) if is_additive else run.network.fuse(chosen).logits
        run.network.train(was_training)
        stacked = torch.cat([values.view(-1, *out.logits.shape), out.logits.unsqueeze(0)])
        return torch.einsum("ms,sbc->mbc", self.weights.to(stacked.dtype), stacked)

    @torch.no_grad()
    def coefficients(self, run: Run, parts: Tensor, y: Tensor) -> Tensor:
        """Return ``kappa (M,)`` for ``phi (M, B, C)``, and take the scores into the means."""
        truth = y.view(1, -1, 1).expand(len(parts), -1, 1)
        logs = parts.log_softmax(dim=2).gather(2, truth).clamp(min=log(SMALLEST_PROBABILITY))
        scores = -logs.mean(dim=(1, 2))
        excess = relative(self.mean_scores) - relative(scores)
        coefficients = torch.exp(self.config.alpha * excess.clamp(max=self.config.cap))
        self.steps += 1
        self.mean_scores += (scores - self.mean_scores) / self.steps
        for m, score, coefficient in zip(run.modalities, scores, coefficients, strict=True):
            run.log(f"score.{m}", score)
            run.log(f"coefficient.{m}", coefficient)
        return coefficients

    @torch.no_grad()
    def clip(self, run: Run) -> None:
        """Clip the whole gradient if the fusion's has a large entry, without asking the device."""
        if self.config.clip_norm is None:
            return
        gradients = [p.grad for p in run.network.parameters() if p.grad is not None]
        head = [p.grad.abs().max() for p in run.head_params() if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        shrunk = (self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        factor = torch.where(torch.stack(head).max() > CLIP_ABOVE, shrunk, 1.0)
        torch._foreach_mul_(gradients, factor)


def with_blank_row(batch: Batch) -> Batch:
    """Return the batch with a row of zeros, and of the first row's class, at the end."""
    inputs = {m: torch.cat([x, torch.zeros_like(x[:1])]) for m, x in batch.inputs.items()}
    return Batch(inputs, torch.cat([batch.y, batch.y[:1]]), torch.cat([batch.rows, batch.rows[:1]]))


def shapley_weights(names: tuple[str, ...], coalitions: list[tuple[str, ...]]) -> Tensor:
    """Return ``(M, coalitions)`` float64: the weight of each ``F(S)`` in each ``phi_m``."""
    count = len(names)
    rows = []
    for m in names:
        others = [len(set(coalition) - {m}) for coalition in coalitions]
        sizes = [factorial(k) * factorial(count - k - 1) / factorial(count) for k in others]
        signs = [1 if m in coalition else -1 for coalition in coalitions]
        rows.append([sign * size for sign, size in zip(signs, sizes, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def relative(scores: Tensor) -> Tensor:
    """Return ``exp( mean_(j != m) (s_j - s_m) )`` for scores ``(M,)``: above one for a modality
    whose score, a loss, is below the others'."""
    others = (scores.sum() - scores) / (len(scores) - 1)
    return torch.exp(others - scores)
