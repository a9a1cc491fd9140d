"""MLA: alternating unimodal adaptation through one shared head.

In every batch the modalities take turns, each with an update of its own:

    L_m = CE(h_m V^T + c, y)                    V (C, d): one head for all modalities
    r   = mean_i h_m[i],   k = P r              P (d, d), the identity at first
    P  <- P - k k^T / (a + r.k),   P <- P / |P|_F,   a = damping^(1 + batch / batches)
    dL_m/dV <- dL_m/dV P^T                      (from the second update on)

so that the head keeps what it answered to features seen before. At test, for each sample:

    H_m = -sum_c p_m,c log p_m,c,   p_m = softmax(h_m V^T + c)
    w   = softmax_m( -H_m ),        z = sum_m w_m (h_m V^T + c)

X. Zhang, J. Yoon, M. Bansal, H. Yao: Multimodal Representation Learning by Alternating Unimodal
Adaptation, CVPR 2024. P follows recursive least squares and stays symmetric and positive.
"""

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.nets.fusion import add, linear
from mmbench.nets.shared_head import branch_of, share_head, shared_width
from mmbench.options import option, refuse_unused
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run

SMALLEST_NORM = 1e-12
"""Keeps the logged ratio finite where the head has no gradient."""


class MLA(Method):
    """Trains the modalities in turn, and weighs them by their certainty at test."""

    info = MethodInfo(
        title="Multimodal learning with alternating unimodal adaptation",
        family="optimisation",
        summary="updates one modality at a time through a shared head that is kept from forgetting "
        "the others, and weighs predictions by their entropy",
        acts="in the order of updates, on the gradient of the head, and at inference",
        cost="1 forward, M backwards and M updates; memory for a d x d matrix",
        authors="X. Zhang, J. Yoon, M. Bansal, H. Yao",
        venue="CVPR",
        year=2024,
        arxiv="2311.10707",
        departures=(
            "The head's gradient is projected, as in the paper. The released code looks for the "
            "head under a name that it does not have, and never projects (project=false).",
            "The denominator of the projection is the number a + r.k; the released code multiplies "
            "the other way round and would divide by a matrix.",
            "Weights at test follow each sample's entropy; the released code takes probabilities "
            "over the samples of a batch, and one weight per modality (combine=batch_entropy).",
            "The fixed weights that the release has for three modalities are not offered; those "
            "for two are equal (combine=mean).",
            "Features of unequal width, for which there is no released model, go through a linear "
            "layer per modality if -o width names a common width.",
        ),
        default_fusion="sum",
        fusions=("sum",),
    )

    class Config(Options):
        project: bool = option(
            True,
            "project the head's gradient, as in the paper; false as the released code runs",
            search=[True, False],
        )
        damping: float = option(
            0.1, "base of a, 0.1 as released: a smaller one projects harder", gt=0, le=1
        )
        combine: Literal["entropy", "batch_entropy", "mean"] = option(
            "entropy",
            "weights at test: by each sample's entropy; as released, by that of all rows predicted "
            "together, over the rows; or equal",
        )
        width: int | None = option(
            None, "width of a linear layer per modality before the head; none for no layer", ge=1
        )

        @model_validator(mode="after")
        def _settings_are_used(self) -> "MLA.Config":
            if not self.project:
                refuse_unused(self, ["damping"], "with project=false")
            return self

    projection: Tensor

    def setup(self, run: Run) -> None:
        chosen: int | None = self.config.width
        width = shared_width(run.network.widths, chosen, "mla")
        share_head(run.network, linear(width, run.classes, run.seed, "shared_head"), chosen)
        if self.config.project:
            self.register_buffer("projection", torch.eye(width))
            if run.recipe.optimizer != "sgd":
                run.note(
                    f"{run.recipe.optimizer} rescales each weight's gradient, so that the head's "
                    "updates are not as mla projects them: use -t optimizer=sgd"
                )
        self.batches = batches_per_epoch(len(run.train), run.recipe.batch_size)
        self.batch = 0

    def on_epoch_start(self, run: Run) -> None:
        self.batch = 0

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        out = run.net(batch)
        losses: dict[str, Tensor] = {}
        for m, h in out.features.items():
            branch = branch_of(run.network, m)
            x = branch.adapter(h)
            losses[m] = functional.cross_entropy(branch.head(x), batch.y)
            run.backward(losses[m])
            is_first_of_all = run.epoch == 0 and self.batch == 0 and len(losses) == 1
            if self.config.project and not is_first_of_all:
                assert isinstance(branch.head, nn.Linear)
                self._project(run, m, branch.head, x)
            run.step()
            run.log(f"loss.{m}", losses[m])
        self.batch += 1
        return add(losses).detach()

    @torch.no_grad()
    def _project(self, run: Run, m: str, head: nn.Linear, x: Tensor) -> None:
        """Move P by the features ``(B, d)`` and project the gradient of the head ``(C, d)``."""
        weight = head.weight
        assert weight.grad is not None
        a = self.config.damping ** (1 + self.batch / self.batches)
        move_projection(self.projection, x.mean(dim=0), a)
        before = torch.linalg.vector_norm(weight.grad)
        weight.grad = weight.grad @ self.projection.T
        after = torch.linalg.vector_norm(weight.grad)
        run.log(f"head_gradient_kept.{m}", after / before.clamp(min=SMALLEST_NORM))

    def predict(self, run: Run, out: Output) -> Tensor:
        logits = torch.stack(list(out.parts.values()))
        if self.config.combine == "mean":
            return logits.mean(dim=0)
        return (fusion_weights(logits, self.config.combine == "entropy") * logits).sum(dim=0)

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return out.parts


def move_projection(projection: Tensor, r: Tensor, a: float) -> None:
    """Move P ``(d, d)`` by a mean feature vector r ``(d,)``, and give it a Frobenius norm of 1."""
    k = projection @ r
    projection.sub_(torch.outer(k, k).div_(a + r @ k))
    projection.div_(torch.linalg.vector_norm(projection))


def fusion_weights(logits: Tensor, each_sample: bool) -> Tensor:
    """Return weights that sum to 1 over modalities for logits ``(M, B, C)``: ``(M, B, 1)``, or as
    released ``(M, 1, 1)`` from probabilities over the samples."""
    axis, summed = (2, [2]) if each_sample else (1, [1, 2])
    logs = logits.log_softmax(dim=axis)
    entropy = -(logs.exp() * logs).sum(dim=summed, keepdim=True)
    return torch.softmax(-entropy, dim=0)


def batches_per_epoch(rows: int, size: int) -> int:
    """Return the batches of an epoch; a last one of a single row joins the one before."""
    full, rest = divmod(rows, size)
    return max(full + (rest > 1), 1)
