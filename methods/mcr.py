"""MCR: multimodal competition regulariser.

    z~_S  = the fused logits when the features of the modalities in S are permuted in the batch
    J_S   = JSD( softmax(z~_S), sg[softmax(z)] )     S: any modalities, neither none nor all of them
    g_m,S = -1 if m in S else +1    greedy: m's own permutation is to matter, that of others not
            -1 if m in S else  0    ind
            -1                      colab
    encoder m follows  sum_S g_m,S dJ_S / d theta_m                      all other encoders constant
    L     = CE(z, y) + w sum_m CE(u_m, y) + l sum_S J_S as above + c NTXent

    NTXent = mean over the pairs (i, j) with one label among the features of all modalities of
             -log( e^s_ij / (e^s_ij + sum_(k: y_k != y_i) e^s_ik) ),   s_ij = cos(h_i, h_j) / tau

K. Kontras, T. Strypsteen, C. Chatzichristos, P. P. Liang, M. Blaschko, M. De Vos: Balancing
Multimodal Training Through Game-Theoretic Regularization, NeurIPS 2025. J_S is in nats, averaged
over the batch and over K permutations. With two modalities S is one or the other, and greedy is
-J_1 -> theta_1, +J_1 -> theta_2, -J_2 -> theta_2, +J_2 -> theta_1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.errors import RequestError
from mmbench.nets.fusion import Concat, Features, Sum, add, own_heads
from mmbench.options import option, refuse_unused
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run

ABSENT = -1e4
"""Similarity of a pair that does not count: no share in a sum of exponentials, finite slopes."""


class MCR(Method):
    """Encoders play for their influence on the fused prediction."""

    info = MethodInfo(
        title="Multimodal competition regulariser",
        family="loss",
        summary="makes the prediction change when a modality's features are permuted within the "
        "batch, each encoder striving for its own influence",
        acts="in the loss, at every step",
        cost="1 forward, 1 backward; the fusion (or for additive ones the sum of logits) "
        "(2^M - 2) K times",
        authors="K. Kontras, T. Strypsteen, C. Chatzichristos, P. P. Liang, M. Blaschko, M. De Vos",
        venue="NeurIPS",
        year=2025,
        arxiv="2411.07335",
        departures=(
            "The conditional entropy bottleneck of the paper is left out: its equation is not "
            "known here, and the released settings do not use it.",
            "The contrastive term is off unless asked for, as in the released settings; the "
            "paper's weight is not known here.",
            "Only encoders play: the fusion gets no gradient from J. In the released linear fusion "
            "a modality's columns play along with its encoder.",
            "The prediction without permutation is a constant, as its gradient cancels in the "
            "released greedy game of two modalities; clean=live lets it follow the players.",
            "Permuted are the features of the step itself: the released code passes the encoders "
            "a second time, in evaluation mode.",
            "Modalities permuted together have permutations of their own. In the released colab "
            "game of three modalities the first stands in for each single one; here it does not.",
            "Networks start from scratch: the released settings for CREMA-D, AVE and UCF start "
            "ResNet encoders from unimodal training.",
            "One stored version of the released code logs the game without adding it to the loss; "
            "another adds it.",
        ),
        neutral={"weight": 0.0, "own_weight": 0.0},
    )

    class Config(Options):
        game: Literal["greedy", "ind", "colab"] = option(
            "greedy",
            "greedy: own influence up, that of others down; ind: own up; colab: everybody's up",
            search=["greedy", "ind", "colab"],
        )
        weight: float = option(
            0.1, "l, weight of the game, as released", ge=0, search=[0.01, 0.03, 0.1, 0.3, 1.0]
        )
        permutations: int = option(6, "K, as released", ge=1)
        clean: Literal["constant", "live"] = option(
            "constant", "the prediction without permutation: a constant, or a function of theta_m"
        )
        own_weight: float = option(
            1.0, "w, weight of each modality's own loss, as released", ge=0, search=[0.0, 0.3, 1.0]
        )
        contrast_weight: float = option(
            0.0, "c; 0 in the released settings", ge=0, search=[0.0, 0.01, 0.1, 1.0]
        )
        temperature: float = option(0.5, "tau, as released", gt=0)

        @model_validator(mode="after")
        def _settings_are_used(self) -> "MCR.Config":
            if self.weight == 0:
                refuse_unused(self, ["game", "permutations", "clean"], "by weight=0")
            if self.contrast_weight == 0:
                refuse_unused(self, ["temperature"], "by contrast_weight=0")
            return self

    def setup(self, run: Run) -> None:
        widths = run.network.widths
        if self.config.contrast_weight > 0 and len({*widths.values()}) > 1:
            found = ", ".join(f"{m} {width}" for m, width in widths.items())
            raise RequestError(
                f"mcr: the contrastive term compares features of one width, the encoders' are "
                f"{found}: use -o contrast_weight=0 or encoders of one width"
            )
        if self.config.own_weight > 0:
            self.heads = own_heads(widths, run.classes, run.seed)
        names = run.modalities
        self.coalitions = [
            chosen for size in range(1, len(names)) for chosen in combinations(names, size)
        ]
        self.is_chosen = {
            m: torch.tensor([m in chosen for chosen in self.coalitions], device=run.device)
            for m in names
        }

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        """Return the loss. The game has a gradient and no value: its players pull in opposite
        directions."""
        loss: Tensor = functional.cross_entropy(out.logits, batch.y)
        for logits in self.own_logits(run, out).values():
            loss = loss + self.config.own_weight * functional.cross_entropy(logits, batch.y)
        if self.config.weight > 0:
            game = self.game(run, out)
            loss = loss + self.config.weight * (game - game.detach())
        if self.config.contrast_weight > 0:
            contrast = label_contrast(out.features, batch.y, self.config.temperature)
            run.log("contrast", contrast)
            loss = loss + self.config.contrast_weight * contrast
        return loss

    def game(self, run: Run, out: Output) -> Tensor:
        """Return the sum of ``J_S``, whose gradient for encoder m is multiplied by ``g_m,S``."""
        orders = dict(zip(run.modalities, self.orders(run, len(out.logits)), strict=True))
        fusion = out.fusion
        assert fusion is not None, "a method for two modalities or more"
        size, count = (len(self.coalitions), self.config.permutations), len(out.logits)
        with constant(fusion):
            # In an additive fusion a part moves along with its features.
            latents = fusion.parts(out.features) if is_additive(fusion) else out.features
            fuse = add if is_additive(fusion) else fusion
            moved, clean = {}, {}
            for m, h in latents.items():
                inside, outside = scaled(h, -1.0), scaled(h, self.sign_outside)
                permuted = inside[orders[m]].view(1, -1, *h.shape)
                is_chosen = self.is_chosen[m].view(-1, 1, 1, 1)
                moved[m] = torch.where(is_chosen, permuted, outside).flatten(0, 2)
                if self.config.clean == "live":
                    clean[m] = torch.where(is_chosen, inside, outside).flatten(0, 2)
            after = fuse(moved).view(*size, count, -1)
            before = (
                fuse(clean).view(-1, 1, count, after.shape[3]) if clean else out.logits.detach()
            )
        divergences = jensen_shannon(after, before).mean(dim=1)
        for chosen, divergence in zip(self.coalitions, divergences.detach(), strict=True):
            if len(chosen) == 1:
                run.log(f"influence.{chosen[0]}", divergence)
        return divergences.sum()

    def orders(self, run: Run, size: int) -> Tensor:
        """Return K permutations of the batch in a row for each modality, ``(M, K B)``."""
        shape = len(run.modalities), self.config.permutations, size
        draws = torch.rand(shape, generator=run.rng, device=run.device)
        return draws.argsort(dim=2).flatten(1)

    @property
    def sign_outside(self) -> float:
        """Return ``g_m,S`` of a modality outside S; inside it is -1."""
        return {"greedy": 1.0, "ind": 0.0, "colab": -1.0}[self.config.game]

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        if self.config.own_weight == 0:
            return {}
        return {m: self.heads[m](h).float() for m, h in out.features.items()}


def is_additive(fusion: nn.Module) -> bool:
    """Whether each modality's part of the logits depends on its own features alone."""
    return isinstance(fusion, Concat | Sum)


