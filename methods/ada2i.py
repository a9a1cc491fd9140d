"""Ada2I: adaptive weighting of features and modalities.

Feature weighting, twice in turn, with four linear maps of rank r for each modality:

    a_m = q1_m(f_m) * k1_m(f_m),  b_m = q2_m(f_m) * k2_m(f_m),  G_m = a_m b_m^T       (r x r)
    A_m = G_m prod_(l != m) G_l            w_m = V_m vec(A_m) + v_m
    f_m <- dropout( w_m * f_m + beta f_m )           f_m = h_m at first
    L_w = sum over both of mean | P_m(f_m) - sg[w_m] |            P_m linear

Classifier, with W_m and b the fusion's weights, and what it is trained with:

    z = sum_m sigma cos(f_m, W_m) + b,     L = CE(z, y) + L_w

Modulation, with s_m = sum_i softmax(f_m W_m^T + b / M)[i, y_i], of every tensor of encoder m:

    rho_m = s_m / min_j s_j,   k_m = 1 - tanh(alpha rho_m)  if rho_m > 1  else 1
    g    <- k_m g + N(0, (std(k_m g) + 1e-8)^2)

C.-V. T. Nguyen, T.-S. Le, A.-T. Mai, D.-T. Le: Ada2I: Enhancing Modality Balance for Multimodal
Conversational Emotion Recognition, ACM MM 2024. The equations are those of the released code, for
single feature vectors: a dialogue of one utterance. G_m then has rank one, so that A_m is
``a_m b_last^T`` times the products ``b_l . a_next`` along the chain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.nets.fusion import Concat, Features, Fusion, Sum, add
from mmbench.options import option, refuse_unused
from mmbench.seeds import Key, default_stream
from mmbench.train.method import Batch, Method, MethodInfo, Options
from mmbench.train.modulation import (
    SCALE_WHERE_MEANING,
    ScaleWhere,
    note_undone_scaling,
    scale,
    scoped_parameters,
)
from mmbench.train.run import Run

LAYERS = 2
"""Feature weightings in turn, as released."""

Variant = Literal["corrected", "released"]


class Ada2I(Method):
    """Weighs features by how the modalities interact, classifies by cosines, and slows every
    encoder but that of the weakest modality."""

    info = MethodInfo(
        title="Adaptive feature and modality weighting",
        family="forward",
        summary="weighs each modality's features by their interaction with the others, classifies "
        "by cosines, and slows all encoders but the weakest modality's",
        acts="in the forward pass, in the loss, and after a warm-up on encoder gradients",
        cost="1 forward, 1 backward, with two layers of feature weighting in the fusion",
        authors="C.-V. T. Nguyen, T.-S. Le, A.-T. Mai, D.-T. Le",
        venue="ACM MM",
        year=2024,
        arxiv="2408.12895",
        departures=(
            "The estimates P_m learn the weights w_m, as constants: in the released code the list "
            "of weights is overwritten, and they learn the weighted features, which learn from "
            "them in turn (variant=released).",
            "Class weights have unit length over the features, so that logits are cosines: the "
            "released code normalises over the classes (variant=released).",
            "Cosines are multiplied by sigma, 10 as in MMCosine: the released ones, between -M and "
            "M, are too flat for six classes (sigma=1).",
            "Features enter the interaction layer-normalised (mmbench's): it is a polynomial of "
            "degree 4 M, which overflows on large features; the released code, without, reads a "
            "Transformer's (normalise=false).",
            "Encoders are those of mmbench, not Transformers over a dialogue; a sample is a "
            "dialogue of one utterance, so that no mean over a dialogue and no padding occurs.",
            "The third term of the paper's loss, L_modal, is in neither the released code nor "
            "here; its equation is not known.",
            "The warm-up is 6 in 100 of all epochs, as 3 of the released 50. Where the recipe "
            "clips gradients it does so after the modulation; the released code before it.",
        ),
        fusions=("concat", "sum"),
        neutral={"afw": False, "head": "linear", "modulation": False, "noise": "none"},
    )

    class Config(Options):
        variant: Literal["corrected", "released"] = option(
            "corrected",
            "target of the estimates P_m and axis that class weights are normalised over: as "
            "intended, or as released",
        )
        afw: bool = option(True, "adaptive feature weighting")
        rank: int = option(
            6, "r; released for MELD, with 11 for IEMOCAP", ge=1, search=[4, 6, 8, 12]
        )
        residual: float = option(
            0.55,
            "beta; released for MELD, with 0.012 for IEMOCAP",
            ge=0,
            search=[0.0, 0.01, 0.1, 0.55],
        )
        dropout: float = option(0.5, "of the weighted features, as released", ge=0, lt=1)
        normalise: bool = option(
            True, "layer-normalise what the interaction reads (mmbench's); released without"
        )
        head: Literal["cosine", "linear"] = option(
            "cosine", "classifier: cosines, or the fusion's own"
        )
        sigma: float = option(
            10.0, "scale of the cosines, mmbench's after MMCosine; 1 as released", gt=0
        )
        modulation: bool = option(True, "slow the encoders of all but the weakest modality")
        alpha: float = option(
            0.42,
            "strength; released for MELD, with 0.037 for IEMOCAP",
            ge=0,
            search=[0.03, 0.1, 0.3, 0.42],
        )
        scale_where: ScaleWhere = option("gradient", SCALE_WHERE_MEANING)
        noise: Literal["after_scale", "before_scale", "none"] = option(
            "after_scale",
            "noise on encoder gradients of the deviation that they have after the modulation, as "
            "released, or before it, as in OGM-GE",
        )
        warmup_epochs: int | None = option(
            None,
            "first epochs without modulation and noise; none is 6 in 100 of all, as 3 of 50 when "
            "released",
            ge=0,
        )

        @model_validator(mode="after")
        def _settings_are_used(self) -> "Ada2I.Config":
            if not self.afw:
                names = ["rank", "residual", "dropout", "normalise"]
                refuse_unused(self, names, "with afw=false")
            if self.head == "linear":
                refuse_unused(self, ["sigma"], "by head=linear")
            if not self.afw and self.head == "linear":
                refuse_unused(self, ["variant"], "with afw=false and head=linear")
            if not self.modulation:
                refuse_unused(self, ["alpha", "scale_where"], "with modulation=false")
            if not self.modulation and self.noise == "none":
                refuse_unused(self, ["warmup_epochs"], "with modulation=false and noise=none")
            gradient_is_scaled = self.modulation and self.scale_where == "gradient"
            if self.noise == "before_scale" and not gradient_is_scaled:
                raise ValueError(
                    "noise=before_scale is the same as after_scale unless gradients are scaled "
                    "(modulation=true, scale_where=gradient)"
                )
            return self

    def setup(self, run: Run) -> None:
        if self.config.modulation:
            note_undone_scaling(run, self.config.scale_where)
        linear = run.main.fusion
        assert isinstance(linear, Concat | Sum), "fusions in `info` are concat and sum"
        # In a list, since its parameters are the network's, not the method's.
        self.linear = [linear]
        if self.config.afw or self.config.head == "cosine":
            run.main.fusion = AdaptiveFusion(linear, run.main.widths, self.config, run.seed)

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        out = run.net(batch)
        loss = functional.cross_entropy(out.logits, batch.y)
        features: Features = out.features
        if isinstance(out.fusion, AdaptiveFusion):
            weighted = out.fusion.take_latest()
            features = weighted.features
            if weighted.error is not None:
                run.log("weight_error", weighted.error)
                loss = loss + weighted.error
        run.backward(loss)
        if run.epoch >= self.warmup_epochs(run):
            with torch.no_grad():
                self.edit_gradients(run, features, batch.y)
        run.step()
        return loss

    def warmup_epochs(self, run: Run) -> int:
        """Return the number of first epochs in which no gradient is edited."""
        chosen: int | None = self.config.warmup_epochs
        return 6 * run.stage.epochs // 100 if chosen is None else chosen

    def edit_gradients(self, run: Run, features: Features, y: Tensor) -> None:
        """Scale every encoder's gradients and add noise; ``features`` are what the classifier
        read, ``{m: (B, width_m)}``."""
        coefficients = self.coefficients(features, y) if self.config.modulation else {}
        for m in features:
            parameters = scoped_parameters(run, m, "all")
            gradients = [p.grad for p in parameters if p.grad is not None and p.numel() > 1]
            if self.config.noise == "before_scale":
                noise = noise_like(gradients, run.rng)
            if m in coefficients:
                run.log(f"coefficient.{m}", coefficients[m])
                scale(run, parameters, coefficients[m], self.config.scale_where)
            if self.config.noise == "after_scale":
                noise = noise_like(gradients, run.rng)
            if self.config.noise != "none" and gradients:
                torch._foreach_add_(gradients, noise)

    def coefficients(self, features: Features, y: Tensor) -> dict[str, Tensor]:
        """Return ``k_m``."""
        logits = torch.stack([*self.linear[0].parts(features).values()])
        truth = y.view(1, -1, 1).expand(len(logits), -1, 1)
        scores = logits.softmax(dim=2).gather(2, truth).sum(dim=(1, 2))
        ratios = scores / scores.min().clamp(min=torch.finfo(scores.dtype).tiny)
        slowed = 1 - torch.tanh(self.config.alpha * ratios)
        factors = torch.where(ratios > 1, slowed, 1.0).unbind()
        return dict(zip(features, factors, strict=True))


def noise_like(gradients: list[Tensor], random: torch.Generator) -> list[Tensor]:
    """Return noise of each tensor's own standard deviation over its elements."""
    noise = []
    for g in gradients:
        centred = g - g.mean()
        # Several times as fast as g.std().
        deviation = torch.linalg.vector_norm(centred) / sqrt(g.numel() - 1)
        noise.append(centred.normal_(generator=random).mul_(deviation + 1e-8))
    return noise


