"""Batches out of a cache: frames of a clip chosen and viewed, waveforms as they are stored."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmbench.data.dataset import Modality
from mmbench.data.media.cache import Cache
from mmbench.data.visual import TestViews, TrainViews
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
        self.train_views = TrainViews(size).to(self.device)
        self.test_views = TestViews(size).to(self.device)
        stored = [cache.manifest.rows[i] for i in rows]
        self.stored_frames = torch.tensor([row.frames for row in stored])
        self.sizes = torch.tensor([(row.height, row.width) for row in stored]).view(-1, 2)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> FrameSource:
        size = self.train_views.size
        return FrameSource(self.cache, self.rows, self.count, self.policy, size, device)

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        places = rows.cpu()
        chosen = self.choose(places, augment).numpy()
        sizes = self.sizes[places]
        height, width = (int(side) for side in sizes.amax(dim=0))
        stored = torch.zeros((len(rows), self.count, height, width, 3), dtype=torch.uint8)
        canvas = stored.numpy()
        for i, place in enumerate(places.tolist()):
            row = self.cache.manifest.rows[self.rows[place]]
            canvas[i, :, : row.height, : row.width] = self.cache.frames(row)[chosen[i]]
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
        return Modality("frames", (self.count, 3, size, size))

    def fingerprint(self) -> str:
        views = self.train_views.name + self.test_views.name
        settings = f"{self.count} frames, {self.policy}; {views}"
        return digest(self.cache.manifest.fingerprint, self.rows.tobytes(), settings)


class WaveSource:
    """Waveforms ``(B, samples)`` int16 of the clips of a split, the shorter ones followed by zeros.

    ``samples`` is the recipe's longest part at its rate, whatever clips there are, so that a
    spectrogram's shape does not depend on them.
    """

    is_always_finite: Literal[True] = True

    def __init__(self, cache: Cache, rows: np.ndarray, device: torch.device | None = None) -> None:
        recipe = cache.manifest.recipe
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