def scaled(h: Tensor, factor: float) -> Tensor:
    """Return ``h`` with its gradient multiplied by a number."""
    if factor == 0:
        return h.detach()
    return h if factor == 1 else h.detach() + factor * (h - h.detach())


@contextmanager
def constant(module: nn.Module) -> Iterator[None]:
    """Let no gradient from inside the block reach the module's parameters."""
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean over rows of the Jensen-Shannon divergence of two softmaxes, in nats, from
    logits ``(..., B, C)`` that fit together."""
    # Over an axis of a few classes softmax is several times as fast where that is not the last.
    p, q = (logits.mT.contiguous().log_softmax(dim=-2) for logits in (first, second))
    # Its gradient by p is log(p / middle) / 2: what comes by way of the logarithms cancels.
    with torch.no_grad():
        middle = torch.logaddexp(p, q) - math.log(2)
        above, below = p - middle, q - middle
    terms = p.exp() * above + q.exp() * below
    return terms.sum(dim=-2).mean(dim=-1) / 2


def label_contrast(features: Features, y: Tensor, temperature: float) -> Tensor:
    """Return ``NTXent`` of features ``{m: (B, d)}`` and labels ``(B,)``."""
    views = functional.normalize(torch.cat(list(features.values())), dim=1)
    labels = y.repeat(len(features))
    is_alike = labels.unsqueeze(0) == labels.unsqueeze(1)
    similarity = views @ views.T / temperature
    negatives = similarity.masked_fill(is_alike, ABSENT).logsumexp(dim=1, keepdim=True)
    is_positive = is_alike & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    losses = functional.softplus(negatives - similarity)
    return (losses * is_positive).sum() / is_positive.sum()