@dataclass(frozen=True)
class Weighted:
    """What a forward pass in training leaves behind."""

    features: dict[str, Tensor]
    """``f_m (B, width_m)`` as the classifier read them."""
    error: Tensor | None
    """``L_w``; None without feature weighting, and outside training."""


class AdaptiveFusion(Fusion):
    """Feature weighting in front of a concat or sum fusion, or cosines in its place, or both. The
    parts sum to the logits; the weights of one modality's features depend on every modality."""

    def __init__(
        self, linear: Concat | Sum, widths: dict[str, int], config: Ada2I.Config, seed: int
    ) -> None:
        self.config = config
        super().__init__(widths, linear.classes, seed)
        self.linear = linear
        self._latest: Weighted | None = None

    def build(self, widths: dict[str, int], key: tuple[Key, ...]) -> None:
        config = self.config
        self.layers = nn.ModuleList(
            FeatureWeighting(
                widths, config.rank, config.residual, config.dropout, config.normalise, *key, i
            )
            for i in range(LAYERS if config.afw else 0)
        )

    def forward(self, features: Features) -> Tensor:
        weighted = self._weigh(features)
        if self.training:
            self._latest = weighted
        return add(self._classify(weighted.features))

    def parts(self, features: Features) -> dict[str, Tensor]:
        return self._classify(self._weigh(features).features)

    def take_latest(self) -> Weighted:
        """Return what the last forward pass in training left behind, and forget it."""
        latest, self._latest = self._latest, None
        assert latest is not None, "a forward pass in training comes first"
        return latest

    def _weigh(self, features: Features) -> Weighted:
        f, error = dict(features), None
        for layer in self.layers:
            assert isinstance(layer, FeatureWeighting)
            f, of_layer = layer(f, self.config.variant if self.training else None)
            if of_layer is not None:
                error = of_layer if error is None else error + of_layer
        return Weighted(f, error)

    def _classify(self, f: Features) -> dict[str, Tensor]:
        if self.config.head == "linear":
            return self.linear.parts(f)
        axis = 1 if self.config.variant == "corrected" else 0
        parts = {}
        for m, (weight, bias) in self._class_weights().items():
            direction = functional.normalize(weight, dim=axis)
            cosines = functional.linear(functional.normalize(f[m], dim=1), direction)
            parts[m] = self.config.sigma * cosines + bias
        return parts

    def _class_weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return ``{m: ((C, width_m), (C,))}``: weights and the modality's share of the bias."""
        if isinstance(self.linear, Sum):
            heads = self.linear.heads.items()
            return {m: (h.get_parameter("weight"), h.get_parameter("bias")) for m, h in heads}
        head, widths = self.linear.head, self.linear.widths
        columns = torch.split(head.weight, [*widths.values()], dim=1)
        share = head.bias / len(widths)
        return {m: (weight, share) for m, weight in zip(widths, columns, strict=True)}


