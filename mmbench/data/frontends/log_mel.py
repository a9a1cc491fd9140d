"""The logarithm of a mel spectrogram, in any settings."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from mmbench.data.frontends.base import FrontEnd

BANDS = 64
"""By default; as many as windows of 25 ms tell apart at the low end."""
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010
"""By default; as in ``kaldi_fbank``."""
FLOOR = 1e-6
"""By default; 60 dB below a band that a tone of full scale would have the power 1 in."""


class LogMel(FrontEnd):
    """Natural logarithm of the mel spectrogram.

    Periodic Hann window as long as ``window`` samples, moved by ``hop``, centred (reflected at the
    ends); power ``|STFT|^2``; ``bands`` triangles, equally spaced on the HTK mel scale ``2595
    log10(1 + f / 700)`` from 0 to half the sample rate, each of height 1; ``log(power + floor)``.

    Takes waveforms ``(B, samples)`` in [-1, 1] and returns ``(B, 1, bands, frames)`` with
    ``frames = 1 + samples // hop``. Clips are read as they are stored, the zeros behind the shorter
    ones included.
    """

    def __init__(self, rate: int, bands: int, window: int, hop: int, floor: float) -> None:
        super().__init__()
        self.name = (
            f"log_mel(rate={rate}, bands={bands}, window={window}, hop={hop}, floor={floor})"
        )
        self.rate = rate
        self.hop = hop
        self.bands = bands
        self.floor = floor
        self.mel = MelSpectrogram(
            sample_rate=rate, n_fft=window, hop_length=hop, n_mels=bands, power=2.0
        )

    @classmethod
    def for_sound(cls, rate: int) -> Self:
        """Return the default settings for sound of a rate (Hz)."""
        return cls(rate, BANDS, round(WINDOW_SECONDS * rate), round(HOP_SECONDS * rate), FLOOR)

    def forward(
        self,
        waveform: Tensor,
        lengths: Tensor | None = None,
        rows: Tensor | None = None,
        augment: torch.Generator | None = None,
    ) -> Tensor:
        power: Tensor = self.mel(waveform)
        return torch.log(power + self.floor).unsqueeze(1)

    def shape(self, samples: int) -> tuple[int, int, int]:
        return 1, self.bands, 1 + samples // self.hop
