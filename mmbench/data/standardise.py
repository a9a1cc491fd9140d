"""Features with mean zero and unit variance, as measured on the training rows alone."""

from __future__ import annotations

import numpy as np


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Return ``train`` and ``others``, each ``(N, D)``, as float32, less the mean and over the
    standard deviation (divisor N) of each column of ``train``.

    A column that is constant in ``train`` becomes zero everywhere: it cannot have taught anything.
    """
    exact = train.astype(np.float64)
    mean = exact.mean(axis=0)
    deviation = exact.std(axis=0)
    varies = exact.max(axis=0) > exact.min(axis=0)
    scale = np.divide(varies, deviation, out=np.zeros_like(mean), where=varies)
    return [((part - mean) * scale).astype(np.float32) for part in (train, *others)]
