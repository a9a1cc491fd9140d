"""The spectrogram of PMR (Fan et al., CVPR 2023), shared by older OGM-GE code and ReconBoost."""

from __future__ import annotations

import torch
from scipy.signal.windows import tukey
from torch import Tensor

from mmbench.data.frontends.base import FrontEnd, repeated

FLOOR = 1e-7
DEVIATION_FLOOR = 1e-9


class PmrSpec(FrontEnd):
    """``scipy.signal.spectrogram`` in its defaults, then a logarithm, standardised clip by clip.

    Each clip is repeated until it fills ``samples`` and clipped to [-1, 1]. Windows of 512 samples,
    every 159, not centred, less their own mean, times a periodic Tukey window (a quarter of it
    tapered); their power density (1/Hz), one-sided, so that all but the first and last of the 257
    frequencies count twice; ``ln(power + 1e-7)``; less the clip's mean and over its standard
    deviation (divisor N).

    Gives ``(B, 1, 257, 1004)`` for the 10 s at 16,000 Hz of the code for AVE, and ``(B, 1, 257,
    299)`` for 48,000 samples. The code for CREMA-D cuts at 160,000 samples as well but reads at
    22,050 Hz: ``rate=22050``, 7.26 s.
    """

    window, hop = 512, 159

    taper: Tensor

    def __init__(self, rate: int = 16000, samples: int = 160_000) -> None:
        super().__init__()
        self.rate = rate
        self.samples = samples
        self.name = f"pmr_spec(rate={rate}, samples={samples})"
        taper = torch.from_numpy(tukey(self.window, 0.25, sym=False))
        weight = torch.full((self.window // 2 + 1,), 2 / (rate * float(taper.square().sum())))
        weight[[0, -1]] /= 2
        self.register_buffer("taper", taper.float())
        self.register_buffer("weight", weight)

    def forward(
        self,
        waveform: Tensor,
        lengths: Tensor | None = None,
        rows: Tensor | None = None,
        augment: torch.Generator | None = None,
    ) -> Tensor:
        clips = repeated(waveform, lengths, self.samples).clamp(-1, 1)
        windows = clips.unfold(1, self.window, self.hop)  # (B, T, window)
        windows = windows - windows.mean(dim=-1, keepdim=True)
        power = torch.fft.rfft(windows * self.taper).abs().square() * self.weight
        logarithm = (power + FLOOR).log().transpose(1, 2).unsqueeze(1)
        deviation, mean = torch.std_mean(logarithm, dim=(2, 3), keepdim=True, correction=0)
        standardised: Tensor = (logarithm - mean) / (deviation + DEVIATION_FLOOR)
        return standardised

    def shape(self, samples: int) -> tuple[int, int, int]:
        return 1, self.window // 2 + 1, (self.samples - self.window) // self.hop + 1
