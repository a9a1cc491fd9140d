"""Checkpoints: everything needed to go on after a kill, in one file, replaced atomically."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mmbench.errors import StoreError

State = dict[str, Any]
START_AGAIN = "add --overwrite, without --resume, to start again"


def save_state(path: Path, state: State) -> None:
    """Write a state of tensors and plain values: to a temporary name, then renamed.

    Raises :class:`StoreError` when the folder cannot be written or is full.
    """
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = " ".join(str(error).split())
        raise StoreError(
            f"cannot write {path}: {reason}; free space or choose --results"
        ) from error


def load_state(path: Path) -> State:
    """Read a state without running any code from the file (``weights_only``).

    Raises :class:`StoreError` when the file is damaged.
    """
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
        pickle.UnpicklingError,
    ) as error:
        raise StoreError(f"{path} is damaged and cannot be read: {START_AGAIN}") from error
    if not isinstance(state, dict):
        raise StoreError(f"{path} holds no state: {START_AGAIN}")
    return state


class Checkpointer:
    """Writes a run's state at most every ``seconds``, at the end of an epoch."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.path = folder / "last.pt"
        self.seconds = seconds

    def load(self) -> State | None:
        """Return the last state, or None when there is none."""
        return load_state(self.path) if self.path.exists() else None

    def save(self, state: State) -> None:
        save_state(self.path, state)
