"""Batches out of a cache: frames and flow of a clip chosen and viewed, waveforms as stored."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from mmbench.data.dataset import Modality
from mmbench.data.flow import TestFlowViews, TrainFlowViews
from mmbench.data.media.cache import Cache
from mmbench.data.media.manifest import Row
from mmbench.data.visual import TestViews, TrainViews
from mmbench.errors import DataError
from mmbench.hashing import digest

FramePolicy = Literal["segments", "first"]


class FrameSource:
    """Frames ``(B, T, 3, size, size)`` float32 of the clips of a split.

    ``segments``: a clip's stored frames are divided into T equal parts; training draws one frame
    of each, evaluation takes the middle one. ``first``: always the first T, as in code that drew
    an index and did not use it (OGM-GE and its descendants). A clip of fewer than T frames shows
    some of them again. Views: :mod:`mmbench.data.visual`.
    """

    is_always_finite: Literal[True] = True
    train_kind: ClassVar[type[TrainViews]] = TrainViews
    test_kind: ClassVar[type[TestViews]] = TestViews

    def __init__(
        self,
        cache: Cache,
        rows: np.ndarray,
        frames: int = 3,
        policy: FramePolicy = "segments",
        size: int = 224,
        device: torch.device | None = None,
    ) -> None:
        self.cache = cache
        self.rows = rows
        """Places in the manifest, int64 ``(N,)``."""
        self.count = frames
        self.policy = policy
        self.device = device or torch.device("cpu")
        self.train_views = self.train_kind(size).to(self.device)
        self.test_views = self.test_kind(size).to(self.device)
        stored = [cache.manifest.rows[i] for i in rows]
        self.stored_frames = torch.tensor([row.frames for row in stored])
        self.sizes = torch.tensor([self.size_of(row) for row in stored]).view(-1, 2)

    def __len__(self) -> int:
        return len(self.rows)

    def size_of(self, row: Row) -> tuple[int, int]:
        """Return height and width of what is stored of a clip."""
        return row.height, row.width

    def stored(self, row: Row) -> np.ndarray:
        """Return what is stored of a clip, ``(frames, height, width, channels)`` uint8, unread."""
        return self.cache.frames(row)

    def to(self, device: torch.device) -> Self:
        size = self.train_views.size
        return type(self)(self.cache, self.rows, self.count, self.policy, size, device)

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        places = rows.cpu()
        chosen = self.choose(places, augment).numpy()
        sizes = self.sizes[places]
        height, width = (int(side) for side in sizes.amax(dim=0))
        channels = self.train_views.channels
        stored = torch.zeros((len(rows), self.count, height, width, channels), dtype=torch.uint8)
        canvas = stored.numpy()
        for i, place in enumerate(places.tolist()):
            row = self.cache.manifest.rows[self.rows[place]]
            height, width = self.size_of(row)
            canvas[i, :, :height, :width] = self.stored(row)[chosen[i]]
        stored, sizes = stored.to(self.device), sizes.to(self.device)
        views: Tensor = (
            self.test_views(stored, sizes)
            if augment is None
            else self.train_views(stored, augment, sizes)
        )
        return views

    def choose(self, places: Tensor, augment: torch.Generator | None) -> Tensor:
        """Return the numbers of the frames to show, int64 ``(B, T)``, of clips at these places."""
        stored = self.stored_frames[places].unsqueeze(1)
        part = torch.arange(self.count)
        if self.policy == "first":
            return part.minimum(stored - 1)
        first = part * stored // self.count
        length = ((part + 1) * stored // self.count - first).clamp(min=1)
        if augment is None:
            return first + length // 2
        drawn = torch.rand(first.shape, generator=augment, device=augment.device).cpu()
        return first + (drawn * length).long().minimum(length - 1)

    def modality(self) -> Modality:
        """Return what an encoder receives."""
        size = self.train_views.size
        return Modality("frames", (self.count, self.train_views.channels, size, size))

    def fingerprint(self) -> str:
        views = self.train_views.name + self.test_views.name
        settings = f"{self.count} frames, {self.policy}; {views}"
        return digest(self.cache.manifest.fingerprint, self.rows.tobytes(), settings)


class FlowSource(FrameSource):
    """Optical flow ``(B, T, 2, size, size)`` float32, u and v, of the clips of a split: that which
    follows each frame shown. Frames and views are chosen as for :class:`FrameSource`, in draws of
    its own: flow and picture of a clip are not of the same moment and part, as in the field's code.
    Views: :mod:`mmbench.data.flow`.

    Raises :class:`DataError` when a clip has none in the cache.
    """

    train_kind = TrainFlowViews
    test_kind = TestFlowViews

    def size_of(self, row: Row) -> tuple[int, int]:
        if row.flow_u is None:
            raise DataError(f"the clip {row.id} has no optical flow in {self.cache.folder}")
        return row.flow_height, row.flow_width

    def stored(self, row: Row) -> np.ndarray:
        return self.cache.flow(row)


class StillSource(FrameSource):
    """Pictures ``(B, 3, size, size)`` float32 of the clips of a split, of which each is one."""

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        return super().batch(rows, augment).squeeze(1)

    def modality(self) -> Modality:
        """Return what an encoder receives: a picture for ResNet-18, however small it is."""
        size = self.train_views.size
        return Modality("image", (self.train_views.channels, size, size), encoder="resnet18")


class WaveSource:
    """Waveforms ``(B, samples)`` int16 of the clips of a split, the shorter ones followed by zeros.

    ``samples`` is the recipe's longest part at its rate, whatever clips there are, so that a
    spectrogram's shape does not depend on them. Raises :class:`DataError` for a cache without.
    """

    is_always_finite: Literal[True] = True

    def __init__(self, cache: Cache, rows: np.ndarray, device: torch.device | None = None) -> None:
        recipe = cache.manifest.recipe
        if recipe.rate is None:
            raise DataError(f"{cache.folder} holds no sound: its clips have none")
        self.cache = cache
        self.rows = rows
        self.rate = recipe.rate
        self.samples = round(recipe.seconds * recipe.rate)
        self.device = device or torch.device("cpu")
        lengths = [cache.manifest.rows[i].samples for i in rows]
        self.lengths = torch.tensor(lengths, device=self.device)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> WaveSource:
        return WaveSource(self.cache, self.rows, device)

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        waveforms = torch.zeros((len(rows), self.samples), dtype=torch.int16)
        canvas = waveforms.numpy()
        for i, place in enumerate(rows.tolist()):
            row = self.cache.manifest.rows[self.rows[place]]
            canvas[i, : row.samples] = self.cache.samples(row)
        return waveforms.to(self.device)

    def fingerprint(self) -> str:
        return digest(self.cache.manifest.fingerprint, self.rows.tobytes(), str(self.samples))
