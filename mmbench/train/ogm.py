"""On-the-fly gradient modulation: what `ogm` and `ogm_ge` share.

rho_m = s_m / mean_(j != m) s_j
k_m   = 1 - tanh(alpha * rho_m)  if rho_m > 1  else 1
g    <- k_m g                    for the weights of encoder m
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmbench.options import Options, option
from mmbench.train.method import Batch, Method, Output
from mmbench.train.modulation import (
    SCALE_WHERE_MEANING,
    SCOPE_MEANING,
    ScaleWhere,
    Scope,
    confidence_ratios,
    note_undone_scaling,
    scale,
    scoped_parameters,
)
from mmbench.train.run import Run


class ModulationOptions(Options):
    """Options of both methods."""

    alpha: float = option(
        0.8,
        "strength; the released settings use 0.8 on CREMA-D and 0.1 on VGGSound",
        ge=0,
        search=[0.1, 0.3, 0.5, 0.8, 1.0],
    )
    first_epoch: int = option(0, "first epoch, from 0, in which gradients are modulated", ge=0)
    last_epoch: int | None = option(
        None,
        "last such epoch; none is half of all epochs, as 50 of 100 in the released settings",
        ge=0,
    )
    scope: Scope = option("weights", SCOPE_MEANING)
    scale_where: ScaleWhere = option("gradient", SCALE_WHERE_MEANING)


class GradientModulation(Method):
    """Scales the gradient of every encoder that is ahead of the others."""

    class Config(ModulationOptions):
        pass

    def setup(self, run: Run) -> None:
        note_undone_scaling(run, self.config.scale_where)

    def is_active(self, run: Run) -> bool:
        last = self.config.last_epoch
        end = run.stage.epochs // 2 if last is None else last
        return bool(self.config.first_epoch <= run.epoch <= end)

    def modulate(self, run: Run, out: Output, batch: Batch) -> None:
        if not self.is_active(run):
            return
        with torch.no_grad():
            ratios = confidence_ratios(out.parts, batch.y)
            slowed = 1 - torch.tanh(self.config.alpha * ratios)
            factors = torch.where(ratios > 1, slowed, 1.0).unbind()
            for m, factor in zip(out.parts, factors, strict=True):
                run.log(f"coefficient.{m}", factor)
                self.edit(run, scoped_parameters(run, m, self.config.scope), factor)

    def edit(self, run: Run, parameters: list[nn.Parameter], factor: Tensor) -> None:
        """Slow one encoder down."""
        scale(run, parameters, factor, self.config.scale_where)
