"""What is done to a batch of stored rows on the device before a network reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mmbench.data.dataset import Rows
from mmbench.data.frontends import LogMel, as_waveform
from mmbench.seeds import Key, numpy_stream


class Standardise(nn.Module):
    """Subtract the mean and divide by the deviation of all values of the training rows."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean = mean
        self.deviation = deviation if deviation > 0 else 1.0

    def forward(self, x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        return (x - self.mean) / self.deviation


def measure(train: Rows) -> Standardise:
    """Return the transform that standardises what these rows give, all their values alike."""
    batches = [
        train.batch(torch.arange(start, min(start + 256, len(train))), None).double()
        for start in range(0, len(train), 256)
    ]
    count = sum(x.numel() for x in batches)
    mean = float(sum(x.sum() for x in batches)) / count
    square = float(sum(((x - mean) ** 2).sum() for x in batches)) / count
    return Standardise(mean, square**0.5)


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

    def __init__(self, front_end: LogMel) -> None:
        super().__init__()
        self.front_end = front_end

    def forward(self, x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        spectrogram: Tensor = self.front_end(as_waveform(x))
        return spectrogram


def as_picture(x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
    """Return uint8 images ``(B, 28, 28)`` as ``(B, 1, 28, 28)`` float32 in [0, 1]."""
    return x.unsqueeze(1).float() / 255
