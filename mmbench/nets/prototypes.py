"""Class prototypes of a modality, on the unit sphere, kept by an exponential moving average."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

UNSEEN = -1e4
"""Similarity of a class without a prototype: probability zero, and finite gradients."""


class Prototypes(nn.Module):
    """``Q (C, d)`` with unit rows, and which classes have been seen.

    ``update``: ``Q[c] <- normalise(momentum Q[c] + (1 - momentum) mean_(i: y_i = c) v_i)``; a class
    seen for the first time takes the normalised mean. No gradient flows into ``Q``.
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
        """Move the prototypes of the classes in a batch towards ``v (B, d)``, unit rows."""
        members = functional.one_hot(y, len(self.rows)).to(v.dtype)
        counts = members.sum(dim=0).unsqueeze(1)
        means = (members.T @ v) / counts.clamp(min=1)
        moved = torch.where(
            self.seen.unsqueeze(1), self.momentum * self.rows + (1 - self.momentum) * means, means
        )
        present = counts > 0
        self.rows.copy_(torch.where(present, functional.normalize(moved, dim=1), self.rows))
        self.seen.logical_or_(present.squeeze(1))


def log_posterior(v: Tensor, rows: Tensor, seen: Tensor, temperature: float) -> Tensor:
    """Return ``log softmax_c(v_i . Q[c] / temperature)`` as ``(B, C)``; classes without a prototype
    have probability zero."""
    similarity = v @ rows.T / temperature
    return similarity.masked_fill(~seen, UNSEEN).log_softmax(dim=1)
