"""PMR: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.joint import Joint
from mmbench.methods.pmr import PMR, ClassMeans
from mmbench.planning import check_support
from mmbench.testing.contract import CLASSES, make_splits
from mmbench.train.run import EVALUATION_BATCH
from tests.methods.double import (
    Case,
    Gradients,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import configured, splits_of, trainer


def with_prototypes(of: Case, seen: list[bool], spread: list[float]) -> Case:
    """Give every modality random prototypes of the classes that are seen, of its own spread: the
    wider, the surer are its predictions."""
    for m, scale in zip(of.run.modalities, spread, strict=True):
        means = means_of(of, m)
        means.seen.copy_(torch.tensor(seen))
        drawn = torch.randn(means.rows.shape, generator=of.random, dtype=torch.float64)
        means.rows.copy_(scale * drawn * means.seen.unsqueeze(1))
    return of


def means_of(of: Case, m: str) -> ClassMeans:
    method = of.method
    assert isinstance(method, PMR)
    return method.class_means(m)


def slow_loss(of: Case, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch and the coefficients, sample by sample and class by class."""
    network, options = of.network(), of.method.config
    names = list(of.run.modalities)
    parameters = named_parameters(network, of.method)
    features = encode_in_double(network, batch.inputs)
    seen = [c for c in range(CLASSES) if bool(means_of(of, names[0]).seen[c])]
    labels = batch.y.tolist()
    scores = dict.fromkeys(names, 0.0)
    losses: dict[str, list[Tensor]] = {m: [] for m in names}
    entropies: dict[str, list[Tensor]] = {m: [] for m in names}
    for m in names:
        prototypes = means_of(of, m).rows
        for h, label in zip(features[m], labels, strict=True):
            similar = {c: -((h - prototypes[c]) ** 2).sum().sqrt() for c in seen}
            whole = torch.stack([torch.exp(q) for q in similar.values()]).sum()
            p = {c: torch.exp(q) / whole for c, q in similar.items()}
            entropies[m].append(-torch.stack([x * torch.log(x) for x in p.values()]).sum())
            if label in seen:
                scores[m] += float(p[label])
                losses[m].append(-torch.log(p[label]))
    best = max(scores.values())
    coefficients = {}
    for m in names:
        if options.variant == "released":
            coefficients[m] = 1.0 if scores[m] < best else 0.0
        else:
            coefficients[m] = min(max(best / scores[m] - 1, 0.0), 1.0)
    assert network.fusion is not None
    loss = cross_entropy(network.fusion(features), batch.y)
    for m in names:
        mean = torch.stack(losses[m]).sum() / len(losses[m])
        loss = loss + options.alpha * coefficients[m] * mean
    if options.variant == "paper" and of.run.epoch < options.entropy_epochs:
        lead = max(names, key=lambda m: scores[m])
        entropy = torch.stack(entropies[lead]).sum() / len(batch)
        loss = loss - options.entropy_weight * max(coefficients.values()) * entropy
    of_loss: Tensor = loss
    assert parameters
    return of_loss, coefficients


def slow_gradients(of: Case, batch: Batch) -> tuple[Gradients, dict[str, float]]:
    run_network = of.run.network
    copy = of.network()
    of.run.network = copy
    # The loss is written on a copy whose parameters are those it is derived by.
    network = of.network
    setattr(of, "network", lambda: copy)
    loss, coefficients = slow_loss(of, batch)
    found = gradients_of(loss, named_parameters(copy, of.method))
    setattr(of, "network", network)
    of.run.network = run_network
    return found, coefficients
