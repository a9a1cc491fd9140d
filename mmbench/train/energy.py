"""Energies of modalities, and trust in a teacher: what `ebmc`, `ebmc_emc`, `ebmc_imtd` share.

    E_m    = mean_i ( alpha mean_d h_m[i, d]^2 + beta CE(u_m[i], y_i) + gamma H(softmax t_m[i]) )
    L_EMC  = sum_(m < l) (E_m - E_l)^2 + delta sum_m mean( (2 alpha h_m / (B d_m))^2 )
    w_m[i] = e_m[i] / sum_l e_l[i],   e = exp(-H) / (log(1 + H^2) + 0.1),   H = H(softmax t_m[i])
    L_IMTD = tau^2 / M sum_m mean_i w_m[i] KL( softmax(t_m[i] / tau) || softmax(z[i] / tau) )

u_m are the logits of modality m's own head, t_m those of its frozen teacher, H is the entropy in
nats. The second term of L_EMC is the mean square of the first energy's gradient by the features.

He, Ding, Wang, Li, Teng, Ji: Enhance-then-Balance (EBMC), CVPR 2026; see methods/ebmc.py.
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.data.dataset import Batch
from mmbench.nets.fusion import Features, Sum, own_heads
from mmbench.nets.network import Network, Output
from mmbench.options import Options, option, refuse_unused
from mmbench.train.method import Method, Stage
from mmbench.train.run import Run

Gap = Literal["pull_up", "symmetric"]


# -- the energy term -------------------------------------------------------------------------------


class EnergyOptions(Options):
    """Options of L_EMC."""

    emc_weight: float = option(0.1, "lambda of L_EMC, as released", ge=0, search=[0.01, 0.1, 1.0])
    gap: Gap = option(
        "pull_up",
        "which of two modalities a gap moves: the one of higher energy (mmbench's), or both as "
        "released, where the stronger one may get worse to close it",
    )
    feature_energy: float = option(1.0, "alpha, of the features' mean square, as released", ge=0)
    loss_energy: float = option(1.0, "beta, of the own head's cross-entropy, as released", ge=0)
    flatness: float = option(
        0.01, "delta, of the energy's squared gradient, as released; far too small to matter", ge=0
    )

    @model_validator(mode="after")
    def _energy_settings_are_used(self) -> Self:
        if self.emc_weight == 0:
            names = ["gap", "feature_energy", "loss_energy", "flatness"]
            refuse_unused(self, names, "with emc_weight=0")
        return self


def energy_loss(
    run: Run,
    features: Features,
    own: dict[str, Tensor],
    y: Tensor,
    options: EnergyOptions,
    uncertainty: Tensor | float = 0.0,
) -> Tensor:
    """Return ``L_EMC``. ``uncertainty`` is ``gamma H`` as ``(M,)``, or zero without a teacher."""
    squares = torch.stack([h.square().mean() for h in features.values()])
    logs = torch.stack([*own.values()]).log_softmax(dim=2)
    losses = -logs.gather(2, y.view(1, -1, 1).expand(len(logs), -1, 1)).mean(dim=(1, 2))
    energies = options.feature_energy * squares + options.loss_energy * losses + uncertainty
    for m, energy in zip(features, energies.detach().unbind(), strict=True):
        run.log(f"energy.{m}", energy)
    loss: Tensor = energy_gap(energies, options.gap)
    for h, square in zip(features.values(), squares.unbind(), strict=True):
        slope = 2 * options.feature_energy / h.numel()
        loss = loss + options.flatness * slope * slope * square
    return loss


def energy_gap(energies: Tensor, gap: Gap) -> Tensor:
    """Return the squared differences of energies ``(M,)``, summed over pairs. With ``pull_up`` the
    smaller energy of a pair is a constant."""
    if gap == "symmetric":
        return (energies.unsqueeze(1) - energies).square().sum() / 2
    return functional.relu(energies.unsqueeze(1) - energies.detach()).square().sum()


# -- the teacher -----------------------------------------------------------------------------------


class TrustOptions(Options):
    """Options of L_IMTD and of the stage that trains its teacher."""

    imtd_weight: float = option(0.1, "lambda of L_IMTD, as released", ge=0, search=[0.1, 1.0])
    temperature: float = option(1.0, "tau, as released", gt=0)
    enhance_epochs: int | None = option(
        None, "epochs of the first stage; none is as many as the second has, as released", ge=0
    )

    @model_validator(mode="after")
    def _trust_settings_are_used(self) -> Self:
        if self.imtd_weight == 0:
            refuse_unused(self, ["temperature"], "with imtd_weight=0")
        elif self.enhance_epochs == 0:
            raise ValueError("imtd_weight needs a teacher: enhance_epochs is above 0, or it is 0")
        return self


def entropies(teacher: Tensor) -> Tensor:
    """Return ``H(softmax t)`` in nats, ``(M, B)``, of logits ``(M, B, C)``."""
    entropy: Tensor = torch.special.entr(teacher.softmax(dim=2)).sum(dim=2)
    return entropy


def trust(teacher: Tensor) -> Tensor:
    """Return ``w (M, B)``, whose columns sum to 1, from the teachers' logits ``(M, B, C)``."""
    entropy = entropies(teacher)
    trusted = torch.exp(-entropy) / (torch.log1p(entropy.square()) + 0.1)
    return trusted / trusted.sum(dim=0)


