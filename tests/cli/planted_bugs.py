"""Bugs of the kind that papers' code has had, planted into the methods of this process.

Each function patches what a careless edit could have made of the code; ``monkeypatch`` undoes it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mmbench.running
import mmbench.train.ogm
from mmbench.nets.network import Network
from mmbench.registry import load_method
from mmbench.train.modulation import confidence_ratios
from mmbench.train.trainer import Trainer


def module_of(method: str) -> ModuleType:
    """Return the module that a registered method was loaded from."""
    return sys.modules[load_method(method).__module__]


def invert_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """OGM-GE slows the encoder that lags, rather than the one that leads."""

    def inverted(logits: dict[str, Tensor], y: Tensor) -> Tensor:
        return 1 / confidence_ratios(logits, y)

    monkeypatch.setattr(mmbench.train.ogm, "confidence_ratios", inverted)


def align_the_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    """IIBalance's alignment has its values right, and its gradient goes to the anchor's encoder."""
    alignment = module_of("iibalance").RelativeAlignment
    correct = alignment.forward

    def forward(self: Any, run: Any, plan: Any, strength: float, v: Any, y: Tensor) -> Tensor:
        anchor = v[plan.anchor]
        moved = {m: h.detach() + anchor - anchor.detach() for m, h in v.items()}
        result: Tensor = correct(self, run, plan, strength, {**moved, plan.anchor: anchor}, y)
        return result

    monkeypatch.setattr(alignment, "forward", forward)


def fit_the_gate_on_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """IIBalance's gate is fitted to rows that the network was trained on."""
    method = module_of("iibalance").IIBalance
    correct = method._gate_folds

    def folds(self: Any, run: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(kept, kept) for kept, _ in correct(self, run)]

    monkeypatch.setattr(method, "_gate_folds", folds)


def shuffle_labels_of_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the training rows has the labels of others, after the data were loaded."""

    def shuffled(method: Any, splits: Any, *others: Any) -> Trainer:
        y = splits.train.y.clone()
        fold = torch.arange(0, len(y), 5)
        y[fold] = y[fold].roll(1)
        return Trainer(method, replace(splits, train=replace(splits.train, y=y)), *others)

    monkeypatch.setattr(mmbench.running, "Trainer", shuffled)


def drop_a_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first modality never reaches the fusion."""
    correct = Network.fuse

    def fuse(self: Network, features: Any, *others: Any) -> Any:
        first, *_ = features
        return correct(self, {**features, first: torch.zeros_like(features[first])}, *others)

    monkeypatch.setattr(Network, "fuse", fuse)
