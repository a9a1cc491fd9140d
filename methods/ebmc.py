"""EBMC: enhance, then balance.

With z_m^c and z_m^s, what the modalities share and what is one's own, each a small network of h_m
with a layer norm, and g_m an estimate of h_m from another modality's shared part:

    L_inv = -mean_(m, i) cos( z_m^c[i], mean_l z_l^c[i] / |z_l^c[i]| ) / tau_c
            + log mean_i sum_(j != i) exp( mean_(m < l) cos(z_m^c[i], z_l^c[j]) / tau_c )
    L_MSD = L_inv + mean_(m < l) mean_i cos(z_m^s[i], z_l^s[i])^2
    g_m   = Gamma_m[ z_partner^c | z_m^s ]
    L_CCE = mean_m MSE(g_m, sg[h_m]) + mean_m mean | u_m(h_m) - u_m(g_m) |

Stage 1:  L = sum_m CE(u_m, y) + l_msd L_MSD + l_cce L_CCE;   own heads u_m become the teachers t_m
Stage 2:  L = CE(z, y) + l_msd L_MSD + l_cce L_CCE + l_emc L_EMC + l_imtd L_IMTD

L_EMC draws the modalities' energies together, L_IMTD distils trusted teachers into z: see
mmbench/train/energy.py. He, Ding, Wang, Li, Teng, Ji: Enhance-then-Balance (EBMC), CVPR 2026, eq.
1-16, for one feature vector per sample in place of a dialogue.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.errors import RequestError, unknown_name
from mmbench.nets.encoders import initialise
from mmbench.nets.fusion import Features
from mmbench.options import option, refuse_unused
from mmbench.seeds import default_stream
from mmbench.train.energy import (
    EnergyOptions,
    EnhanceThenBalance,
    TrustOptions,
    energy_loss,
    entropies,
)
from mmbench.train.holdout import hold_out, holdout_option
from mmbench.train.method import Batch, MethodInfo, Output
from mmbench.train.run import Run


class EBMC(EnhanceThenBalance):
    """Trains own heads beside a disentanglement first, then the fused prediction with coordinated
    energies and trusted teachers."""

    info = MethodInfo(
        title="Enhance-then-Balance",
        family="loss",
        summary="strengthens each modality alone by disentangling and complementing features, then "
        "coordinates the modalities' energies and distils the teachers that are sure",
        acts="in a first stage that trains own heads, and in the loss of the second",
        cost="2 forwards, 1 backward, and small networks that read the features; before that as "
        "many epochs of own heads, 1 forward and 1 backward a step, and for three modalities or "
        "more a forward of held-out rows each epoch",
        authors="He, Ding, Wang, Li, Teng, Ji",
        venue="CVPR",
        year=2026,
        arxiv="2604.12518",
        departures=(
            "Encoders and fusion are those of mmbench: the attention experts, their router and the "
            "residual fusion head belong to sequences of utterances and are left out.",
            "All terms are of samples, not of means over a dialogue that count its padding.",
            "A sample is not its own negative in L_inv, and similarities of pairs are averaged: "
            "the released code sums them and pushes positives apart too (negatives=released).",
            "A gap of energies moves the modality of higher energy alone (mmbench's): in the "
            "released code both move, and the stronger may get worse (gap=symmetric).",
            "The partner of a modality is the strongest other one on held-out training rows; the "
            "released code pairs text with audio, and visual and audio with text (partners).",
            "Feature widths may differ: each modality has its own networks for z^c and z^s and its "
            "own last layer of Gamma; their hidden layers are mmbench's.",
            "The term L_uni, a regression on the mean label, is for scores; the released code too "
            "leaves it out in classification.",
            "The teacher is in evaluation mode throughout: in the released code it is a part of "
            "the model and its dropout comes back in the second epoch.",
            "The second stage has a new optimiser; the released code goes on with its state.",
        ),
        neutral={
            "enhance_epochs": 0,
            "msd_weight": 0.0,
            "cce_weight": 0.0,
            "emc_weight": 0.0,
            "imtd_weight": 0.0,
        },
    )

    class Config(EnergyOptions, TrustOptions):
        msd_weight: float = option(
            0.5, "lambda of L_MSD, as released", ge=0, search=[0.01, 0.1, 0.5]
        )
        cce_weight: float = option(0.1, "lambda of L_CCE, as released", ge=0, search=[0.1, 1.0])
        uncertainty_energy: float = option(
            1.0, "gamma, of the teacher's entropy in the energies, as released", ge=0
        )
        contrast_temperature: float = option(0.05, "tau_c of L_inv, as released", gt=0)
        negatives: Literal["others", "released"] = option(
            "others",
            "what z^c of a sample is told from: the other samples, or, as released, itself too, "
            "with similarities of pairs summed",
        )
        width: int = option(128, "of z^c and z^s (mmbench's; 256 as released)", ge=1)
        partners: dict[str, str] | None = option(
            None,
            "whose shared part complements a modality, by name; none is the strongest other one",
        )
        holdout: float = holdout_option()

        @model_validator(mode="after")
        def _settings_are_used(self) -> "EBMC.Config":
            if self.emc_weight == 0:
                refuse_unused(self, ["uncertainty_energy"], "with emc_weight=0")
            elif self.uncertainty_energy > 0 and self.enhance_epochs == 0:
                raise ValueError("without a first stage no teacher is unsure: uncertainty_energy=0")
            if self.msd_weight == 0:
                refuse_unused(self, ["contrast_temperature", "negatives"], "with msd_weight=0")
            if self.cce_weight == 0:
                refuse_unused(self, ["partners"], "with cce_weight=0")
            if self.msd_weight == 0 and self.cce_weight == 0:
                refuse_unused(self, ["width"], "with msd_weight=0 and cce_weight=0")
            if self.cce_weight == 0 or self.partners is not None or self.enhance_epochs == 0:
                refuse_unused(self, ["holdout"], "unless the strongest modality has to be found")
            return self

    def setup(self, run: Run) -> None:
        super().setup(run)
        options = self.config
        if options.msd_weight > 0 and options.negatives == "others" and run.recipe.batch_size < 2:
            raise RequestError(
                "ebmc tells a sample from the others of its batch, and a batch has one: use -t "
                "batch_size=2 or more, or -o msd_weight=0"
            )
        uses_shared = options.msd_weight > 0 or options.cce_weight > 0
        self.disentangled = (
            Disentangled(run.network.widths, options.width, run.seed) if uses_shared else None
        )
        self.complement = (
            Complement(run.network.widths, options.width, run.seed)
            if options.cce_weight > 0
            else None
        )
        self.partners = self._known_partners(run)
        self.kept: np.ndarray | None = None
        self.held: np.ndarray | None = None
        if self.complement is not None and not self.partners:
            self.kept, self.held = hold_out(run, options.holdout, "ebmc")

    def needs_teacher(self) -> bool:
        uses_uncertainty = self.config.emc_weight > 0 and self.config.uncertainty_energy > 0
        return super().needs_teacher() or uses_uncertainty

    def enhance_rows(self) -> np.ndarray | None:
        return self.kept

    # -- partners ------------------------------------------------------------------------------

    def _known_partners(self, run: Run) -> dict[str, str]:
        """Return what needs no measurement: nothing to complement, given partners, or the only
        other modality. Empty where they have to be found."""
        given: dict[str, str] | None = self.config.partners
        names = run.modalities
        if self.config.cce_weight == 0:
            return {}
        if given is None:
            if len(names) == 2:
                return dict(zip(names, reversed(names), strict=True))
            if self.config.enhance_epochs == 0:
                raise RequestError(
                    "ebmc finds the strongest modality in its first stage, which is left out: "
                    "give -o partners={...} or an enhance_epochs above 0"
                )
            return {}
        for m in (*given, *given.values()):
            if m not in names:
                raise unknown_name("modality in partners", m, names)
        for m in names:
            if given.get(m, m) == m:
                raise RequestError(
                    f"partners of ebmc name no other modality for '{m}': add it to -o partners"
                )
        return dict(given)

    def on_epoch_start(self, run: Run) -> None:
        self._find_partners(run)

    def on_stage_end(self, run: Run) -> None:
        super().on_stage_end(run)
        self._find_partners(run)

    def _find_partners(self, run: Run) -> None:
        """Choose for each modality the other one whose own head has the smallest held-out loss."""
        if self.held is None or not self.enhances(run):
            return
        read = [(self.own_logits(run, out), batch.y) for out, batch in run.outputs(self.held)]
        y = torch.cat([y for _, y in read])
        losses = {
            m: float(functional.cross_entropy(torch.cat([own[m] for own, _ in read]), y))
            for m in run.modalities
        }
        for m in losses:
            self.partners[m] = min(
                (other for other in losses if other != m), key=losses.__getitem__
            )

    # -- losses --------------------------------------------------------------------------------

    def enhance(self, run: Run, out: Output, own: dict[str, Tensor], batch: Batch) -> Tensor:
        return super().enhance(run, out, own, batch) + self._features_loss(run, out, own)

    def balance(
        self,
        run: Run,
        out: Output,
        own: dict[str, Tensor],
        teacher: Tensor | None,
        batch: Batch,
    ) -> Tensor | float:
        options = self.config
        loss = self._features_loss(run, out, own)
        if options.emc_weight > 0:
            uncertainty: Tensor | float = 0.0
            if teacher is not None:
                uncertainty = options.uncertainty_energy * entropies(teacher).mean(dim=1)
            energy = energy_loss(run, out.features, own, batch.y, options, uncertainty)
            run.log("energy_loss", energy)
            loss = loss + options.emc_weight * energy
        if options.imtd_weight > 0:
            loss = loss + super().balance(run, out, own, teacher, batch)
        return loss

    def _features_loss(self, run: Run, out: Output, own: dict[str, Tensor]) -> Tensor | float:
        """Return ``l_msd L_MSD + l_cce L_CCE``, which both stages have."""
        options = self.config
        if self.disentangled is None:
            return 0.0
        shared, specific = self.disentangled(out.features)
        loss: Tensor | float = 0.0
        if options.msd_weight > 0:
            names = run.modalities
            temperature, negatives = options.contrast_temperature, options.negatives
            invariance = contrast([shared[m] for m in names], temperature, negatives)
            overlap = squared_cosines([specific[m] for m in names])
            run.log("invariance", invariance)
            run.log("overlap", overlap)
            loss = loss + options.msd_weight * (invariance + overlap)
        if self.complement is not None:
            estimates = self.complement(shared, specific, self.partners)
            error = self._complement_error(run, out, own, estimates)
            run.log("complement_error", error)
            loss = loss + options.cce_weight * error
        return loss

    def _complement_error(
        self, run: Run, out: Output, own: dict[str, Tensor], estimates: dict[str, Tensor]
    ) -> Tensor:
        """Return ``L_CCE``."""
        read = self.own_logits(run, Output(out.logits, estimates, out.fusion))
        distances = [
            functional.mse_loss(estimate, out.features[m].detach())
            for m, estimate in estimates.items()
        ]
        of_own, of_read = (torch.stack([*u.values()]) for u in (own, read))
        return torch.stack(distances).mean() + (of_own - of_read).abs().mean()

    # -- record and resume ---------------------------------------------------------------------

    def report(self, run: Run) -> dict[str, Any]:
        return {"partners": dict(self.partners)}

    def get_extra_state(self) -> dict[str, Any]:
        return {"partners": dict(self.partners)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.partners = dict(state["partners"])


def contrast(
    shared: list[Tensor], temperature: float, negatives: Literal["others", "released"]
) -> Tensor:
    """Return ``L_inv`` from the modalities' ``z^c (B, D)``."""
    z = functional.normalize(torch.stack(shared), dim=2)
    # The mean over m of cos(z_m, mean_l z_l), of unit vectors, is the length of their mean.
    alike = torch.linalg.vector_norm(z.mean(dim=0), dim=1).mean()
    pairs = [*combinations(z.unbind(), 2)]
    first, second = (torch.cat(side, dim=1) for side in zip(*pairs, strict=True))
    similarity = first @ second.T / temperature
    if negatives == "others":
        own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        similarity = (similarity / len(pairs)).masked_fill(own, -torch.inf)
    spread = similarity.flatten().logsumexp(dim=0) - float(np.log(len(similarity)))
    loss: Tensor = spread - alike / temperature
    return loss


