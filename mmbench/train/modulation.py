"""What methods share that scale the gradients of encoders by how confident each modality is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mmbench.train.run import Run

Scope = Literal["weights", "conv", "all"]
SCOPE_MEANING = (
    "which encoder parameters: weights (two or more dimensions), conv (four dimensions only, as "
    "released; nothing on encoders without convolutions), or all"
)


def confidence_ratios(logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    """Return ``rho_m = s_m / mean_(j != m) s_j`` as 0-d tensors, where ``s_m`` is the sum over the
    batch of the true class's probability under modality m's logits ``(B, C)``.

    For two modalities this is the ratio of OGM-GE (Peng et al., CVPR 2022, eq. 8); for more, each
    modality is compared with the mean of the others.
    """
    scores = torch.stack(
        [z.detach().softmax(dim=1).gather(1, y.unsqueeze(1)).sum() for z in logits.values()]
    )
    others = (scores.sum() - scores) / (len(scores) - 1)
    return dict(zip(logits, (scores / others).unbind(), strict=True))


def scoped_parameters(run: Run, modality: str, scope: Scope) -> list[nn.Parameter]:
    """Return the parameters of an encoder that have a gradient and are in the scope."""
    smallest = {"weights": 2, "conv": 4, "all": 0}[scope]
    return [p for p in run.encoder_params(modality) if p.grad is not None and p.dim() >= smallest]


def scale_gradients(parameters: list[nn.Parameter], factor: Tensor) -> None:
    """Multiply gradients by a 0-d tensor, in place, without waiting for the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)
