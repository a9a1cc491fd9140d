"""Small runs of single methods for the tests in this folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbench.config import Recipe
from mmbench.data.dataset import Modality, Rows, Source, Split, Splits
from mmbench.datasets.synthetic import Synthetic
from mmbench.evaluate.readout import read_out
from mmbench.nets.network import NetworkSpec
from mmbench.options import validated
from mmbench.train.method import Method, Options
from mmbench.train.trainer import Fitted, Trainer


def configured(kind: type[Method], options: Mapping[str, Any] | None = None) -> Method:
    """Return a method with these options, nested as in a configuration file."""
    config = validated(kind.Config, dict(options or {}), kind.name())
    assert isinstance(config, Options)
    return kind(config)


def trainer(
    method: Method,
    splits: Splits,
    *,
    fusion: str = "sum",
    encoder: str = "mlp",
    seed: int = 0,
    **recipe: Any,
) -> Trainer:
    """Return a trainer on the CPU; the recipe starts from 2 epochs of 16 rows, last epoch kept."""
    spec = NetworkSpec(
        splits.modalities,
        dict.fromkeys(splits.modalities, encoder),
        len(splits.classes),
        fusion,
        seed,
    )
    settings = {"epochs": 2, "batch_size": 16, "lr": 0.01, "select": "last"} | recipe
    return Trainer(method, splits, spec, Recipe.model_validate(settings), torch.device("cpu"))


def logits_of_test(fitted: Fitted, splits: Splits) -> Tensor:
    """Return the fused logits of the test rows."""
    return read_out(fitted.run, fitted.method, splits.test).logits


def synthetic(seed: int, **options: Any) -> Splits:
    """Return generated data of known information, 20 validation and test rows unless asked."""
    small = {"val": 20, "test": 20} | options
    return Synthetic(validated(Synthetic.Config, small, "synthetic")).load("default", seed)


def splits_of(train: Mapping[str, np.ndarray], y: np.ndarray, classes: int) -> Splits:
    """Return splits whose training rows are given, vectors per modality; a few of them serve as
    validation and test rows."""

    def part(name: str, rows: slice) -> Split:
        inputs: dict[str, Source] = {m: Rows(x[rows]) for m, x in train.items()}
        labels = torch.as_tensor(y[rows])
        return Split(inputs, labels, np.array([f"{name}-{i}" for i in range(len(labels))]))

    return Splits(
        part("train", slice(None)),
        part("val", slice(0, 20)),
        part("test", slice(0, 20)),
        {m: Modality("vector", x.shape[1:]) for m, x in train.items()},
        tuple(map(str, range(classes))),
    )


def reordered(splits: Splits, names: list[str]) -> Splits:
    """Return the same data with the modalities in another order."""

    def part(split: Split) -> Split:
        inputs = {m: split.inputs[m] for m in names}
        return Split(inputs, split.y, split.ids, split.groups)

    return replace(
        splits,
        train=part(splits.train),
        val=part(splits.val),
        test=part(splits.test),
        modalities={m: splits.modalities[m] for m in names},
    )


def batch_counts(rows: int, size: int) -> int:
    """Return the batches of an epoch: a last single row joins the batch before it."""
    full, rest = divmod(rows, size)
    return full + (1 if rest > 1 or full == 0 else 0)


def begun(kind: type[Method], splits: Splits, fusion: str, options: Mapping[str, Any]) -> Trainer:
    """Return a trainer whose method is set up and in its stage 'train', before any step."""
    made = trainer(configured(kind, options), splits, fusion=fusion)
    made.method.setup(made.run)
    return made
