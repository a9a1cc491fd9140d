"""Batches out of a cache of pictures, viewed as frames of clips are."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmbench.data.dataset import Modality
from mmbench.data.pictures.cache import Cache
from mmbench.data.visual import SIZE, TestViews, TrainViews
from mmbench.hashing import digest


class PictureSource:
    """Pictures ``(B, 3, size, size)`` float32 of the rows of a split: a random part, flipped or
    not, in training, the whole at evaluation (:mod:`mmbench.data.visual`)."""

    is_always_finite: Literal[True] = True

    def __init__(
        self,
        cache: Cache,
        rows: np.ndarray,
        size: int = SIZE,
        device: torch.device | None = None,
    ) -> None:
        self.cache = cache
        self.rows = rows
        """Places in the manifest, int64 ``(N,)``."""
        self.device = device or torch.device("cpu")
        self.train_views = TrainViews(size).to(self.device)
        self.test_views = TestViews(size).to(self.device)
        stored = [cache.manifest.rows[i] for i in rows]
        self.sizes = torch.tensor([(row.height, row.width) for row in stored]).view(-1, 2)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> PictureSource:
        return PictureSource(self.cache, self.rows, self.train_views.size, device)

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        places = rows.cpu()
        sizes = self.sizes[places]
        height, width = (int(side) for side in sizes.amax(dim=0))
        stored = torch.zeros((len(rows), 1, height, width, 3), dtype=torch.uint8)
        canvas = stored.numpy()
        for i, place in enumerate(places.tolist()):
            row = self.cache.manifest.rows[self.rows[place]]
            canvas[i, 0, : row.height, : row.width] = self.cache.pixels(row)
        stored, sizes = stored.to(self.device), sizes.to(self.device)
        views: Tensor = (
            self.test_views(stored, sizes)
            if augment is None
            else self.train_views(stored, augment, sizes)
        )
        return views.squeeze(1)

    def modality(self) -> Modality:
        """Return what an encoder receives: a picture for ResNet-18, however small it is."""
        size = self.train_views.size
        return Modality("image", (3, size, size), encoder="resnet18")

    def fingerprint(self) -> str:
        views = self.train_views.name + self.test_views.name
        return digest(self.cache.manifest.fingerprint, self.rows.tobytes(), views)