class FeatureWeighting(nn.Module):
    """One adaptive weighting of the features. Its maps start with PyTorch's own initial weights:
    the larger customary ones would be multiplied 2 M times."""

    chains: Tensor
    """The order in which the product for each modality takes the modalities, ``(M, M)``."""

    def __init__(
        self,
        widths: Mapping[str, int],
        rank: int,
        residual: float,
        dropout: float,
        normalise: bool,
        *key: Key,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.dropout = dropout
        self.normalise = normalise
        places = range(len(widths))
        chains = torch.tensor([[i, *(j for j in places if j != i)] for i in places])
        self.register_buffer("chains", chains, persistent=False)
        self.maps, self.weights, self.estimates = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for m, width in widths.items():
            with default_stream(*key, "feature_weighting", m):
                self.maps[m] = nn.Linear(width, 4 * rank)
                self.weights[m] = nn.Linear(rank * rank, width)
                self.estimates[m] = nn.Linear(width, width)

    def forward(
        self, features: Features, target: Variant | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the weighted features, and the error of the estimates if they have a target: the
        weights as constants (corrected), or the weighted features (released)."""
        read = dict(features)
        if self.normalise:
            read = {m: functional.layer_norm(f, f.shape[1:]) for m, f in features.items()}
        weights = self._interact(read)
        weighted = {m: (weights[m] + self.residual) * f for m, f in features.items()}
        error = None
        if target is not None:
            wanted = weighted
            if target == "corrected":
                wanted = {m: w.detach() for m, w in weights.items()}
            gaps = [self.estimates[m](f) - wanted[m] for m, f in read.items()]
            error = torch.cat(gaps, dim=1).abs().mean()
        dropped = {
            m: functional.dropout(f, self.dropout, self.training) for m, f in weighted.items()
        }
        return dropped, error

    def _interact(self, read: Features) -> dict[str, Tensor]:
        """Return ``w_m (B, width_m)``."""
        mapped = torch.stack([self.maps[m](f) for m, f in read.items()], dim=1)
        q1, q2, k1, k2 = mapped.chunk(4, dim=2)
        a, b = q1 * k1, q2 * k2
        links = (b @ a.mT)[:, self.chains[:, :-1], self.chains[:, 1:]]
        left = a
        for link in links.unbind(dim=2):
            left = left * link.unsqueeze(2)
        products = left.unsqueeze(3) * b[:, self.chains[:, -1]].unsqueeze(2)
        rows = products.flatten(2).unbind(dim=1)
        return {m: self.weights[m](row) for m, row in zip(read, rows, strict=True)}
