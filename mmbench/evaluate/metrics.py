"""Metrics of predictions: class numbers ``labels (N,)`` and natural-log ``logits (N, C)`` in.

All are computed in float64 with numpy alone, so that a bootstrap can call them thousands of times.
The predicted class is that of the largest logit, the first one where several tie.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax

from mmbench.errors import DataError

Metric = Callable[[np.ndarray, np.ndarray], float]
"""``metric(labels, logits)``."""

ECE_BINS = 15
"""As in Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017)."""


def accuracy(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the share of rows whose predicted class is the true one, in [0, 1]."""
    labels, logits = _checked(labels, logits)
    return float((logits.argmax(axis=1) == labels).mean())


def macro_f1(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the mean over all C classes of ``F1_c = 2 TP / (2 TP + FP + FN)``, in [0, 1].

    A class that is neither true nor predicted in any row counts as 0.
    """
    labels, logits = _checked(labels, logits)
    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    seen = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float((2 * hits / np.maximum(seen, 1)).mean())


def nll(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the true class in nats.

    It is infinite when a true class has a logit of minus infinity.
    """
    labels, logits = _checked(labels, logits)
    return float(-_log_probability(logits)[np.arange(len(labels)), labels].mean())


def ece(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the expected calibration error of the predicted class, in [0, 1].

    ``sum_b |B_b| / N * |accuracy(B_b) - confidence(B_b)|`` over 15 bins of equal width, where bin b
    holds the rows whose largest probability lies in ``((b - 1) / 15, b / 15]``: ``accuracy(B_b)``
    is their share of right predictions and ``confidence(B_b)`` the mean of that probability.
    """
    labels, logits = _checked(labels, logits)
    confidence = np.exp(_log_probability(logits).max(axis=1))
    right = logits.argmax(axis=1) == labels
    inner_edges = np.arange(1, ECE_BINS) / ECE_BINS
    bins = np.digitize(confidence, inner_edges, right=True)
    surplus = np.bincount(bins, weights=right - confidence, minlength=ECE_BINS)
    return float(np.abs(surplus).sum() / len(labels))


def brier(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the mean over rows of ``sum_c (p_c - 1[y = c])^2``, in [0, 2]."""
    labels, logits = _checked(labels, logits)
    difference = np.exp(_log_probability(logits))
    difference[np.arange(len(labels)), labels] -= 1.0
    return float((difference**2).sum(axis=1).mean())


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "nll": nll,
    "ece": ece,
    "brier": brier,
}


def all_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return every metric by name.

    Raises :class:`DataError`, as each metric does, for no rows, shapes that do not fit, labels
    outside of ``range(C)``, and logits that give no probabilities (NaN, plus infinity).
    """
    return {name: metric(labels, logits) for name, metric in METRICS.items()}


def _log_probability(logits: np.ndarray) -> np.ndarray:
    log_probability: np.ndarray = log_softmax(logits, axis=1)
    return log_probability


def _checked(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as int64 and logits as float64, or raise for what has no metric."""
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise DataError(
            f"metrics need labels (N,) and logits (N, C), not {labels.shape} and {logits.shape}"
        )
    if logits.size == 0:
        raise DataError("metrics need at least one row and one class; the predictions are empty")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"metrics need class numbers as labels, not {labels.dtype} values")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, but the logits have "
            f"{logits.shape[1]} classes, numbered from 0"
        )
    if not np.isfinite(logits.max(axis=1)).all():
        row = int(np.flatnonzero(~np.isfinite(logits.max(axis=1)))[0])
        raise DataError(f"the logits of row {row} give no probabilities: {logits[row].tolist()}")
    return labels.astype(np.int64), logits
