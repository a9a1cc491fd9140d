"""Each modality alone before the fusion's own classifier: what `dgl` and `arl` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.errors import RequestError
from mmbench.nets.fusion import Features, Fusion
from mmbench.train.run import Run

Absent = Literal["zero", "same"]
ABSENT_MEANING = (
    "what the fusion gets for the other modalities when one is alone: zero, or the same features "
    "in every place; none is as released: same with film and gated, zero with the others"
)


def stand_in(run: Run, chosen: Absent | None, method: str) -> Absent:
    """Return what stands in for the other modalities with the run's fusion.

    Film and gated fusion multiply features with features: beside zeros, and with zero biases as at
    the start, hardly anything of a modality reaches the logits. Raises :class:`RequestError` where
    the same features would have to fill places of another width.
    """
    network = run.network
    assert network.fusion is not None, "a method for two modalities or more"
    absent: Absent = chosen or ("zero" if network.fusion.parts_are_exact else "same")
    if absent == "same" and len(set(network.widths.values())) > 1:
        widths = ", ".join(f"{m} {width}" for m, width in network.widths.items())
        raise RequestError(
            f"{method} with fusion '{network.spec.fusion}' puts the features of one modality in "
            f"the place of the others, and their widths differ ({widths}): use -o absent=zero, "
            "another fusion, or encoders of one width"
        )
    return absent


def alone(fusion: Fusion, features: Features, absent: Absent) -> Tensor:
    """Return the logits of the fusion for each modality alone, ``(M, B, C)``, the whole of the
    bias included: one pass of the fusion over M times the rows."""
    count, rows = len(features), len(next(iter(features.values())))
    if absent == "same":
        every = torch.cat([*features.values()])
        places = dict.fromkeys(features, every)
    else:
        places = {
            m: functional.pad(h, (0, 0, i * rows, (count - 1 - i) * rows))
            for i, (m, h) in enumerate(features.items())
        }
    logits: Tensor = fusion(places)
    return logits.view(count, rows, -1)


def alone_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of each modality alone ``(M,)`` from logits ``(M, B, C)``."""
    losses = functional.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)), reduction="none")
    return losses.view(len(logits), -1).mean(dim=1)


@contextmanager
def constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Take parameters for constants in what is computed inside the block."""
    learning = [p for p in parameters if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
