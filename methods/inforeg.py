"""InfoReg: regulating how fast information is acquired.

    L       = CE(z, y) + w sum_m CE(z_m, y)          z_m: the modality's part of the fused logits
    Tr_m(e) = sum over steps and weights W of encoder m of mean( (dL/dW)^2 )
    kappa_m = (T - T') / T      T, T': means of Tr_m over the last 10 epochs, and over those up to
                                one epoch earlier; 1 before there are two epochs
    s_m     = mean_i softmax(z_m)[i, y_i],      gap_m = s_m - mean_(j != m) s_j
    beta_m  = c_m exp( tanh(gap_m) )   if m has the largest s and kappa_m > 0.05,   else 0
    g_m    <- g_m + beta_m (theta_m - theta_m at the start of the epoch)     for encoder m

C. Huang, Y. Wei, Z. Yang, D. Hu: Adaptive Unimodal Regulation for Balanced Multimodal Information
Acquisition, CVPR 2025. While the Fisher trace of the leading modality still grows (its prime
learning window), its encoder is held near where the epoch began.
"""

from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.errors import unknown_name
from mmbench.nets.probabilities import log_probabilities, of_class
from mmbench.options import option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.modulation import scoped_parameters
from mmbench.train.run import Run


class InfoReg(Method):
    """Holds back the encoder of the leading modality early in training."""

    info = MethodInfo(
        title="Information acquisition regulation",
        family="gradient",
        summary="adds unimodal losses, and while a modality that leads is learning fast, pulls its "
        "encoder back to where the epoch began",
        acts="on encoder gradients, at every step of the epochs in which the Fisher trace grows",
        cost="1 forward, 1 backward; a copy of the encoders",
        authors="C. Huang, Y. Wei, Z. Yang, D. Hu",
        venue="CVPR",
        year=2025,
        arxiv="2503.18595",
        departures=(
            "s_m is the mean over the batch: the released code takes the sum, whose differences "
            "saturate tanh, so that beta is 2.58 or 0.27 in nearly every step "
            "(variant=released).",
            "kappa is that of the modality that leads, over the epochs there are: the released "
            "code takes the first modality's for all, and divides sums by 10 even when fewer "
            "epochs are done. That division alone keeps the window open for about ten epochs "
            "(variant=released); without it, where gradients shrink from the start, the window "
            "closes after two.",
            "The Fisher trace is of the gradients of L, without the pull (variant=released: with "
            "it), and over encoder weights of two or more dimensions.",
            "One c for all modalities unless given by modality: 0.95 for audio and 0.1 for visual "
            "as released.",
            "One backward pass: the 5 to 6 of the released code are for its logs. That code also "
            "stops at the first step on a single device, where heads it does not use have no "
            "gradient.",
            "More than two modalities: the one in the lead is compared with the mean of the "
            "others.",
            "Film and gated fusion use zero-feature ablations as the modalities' logits.",
        ),
        neutral={"unimodal_weight": 0.0, "strength": 0.0},
    )

    class Config(Options):
        variant: Literal["corrected", "released"] = option(
            "corrected", "s, kappa and Fisher trace as above, or as in the released code"
        )
        strength: float = option(
            0.95,
            "c_m of modalities that strengths leaves out; 0.95 for audio as released",
            ge=0,
            search=[0.1, 0.3, 0.95],
        )
        strengths: dict[str, float] = option(
            {}, "c_m by modality; released: audio 0.95, visual 0.1"
        )
        unimodal_weight: float = option(
            1.0, "w, of each CE(z_m), as released", ge=0, search=[0.3, 1.0]
        )
        threshold: float = option(
            0.05, "kappa above which a modality is in its prime learning window", ge=0, lt=1
        )
        window: int = option(10, "epochs that the Fisher trace is averaged over, as released", ge=1)

        @model_validator(mode="after")
        def _strengths_are_not_negative(self) -> "InfoReg.Config":
            if any(strength < 0 for strength in self.strengths.values()):
                raise ValueError("strengths are 0 or more")
            return self

    def setup(self, run: Run) -> None:
        for m in self.config.strengths:
            if m not in run.modalities:
                raise unknown_name("modality in strengths", m, run.modalities)
        given = self.config.strengths
        self.strengths = {m: given.get(m, self.config.strength) for m in run.modalities}
        self.traces: dict[str, list[float]] = {m: [] for m in run.modalities}
        self.regulated: dict[str, int] = dict.fromkeys(run.modalities, 0)
        self.anchors: dict[str, list[Tensor]] = {}
        self.sums: Tensor | None = None
        """Of the epoch, for each weight tensor in `tracked`: the squares of its gradients."""
        self.tracked: list[tuple[str, int]] = []
        """Modality and number of elements."""

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        out = run.net(batch)
        loss, truth = self.loss_and_truth(out, batch.y)
        run.backward(loss)
        with torch.no_grad():
            if self.config.variant == "corrected":
                self.track(run)
            self.regulate(run, truth)
            if self.config.variant == "released":
                self.track(run)
        run.step()
        return loss

    def loss_and_truth(self, out: Output, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``L``, and the probability of each sample's class by modality ``(M, B)``."""
        parts = torch.stack([*out.parts.values()])
        truth = of_class(log_probabilities(parts), y)
        weight: float = self.config.unimodal_weight
        # The same fused logits from the parts at hand: one backward pass through the head, not two.
        from_parts = weight > 0 and out.parts_are_exact
        loss = functional.cross_entropy(parts.sum(dim=0) if from_parts else out.logits, y)
        if weight > 0:
            loss = loss - weight / len(y) * truth.sum()
        return loss, truth.detach().exp()

    # -- the pull ------------------------------------------------------------------------------

    def regulate(self, run: Run, truth: Tensor) -> None:
        """Pull the encoder in the lead back if it is in its window."""
        if not self.anchors:
            return
        for m, factor in zip(run.modalities, self.coefficients(run, truth), strict=True):
            if m not in self.anchors:
                continue
            run.log(f"coefficient.{m}", factor)
            moved = [
                (p, p.grad, anchor)
                for p, anchor in zip(run.encoder_params(m), self.anchors[m], strict=True)
                if p.grad is not None
            ]
            if moved:
                parameters, gradients, anchors = map(list, zip(*moved, strict=True))
                pull = torch._foreach_sub(parameters, anchors)
                torch._foreach_addcmul_(gradients, pull, [factor] * len(pull))

    def coefficients(self, run: Run, truth: Tensor) -> Tensor:
        """Return ``beta (M,)``, wherever the windows are, from the probability of each sample's
        class ``(M, B)``."""
        scores = truth.sum(dim=1) if self.config.variant == "released" else truth.mean(dim=1)
        gaps = scores - (scores.sum() - scores) / (len(scores) - 1)
        leads = (scores == scores.max()) & (gaps > 0)
        strengths = gaps.new_tensor([*self.strengths.values()])
        return torch.where(leads, strengths * gaps.tanh().exp(), 0.0)

    # -- the window ----------------------------------------------------------------------------

    def on_epoch_start(self, run: Run) -> None:
        self.sums, self.tracked = None, []
        self.anchors = {}
        for m in run.modalities:
            growth = self.growth(m)
            run.log(f"fisher_growth.{m}", growth)
            if growth > self.config.threshold and self.strengths[m] > 0:
                self.anchors[m] = [p.detach().clone() for p in run.encoder_params(m)]
                self.regulated[m] += 1

    def on_epoch_end(self, run: Run) -> None:
        sums = [] if self.sums is None else self.sums.tolist()
        traces = dict.fromkeys(run.modalities, 0.0)
        for (m, size), total in zip(self.tracked, sums, strict=True):
            traces[m] += total / size
        for m, trace in traces.items():
            run.log(f"fisher_trace.{m}", trace)
            self.traces[m] = [*self.traces[m], trace][-self.config.window - 1 :]

    def growth(self, m: str) -> float:
        """Return ``kappa_m`` at the start of an epoch."""
        size: int = self.config.window
        if self.config.variant == "released":
            traces = next(iter(self.traces.values()))
            newest, before = sum(traces[-size:]) / size, sum(traces[-size - 1 : -1]) / size
            known = len(traces) > 0
        else:
            traces = self.traces[m]
            newest, before = mean(traces[-size:]), mean(traces[-size - 1 : -1])
            known = len(traces) > 1
        if not known:
            return 1.0
        return (newest - before) / newest if newest > 0 else 0.0

    def track(self, run: Run) -> None:
        """Add the gradients of this step to the Fisher traces."""
        weights = {m: scoped_parameters(run, m, "weights") for m in run.modalities}
        gradients = [p.grad for group in weights.values() for p in group if p.grad is not None]
        if not gradients:
            return
        self.tracked = [(m, p.numel()) for m, group in weights.items() for p in group]
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        self.sums = squares if self.sums is None else self.sums + squares

    # -- record and resume ---------------------------------------------------------------------

    def report(self, run: Run) -> dict[str, Any]:
        return {"epochs_in_window": self.regulated}

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "traces": {m: list(values) for m, values in self.traces.items()},
            "regulated": dict(self.regulated),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.traces = {m: list(values) for m, values in state["traces"].items()}
        self.regulated = dict(state["regulated"])


def mean(values: list[float]) -> float:
    """Return the mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
