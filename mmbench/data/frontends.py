"""Audio front ends: a batch of waveforms in, a batch of spectrograms out, on the device.

Results made with different front ends do not compare, so each has a name that goes into the
fingerprint of the data. A new one is a module with ``name`` and an entry of :data:`FRONT_ENDS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

FULL_SCALE = 32768
"""int16 samples are divided by this to lie in [-1, 1)."""


class LogMel(nn.Module):
    """Natural logarithm of the mel spectrogram.

    Periodic Hann window as long as ``window`` samples, moved by ``hop``, centred (reflected at the
    ends); power ``|STFT|^2``; ``bands`` triangles, equally spaced on the HTK mel scale ``2595
    log10(1 + f / 700)`` from 0 to half the sample rate, each of height 1; ``log(power + floor)``.

    Takes waveforms ``(B, samples)`` in [-1, 1] and returns ``(B, 1, bands, frames)`` with
    ``frames = 1 + samples // hop``.
    """

    def __init__(self, rate: int, bands: int, window: int, hop: int, floor: float) -> None:
        super().__init__()
        self.name = (
            f"log_mel(rate={rate}, bands={bands}, window={window}, hop={hop}, floor={floor})"
        )
        self.hop = hop
        self.bands = bands
        self.floor = floor
        self.mel = MelSpectrogram(
            sample_rate=rate, n_fft=window, hop_length=hop, n_mels=bands, power=2.0
        )

    def forward(self, waveform: Tensor) -> Tensor:
        power: Tensor = self.mel(waveform)
        return torch.log(power + self.floor).unsqueeze(1)

    def shape(self, samples: int) -> tuple[int, int, int]:
        """Return the shape of one spectrogram, ``(1, bands, frames)``."""
        return 1, self.bands, 1 + samples // self.hop


FRONT_ENDS: dict[str, Callable[..., LogMel]] = {"log_mel": LogMel}
"""By name; called with the settings of the front end."""


def as_waveform(samples: Tensor) -> Tensor:
    """Return int16 samples as float32 in [-1, 1)."""
    return samples.float() / FULL_SCALE
