"""Random streams addressed by name.

A stream depends only on its key, never on what was drawn before. So seed ``s`` gives every method
the same split, initial weights and batch order, and a resumed epoch draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Key = str | int


def derive(*key: Key) -> int:
    """Return a 63-bit seed for a key such as ``(seed, "order", "train", epoch)``."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def torch_stream(*key: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh torch generator for a key."""
    return torch.Generator(device=device).manual_seed(derive(*key))


def numpy_stream(*key: Key) -> np.random.Generator:
    """Return a fresh numpy generator for a key."""
    return np.random.default_rng(derive(*key))


@contextmanager
def default_stream(*key: Key) -> Iterator[None]:
    """Make torch's default CPU generator the stream of a key inside the block, for layers that
    draw their own initial weights; the generator is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(*key))
        yield
