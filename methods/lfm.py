"""LFM: learning to fit both the labels and the gap between modalities.

    p_m = softmax(u_m)                                   u_m: own logits of modality m
    A   = mean over pairs (m, n) of [ KL(q || p_m) + KL(q || p_n) ] / 2,    q = (p_m + p_n) / 2
    L   = s ( a_1 CE(z, y) + a_2 A ),   a_1 + a_2 = 1,   s = 2

    fitted:   a_1 = f(199 e / (E - 1))    f: a polynomial that rises from 0.2, fitted for 200 epochs
    learned:  at the start of each epoch, on rows held out of train,
              a_2 <- clip( a_2 - r mean(H g), 0.05, 0.95 )
              g = grad CE,  H = Hessian of a_1 CE + a_2 A,  r: 1e-4, halved every 20 epochs

Y. Yang, F. Wan, Q.-Y. Jiang, Y. Xu: Facilitating Multimodal Classification via Dynamically Learning
Modality Gap, NeurIPS 2024. Late fusion is the authors': z is the mean of the u_m.
"""

from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmbench.evaluate.readout import evaluating
from mmbench.nets.fusion import Late, Sum
from mmbench.nets.probabilities import log_probabilities
from mmbench.options import option, refuse_unused
from mmbench.train.holdout import hold_out, holdout_option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output, Stage
from mmbench.train.run import Run

FITTED = (
    0.204623704,
    3.35472727e-3,
    1.22989557e-4,
    -2.92947416e-6,
    2.23835486e-8,
    -5.39717505e-11,
)
"""Coefficients of the released polynomial, constant term first."""
FITTED_EPOCHS = 200
"""Epochs that the polynomial was fitted for."""
LEAST, MOST = 0.05, 0.95
"""Range of a learned a_2, as released."""


