"""Metrics of predicted numbers: targets and predictions ``(N,)``, in float64. For data whose labels
are numbers, such as the strength of a sentiment; no dataset here has such labels yet.
"""

from __future__ import annotations

import math

import numpy as np

from mmbench.errors import DataError


def mean_absolute_error(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean of ``|predicted - target|`` over rows ``(N,)``, in the targets' unit."""
    targets, predicted = _checked_numbers(targets, predicted)
    return float(np.abs(predicted - targets).mean())


def pearson_correlation(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return Pearson's correlation of targets and predictions ``(N,)``, in [-1, 1].

    NaN where it is not defined: fewer than two rows, or all targets or all predictions equal.
    """
    targets, predicted = _checked_numbers(targets, predicted)
    if np.ptp(targets) == 0 or np.ptp(predicted) == 0:
        return math.nan
    # Of numbers of size 1, so that no square overflows or vanishes.
    x, y = _centred(targets), _centred(predicted)
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def _centred(x: np.ndarray) -> np.ndarray:
    away = x - x.mean()
    scaled: np.ndarray = away / np.abs(away).max()
    return scaled


def _checked_numbers(targets: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    targets = np.asarray(targets, dtype=np.float64)
    predicted = np.asarray(predicted, dtype=np.float64)
    if targets.ndim != 1 or targets.shape != predicted.shape:
        raise DataError(
            f"targets and predictions need one number a row, not {targets.shape} and "
            f"{predicted.shape}"
        )
    if targets.size == 0:
        raise DataError("metrics need at least one row; the predictions are empty")
    for name, numbers in (("target", targets), ("prediction", predicted)):
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise DataError(f"the {name} of row {row} is {numbers[row]}, not a finite number")
    return targets, predicted
