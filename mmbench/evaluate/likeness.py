"""How alike two sets of features are, and how many directions one set fills."""

from __future__ import annotations

import numpy as np


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return linear centred kernel alignment of ``x (N, d)`` and ``y (N, e)``: 1 when one is a
    rotation of the other up to scale (Kornblith et al., ICML 2019)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    shared = float(np.linalg.norm(x.T @ y) ** 2)
    norms = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return shared / norms if norms > 0 else 0.0


def paired_cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean cosine of paired rows ``(N, d)`` after centring."""
    return float((_direction(x) * _direction(y)).sum(axis=1).mean())


def retrieval(x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of rows of ``x (N, d)`` whose nearest row of ``y``, by cosine after
    centring, is their own."""
    nearest = (_direction(x) @ _direction(y).T).argmax(axis=1)
    return float((nearest == np.arange(len(x))).mean())


def modality_gap(x: np.ndarray, y: np.ndarray) -> float:
    """Return the distance between the means of the unit rows of ``x`` and ``y (N, d)``."""
    return float(np.linalg.norm(_unit(x).mean(axis=0) - _unit(y).mean(axis=0)))


def _direction(x: np.ndarray) -> np.ndarray:
    return _unit(x - x.mean(axis=0))


def _unit(x: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.maximum(lengths, 1e-12))


def effective_rank(h: np.ndarray) -> float:
    """Return the exponential of the entropy of the normalised singular values of the centred
    features ``(N, d)``: from 1 to d (Roy and Vetterli, 2007)."""
    values = np.linalg.svd(h - h.mean(axis=0), compute_uv=False)
    if values.sum() <= 0:
        return 1.0
    p = values / values.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))