class LFM(Method):
    """Draws the modalities' predictions together first, and fits the labels later."""

    info = MethodInfo(
        title="Learning modality gap dynamically",
        family="loss",
        summary="aligns what the modalities predict, with a weight that goes over to the "
        "cross-entropy as training goes on",
        acts="in the loss, at every step; the weights change once an epoch",
        cost="1 forward, 1 backward; schedule=learned: 1 forward and 3 backwards of half a batch "
        "each epoch",
        authors="Y. Yang, F. Wan, Q.-Y. Jiang, Y. Xu",
        venue="NeurIPS",
        year=2024,
        departures=(
            "The fitted schedule is stretched over the epochs of the run, and a_1 kept from "
            "exceeding 1: the released polynomial, written for 200 epochs, goes to 1.011 at epoch "
            "183, where it rewards disagreement (variant=released).",
            "schedule=learned takes the mean of H g over all parameters, where the released code "
            "takes that of the first parameter tensor (variant=released). It is no derivative of "
            "the loss by a_2, and at the released rate of 1e-4 it hardly moves the weights.",
            "schedule=learned draws half a batch from rows held out of train each epoch, in "
            "evaluation mode; BalanceBenchmark takes a quarter of one batch of the test set.",
            "The divergence runs from the mean q to each p_m, as released; that of Jensen and "
            "Shannon runs the other way.",
            "More than two modalities: A is the mean over pairs. Fusions without own heads: u_m is "
            "the modality's part of the fused logits, as in BalanceBenchmark.",
        ),
        default_fusion="late",
        neutral={"schedule": "constant", "alignment": 0.0, "scale": 1.0},
    )

    class Config(Options):
        schedule: Literal["fitted", "learned", "constant"] = option(
            "fitted",
            "how a_2 changes: by the released polynomial, by Hessian-vector products, or not at "
            "all",
            search=["fitted", "learned"],
        )
        alignment: float = option(
            0.05,
            "a_2 of schedule=constant, and that which schedule=learned starts from (as in "
            "BalanceBenchmark; the released start is not known here)",
            ge=0,
            le=1,
        )
        scale: float = option(2.0, "s, as released", gt=0, search=[1.0, 2.0])
        rate: float = option(1e-4, "r of schedule=learned, as released", gt=0)
        halving_epochs: int = option(
            20, "epochs after which schedule=learned halves r, as released", ge=1
        )
        variant: Literal["corrected", "released"] = option(
            "corrected",
            "of schedule=fitted: keep a_1 from exceeding 1, or not; of schedule=learned: the mean "
            "over all parameters, or over the first parameter tensor",
        )
        holdout: float = holdout_option()

        @model_validator(mode="after")
        def _settings_are_used(self) -> "LFM.Config":
            used = {
                "fitted": {"variant"},
                "learned": {"variant", "alignment", "rate", "halving_epochs", "holdout"},
                "constant": {"alignment"},
            }
            idle = used["learned"] - used[self.schedule]
            refuse_unused(self, sorted(idle), f"by schedule={self.schedule}")
            return self

    pairs: Tensor

    def setup(self, run: Run) -> None:
        self.register_buffer("pairs", pair_means(len(run.modalities)), persistent=False)
        self.learned: float = self.config.alignment
        self.is_learned = self.config.schedule == "learned"
        self.kept, self.held = np.arange(len(run.train)), np.arange(0)
        if self.is_learned:
            self.kept, self.held = hold_out(run, self.config.holdout, "lfm")

    def stages(self, run: Run) -> list[Stage]:
        rows = self.kept if self.is_learned else None
        return [Stage("train", run.recipe.epochs, rows=rows, select="protocol")]

    # -- the loss ------------------------------------------------------------------------------

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        weight = self.alignment_weight(run)
        run.log("alignment_weight", weight)
        scale: float = self.config.scale
        if weight == 0:
            return scale * functional.cross_entropy(out.logits, batch.y)
        classification, alignment = self.terms(out, batch.y)
        run.log("alignment", alignment)
        return scale * (1 - weight) * classification + scale * weight * alignment

    def terms(self, out: Output, y: Tensor, is_curved: bool = False) -> tuple[Tensor, Tensor]:
        """Return ``CE(z, y)`` and ``A``, in nats; see :func:`misalignment`."""
        parts = torch.stack([*out.parts.values()])
        # The same fused logits from the parts at hand: one backward pass through the heads, not
        # two.
        fused = parts.sum(dim=0) if out.parts_are_exact else out.logits
        unimodal = parts * len(parts) if isinstance(out.fusion, Late) else parts
        alignment = misalignment(log_probabilities(unimodal), self.pairs, is_curved)
        return functional.cross_entropy(fused, y), alignment

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        if not isinstance(out.fusion, Sum):
            return {}
        return {m: run.own_head(m)(h) for m, h in out.features.items()}

    # -- the weights ---------------------------------------------------------------------------

    def alignment_weight(self, run: Run) -> float:
        """Return ``a_2`` of the epoch."""
        if self.config.schedule != "fitted":
            return self.learned
        e = run.epoch * (FITTED_EPOCHS - 1) / max(run.stage.epochs - 1, 1)
        classification = sum(c * e**power for power, c in enumerate(FITTED))
        if self.config.variant == "released":
            return 1 - classification
        return 1 - min(classification, 1.0)

    def on_epoch_start(self, run: Run) -> None:
        if not self.is_learned:
            return
        size = max(1, run.recipe.batch_size // 2)
        drawn = torch.randperm(len(self.held), generator=run.rng, device=run.device)[:size]
        rows = torch.as_tensor(self.held, device=run.device)[drawn]
        product = self.hessian_product(run, run.train.batch(rows, run.modalities))
        run.log("hessian_product", product)
        rate = self.config.rate * 0.5 ** (run.epoch // self.config.halving_epochs)
        self.learned = min(max(self.learned - rate * product, LEAST), MOST)

    def hessian_product(self, run: Run, batch: Batch) -> float:
        """Return the mean of ``H g`` over the parameters."""
        parameters = [p for p in run.network.parameters() if p.requires_grad]
        # The fused kernels of attention have no second derivatives.
        with evaluating(run.network), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            classification, alignment = self.terms(run.net(batch), batch.y, True)
            whole = (1 - self.learned) * classification + self.learned * alignment
            slopes = torch.autograd.grad(whole, parameters, create_graph=True, allow_unused=True)
            direction = torch.autograd.grad(
                classification, parameters, retain_graph=True, materialize_grads=True
            )
            pairs = zip(slopes, direction, strict=True)
            along = torch.stack([(slope * g).sum() for slope, g in pairs if slope is not None])
            products = torch.autograd.grad(along.sum(), parameters, materialize_grads=True)
        run.counts.backwards += 3
        if self.config.variant == "released":
            return float(products[0].mean())
        return float(torch.cat([product.flatten() for product in products]).mean())

    # -- record and resume ---------------------------------------------------------------------

    def report(self, run: Run) -> dict[str, Any]:
        return {"alignment_weight": self.learned} if self.is_learned else {}

    def get_extra_state(self) -> dict[str, Any]:
        return {"learned": self.learned}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.learned = float(state["learned"])


def pair_means(count: int) -> Tensor:
    """Return the matrix ``(pairs, M)`` that takes the mean of each pair of modalities."""
    rows = torch.eye(count)
    return torch.stack([(a + b) / 2 for a, b in combinations(rows, 2)])


def misalignment(logs: Tensor, pairs: Tensor, is_curved: bool = False) -> Tensor:
    """Return ``A`` from the modalities' log-probabilities ``(M, C, B)``: 0 where all agree. It has
    second derivatives if ``is_curved``."""
    middle = pairs @ logs.exp().flatten(1)
    mean_log = pairs @ logs.flatten(1)
    # Slopes through log q add up to that of sum_c q_c = 1: none.
    with torch.set_grad_enabled(is_curved):
        # Where a probability is too small for a float, its logarithm does not matter.
        log_middle = middle.clamp(min=torch.finfo(middle.dtype).tiny).log()
    return (middle * (log_middle - mean_log)).sum() / (len(pairs) * logs.shape[2])