def squared_cosines(specific: list[Tensor]) -> Tensor:
    """Return the mean of ``cos(z_m^s, z_l^s)^2`` over samples and pairs of modalities."""
    z = functional.normalize(torch.stack(specific), dim=2)
    first, second = (torch.stack(side) for side in zip(*combinations(z.unbind(), 2), strict=True))
    return (first * second).sum(dim=2).square().mean()


class Disentangled(nn.Module):
    """``z^c`` and ``z^s`` of each modality."""

    def __init__(self, widths: Mapping[str, int], width: int, seed: int) -> None:
        super().__init__()
        self.shared, self.specific = nn.ModuleDict(), nn.ModuleDict()
        for m, size in widths.items():
            with default_stream(seed, "disentangled", m):
                self.shared[m] = small_network(size, width)
                self.specific[m] = small_network(size, width)

    def forward(self, features: Features) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return ``{m: z^c}`` and ``{m: z^s}``, ``(B, width)`` each."""
        return (
            {m: self.shared[m](h) for m, h in features.items()},
            {m: self.specific[m](h) for m, h in features.items()},
        )


def small_network(size: int, width: int) -> nn.Sequential:
    network = nn.Sequential(
        nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width)
    )
    initialise(network)
    return network


class Complement(nn.Module):
    """``Gamma``: one hidden layer for all modalities, and a last layer for each."""

    def __init__(self, widths: Mapping[str, int], width: int, seed: int) -> None:
        super().__init__()
        with default_stream(seed, "complement"):
            self.hidden = nn.Linear(2 * width, width)
            initialise(self.hidden)
        self.last = nn.ModuleDict()
        for m, size in widths.items():
            with default_stream(seed, "complement", m):
                self.last[m] = nn.Linear(width, size)
                initialise(self.last[m])

    def forward(
        self, shared: Features, specific: Features, partners: Mapping[str, str]
    ) -> dict[str, Tensor]:
        """Return ``g_m (B, width_m)``."""
        others = torch.stack([shared[partners[m]] for m in specific])
        both = torch.cat([others, torch.stack([*specific.values()])], dim=2)
        hidden = functional.relu(self.hidden(both)).unbind()
        return {m: self.last[m](x) for m, x in zip(specific, hidden, strict=True)}
