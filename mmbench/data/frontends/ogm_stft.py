"""The two spectrograms of OGM-GE (Peng et al., CVPR 2022), as in its released code.

Both are ``ln(|STFT| + 1e-7)`` of a waveform clipped to [-1, 1], with a periodic Hann window and
centred frames, reflected at the ends as librosa did before its version 0.10. Nothing is
standardised. They are computed in double precision: next to a floor of 1e-7, what single precision
rounds off would decide the value wherever there is little sound.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.transforms import Spectrogram

from mmbench.data.frontends.base import FrontEnd, repeated
from mmbench.seeds import torch_stream

FLOOR = 1e-7


class _LogAmplitude(nn.Module):
    """``ln(|STFT| + 1e-7)`` of waveforms ``(B, samples)``, ``(B, 1, 1 + window / 2, frames)``."""

    def __init__(self, window: int, hop: int) -> None:
        super().__init__()
        exact = {"dtype": torch.float64}
        self.stft = Spectrogram(n_fft=window, hop_length=hop, power=1.0, wkwargs=exact)

    def forward(self, waveform: Tensor) -> Tensor:
        amplitude: Tensor = self.stft(waveform.clamp(-1, 1).double())
        return (amplitude + FLOOR).log().unsqueeze(1).to(waveform.dtype)


class OgmStft(FrontEnd):
    """That for CREMA-D (``dataset/CramedDataset.py``): ``(B, 1, 257, 188)``.

    22,050 Hz; each clip is repeated until it fills ``seconds`` (the original repeats three times
    and cuts at 3 s, which is the same from 1 s on; LFM does so with 20 s); windows of 512 samples
    every 353.
    """

    window, hop = 512, 353

    def __init__(self, seconds: int = 3) -> None:
        super().__init__()
        self.rate = 22050
        self.samples = seconds * self.rate
        self.name = f"ogm_stft(seconds={seconds})"
        self.spectrogram = _LogAmplitude(self.window, self.hop)

    def forward(
        self,
        waveform: Tensor,
        lengths: Tensor | None = None,
        rows: Tensor | None = None,
        augment: torch.Generator | None = None,
    ) -> Tensor:
        spectrogram: Tensor = self.spectrogram(repeated(waveform, lengths, self.samples))
        return spectrogram

    def shape(self, samples: int) -> tuple[int, int, int]:
        return 1, self.window // 2 + 1, 1 + self.samples // self.hop


class OgmStftVgg(FrontEnd):
    """That for VGGSound (``dataset/VGGSoundDataset.py``): ``(B, 1, 129, 626)``.

    16,000 Hz; of the first 10 s of a clip, repeated where it is shorter, a window of 5 s is read:
    in training from a random sample between 0 and 5 s, both included; at evaluation the ``middle``
    one, from 2.5 s on. The original draws at evaluation as well, anew each time: with
    ``draw_at_evaluation`` it is drawn too, but once for each row of a split, so that an evaluation
    repeats. Windows of 256 samples every 128.
    """

    window, hop = 256, 128
    seconds = 5

    def __init__(self, draw_at_evaluation: bool = False) -> None:
        super().__init__()
        self.rate = 16000
        self.samples = self.seconds * self.rate
        self.draw_at_evaluation = draw_at_evaluation
        self.name = f"ogm_stft_vgg(draw_at_evaluation={draw_at_evaluation})"
        self.spectrogram = _LogAmplitude(self.window, self.hop)

    def forward(
        self,
        waveform: Tensor,
        lengths: Tensor | None = None,
        rows: Tensor | None = None,
        augment: torch.Generator | None = None,
    ) -> Tensor:
        starts = self._starts(len(waveform), rows, augment).to(waveform.device)
        clips = repeated(waveform, lengths, self.samples, starts)
        spectrogram: Tensor = self.spectrogram(clips)
        return spectrogram

    def _starts(self, count: int, rows: Tensor | None, augment: torch.Generator | None) -> Tensor:
        """Return the first sample of each window, ``(B,)``."""
        choices = self.samples + 1
        if augment is not None:
            return torch.randint(choices, (count,), generator=augment, device=augment.device)
        if not self.draw_at_evaluation:
            return torch.full((count,), self.samples // 2)
        numbers = torch.arange(count) if rows is None else rows.cpu()
        stream = torch_stream("ogm_stft_vgg", "evaluation")
        return torch.randint(choices, (int(numbers.max()) + 1,), generator=stream)[numbers]

    def shape(self, samples: int) -> tuple[int, int, int]:
        return 1, self.window // 2 + 1, 1 + self.samples // self.hop
