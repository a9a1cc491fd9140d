"""Waveforms of one sample rate to those of another, in batches on the device."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn
from torchaudio.transforms import Resample

WIDTH, ROLLOFF, BETA = 64, 0.9475937167399596, 14.769656459379492
"""A sinc of 64 zero crossings in a Kaiser window: resampy's `kaiser_best`, librosa's default until
0.10, in the settings that torchaudio's documentation gives for it."""


class Resampler(nn.Module):
    """Resamples waveforms ``(B, samples)`` from ``source`` to ``target`` Hz; none where they agree.

    A clip followed by zeros comes out as it would alone, followed by zeros: sound is taken to be
    silent before and after the clip.
    """

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.ratio = Fraction(target, source)
        self.name = f"resampled from {source} to {target} Hz"
        self.change = Resample(
            source,
            target,
            resampling_method="sinc_interp_kaiser",
            lowpass_filter_width=WIDTH,
            rolloff=ROLLOFF,
            beta=BETA,
        )

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the waveforms and their lengths, ``(B,)``, at the new rate."""
        if self.source == self.target:
            return waveform, lengths
        ends = -(-lengths * self.ratio.numerator // self.ratio.denominator)  # rounded up
        changed: Tensor = self.change(waveform)
        after = torch.arange(changed.shape[1], device=changed.device) >= ends.unsqueeze(1)
        return changed.masked_fill(after, 0), ends

    def samples(self, count: int) -> int:
        """Return how many samples there are at the new rate."""
        return -(-count * self.ratio.numerator // self.ratio.denominator)
