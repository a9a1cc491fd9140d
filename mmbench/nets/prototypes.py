"""Class prototypes of a modality, kept by an exponential moving average."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

UNSEEN = -1e4
"""Similarity of a class without a prototype: probability zero, and finite gradients."""


class ClassMeans(nn.Module):
    """Prototypes ``Q (C, d)`` and which classes have been seen.

    ``update``: ``Q[c] <- momentum Q[c] + (1 - momentum) mean_(i: y_i = c) v_i``; a class seen for
    the first time takes the mean, an absent one keeps what it has. No gradient flows into ``Q``.
    """

    rows: Tensor
    seen: Tensor

    def __init__(self, classes: int, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("rows", torch.zeros(classes, width))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, v: Tensor, y: Tensor) -> None:
        """Move the prototypes of the classes in ``y (B,)`` towards their means of ``v (B, d)``."""
        members = functional.one_hot(y, len(self.rows)).to(v.dtype)
        counts = members.sum(dim=0).unsqueeze(1)
        means = (members.T @ v) / counts.clamp(min=1)
        moved = torch.where(
            self.seen.unsqueeze(1), self.momentum * self.rows + (1 - self.momentum) * means, means
        )
        present = counts > 0
        self.rows.copy_(torch.where(present, self.placed(moved), self.rows))
        self.seen.logical_or_(present.squeeze(1))

    def placed(self, moved: Tensor) -> Tensor:
        """Return where prototypes ``(C, d)`` that have been moved are put."""
        return moved


class Prototypes(ClassMeans):
    """Class means on the unit sphere: normalised after every update, for ``v`` with unit rows."""

    def placed(self, moved: Tensor) -> Tensor:
        return functional.normalize(moved, dim=1)


def log_posterior(v: Tensor, rows: Tensor, seen: Tensor, temperature: float) -> Tensor:
    """Return ``log softmax_c(v_i . Q[c] / temperature)`` as ``(B, C)``; classes without a prototype
    have probability zero."""
    similarity = v @ rows.T / temperature
    return similarity.masked_fill(~seen, UNSEEN).log_softmax(dim=1)