def trusted_distillation(run: Run, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``L_IMTD`` from the fused logits ``(B, C)`` and the teachers' ``(M, B, C)``."""
    weights = trust(teacher)
    for m, weight in zip(run.modalities, weights.mean(dim=1).unbind(), strict=True):
        run.log(f"trust.{m}", weight)
    student = (logits / temperature).log_softmax(dim=1)
    target = (teacher / temperature).log_softmax(dim=2)
    divergence = (target.exp() * (target - student)).sum(dim=2)
    return temperature**2 * (weights * divergence).mean()


class Teacher(nn.Module):
    """A frozen copy of encoders and own heads. It is always in evaluation mode, whatever mode the
    method is in."""

    def __init__(self, run: Run, heads: nn.ModuleDict) -> None:
        """``heads`` are the own heads beside the fusion, if it has none itself."""
        super().__init__()
        self.network = run.fresh_network()
        widths = {m: self.network.widths[m] for m in heads}
        self.heads = own_heads(widths, run.classes, run.seed)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def learn(self, network: Network, heads: nn.ModuleDict) -> None:
        """Take over the weights of a network and of own heads."""
        self.network.load_state_dict(network.state_dict())
        self.heads.load_state_dict(heads.state_dict())

    @torch.no_grad()
    def forward(self, run: Run, batch: Batch) -> Tensor:
        """Return ``t (M, B, C)``. It counts as a forward."""
        run.counts.forwards += 1
        run.counts.encoder_forwards += len(self.network.modalities)
        with run.autocast():
            features = self.network.encode(batch.inputs)
        return torch.stack([*own_logits(self.network, self.heads, features).values()])


# -- methods ---------------------------------------------------------------------------------------


class OwnHeads(Method):
    """Reads each modality by a head of its own: the fusion's where it adds such heads (sum, late),
    else one beside it."""

    heads: nn.ModuleDict

    def setup(self, run: Run) -> None:
        has_own = isinstance(run.network.fusion, Sum)
        widths = {} if has_own else run.network.widths
        self.heads = own_heads(widths, run.classes, run.seed)

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return own_logits(run.network, self.heads, out.features)


def own_logits(network: Network, heads: nn.ModuleDict, features: Features) -> dict[str, Tensor]:
    """Return ``u_m (B, C)``, read by ``heads`` or, where there are none, by those of the fusion."""
    if isinstance(network.fusion, Sum):
        heads = network.fusion.heads
    return {m: heads[m](h) for m, h in features.items()}


class EnhanceThenBalance(OwnHeads):
    """Trains the encoders by their own heads' losses first, keeps a copy of them as the teacher,
    and then trains the fused prediction. Same encoders, a new optimiser."""

    def setup(self, run: Run) -> None:
        super().setup(run)
        self.teacher = Teacher(run, self.heads) if self.needs_teacher() else None

    def needs_teacher(self) -> bool:
        return bool(self.config.imtd_weight > 0)

    def stages(self, run: Run) -> list[Stage]:
        chosen = self.config.enhance_epochs
        epochs = run.recipe.epochs if chosen is None else chosen
        enhance = [Stage("enhance", epochs, rows=self.enhance_rows())] if epochs > 0 else []
        return [*enhance, *super().stages(run)]

    def enhance_rows(self) -> np.ndarray | None:
        """Return the training rows of the first stage; None for all."""
        return None

    def on_stage_end(self, run: Run) -> None:
        if self.enhances(run) and self.teacher is not None:
            self.teacher.learn(run.network, self.heads)

    def enhances(self, run: Run) -> bool:
        return run.stage.name == "enhance"

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        own = self.own_logits(run, out)
        if self.enhances(run):
            return self.enhance(run, out, own, batch)
        teacher = None if self.teacher is None else self.teacher(run, batch)
        loss = functional.cross_entropy(out.logits, batch.y)
        return loss + self.balance(run, out, own, teacher, batch)

    def enhance(self, run: Run, out: Output, own: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the loss of the first stage."""
        return torch.stack([functional.cross_entropy(u, batch.y) for u in own.values()]).sum()

    def balance(
        self,
        run: Run,
        out: Output,
        own: dict[str, Tensor],
        teacher: Tensor | None,
        batch: Batch,
    ) -> Tensor | float:
        """Return what the second stage adds to the cross-entropy of the fused logits."""
        if teacher is None:
            return 0.0
        weight: float = self.config.imtd_weight
        tau = self.config.temperature
        return weight * trusted_distillation(run, out.logits, teacher, tau)
