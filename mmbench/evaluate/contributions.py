"""What each modality contributed to a fused prediction. Definitions: docs/contributions.md.
What is read from stored runs afterwards: :mod:`mmbench.evaluate.balance`.

Encoders run once (:func:`mmbench.evaluate.readout.read_out`); here only the fusion is evaluated
again, on features of which some are replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mmbench.evaluate.metrics import Metric, accuracy
from mmbench.evaluate.readout import Readout, predict_from
from mmbench.seeds import Key, numpy_stream

if TYPE_CHECKING:
    from mmbench.train.method import Method
    from mmbench.train.run import Run

Mask = Literal["train_mean_feature", "zero_feature"]
"""What stands in for the feature vector of an absent modality."""

REPEATS = 5
"""Permutations that :func:`permutation` averages over; scikit-learn's default."""


@dataclass(frozen=True)
class Contribution:
    """Shapley values of the modalities: they sum to ``all - none``."""

    values: dict[str, float]
    none: float
    """Value of the prediction with every modality absent."""
    all: float
    """Value of the prediction with every modality present."""
    losses: dict[str, float]
    """Leave-one-out: ``all`` less the value with only that modality absent."""


def shapley(
    modalities: Sequence[str], value: Callable[[frozenset[str]], float]
) -> dict[str, float]:
    """Return the Shapley value of each modality under ``value``, which is called once for each of
    the ``2^M`` subsets:

    ``phi_m = sum_(S without m) |S|! (M - |S| - 1)! / M! * (v(S + m) - v(S))``
    """
    count = len(modalities)
    subsets = [frozenset(s) for size in range(count + 1) for s in combinations(modalities, size)]
    values = {subset: value(subset) for subset in subsets}

    def gains(m: str) -> list[float]:
        return [
            (values[subset | {m}] - values[subset]) / (count * math.comb(count - 1, len(subset)))
            for subset in subsets
            if m not in subset
        ]

    return {m: math.fsum(gains(m)) for m in modalities}


def stand_ins(train_features: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
    """Return a vector ``(width_m,)`` per modality that replaces its features when it is absent:
    the mean over training rows ``(N, width_m)``, or zero."""
    if mask == "zero_feature":
        return {m: torch.zeros_like(h[0]) for m, h in train_features.items()}
    return {m: h.double().mean(dim=0).to(h.dtype) for m, h in train_features.items()}


def masked(
    features: Mapping[str, Tensor], present: Collection[str], absent: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the features, those of modalities outside ``present`` replaced by the stand-ins."""
    return {m: h if m in present else absent[m].expand_as(h) for m, h in features.items()}


def contribution(
    run: Run,
    method: Method,
    readout: Readout,
    absent: Mapping[str, Tensor],
    metric: Metric = accuracy,
) -> Contribution | None:
    """Return the Shapley values of the modalities and what leaving each one out costs, where
    ``v(S)`` is the metric of the method's fused prediction for the rows read out, modalities
    outside S replaced by the stand-ins.

    ``v(all)`` is the metric of the prediction as read out. The fusion is evaluated ``2^M - 1``
    times. None for a network without modalities.
    """
    modalities = run.network.modalities
    if not modalities:
        return None
    labels = readout.y.numpy()

    @cache
    def value(present: frozenset[str]) -> float:
        if len(present) == len(modalities):
            return metric(labels, readout.logits.numpy())
        features = masked(readout.features, present, absent)
        return metric(labels, predict_from(run, method, features).numpy())

    everyone = frozenset(modalities)
    losses = {m: value(everyone) - value(everyone - {m}) for m in modalities}
    return Contribution(shapley(modalities, value), value(frozenset()), value(everyone), losses)


def permutation(
    run: Run,
    method: Method,
    readout: Readout,
    *key: Key,
    repeats: int = REPEATS,
    metric: Metric = accuracy,
) -> dict[str, float]:
    """Return per modality how much the metric falls when the rows of its features are permuted:
    the metric as read out, less the mean over ``repeats`` permutations.

    The permutations depend on the key, the modality and the number of rows alone, so equal keys
    give every method the same ones. Empty for a network without modalities.
    """
    labels = readout.y.numpy()
    intact = metric(labels, readout.logits.numpy())
    losses = {}
    for m in run.network.modalities:
        total = 0.0
        for i in range(repeats):
            order = numpy_stream(*key, "permutation", m, i).permutation(len(labels))
            features = readout.features | {m: readout.features[m][torch.from_numpy(order)]}
            total += metric(labels, predict_from(run, method, features).numpy())
        losses[m] = intact - total / repeats
    return losses
