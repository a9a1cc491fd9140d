"""The filter banks of AST (Gong et al., Interspeech 2021), used for Kinetics-Sounds by OGM-GE's
scripts and, as stored arrays, by MMPareto, BalanceBenchmark and InfoReg."""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio.compliance.kaldi import get_mel_banks

from mmbench.data.frontends.base import FrontEnd

FRAMES, BANDS = 1024, 128
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010
LOWEST = 20.0
"""Hz, where the first band begins."""
PREEMPHASIS = 0.97
MEAN, DEVIATION = -4.503877, 5.141276
"""Of KS, as in OGM-GE's script; the result is divided by twice the deviation."""


class KaldiFbank(FrontEnd):
    """``torchaudio.compliance.kaldi.fbank`` of a whole batch: ``(B, 1, 1024, 128)``, time first.

    Of each clip less its mean: windows of 25 ms every 10 ms that lie wholly within the clip; less
    their own mean; pre-emphasis 0.97; symmetric Hann window; filled up with zeros to a power of
    two; power; 128 triangles, equally spaced on the mel scale ``1127 ln(1 + f / 700)`` from 20 Hz
    to half the sample rate; ``ln(max(., 1.2e-7))``. Then zeros up to 1024 frames, or a cut, and
    only then ``(x + 4.503877) / (2 * 5.141276)``: what is filled up becomes 0.438, not 0.

    The clip is read at the rate it is stored at, and clips of different rates give different bands.
    """

    taper: Tensor
    banks: Tensor

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.name = f"kaldi_fbank(rate={rate})"
        self.rate = rate
        self.window = int(rate * WINDOW_SECONDS)
        self.hop = int(rate * HOP_SECONDS)
        self.length = 1 << (self.window - 1).bit_length()
        banks, _ = get_mel_banks(BANDS, self.length, rate, LOWEST, 0.0, 100.0, -500.0, 1.0)
        without_last = torch.nn.functional.pad(banks, (0, 1))  # nothing of half the sample rate
        self.register_buffer("taper", torch.hann_window(self.window, periodic=False))
        self.register_buffer("banks", without_last.T.contiguous())

    def forward(
        self,
        waveform: Tensor,
        lengths: Tensor | None = None,
        rows: Tensor | None = None,
        augment: torch.Generator | None = None,
    ) -> Tensor:
        if lengths is None:
            lengths = torch.full((len(waveform),), waveform.shape[1], device=waveform.device)
        ends = lengths.unsqueeze(1)
        inside = torch.arange(waveform.shape[1], device=waveform.device) < ends
        mean = (waveform * inside).sum(dim=1, keepdim=True) / ends
        power = self._power(waveform - mean)
        bands = (power @ self.banks).clamp(min=torch.finfo(torch.float32).eps).log()
        filled = torch.nn.functional.pad(bands, (0, 0, 0, FRAMES - bands.shape[1]))
        frames = (ends - self.window) // self.hop + 1
        present = torch.arange(FRAMES, device=waveform.device) < frames
        return ((filled * present.unsqueeze(-1) - MEAN) / (2 * DEVIATION)).unsqueeze(1)

    def _power(self, waveform: Tensor) -> Tensor:
        """Return the power of all windows but at most 1024, ``(B, windows, length / 2 + 1)``."""
        most = (FRAMES - 1) * self.hop + self.window
        least = max(self.window - waveform.shape[1], 0)
        fitted = torch.nn.functional.pad(waveform[:, :most], (0, least))
        windows = fitted.unfold(1, self.window, self.hop)  # (B, windows, window)
        windows = windows - windows.mean(dim=-1, keepdim=True)
        before = torch.cat([windows[..., :1], windows[..., :-1]], dim=-1)
        shaped = (windows - PREEMPHASIS * before) * self.taper
        power: Tensor = torch.fft.rfft(shaped, n=self.length).abs().square()
        return power

    def shape(self, samples: int) -> tuple[int, int, int]:
        return 1, FRAMES, BANDS
