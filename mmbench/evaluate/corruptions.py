"""What can happen to a modality's input, at several severities. Definitions: docs/robustness.md.

A corruption acts on what the encoder receives, except on audio that a front end turns into a
spectrogram: noise is added to its waveform, as it is stored. What is drawn depends on the run's
seed, the modality, the corruption, its level and the row's id alone, so every method meets the same
corrupted inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from mmbench.data.dataset import Kind, Modality, Source, Split, Transform, layered
from mmbench.errors import RequestError
from mmbench.hashing import digest
from mmbench.seeds import numpy_stream
from mmbench.store.robustness import UNITS

BLUR_RADIUS = 3
"""Standard deviations at which a Gaussian kernel is cut off: 0.3 % of its weight lie beyond."""
MEASURE_BATCH = 256

_OVER: dict[Kind, tuple[int, ...]] = {
    "vector": (0,),
    "waveform": (0, 1),
    "sequence": (0, 1),
    "image": (0, 2, 3),
    "spectrogram": (0, 2, 3),
    "frames": (0, 1, 3, 4),
}
"""Dimensions of a batch that statistics run over: each feature of a vector or of the steps of a
sequence, and each channel of a picture, has its own."""

Streams = Iterator[np.random.Generator]
"""A stream for each row of a batch, made when it is asked for."""


@dataclass(frozen=True)
class Measured:
    """What the training rows of a modality are like; the tensors go with a batch ``(B, ...)``."""

    kind: Kind
    mean: Tensor
    power: Tensor
    """Variance; of a waveform, which swings around zero, the mean square."""


def measure(source: Source, kind: Kind, device: torch.device) -> Measured:
    """Return mean and power over the rows of a source, in float64. Steps of a sequence that are
    padding (all zero) do not count."""
    over = _OVER[kind]
    total = squares = count = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, len(source), MEASURE_BATCH):
        rows = torch.arange(start, min(start + MEASURE_BATCH, len(source)), device=device)
        x = source.batch(rows, None).double()
        total = total + x.sum(over, keepdim=True)
        squares = squares + x.square().sum(over, keepdim=True)
        count = count + _counted(x, kind).sum(over, keepdim=True)
    count = count.clamp(min=1)
    mean = torch.zeros_like(total) if kind == "waveform" else total / count
    return Measured(kind, mean, (squares / count - mean.square()).clamp(min=0))


def _counted(x: Tensor, kind: Kind) -> Tensor:
    return is_present(x).double() if kind == "sequence" else torch.ones_like(x)


def is_present(x: Tensor) -> Tensor:
    """Return which steps of sequences ``(B, T, D)`` are not padding, ``(B, T, 1)``, or which of
    tokens ``(B, T)``, in that shape."""
    return x != 0 if x.dim() == 2 else (x != 0).any(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Corruption:
    """One way to corrupt a modality's rows."""

    name: str
    kinds: tuple[Kind, ...]
    levels: tuple[float, ...]
    """The default ones, mildest first."""
    allowed: tuple[float, float]
    apply: Callable[[Tensor, float, Measured | None, Streams], Tensor]
    grows: bool = True
    """Whether a higher level is more severe."""
    measures: bool = True
    """Whether it needs to know what the training rows are like."""

    @property
    def unit(self) -> str:
        """What a level is."""
        return UNITS[self.name]

    def ordered(self, levels: Sequence[float]) -> tuple[float, ...]:
        """Return levels, the mildest first. Raises :class:`RequestError` for levels that are out of
        range or given twice, and for none."""
        low, high = self.allowed
        for level in levels:
            if not low <= level <= high:
                raise RequestError(
                    f"level {level:g} of corruption '{self.name}' ({self.unit}) is not in "
                    f"[{low:g}, {high:g}]; the defaults are {_listed(self.levels)}"
                )
        if not levels or len(set(levels)) < len(levels):
            raise RequestError(
                f"corruption '{self.name}' needs one or more levels, each once, such as "
                f"{self.name}={_listed(self.levels)}"
            )
        return tuple(sorted(map(float, levels), reverse=not self.grows))


def _listed(levels: Sequence[float]) -> str:
    return ",".join(f"{level:g}" for level in levels)


# -- what each does to a batch ---------------------------------------------------------------------


def _noise(x: Tensor, level: float, measured: Measured | None, streams: Streams) -> Tensor:
    """Add Gaussian noise of ``power / 10^(level / 10)``; padding of sequences stays as it is."""
    assert measured is not None
    deviation = (measured.power / 10 ** (level / 10)).sqrt().float()
    drawn = [stream.standard_normal(x.shape[1:], dtype=np.float32) for stream in streams]
    noisy = x.float() + deviation * torch.from_numpy(np.stack(drawn)).to(x.device)
    return torch.where(is_present(x), noisy, 0.0) if measured.kind == "sequence" else noisy


