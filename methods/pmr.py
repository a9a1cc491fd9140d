"""PMR: prototypical modal rebalance.

    P_m    class means of h_m over a share of the training rows, taken at the start of each epoch:
           P_m <- (1 - momentum) mean + momentum P_m
    q_m[i, c] = -|h_m[i] - P_m[c]|,   p_m = softmax(q_m),   a_m = sum_i p_m[i, y_i]
    c_m    = clip(a_max / a_m - 1, 0, 1)          zero for the modality in the lead
    L      = CE(z, y) + alpha sum_m c_m CE(q_m, y)
             - mu max_m c_m H(p_lead)             in the first epochs only; H: mean entropy

For two modalities with rho = a_1 / a_2 the coefficients are clip(1 / rho - 1, 0, 1) and
clip(rho - 1, 0, 1).

Y. Fan, W. Xu, H. Wang, J. Wang, S. Guo: PMR: Prototypical Modal Rebalance for Multimodal Learning,
CVPR 2023.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.nets.probabilities import log_probabilities, of_class
from mmbench.nets.prototypes import UNSEEN, ClassMeans
from mmbench.options import option, refuse_unused
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run


class PMR(Method):
    """Pulls the features of slow modalities to their class means."""

    info = MethodInfo(
        title="Prototypical modal rebalance",
        family="loss",
        summary="adds a prototype loss to the modalities that are behind, and early on keeps the "
        "leading one from settling",
        acts="in the loss, in a window of epochs",
        cost="1 forward, 1 backward; a forward of a tenth of the rows at each epoch's start",
        authors="Y. Fan, W. Xu, H. Wang, J. Wang, S. Guo",
        venue="CVPR",
        year=2023,
        arxiv="2211.07089",
        departures=(
            "Soft coefficients and the entropy term are the paper's as far as known here: the "
            "released code has neither, its coefficients are 0 or 1 (variant=released).",
            "More than two modalities: each is compared with the one in the lead, whose entropy "
            "is weighted by the largest coefficient.",
            "A class without rows in the share keeps its prototype, and is left out until it has "
            "one: the released code divides by zero.",
            "Prototypes are taken without augmentation, from rows drawn at random.",
        ),
        neutral={"alpha": 0.0, "entropy_weight": 0.0},
    )

    class Config(Options):
        variant: Literal["paper", "released"] = option(
            "paper", "c_m as above with the entropy term, or 1 for every modality behind, without"
        )
        alpha: float = option(
            1.0, "weight of the prototype loss, as released", ge=0, search=[0.3, 0.6, 1.0, 2.0]
        )
        momentum: float = option(
            0.2, "share of the old prototypes, as released", ge=0, lt=1, search=[0.2, 0.5, 0.9]
        )
        share: float = option(
            0.1, "share of the training rows for the prototypes, as released (AVE: 1)", gt=0, le=1
        )
        entropy_weight: float = option(
            0.01,
            "mu; the paper's value is not known here, this one is mmbench's",
            ge=0,
            search=[0.01, 0.1, 1.0],
        )
        entropy_epochs: int | None = option(
            None, "first epochs with the entropy term; none is a tenth of all (mmbench's)", ge=0
        )
        first_epoch: int = option(0, "first epoch, from 0, with the prototype loss", ge=0)
        last_epoch: int | None = option(
            None,
            "last such epoch; none is two thirds of all, as 100 of 150 in the released settings",
            ge=0,
        )

        @model_validator(mode="after")
        def _settings_are_used(self) -> "PMR.Config":
            if self.variant == "released":
                refuse_unused(self, ["entropy_weight", "entropy_epochs"], "by variant=released")
            return self

    def setup(self, run: Run) -> None:
        self.prototypes = nn.ModuleDict(
            {
                m: Distances(run.classes, width, self.config.momentum)
                for m, width in run.network.widths.items()
            }
        )

    def on_epoch_start(self, run: Run) -> None:
        if not self.is_active(run):
            return
        size = max(1, round(self.config.share * len(run.train)))
        rows = torch.randperm(len(run.train), generator=run.rng, device=run.device)[:size]
        features: dict[str, list[Tensor]] = {m: [] for m in run.modalities}
        labels: list[Tensor] = []
        for out, batch in run.outputs(np.sort(rows.cpu().numpy())):
            labels.append(batch.y)
            for m, h in out.features.items():
                features[m].append(h)
        for m, parts in features.items():
            self.class_means(m).update(torch.cat(parts), torch.cat(labels))

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        loss: Tensor = functional.cross_entropy(out.logits, batch.y)
        if not self.is_active(run):
            return loss
        distances = torch.stack([self.class_means(m)(h) for m, h in out.features.items()])
        seen = self.class_means(run.modalities[0]).seen
        logs = log_probabilities((-distances).masked_fill(~seen, UNSEEN))
        truth = of_class(logs, batch.y)
        known = seen[batch.y].to(truth.dtype)
        scores = truth.detach().exp() @ known
        coefficients = self.coefficients(scores)
        for m, coefficient in zip(run.modalities, coefficients, strict=True):
            run.log(f"coefficient.{m}", coefficient)
        weights = self.config.alpha * coefficients / known.sum().clamp(min=1)
        loss = loss - weights @ (truth @ known)
        if run.epoch < self.entropy_epochs(run):
            is_lead = (scores == scores.max()).to(scores.dtype)
            weights = self.config.entropy_weight * coefficients.max() * is_lead / len(batch.y)
            loss = loss + weights @ (logs.exp() * logs).sum(dim=(1, 2))
        return loss

    def is_active(self, run: Run) -> bool:
        last = self.config.last_epoch
        end = 2 * run.stage.epochs // 3 if last is None else last
        in_window = self.config.first_epoch <= run.epoch <= end
        has_entropy = self.config.variant == "paper" and self.config.entropy_weight > 0
        return bool(in_window and (self.config.alpha > 0 or has_entropy))

    def entropy_epochs(self, run: Run) -> int:
        """Return the number of first epochs that have the entropy term."""
        if self.config.variant == "released":
            return 0
        chosen: int | None = self.config.entropy_epochs
        return (run.stage.epochs + 9) // 10 if chosen is None else chosen

    def coefficients(self, scores: Tensor) -> Tensor:
        """Return ``c (M,)`` from the scores ``a (M,)``."""
        if self.config.variant == "released":
            return (scores < scores.max()).to(scores.dtype)
        smallest = torch.finfo(scores.dtype).tiny
        return (scores.max() / scores.clamp(min=smallest) - 1).clamp(0.0, 1.0)

    def class_means(self, m: str) -> "Distances":
        means = self.prototypes[m]
        assert isinstance(means, Distances)
        return means


class Distances(ClassMeans):
    """Prototypes that classify by their distance."""

    def forward(self, h: Tensor) -> Tensor:
        """Return the distances ``(B, C)`` of ``h (B, d)``. Their gradient is zero where a feature
        vector is its prototype."""
        return torch.cdist(h, self.rows, compute_mode="donot_use_mm_for_euclid_dist")
