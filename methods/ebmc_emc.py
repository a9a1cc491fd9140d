"""EBMC's energy-guided coordination alone, on a model with own heads.

    E_m = mean_i ( alpha mean_d h_m[i, d]^2 + beta CE(u_m[i], y_i) )
    L   = CE(z, y) + w sum_m CE(u_m, y)
          + lambda ( sum_(m < l) (E_m - E_l)^2 + delta sum_m mean( (2 alpha h_m / (B d_m))^2 ) )

He, Ding, Wang, Li, Teng, Ji: Enhance-then-Balance (EBMC), CVPR 2026, arXiv 2604.12518, eq. 8-12.
Without EBMC's first stage there is no teacher, and no uncertainty in the energies.
"""

from torch import Tensor
from torch.nn import functional

from mmbench.nets.fusion import add
from mmbench.options import option
from mmbench.train.energy import EnergyOptions, OwnHeads, energy_loss
from mmbench.train.method import Batch, MethodInfo, Output
from mmbench.train.run import Run


class EBMCEnergy(OwnHeads):
    """Multi-loss training that draws the modalities to equal energy."""

    info = MethodInfo(
        title="Energy-guided modality coordination (of EBMC)",
        family="loss",
        summary="penalises gaps between the modalities' energies: features' size and own head's "
        "loss",
        acts="in the loss, at every step",
        cost="1 forward, 1 backward",
        authors="He, Ding, Wang, Li, Teng, Ji",
        venue="CVPR",
        year=2026,
        arxiv="2604.12518",
        departures=(
            "A gap moves the modality of higher energy alone (mmbench's): in the released code "
            "both move, and the stronger may get worse to close it (gap=symmetric).",
            "Own heads are trained by their own losses (mmbench's), since EBMC's first stage, "
            "which trains them, is left out; without (unimodal_weight=0) only gaps train them, or "
            "in sum and late fusion the fused loss.",
            "Energies are of samples, not of means over a dialogue; without a teacher they have no "
            "uncertainty term.",
        ),
        neutral={"unimodal_weight": 0.0, "emc_weight": 0.0},
    )

    class Config(EnergyOptions):
        unimodal_weight: float = option(
            1.0, "w, of each own head's loss (mmbench's)", ge=0, search=[0.1, 0.3, 1.0]
        )

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        own = self.own_logits(run, out)
        loss = functional.cross_entropy(out.logits, batch.y)
        if self.config.unimodal_weight > 0:
            losses = {m: functional.cross_entropy(u, batch.y) for m, u in own.items()}
            loss = loss + self.config.unimodal_weight * add(losses)
        if self.config.emc_weight > 0:
            energy = energy_loss(run, out.features, own, batch.y, self.config)
            loss = loss + self.config.emc_weight * energy
        return loss
