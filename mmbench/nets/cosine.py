"""Cosine fusion: an additive linear fusion whose features and weights have unit length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.nets.fusion import Concat, Features, Fusion, Sum, add


class CosineFusion(Fusion):
    """``z = sum_m z_m`` with ``z_m[i, c] = scale * cos(h_m[i], W_m[c])`` and no bias; part m is
    ``z_m``, between ``-scale`` and ``scale``. A feature vector of zeros has the part zero.

    The weights are those of ``linear``, a concat or sum fusion, which stays readable as such.
    """

    def __init__(self, linear: Concat | Sum, widths: dict[str, int], scale: float) -> None:
        super().__init__(widths, linear.classes)
        self.linear = linear
        self.scale = scale

    def build(self, widths: dict[str, int], key: tuple[str | int, ...]) -> None:
        self.widths = widths

    def weights(self) -> dict[str, Tensor]:
        """Return ``{m: (C, width_m)}``."""
        if isinstance(self.linear, Concat):
            columns = torch.split(self.linear.head.weight, [*self.widths.values()], dim=1)
            return dict(zip(self.widths, columns, strict=True))
        return {m: self.linear.heads[m].get_parameter("weight") for m in self.widths}

    def forward(self, features: Features) -> Tensor:
        return add(self.parts(features))

    def parts(self, features: Features) -> dict[str, Tensor]:
        return {
            m: self.scale
            * functional.linear(
                functional.normalize(features[m], dim=1), functional.normalize(weight, dim=1)
            )
            for m, weight in self.weights().items()
        }
