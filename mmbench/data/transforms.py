"""What is done to a batch of stored rows on the device before a network reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mmbench.data.dataset import Rows
from mmbench.data.frontends import FrontEnd, as_waveform
from mmbench.seeds import Key, numpy_stream


class Standardise(nn.Module):
    """Subtract a mean and divide by a deviation, each of a shape that goes with a batch's."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        usable = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        self.register_buffer("deviation", usable.float())

    def forward(self, x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        return (x - self.mean) / self.deviation


def measure(train: Rows, *, apart: Sequence[int] = ()) -> Standardise:
    """Return the transform that standardises what these rows give: all values alike, or each index
    of the dimensions in ``apart`` on its own, such as 2 for bands of ``(N, 1, bands, frames)``."""
    batches = [
        train.batch(torch.arange(start, min(start + 256, len(train))), None).double()
        for start in range(0, len(train), 256)
    ]
    values = torch.cat(batches)
    over = [i for i in range(values.dim()) if i not in apart]
    mean = values.mean(dim=over, keepdim=True)
    return Standardise(mean, values.std(dim=over, keepdim=True, correction=0))


class FixedNoise(nn.Module):
    """Add to each row noise of its own, ``(N, *shape)``, that was drawn once."""

    noise: Tensor

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.register_buffer("noise", noise)

    @classmethod
    def draw(
        cls, ids: Sequence[str], shape: tuple[int, ...], deviation: float, *key: Key
    ) -> FixedNoise:
        """Draw normal noise for rows: a row's depends on its id and the key, not on its place."""
        drawn = [numpy_stream(*key, row).standard_normal(shape, dtype=np.float32) for row in ids]
        return cls(torch.from_numpy(np.float32(deviation) * np.stack(drawn)))

    def forward(self, x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        return x + self.noise.index_select(0, rows)


class Spectrogram(nn.Module):
    """Turn int16 waveforms ``(B, samples)`` into ``(B, 1, bands, frames)`` by a front end."""

    def __init__(self, front_end: FrontEnd) -> None:
        super().__init__()
        self.front_end = front_end

    def forward(self, x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        spectrogram: Tensor = self.front_end(as_waveform(x))
        return spectrogram


def as_picture(x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
    """Return uint8 images ``(B, 28, 28)`` as ``(B, 1, 28, 28)`` float32 in [0, 1]."""
    return x.unsqueeze(1).float() / 255
