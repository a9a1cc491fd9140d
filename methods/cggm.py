"""CGGM: classifier-guided gradient modulation.

    c_m     linear classifier of the detached features sg[h_m], trained by CE(c_m, y)
    A_m(t) <- mu A_m(t-1) + (1 - mu) * accuracy of c_m on the batch,   A_m(0) = 0
    D_m     = A_m(t) - A_m(t-1)
    B_m     = clip( (sum_j D_j + eps - D_m) / (sum_j D_j + eps), 0, B_max )
    g_m    <- rho B_m g_m                          for the whole of encoder m
    L       = CE(z, y) + lambda L_gm
    L_gm    = (1/M) ( sum_m |B_m| - sum_m B_m cos(V_m, sg[U_m]) )      unless direction=none

second_order: V_m is the gradient of CE(z, y) for the weights of modality m in the fusion's output
layer, U_m that of CE(c_m, y) for those of c_m. With S = (softmax - one_hot(y)) / B they are
S(z)^T h_m and S(c_m)^T h_m, so that the gradient of the cosine needs no second backward pass.
weights: V_m and U_m are these weights themselves. The L_gm of a step is added to the loss of the
next, and turns the fusion's output layer and nothing else.

Z. Guo, T. Jin, J. Chen, Z. Zhao: Classifier-guided Gradient Modulation for Enhanced Multimodal
Learning, NeurIPS 2024.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.errors import RequestError
from mmbench.nets.fusion import Concat, Sum, add, own_heads
from mmbench.nets.network import Network
from mmbench.options import option, refuse_unused
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.modulation import (
    SCALE_WHERE_MEANING,
    ScaleWhere,
    note_undone_scaling,
    scale,
)
from mmbench.train.run import Run

EPSILON = 1e-8
"""As released: keeps B_m finite where no accuracy has changed, and 1 then."""


class CGGM(Method):
    """Classifiers of each modality's features watch which encoder makes progress."""

    info = MethodInfo(
        title="Classifier-guided gradient modulation",
        family="gradient",
        summary="enlarges the gradients of the encoders whose own classifiers improve less than "
        "the others', and if asked turns the fused gradient towards theirs",
        acts="on encoder gradients, at every step; the direction in the loss",
        cost="1 forward, 1 backward; a linear classifier of detached features per modality",
        authors="Z. Guo, T. Jin, J. Chen, Z. Zhao",
        venue="NeurIPS",
        year=2024,
        arxiv="2411.01409",
        departures=(
            "B_m is clipped to [0, B_max] and taken from running means of the accuracies. Both are "
            "mmbench's: from batch to batch accuracies fall as often as they rise, their changes "
            "sum to about zero, and B_m becomes huge or negative, which is gradient ascent "
            "(variant=released repeats it).",
            "The direction term is off. The released one (direction=weights) compares weights in "
            "place of gradients, one step late, and reaches no encoder; direction=second_order is "
            "the term as meant, with the gradient of the classifier as a constant.",
            "Each modality has its own output layer in the fusion, its block of a concat head, in "
            "place of one layer that all share.",
            "Classifiers are linear in the features, not transformers over a sequence; they are a "
            "group of the recipe's optimiser with a learning rate of their own, and count in its "
            "clipping of the whole gradient.",
        ),
    )

    class Config(Options):
        variant: Literal["corrected", "released"] = option(
            "corrected", "B_m as above, or as released, of each batch's accuracies and not clipped"
        )
        rho: float = option(
            1.3,
            "scale of all encoder gradients, 1.3 as released (BraTS: 1.0)",
            gt=0,
            search=[1.0, 1.3, 2.0],
        )
        smoothing: float = option(
            0.99,
            "mu; mmbench's, so that a change over a hundred steps stands out from the noise of a "
            "batch",
            ge=0,
            lt=1,
            search=[0.9, 0.99],
        )
        largest: float = option(3.0, "B_max; mmbench's", gt=0, search=[1.0, 3.0])
        direction: Literal["none", "weights", "second_order"] = option(
            "none",
            "the term L_gm: none, of weights as released, or of gradients as meant",
        )
        direction_weight: float = option(
            0.1,
            "lambda; released: Food-101 0.05, MOSI and IEMOCAP 0.2, BraTS 0.1",
            gt=0,
        )
        classifier_rate: float = option(
            0.5,
            "learning rate of the classifiers over that of the network, as released (5e-4, 1e-3)",
            gt=0,
        )
        scale_where: ScaleWhere = option("gradient", SCALE_WHERE_MEANING)

        @model_validator(mode="after")
        def _settings_are_used(self) -> "CGGM.Config":
            if self.variant == "released":
                refuse_unused(self, ["smoothing", "largest"], "by variant=released")
            if self.direction == "none":
                refuse_unused(self, ["direction_weight"], "by direction=none")
            return self

    def setup(self, run: Run) -> None:
        note_undone_scaling(run, self.config.scale_where)
        self.classifiers = own_heads(run.network.widths, run.classes, run.seed, "cggm")
        self.accuracies: Tensor
        self.register_buffer("accuracies", torch.zeros(len(run.modalities)))
        if self.config.direction == "none":
            return
        if not isinstance(run.network.fusion, Concat | Sum):
            raise RequestError(
                f"cggm: direction={self.config.direction} needs an output layer of each modality, "
                f"which fusion '{run.spec.fusion}' has not: use concat, sum, late or "
                "-o direction=none"
            )
        if self.config.direction == "weights":
            for i, weight in enumerate(output_weights(run.network)):
                self.register_buffer(f"pull{i}", torch.zeros_like(weight))

    def param_groups(self, run: Run) -> list[dict[str, Any]]:
        rate = self.config.classifier_rate * run.recipe.lr
        return [
            {"params": list(run.network.parameters())},
            {"params": list(self.classifiers.parameters()), "lr": rate},
        ]

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        out = run.net(batch)
        own = {m: self.classifiers[m](h.detach()) for m, h in out.features.items()}
        shares = self.shares(own, batch.y)
        loss = functional.cross_entropy(out.logits, batch.y)
        loss = loss + add({m: functional.cross_entropy(c, batch.y) for m, c in own.items()})
        if self.config.direction == "second_order":
            fused = output_gradients(dict.fromkeys(own, out.logits), out.features, batch.y)
            alone = output_gradients(own, out.features, batch.y)
            loss = loss + self.direction_loss(fused, alone, shares)
        run.backward(loss)
        if self.config.direction == "weights":
            self.pull(run, shares)
        for m, share in zip(run.modalities, shares.unbind(), strict=True):
            factor = self.config.rho * share
            run.log(f"coefficient.{m}", factor)
            scale(run, run.encoder_params(m), factor, self.config.scale_where)
        run.step()
        return loss

    @torch.no_grad()
    def shares(self, own: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Return ``B (M,)`` from the classifiers' logits ``(B, C)``, and remember accuracies."""
        is_right = torch.stack([c.argmax(dim=1) == y for c in own.values()])
        newest = is_right.to(self.accuracies.dtype).mean(dim=1)
        is_released = self.config.variant == "released"
        smoothing = 0.0 if is_released else self.config.smoothing
        gains = (1 - smoothing) * (newest - self.accuracies)
        self.accuracies += gains
        total = gains.sum() + EPSILON
        shares = (total - gains) / total
        if is_released:
            return shares
        return shares.nan_to_num(nan=1.0).clamp(0.0, self.config.largest)

    # -- the direction term --------------------------------------------------------------------

    def direction_loss(
        self, fused: Mapping[str, Tensor], alone: Mapping[str, Tensor], shares: Tensor
    ) -> Tensor:
        """Return ``lambda L_gm`` for the matrices V and U of each modality ``(C, width_m)``."""
        cosines = [
            functional.cosine_similarity(v.flatten(), alone[m].detach().flatten(), dim=0)
            for m, v in fused.items()
        ]
        away = shares.abs().sum() - (shares * torch.stack(cosines)).sum()
        loss: Tensor = self.config.direction_weight * away / len(fused)
        return loss

    def pull(self, run: Run, shares: Tensor) -> None:
        """Add the gradient of the last step's ``lambda L_gm`` to the output layers, and keep that
        of this step's weights for the next."""
        weights = output_weights(run.network)
        classifiers = {m: self.classifiers[m].get_parameter("weight") for m in run.modalities}
        loss = self.direction_loss(output_layers(run.network), classifiers, shares)
        slopes = torch.autograd.grad(loss, weights)
        for i, (p, slope) in enumerate(zip(weights, slopes, strict=True)):
            kept = self.get_buffer(f"pull{i}")
            p.grad = kept.clone() if p.grad is None else p.grad + kept
            kept.copy_(slope)

    # -- the record ----------------------------------------------------------------------------

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return {m: self.classifiers[m](h) for m, h in out.features.items()}

    def report(self, run: Run) -> dict[str, Any]:
        accuracies = self.accuracies.tolist()
        return {"classifier_accuracy": dict(zip(run.modalities, accuracies, strict=True))}


def output_gradients(
    logits: Mapping[str, Tensor], features: Mapping[str, Tensor], y: Tensor
) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy of ``logits[m] = features[m] W^T + ...`` for
    ``W``, ``{m: (C, width_m)}``."""
    gradients = {}
    for m, z in logits.items():
        errors = z.softmax(dim=1) - functional.one_hot(y, z.shape[1])
        gradients[m] = errors.T @ features[m] / len(y)
    return gradients


def output_layers(network: Network) -> dict[str, Tensor]:
    """Return the weights ``{m: (C, width_m)}`` by which features enter the fused logits."""
    weights = output_weights(network)
    if isinstance(network.fusion, Concat):
        weights = list(torch.split(weights[0], list(network.widths.values()), dim=1))
    return dict(zip(network.modalities, weights, strict=True))


def output_weights(network: Network) -> list[Tensor]:
    """Return the parameters that hold :func:`output_layers`: one for concat, M for own heads."""
    if isinstance(network.fusion, Concat):
        return [network.fusion.head.weight]
    assert isinstance(network.fusion, Sum)
    return [head.get_parameter("weight") for head in network.fusion.heads.values()]
