"""Cosine fusion: an additive linear fusion whose features and weights have unit length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.nets.fusion import Concat, Features, Fusion, Sum

SMALLEST = 1e-24
"""Added to squared lengths, so that a vector of zeros has a direction: none."""


class CosineFusion(Fusion):
    """``z = sum_m z_m`` with ``z_m[i, c] = scale * cos(h_m[i], W_m[c])`` and no bias; part m is
    ``z_m``, between ``-scale`` and ``scale``. A feature vector of zeros has the part zero.

    The weights are those of ``linear``, a concat or sum fusion, which stays readable as such.
    """

    members: Tensor
    """``(D, M)``: 1 where a feature is the modality's."""

    def __init__(self, linear: Concat | Sum, widths: dict[str, int], scale: float) -> None:
        super().__init__(widths, linear.classes)
        self.linear = linear
        self.scale = scale
        some = next(linear.parameters())
        owner = torch.arange(len(widths)).repeat_interleave(torch.tensor([*widths.values()]))
        members = functional.one_hot(owner, len(widths)).to(some)
        self.register_buffer("members", members, persistent=False)

    def build(self, widths: dict[str, int], key: tuple[str | int, ...]) -> None:
        self.widths = widths

    def forward(self, features: Features) -> Tensor:
        vectors, weights = self.units(features)
        return vectors @ weights.T * self.scale

    def parts(self, features: Features) -> dict[str, Tensor]:
        widths = [*self.widths.values()]
        vectors, weights = (torch.split(rows, widths, dim=1) for rows in self.units(features))
        return {
            m: h @ w.T * self.scale for m, h, w in zip(self.widths, vectors, weights, strict=True)
        }

    def units(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return the features ``(B, D)`` and the weights ``(C, D)``, of which each modality's part
        has unit length in every row; zeros stay."""
        rows = torch.cat([torch.cat([*features.values()], dim=1), self.weight()])
        squares = rows.square() @ self.members
        unit = rows * ((squares + SMALLEST).rsqrt() @ self.members.T)
        return unit[: -self.classes], unit[-self.classes :]

    def weight(self) -> Tensor:
        """Return ``[W_1 | ... | W_M]`` as ``(C, D)``, ``D`` being the sum of the widths."""
        if isinstance(self.linear, Concat):
            return self.linear.head.weight
        heads: list[Tensor] = [self.linear.heads[m].get_parameter("weight") for m in self.widths]
        return torch.cat(heads, dim=1)
