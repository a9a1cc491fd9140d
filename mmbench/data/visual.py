"""What a network sees of stored frames: random views in training, the whole frame at evaluation.

As in OGM-GE and the works that follow it: in training ``RandomResizedCrop`` and
``RandomHorizontalFlip``, drawn for every frame on its own; at evaluation the whole frame, resized
to a square whatever its shape. Both are normalised by ImageNet's mean and deviation.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmbench.data.crops import Crops, draw_crops, resized, whole
from mmbench.errors import DataError

SIZE = 224
SCALE = (0.08, 1.0)
"""Share of the frame's area; torchvision's default."""
RATIO = (3 / 4, 4 / 3)
"""Width over height; torchvision's default."""
FLIPPED = 0.5
"""Probability; torchvision's default."""
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue in [0, 1]."""


class _Views(nn.Module):
    means: ClassVar[tuple[float, ...]] = MEAN
    deviations: ClassVar[tuple[float, ...]] = DEVIATION
    """Of each channel in [0, 1]."""
    mean: Tensor
    deviation: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.channels = len(self.means)
        self.register_buffer("mean", 255 * torch.tensor(self.means).view(-1, 1, 1))
        self.register_buffer("deviation", 255 * torch.tensor(self.deviations).view(-1, 1, 1))

    def normalised(self, pictures: Tensor) -> Tensor:
        """Return uint8 ``(N, channels, H, W)`` as float32 of about mean 0 and deviation 1."""
        return pictures.float().sub_(self.mean).div_(self.deviation)


class TrainViews(_Views):
    """A random part of every frame, flipped or not, ``size`` by ``size`` pixels, normalised."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(size)
        self.name = f"random resized crops of {size} pixels, scale {SCALE}, flipped, normalised"

    def forward(
        self, frames: Tensor, augment: torch.Generator, sizes: Tensor | None = None
    ) -> Tensor:
        """Return ``(B, T, 3, size, size)`` of uint8 frames ``(B, T, H, W, 3)``, or ``(N, 3, size,
        size)`` of ``(N, 3, H, W)``; a subclass may have another number of channels than 3.

        ``sizes``, int64 ``(B, 2)`` or ``(N, 2)``: height and width of the frames of a clip where
        they fill only the upper left of ``H`` by ``W``. Raises :class:`DataError` for other frames.
        """
        pictures = _pictures(frames, self.channels)
        height, width = _sizes(frames, sizes)
        crops = draw_crops(height, width, augment, SCALE, RATIO, FLIPPED)
        views = self.viewed(pictures, crops)
        return views.view(*_leading(frames), self.channels, self.size, self.size)

    def viewed(self, pictures: Tensor, crops: Crops) -> Tensor:
        """Return parts of pictures, uint8 ``(N, channels, H, W)``, as ``(N, channels, size, size)``
        float32."""
        return self.normalised(resized(pictures, crops, self.size))


class TestViews(_Views):
    """All of every frame, resized to ``size`` by ``size`` pixels, normalised."""

    __test__ = False  # not a test, whatever pytest makes of its name

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(size)
        self.name = f"resized to {size} pixels, normalised"

    def forward(self, frames: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return what :class:`TrainViews` does, without anything drawn."""
        height, width = _sizes(frames, sizes)
        views = resized(_pictures(frames, self.channels), whole(height, width), self.size)
        shape = *_leading(frames), self.channels, self.size, self.size
        return self.normalised(views).view(shape)


class Views(nn.Module):
    """A transform of stored frames: a random view in training, the whole frame at evaluation."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.train_views = TrainViews(size)
        self.test_views = TestViews(size)
        self.name = f"{self.train_views.name}; at evaluation {self.test_views.name}"

    def forward(self, x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        views: Tensor = self.test_views(x) if augment is None else self.train_views(x, augment)
        return views


def _pictures(frames: Tensor, channels: int) -> Tensor:
    """Return frames as ``(N, channels, H, W)``. Raises :class:`DataError` for anything but
    frames."""
    clips = frames.dim() == 5
    if (
        frames.dtype != torch.uint8
        or frames.dim() not in (4, 5)
        or frames.shape[4 if clips else 1] != channels
    ):
        raise DataError(
            f"frames of type {frames.dtype} and shape {tuple(frames.shape)} cannot be viewed: give "
            f"uint8 (B, T, H, W, {channels}) or (N, {channels}, H, W)"
        )
    return frames.flatten(0, 1).permute(0, 3, 1, 2) if clips else frames


def _leading(frames: Tensor) -> torch.Size:
    """Return ``(B, T)`` of clips, ``(N,)`` of single frames."""
    return frames.shape[: frames.dim() - 3]


def _sizes(frames: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return height and width of every frame, int64 ``(N,)``."""
    shape = frames.shape[2:4]  # of either layout
    count = _leading(frames).numel()
    if sizes is None:
        sizes = torch.tensor([shape], device=frames.device).expand(count, 2)
    each = sizes.repeat_interleave(count // len(sizes), dim=0)
    return each[:, 0], each[:, 1]
