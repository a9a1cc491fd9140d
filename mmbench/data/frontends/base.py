"""What front ends share: waveforms out of stored samples, and clips of any length made equal."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

FULL_SCALE = 32768
"""int16 samples are divided by this to lie in [-1, 1)."""


class FrontEnd(nn.Module, ABC):
    """Turns waveforms into spectrograms.

    Clips of a batch may differ in length: the waveforms are then followed by zeros, and ``lengths``
    says where each ends. A front end gives every clip a spectrogram of the same shape.
    """

    name: str
    """With all settings, for the fingerprint."""
    rate: int
    """Hz of the waveforms that it reads."""

    @abstractmethod
    def forward(
        self,
        waveform: Tensor,
        lengths: Tensor | None = None,
        rows: Tensor | None = None,
        augment: torch.Generator | None = None,
    ) -> Tensor:
        """Return spectrograms ``(B, 1, F, T)`` of waveforms ``(B, samples)`` in [-1, 1].

        ``lengths (B,)`` int64, in samples, none of them zero; None when all are as long as the
        batch. ``rows (B,)`` are the numbers of the clips in their split, and ``augment`` draws in
        training; only a front end that leaves something to chance reads them.
        """

    @abstractmethod
    def shape(self, samples: int) -> tuple[int, int, int]:
        """Return the shape of the spectrogram, ``(1, F, T)``, in batches of so many samples."""


def as_waveform(samples: Tensor) -> Tensor:
    """Return int16 samples as float32 in [-1, 1)."""
    return samples.float() / FULL_SCALE


def repeated(
    waveform: Tensor, lengths: Tensor | None, samples: int, starts: Tensor | None = None
) -> Tensor:
    """Return ``(B, samples)``: each clip over and over, cut, from its sample ``starts (B,)`` on."""
    end = waveform.shape[1] if lengths is None else lengths.unsqueeze(1)
    place = torch.arange(samples, device=waveform.device).expand(len(waveform), -1)
    if starts is not None:
        place = place + starts.unsqueeze(1)
    return waveform.gather(1, place % end)
