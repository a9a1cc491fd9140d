"""Random rows of known shapes to time training on."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from mmbench.data.dataset import Kind, Modality, Rows, Split, Splits
from mmbench.seeds import torch_stream

SEED = 0
CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """Random rows of the given shapes, and how many of them make an epoch."""

    modalities: dict[str, Modality]
    rows: int
    batch_size: int
    target: float
    """The ratio to a bare loop that the harness is to stay below."""


def vector(size: int) -> Modality:
    return Modality("vector", (size,))


def picture(kind: Kind, *shape: int) -> Modality:
    return Modality(kind, shape, encoder="resnet18")


WORKLOADS = {
    # The sizes of the default views of mfeat, and 25 steps an epoch.
    "mlp": Workload(
        {"fourier": vector(76), "zernike": vector(47), "morphological": vector(6)}, 1600, 64, 1.05
    ),
    "resnet18": Workload(
        {"picture": picture("image", 3, 32, 32), "sound": picture("spectrogram", 1, 32, 32)},
        80,
        8,
        1.02,
    ),
}
"""What the harness is measured on: small steps, in which all that it adds shows."""

TYPICAL = {
    # Pooled features, as ResNet-50 (2,048), BERT (768) and ResNet-18 (512) give them.
    "features": Workload(
        {"picture": vector(2048), "text": vector(768), "sound": vector(512)}, 2000, 128, 1.05
    ),
    # The customary batch of 64; 64 x 64 are few pixels, but enough for the weights' share of the
    # work to be small.
    "resnet18": Workload(
        {"picture": picture("image", 3, 64, 64), "sound": picture("spectrogram", 1, 64, 64)},
        96,
        64,
        1.02,
    ),
}
"""What people train, with as few rows as will do: each epoch, also where a fifth of the rows is
held out, has a full batch and ends with a smaller one."""


def now(device: torch.device) -> float:
    """Return the time in seconds once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def random_split(workload: Workload, name: str, rows: int) -> Split:
    stream = torch_stream(SEED, name)
    inputs = {
        m: Rows(torch.randn(rows, *spec.shape, generator=stream))
        for m, spec in workload.modalities.items()
    }
    labels = torch.arange(rows) % CLASSES
    return Split(inputs, labels, np.array([f"{name}-{i}" for i in range(rows)]))


def random_splits(workload: Workload, device: torch.device) -> Splits:
    """Return random training rows, with few for validation and test."""
    train, val, test = (
        random_split(workload, name, rows).to(device)
        for name, rows in (("train", workload.rows), ("val", CLASSES), ("test", CLASSES))
    )
    classes = tuple(str(c) for c in range(CLASSES))
    return Splits(train, val, test, workload.modalities, classes)