def _blur(x: Tensor, level: float, measured: Measured | None, streams: Streams) -> Tensor:
    """Convolve each picture with a Gaussian whose deviation is a share of its shorter side,
    mirrored at the edges."""
    side = min(x.shape[-2:])
    deviation = level * side
    radius = min(math.ceil(BLUR_RADIUS * deviation), side - 1)
    pictures = x.float().reshape(-1, *x.shape[-3:])
    blurred: Tensor = gaussian_blur(pictures, [2 * radius + 1] * 2, [deviation] * 2)
    return blurred.reshape(x.shape)


def _occlusion(x: Tensor, level: float, measured: Measured | None, streams: Streams) -> Tensor:
    """Cover a rectangle, in the same place of all frames, with the mean of each channel. It has the
    picture's proportions and ``level`` of its area, as near as whole pixels allow."""
    assert measured is not None
    height, width = x.shape[-2:]
    high = min(max(round(height * math.sqrt(level)), 1), height)
    wide = min(max(round(level * height * width / high), 1), width)
    covered = torch.zeros(len(x), height, width, dtype=torch.bool)
    for i, stream in enumerate(streams):
        top, left = stream.integers(height - high + 1), stream.integers(width - wide + 1)
        covered[i, top : top + high, left : left + wide] = True
    where = covered.to(x.device).view(len(x), *[1] * (x.dim() - 3), height, width)
    return torch.where(where, measured.mean.float(), x.float())


def _drop(x: Tensor, level: float, measured: Measured | None, streams: Streams) -> Tensor:
    """Make padding of the nearest whole number to a share of the steps that are not padding."""
    steps = is_present(x).view(len(x), -1).cpu()
    for i, stream in enumerate(streams):
        places = steps[i].nonzero().squeeze(1).numpy()
        steps[i, stream.permutation(places)[: round(level * len(places))]] = False
    return x * steps.to(x.device).view(*x.shape[:2], *[1] * (x.dim() - 2))


_PICTURES: tuple[Kind, ...] = ("image", "frames", "spectrogram")

CORRUPTIONS = {
    corruption.name: corruption
    for corruption in (
        Corruption(
            "noise",
            ("vector", "waveform", "sequence", *_PICTURES),
            (10.0, 5.0, 0.0, -5.0, -10.0),
            (-60.0, 60.0),
            _noise,
            grows=False,
        ),
        Corruption(
            "blur",
            _PICTURES,
            (0.02, 0.04, 0.06, 0.08, 0.1),
            (0.001, 0.33),
            _blur,
            measures=False,
        ),
        Corruption(
            "occlusion",
            _PICTURES,
            (0.1, 0.2, 0.3, 0.4, 0.5),
            (0.001, 1.0),
            _occlusion,
        ),
        Corruption(
            "drop",
            ("sequence", "tokens"),
            (0.1, 0.3, 0.5, 0.7, 0.9),
            (0.001, 1.0),
            _drop,
            measures=False,
        ),
    )
}


def corruptions_of(modality: Modality) -> list[str]:
    """Return the names of the corruptions that a modality can suffer."""
    return [c.name for c in CORRUPTIONS.values() if modality.kind in c.kinds]


# -- where it acts ---------------------------------------------------------------------------------


def is_before_front_end(corruption: Corruption, modality: Modality) -> bool:
    """Whether a corruption acts on the waveform that a front end makes a spectrogram of."""
    return corruption.name == "noise" and modality.stored == "waveform"


def measured_for(
    corruption: Corruption, modality: Modality, train: Source, device: torch.device
) -> Measured | None:
    """Return what a corruption has to know of a modality's training rows."""
    if not corruption.measures:
        return None
    if is_before_front_end(corruption, modality):
        return measure(layered(train).stored(), "waveform", device)
    return measure(train, modality.kind, device)


def corrupted(
    split: Split,
    name: str,
    modality: Modality,
    corruption: Corruption,
    level: float,
    measured: Measured | None,
    seed: int,
) -> Split:
    """Return the split with one modality corrupted; all else is the same objects."""
    key = (seed, "robustness", name, corruption.name, repr(float(level)))

    def transform(x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        streams = (numpy_stream(*key, str(split.ids[row])) for row in rows.tolist())
        return corruption.apply(x, level, measured, streams)

    source = split.inputs[name]
    changed: Source = (
        layered(source).with_first(transform)
        if is_before_front_end(corruption, modality)
        else _Followed(source, transform, "|".join(map(str, key)))
    )
    return replace(split, inputs={**split.inputs, name: changed})


@dataclass(frozen=True)
class _Followed:
    """A source and a transform after all of its own."""

    source: Source
    transform: Transform
    name: str

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device) -> _Followed:
        return replace(self, source=self.source.to(device))

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        return self.transform(self.source.batch(rows, augment), rows, augment)

    def fingerprint(self) -> str:
        return digest(self.source.fingerprint(), self.name)
