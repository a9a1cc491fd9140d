"""Batches of sequences out of a memory-mapped array, read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmbench.data.dataset import Transform
from mmbench.hashing import digest


class MappedSequences:
    """Sequences ``(B, T, D)`` float32 of some rows of an ``.npy`` file, which is never in memory
    as a whole: 500 steps of 74 numbers of 16,326 sentences are 2.4 GB."""

    is_always_finite: Literal[True] = True
    """What is not finite was replaced when the file was written."""

    def __init__(
        self,
        path: Path,
        sha256: str,
        rows: np.ndarray,
        transforms: Sequence[Transform] = (),
        transform_name: str = "",
        device: torch.device | None = None,
    ) -> None:
        self.path = path
        self.sha256 = sha256
        """Of the file's values."""
        self.rows = rows
        """Places in the file, int64 ``(N,)``."""
        self.transforms = tuple(transforms)
        self.transform_name = transform_name
        self.device = device or torch.device("cpu")
        self.values = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> MappedSequences:
        transforms = [t.to(device) if isinstance(t, nn.Module) else t for t in self.transforms]
        return self._with(transforms, self.transform_name, device)

    def batch(self, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        read = np.asarray(self.values[self.rows[rows.cpu().numpy()]])
        x = torch.from_numpy(read).to(self.device)
        for transform in self.transforms:
            x = transform(x, rows, augment)
        return x

    def stored(self) -> MappedSequences:
        return self._with((), "", self.device)

    def with_first(self, transform: Transform) -> MappedSequences:
        return self._with((transform, *self.transforms), self.transform_name, self.device)

    def _with(
        self, transforms: Sequence[Transform], name: str, device: torch.device
    ) -> MappedSequences:
        return MappedSequences(self.path, self.sha256, self.rows, transforms, name, device)

    def fingerprint(self) -> str:
        return digest(self.sha256, self.rows.tobytes(), self.transform_name)


class StandardiseSteps(nn.Module):
    """Subtract a mean ``(D,)`` and divide by a deviation ``(D,)`` at the steps of ``(B, T, D)``
    that are not padding; padding, all zero, stays so. A feature that never varied becomes zero."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        divisor = torch.tensor(deviation, dtype=torch.float64)
        scale = torch.where(divisor > 0, 1 / divisor, 0.0)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", scale.float())

    def forward(self, x: Tensor, rows: Tensor, augment: torch.Generator | None) -> Tensor:
        is_present = (x != 0).any(dim=-1, keepdim=True)
        return (x - self.mean) * self.scale * is_present
