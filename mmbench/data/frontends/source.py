"""Spectrograms made of stored waveforms when a batch is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from mmbench.data.dataset import Modality, Source, Transform
from mmbench.data.frontends.base import FrontEnd, as_waveform
from mmbench.data.frontends.resampling import Resampler
from mmbench.errors import DataError
from mmbench.hashing import digest


class Waveforms(Source, Protocol):
    """A source of int16 waveforms ``(B, samples)``, the shorter ones followed by zeros."""

    @property
    def rate(self) -> int:
        """Hz."""
        ...

    @property
    def samples(self) -> int:
        """Of a row, zeros included."""
        ...

    @property
    def lengths(self) -> Tensor:
        """Samples of each clip without the zeros, int64 ``(N,)``, on the source's device."""
        ...

    def to(self, device: torch.device) -> Waveforms: ...


class Spectrograms:
    """A source of spectrograms ``(B, 1, F, T)``: waveforms, resampled, through a front end.

    ``first`` are transforms of the stored waveforms that come before all else. Raises
    :class:`DataError` when a clip holds no samples.
    """

    is_always_finite: Literal[True] = True

    def __init__(
        self, source: Waveforms, front_end: FrontEnd, first: Sequence[Transform] = ()
    ) -> None:
        self.source = source
        self.front_end = front_end
        self.first = tuple(first)
        self.resampler = Resampler(source.rate, front_end.rate).to(source.lengths.device)
        empty = (source.lengths < 1).nonzero()
        if len(empty):
            raise DataError(
                f"the sound of {len(empty)} clips holds no samples, the first is row "
                f"{int(empty[0])}; prepare the data again without them"
            )

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device) -> Spectrograms:
        first = [t.to(device) if isinstance(t, torch.nn.Module) else t for t in self.first]
        return Spectrograms(self.source.to(device), self.front_end.to(device), first)

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        x = self.source.batch(rows, augment)
        for transform in self.first:
            x = transform(x, rows, augment)
        waveform, lengths = self.resampler(as_waveform(x), self.source.lengths[rows])
        spectrogram: Tensor = self.front_end(waveform, lengths, rows, augment)
        return spectrogram

    def modality(self) -> Modality:
        """Return what an encoder receives."""
        samples = self.resampler.samples(self.source.samples)
        return Modality("spectrogram", self.front_end.shape(samples), stored="waveform")

    def stored(self) -> Source:
        return self.source

    def with_first(self, transform: Transform) -> Spectrograms:
        return Spectrograms(self.source, self.front_end, (transform, *self.first))

    def fingerprint(self) -> str:
        return digest(self.source.fingerprint(), self.resampler.name, self.front_end.name)
