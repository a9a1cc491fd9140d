"""OGM-GE: on-the-fly gradient modulation with generalisation enhancement.

    s_m   = sum_i softmax(z_m)[i, y_i]         z_m: the modality's part of the fused logits
    rho_m = s_m / mean_(j != m) s_j
    k_m   = 1 - tanh(alpha * rho_m)  if rho_m > 1  else 1
    g    <- k_m g + N(0, (std(g) + 1e-8)^2)    for each weight tensor of encoder m

X. Peng, Y. Wei, A. Deng, D. Wang, D. Hu: Balanced Multimodal Learning via On-the-fly Gradient
Modulation, CVPR 2022, eq. 8-12. ``std`` is over the elements of the tensor before scaling, and the
noise is added to every encoder, also where k is 1, as in the released code.
"""

import math

import torch
from torch import Tensor, nn

from mmbench.options import option
from mmbench.train.method import MethodInfo
from mmbench.train.modulation import scale
from mmbench.train.ogm import GradientModulation, ModulationOptions
from mmbench.train.run import Run


class OGMGE(GradientModulation):
    """Slows the leading encoder, and gives back the noise that slowing takes from SGD."""

    info = MethodInfo(
        title="On-the-fly gradient modulation with generalisation enhancement",
        family="gradient",
        summary="scales down the leading encoder's gradient and adds noise of its own size",
        acts="on encoder gradients, after the backward pass, in a window of epochs",
        cost="1 forward, 1 backward",
        authors="X. Peng, Y. Wei, A. Deng, D. Wang, D. Hu",
        venue="CVPR",
        year=2022,
        arxiv="2203.15332",
        departures=(
            "Weights with two or more dimensions are scaled and perturbed, not only convolutions: "
            "the released rule does nothing on encoders without them (scope=conv repeats it).",
            "More than two modalities: each is compared with the mean of the others.",
            "Film and gated fusion, which the released code cannot run, use zero-feature ablations "
            "as the modalities' logits.",
        ),
        neutral={"alpha": 0.0, "noise": 0.0},
    )

    class Config(ModulationOptions):
        noise: float = option(
            1.0, "standard deviation of the noise, in units of the gradient's own", ge=0
        )

    def edit(self, run: Run, parameters: list[nn.Parameter], factor: Tensor) -> None:
        if self.config.noise == 0:
            scale(run, parameters, factor, self.config.scale_where)
            return
        gradients = [p.grad for p in parameters if p.grad is not None and p.numel() > 1]
        deviations = [self.config.noise * (deviation(g) + 1e-8) for g in gradients]
        scale(run, parameters, factor, self.config.scale_where)
        for g, size in zip(gradients, deviations, strict=True):
            g.addcmul_(torch.randn(g.shape, generator=run.rng, device=g.device), size)


def deviation(g: Tensor) -> Tensor:
    """Return the standard deviation of the elements: ``g.std()``, in a fifth of its time on a
    CPU."""
    size: Tensor = torch.linalg.vector_norm(g - g.mean())
    return size / math.sqrt(g.numel() - 1)
