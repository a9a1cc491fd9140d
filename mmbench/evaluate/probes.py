"""Linear probes: what a fresh linear classifier reads from the features of a frozen encoder.

The only read-out of a modality that compares across methods, since it does not depend on how, or
whether, a method trained a head for that modality.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from mmbench.errors import DataError

INVERSE_PENALTY = 1.0
"""`C` of scikit-learn: the summed loss against half the squared weights; their default."""
ITERATIONS = 2000
"""Far above what standardised features take (tens to a few hundred), so that it is a guard."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier on standardised features: ``((x - mean) / scale) W^T + b``."""

    mean: np.ndarray
    """``(width,)``, of the training rows; so is ``scale``, which is 1 for a constant feature."""
    scale: np.ndarray
    weight: np.ndarray
    """``(C, width)``."""
    bias: np.ndarray
    """``(C,)``; minus infinity for a class without training rows."""
    converged: bool
    """Whether the fit met its tolerance before it ran out of iterations."""

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return the logits ``(N, C)`` float32 of features ``(N, width)``."""
        standard = (np.asarray(features, dtype=np.float64) - self.mean) / self.scale
        logits: np.ndarray = (standard @ self.weight.T + self.bias).astype(np.float32)
        return logits


def fit_probe(features: np.ndarray, labels: np.ndarray, classes: int) -> Probe:
    """Fit multinomial logistic regression (L-BFGS, L2 penalty with C = 1) to features
    ``(N, width)`` and class numbers ``(N,)``.

    Features are standardised by these rows; a constant one gets weight 0. A class without rows
    gets probability 0. Nothing is drawn at random. All rows are used whatever their number, on as
    many threads as torch uses: the time grows with ``iterations * N * width * classes``, about a
    second for 10,000 rows of 128 features and 10 classes on one core. Raises :class:`DataError`
    for no rows, shapes that do not fit, or features that are not finite.
    """
    from sklearn.preprocessing import StandardScaler

    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or features.size == 0:
        raise DataError(
            f"a probe needs features (N, width) and labels (N,), N > 0, not {features.shape} and "
            f"{labels.shape}"
        )
    if not np.isfinite(features).all():
        raise DataError("a probe needs finite features; the encoder gives NaN or infinite ones")
    scaler = StandardScaler().fit(features)
    weight = np.zeros((classes, features.shape[1]))
    bias = np.full(classes, -np.inf)
    present = np.unique(labels)
    converged = True
    if len(present) == 1:
        bias[present] = 0.0
    else:
        weight[present], bias[present], converged = _regress(scaler.transform(features), labels)
    return Probe(scaler.mean_, scaler.scale_, weight, bias, converged)


def _regress(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return weights and biases, a row per class that occurs, and whether the fit converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(C=INVERSE_PENALTY, solver="lbfgs", max_iter=ITERATIONS)
    # numpy's threads, not bound by torch's setting, would slow small fits and change last bits.
    threads = threadpool_limits(torch.get_num_threads(), user_api="blas")
    with threads, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, labels)
    converged = True
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes: scikit-learn keeps the difference of their logits
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias, converged
