"""What methods share that slow encoders down or speed them up, by their gradients or updates.

An option ``scale_where: ScaleWhere = option("gradient", SCALE_WHERE_MEANING)``, one call of
:func:`note_undone_scaling` in ``setup`` and one of :func:`scale` for each modality in ``modulate``
are all that such a method needs.
"""

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

ScaleWhere = Literal["gradient", "update"]
SCALE_WHERE_MEANING = (
    "what coefficients multiply: the gradient, whose scale Adam all but undoes, or the update, as "
    "a learning rate of its own would"
)


def confidence_ratios(logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """Return ``rho_m = s_m / mean_(j != m) s_j``, ``(M,)`` in the order of the modalities, where
    ``s_m`` is the sum over the batch of the true class's probability under modality m's logits
    ``(B, C)``.

    For two modalities this is the ratio of OGM-GE (Peng et al., CVPR 2022, eq. 8); for more, each
    modality is compared with the mean of the others.
    """
    probability = torch.stack([z.detach() for z in logits.values()]).softmax(dim=2)
    true_class = y.view(1, -1, 1).expand(len(logits), -1, 1)
    scores = probability.gather(2, true_class).sum(dim=(1, 2))
    return scores * (len(scores) - 1) / (scores.sum() - scores)


def scoped_parameters(run: Run, modality: str, scope: Scope) -> list[nn.Parameter]:
    """Return the parameters of an encoder that have a gradient and are in the scope."""
    smallest = {"weights": 2, "conv": 4, "all": 0}[scope]
    return [p for p in run.encoder_params(modality) if p.grad is not None and p.dim() >= smallest]


def note_undone_scaling(run: Run, where: ScaleWhere) -> None:
    """Add a note to the results where the optimiser undoes the scaling of gradients."""
    if where == "gradient" and run.recipe.optimizer in ("adam", "adamw"):
        run.note(
            f"{run.recipe.optimizer} divides by the gradient's own size and so all but undoes the "
            "scaling of gradients: use -o scale_where=update or -t optimizer=sgd"
        )


def scale(
    run: Run, parameters: list[nn.Parameter], factor: Tensor | float, where: ScaleWhere
) -> None:
    """Multiply the gradients, or what the next step adds to the parameters, by a number."""
    if where == "gradient":
        scale_gradients(parameters, factor)
    else:
        run.scale_update(parameters, factor)


def scale_gradients(parameters: list[nn.Parameter], factor: Tensor | float) -> None:
    """Multiply gradients by a number or 0-d tensor, in place, without waiting for the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)
