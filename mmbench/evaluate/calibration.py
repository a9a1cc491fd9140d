"""Temperature scaling of logits (Guo et al., ICML 2017)."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

COOLEST, HOTTEST = 0.25, 8.0


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """Return the T in [0.25, 8] that minimises the mean cross-entropy of ``logits / T``, for logits
    ``(N, C)`` that were not trained on. The loss is convex in 1 / T: there is one minimum.
    """
    with torch.no_grad():
        exact = logits.double()

        def loss(log_temperature: float) -> float:
            return float(functional.cross_entropy(exact / math.exp(log_temperature), y))

        found = minimize_scalar(
            loss, bounds=(math.log(COOLEST), math.log(HOTTEST)), method="bounded"
        )
    return math.exp(float(found.x))
