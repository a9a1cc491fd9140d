"""Metrics of predictions: class numbers ``labels (N,)`` and natural-log ``logits (N, C)`` in.

All are computed in float64 with numpy alone, so that a bootstrap can call them thousands of times.
The predicted class is that of the largest logit, the first one where several tie. Definitions in
words, and what becomes of absent classes and ties: docs/contributions.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from mmbench.errors import DataError

Metric = Callable[[np.ndarray, np.ndarray], float]
"""``metric(labels, logits)``."""

ECE_BINS = 15
"""Of both forms of the calibration error; as in Guo et al., "On Calibration of Modern Neural
Networks" (ICML 2017)."""


def accuracy(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the share of rows whose predicted class is the true one, in [0, 1]."""
    labels, logits = _checked(labels, logits)
    return float((logits.argmax(axis=1) == labels).mean())


def macro_f1(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the mean over all C classes of ``F1_c = 2 TP / (2 TP + FP + FN)``, in [0, 1].

    A class that is neither true nor predicted in any row counts as 0.
    """
    labels, logits = _checked(labels, logits)
    return float(_f1(labels, logits).mean())


def weighted_f1(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the mean of ``F1_c`` over classes, weighted by their number of rows, in [0, 1]."""
    labels, logits = _checked(labels, logits)
    rows = np.bincount(labels, minlength=logits.shape[1])
    return float((_f1(labels, logits) * rows).sum() / len(labels))


def mean_average_precision(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the mean of the average precision over the classes that occur, in [0, 1].

    For class c the rows are ranked by ``p_c``; ``AP_c = sum_k (R_k - R_(k-1)) P_k`` over distinct
    values of ``p_c`` from the highest, with recall R_k and precision P_k of the rows at or above
    the k-th: rows that tie enter together, and nothing is interpolated.
    """
    labels, logits = _checked(labels, logits)
    return float(np.nanmean(_by_class(_average_precision, labels, logits)))


def auroc(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the mean over classes of the area under the one-against-rest ROC curve, in [0, 1]:
    the probability that ``p_c`` of a row of class c exceeds that of another row, ties counting
    half.

    Classes without rows have no curve and are left out; NaN when a single class occurs.
    """
    labels, logits = _checked(labels, logits)
    areas = _by_class(_area_under_curve, labels, logits)
    return math.nan if np.isnan(areas).all() else float(np.nanmean(areas))


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
    return _calibration_error(*_top_label(labels, logits), _equal_width)


def adaptive_ece(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the calibration error as in :func:`ece`, over 15 bins of equal numbers of rows, by
    rank of the largest probability (Nguyen and O'Connor, EMNLP 2015): ``N / 15`` rows a bin,
    rounded up or down.

    Rows of equal confidence share the bin of the first of them, so that the order of rows does not
    matter. With fewer than 15 rows each is its own bin.
    """
    return _calibration_error(*_top_label(labels, logits), _equal_count)


def brier(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the mean over rows of ``sum_c (p_c - 1[y = c])^2``, in [0, 2]."""
    labels, logits = _checked(labels, logits)
    difference = np.exp(_log_probability(logits))
    difference[np.arange(len(labels)), labels] -= 1.0
    return float((difference**2).sum(axis=1).mean())


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
    "mean_average_precision": mean_average_precision,
    "auroc": auroc,
    "nll": nll,
    "ece": ece,
    "adaptive_ece": adaptive_ece,
    "brier": brier,
}


def all_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return every metric by name.

    Raises :class:`DataError`, as each metric does, for no rows, shapes that do not fit, labels
    outside of ``range(C)``, and logits that give no probabilities (NaN, plus infinity).
    """
    return {name: metric(labels, logits) for name, metric in METRICS.items()}


# -- class by class --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassScores:
    """Metrics of each class against the rest, arrays ``(C,)``; NaN where a class has none."""

    rows: np.ndarray
    """Rows of the class, int64."""
    precision: np.ndarray
    """NaN for a class that is never predicted."""
    recall: np.ndarray
    """The accuracy on rows of the class; NaN for a class without rows."""
    f1: np.ndarray
    """As in :func:`macro_f1`: 0 for a class that is neither true nor predicted."""
    average_precision: np.ndarray
    """NaN for a class without rows."""
    auroc: np.ndarray
    """NaN for a class without rows, or with all of them."""
    nll: np.ndarray
    """Mean over the rows of the class, in nats; NaN without rows."""
    brier: np.ndarray
    """Mean over all rows of ``(p_c - 1[y = c])^2``: they sum to :func:`brier`."""
    ece: np.ndarray
    """Calibration error of ``p_c`` as a forecast of class c over all rows, in bins of equal width
    (class-wise ECE, Kull et al., NeurIPS 2019)."""
    adaptive_ece: np.ndarray
    """The same in bins of equal numbers of rows."""


def per_class(labels: np.ndarray, logits: np.ndarray) -> ClassScores:
    """Return the metrics of each class. Raises :class:`DataError` as :func:`all_metrics` does."""
    labels, logits = _checked(labels, logits)
    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    rows = np.bincount(labels, minlength=classes)
    named = np.bincount(predicted, minlength=classes)
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    surprise = -_log_probability(logits)[np.arange(len(labels)), labels]
    return ClassScores(
        rows=rows,
        precision=_ratio(hits, named),
        recall=_ratio(hits, rows),
        f1=_f1(labels, logits),
        average_precision=_by_class(_average_precision, labels, logits),
        auroc=_by_class(_area_under_curve, labels, logits),
        nll=_ratio(np.bincount(labels, weights=surprise, minlength=classes), rows),
        brier=_by_class(lambda is_c, p: float(((p - is_c) ** 2).mean()), labels, logits),
        ece=_by_class(lambda is_c, p: _calibration_error(is_c, p, _equal_width), labels, logits),
        adaptive_ece=_by_class(
            lambda is_c, p: _calibration_error(is_c, p, _equal_count), labels, logits
        ),
    )


# -- what they are made of -------------------------------------------------------------------------


def _f1(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return ``2 TP / (2 TP + FP + FN)`` of each class ``(C,)``, 0 where nothing is counted."""
    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    seen = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    scores: np.ndarray = 2 * hits / np.maximum(seen, 1)
    return scores


def _by_class(
    score: Callable[[np.ndarray, np.ndarray], float], labels: np.ndarray, logits: np.ndarray
) -> np.ndarray:
    """Return ``score(1[y = c], p_c)`` of each class ``(C,)``, both arguments ``(N,)``."""
    probability = np.exp(_log_probability(logits))
    return np.array([score(labels == c, p) for c, p in enumerate(probability.T)])


def _average_precision(is_class: np.ndarray, p: np.ndarray) -> float:
    if not is_class.any():
        return math.nan
    order = np.argsort(-p, kind="stable")
    ranked = p[order]
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    found = np.cumsum(is_class[order])[last_of_tie]
    precision = found / (last_of_tie + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def _area_under_curve(is_class: np.ndarray, p: np.ndarray) -> float:
    inside, outside = p[is_class], np.sort(p[~is_class])
    if not len(inside) or not len(outside):
        return math.nan
    below = np.searchsorted(outside, inside, side="left")
    not_above = np.searchsorted(outside, inside, side="right")
    return float((below + not_above).mean() / (2 * len(outside)))


def _top_label(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each row's prediction is right, and its probability, both ``(N,)``."""
    labels, logits = _checked(labels, logits)
    return logits.argmax(axis=1) == labels, np.exp(_log_probability(logits).max(axis=1))


def _calibration_error(
    hits: np.ndarray, confidence: np.ndarray, bins_of: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Return ``sum_b |B_b| / N * |mean hits - mean confidence|`` over the bins."""
    bins = bins_of(confidence)
    surplus = np.bincount(bins, weights=hits - confidence, minlength=ECE_BINS)
    return float(np.abs(surplus).sum() / len(hits))


def _equal_width(confidence: np.ndarray) -> np.ndarray:
    bins: np.ndarray = np.digitize(confidence, np.arange(1, ECE_BINS) / ECE_BINS, right=True)
    return bins


def _equal_count(confidence: np.ndarray) -> np.ndarray:
    rank = np.searchsorted(np.sort(confidence), confidence, side="left")
    bins: np.ndarray = rank * ECE_BINS // len(confidence)
    return bins


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return ``part / whole``, NaN where the whole is 0."""
    ratio: np.ndarray = np.divide(part, whole, out=np.full(len(whole), math.nan), where=whole > 0)
    return ratio


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
