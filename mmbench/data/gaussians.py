"""Evidence about a class whose information is known: equidistant Gaussians and hidden symbols.

Modality m sees ``z_m = a_m e_y + noise`` in ``R^C``: the class y raises coordinate y by the offset
``a_m``, the noise is standard normal. The posterior is ``softmax(a_m z_m)``. Noise is correlated
between modalities, coordinate by coordinate, with

    S_ij = redundancy * min(a_i, a_j) / max(a_i, a_j),    i != j

so that at redundancy 1 a weaker modality is a degraded copy of a stronger one, and at 0 modalities
are independent given the class. A set of modalities is as good as one with the offset
``a = sqrt(a' S^-1 a)``, since ``sum_m w_m z_m`` with ``w = S^-1 a`` is sufficient for y.

Synergy: modality m also shows a symbol ``s_m`` in ``0..C-1``. Any M - 1 symbols are uniform and
independent of y; the sum of all M modulo C is y with probability q, and each other class with
probability ``(1 - q) / (C - 1)``.

Everything is worked out by one-dimensional integrals to about 1e-10; nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import log_softmax, ndtr

LARGEST_OFFSET = 40.0
"""Root bracket of :func:`offset_for`: at this offset the accuracy is 1 in double precision."""


def bayes_accuracy(offset: float, classes: int, hint: float | None = None) -> float:
    """Return the accuracy of the best decision from Gaussians with an offset.

    ``hint`` is the probability that an independent hint, a class, is right (None: no hint). With
    ``k = log(hint (C - 1) / (1 - hint))`` the decision is ``argmax_c a z_c + k [c = hint]``, so
    without a hint (k = 0) the accuracy is ``E Phi(Z + a)^(C - 1)``, Z standard normal.
    """
    right = 1 / classes if hint is None else hint
    if offset == 0:
        return max(right, 1 / classes)
    shift = _log_odds(right, classes) / offset

    def integrand(z: float, against_hint: bool) -> float:
        if not against_hint:
            return _density(z) * float(ndtr(z + offset + shift)) ** (classes - 1)
        others = float(ndtr(z + offset)) ** (classes - 2)
        return _density(z) * others * float(ndtr(z + offset - shift))

    told, misled = (
        quad(integrand, -12, 12, args=(against,), epsabs=1e-11, limit=200)[0]
        for against in (False, True)
    )
    return float(right * told + (1 - right) * misled)


def information(offset: float, classes: int, hint: float | None = None) -> float:
    """Return the mutual information, in nats, of the class and the evidence of `bayes_accuracy`.

    I = log C - E log sum_c exp(l_c - l_y) with the log-odds ``l_c = a z_c + k [c = hint]``. The
    mean of ``log S`` follows from ``log S = integral over u of exp(-e^u) - exp(-S e^u)``: S is a
    sum of independent log-normals, so the mean of the last term is a product of one-dimensional
    Laplace transforms. Both integrands are smooth and vanish at both ends: the trapezoidal rule
    converges geometrically.
    """
    right = 1 / classes if hint is None else hint
    boost = _log_odds(right, classes)
    square = offset**2
    # S is at most about exp(1.5 a^2 + k) in the mean: below this u both terms are 1 to 1e-17.
    u = np.arange(-45 - 1.5 * square - boost - math.log(classes), 10 + 10 * offset, 0.1)

    def laplace(shift: float) -> np.ndarray:
        """Return E exp(-exp(u + shift + a Z)) for all u."""
        z = np.arange(-10, 10, min(0.1, 0.3 / max(offset, 1)))
        weight = np.exp(-(z**2) / 2)
        with np.errstate(over="ignore"):
            terms: np.ndarray = np.exp(-np.exp(u[:, None] + shift + offset * z))
        mean: np.ndarray = terms @ weight / weight.sum()
        return mean

    def mean_log_sum(shifts: Sequence[float], plain: int) -> float:
        survives = laplace(0.0) ** plain
        for shift in shifts:
            survives = survives * laplace(shift)
        return float(np.sum(np.exp(-np.exp(u)) - survives) * (u[1] - u[0]))

    told = mean_log_sum([square + boost], classes - 1) - boost
    misled = mean_log_sum([square, boost], classes - 2)
    return max(0.0, math.log(classes) + square - right * told - (1 - right) * misled)


def offset_for(accuracy: float, classes: int) -> float:
    """Return the offset that gives a Bayes accuracy, from ``1 / classes`` (offset 0) to below 1."""
    if accuracy <= 1 / classes:
        return 0.0
    return float(
        brentq(lambda a: bayes_accuracy(a, classes) - accuracy, 0.0, LARGEST_OFFSET, xtol=1e-10)
    )


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _log_odds(right: float, classes: int) -> float:
    return math.log(right * (classes - 1) / (1 - right))


@dataclass(frozen=True)
class Evidence:
    """What M modalities show of the class; sets of modalities are lists of their numbers."""

    offsets: tuple[float, ...]
    classes: int
    redundancy: float = 0.0
    hint: float | None = None
    """Probability q that the sum of all symbols is the class; None without symbols."""

    @cached_property
    def correlation(self) -> np.ndarray:
        """Correlation S of the noise ``(M, M)``."""
        a = np.array(self.offsets)
        larger = np.maximum.outer(a, a)
        ratio = np.divide(
            np.minimum.outer(a, a), larger, out=np.zeros_like(larger), where=larger > 0
        )
        matrix: np.ndarray = self.redundancy * ratio
        np.fill_diagonal(matrix, 1.0)
        return matrix

    def weights(self, chosen: Sequence[int]) -> np.ndarray:
        """Return ``w = S^-1 a`` of the modalities: their log-odds are ``sum_m w_m z_m``. Where S
        is singular (equal modalities, redundancy 1) the smallest such w."""
        part = self.correlation[np.ix_(chosen, chosen)]
        weights: np.ndarray = np.linalg.lstsq(
            part, np.array(self.offsets)[list(chosen)], rcond=None
        )[0]
        return weights

    def offset(self, chosen: Sequence[int]) -> float:
        """Return the offset of the one modality that is as good as these together."""
        square = float(np.array(self.offsets)[list(chosen)] @ self.weights(chosen))
        return math.sqrt(max(0.0, square))

    def bayes_accuracy(self, chosen: Sequence[int]) -> float:
        return bayes_accuracy(self.offset(chosen), self.classes, self._hint_of(chosen))

    def information(self, chosen: Sequence[int]) -> float:
        """Return the mutual information of the class and these modalities, in nats."""
        return information(self.offset(chosen), self.classes, self._hint_of(chosen))

    def sample(
        self, y: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return ``z (M, N, C)`` and symbols ``(M, N)``, or None, for classes ``y (N,)``."""
        count, classes = len(self.offsets), self.classes
        values, vectors = np.linalg.eigh(self.correlation)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        z = np.tensordot(root, rng.standard_normal((count, len(y), classes)), axes=1)
        z += np.array(self.offsets)[:, None, None] * np.eye(classes)[y]
        if self.hint is None:
            return z, None
        symbols = rng.integers(classes, size=(count, len(y)))
        wrong = rng.integers(1, classes, size=len(y))
        told = np.where(rng.random(len(y)) < self.hint, y, y + wrong)
        symbols[-1] = (told - symbols[:-1].sum(axis=0)) % classes
        return z, symbols

    def posterior(
        self, z: np.ndarray, symbols: np.ndarray | None, chosen: Sequence[int]
    ) -> np.ndarray:
        """Return ``log p(y | modalities) (N, C)`` for the chosen modalities of `sample`."""
        log_odds = np.tensordot(self.weights(chosen), z[list(chosen)], axes=1)
        hint = self._hint_of(chosen)
        if hint is not None and symbols is not None:
            told = symbols.sum(axis=0) % self.classes
            log_odds = log_odds + _log_odds(hint, self.classes) * np.eye(self.classes)[told]
        result: np.ndarray = log_softmax(log_odds, axis=1)
        return result

    def own_noise(self, z: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return ``(M, N, C)`` what neither the class nor the other modalities tell of the evidence
        ``z (M, N, C)``: ``n_m - E[n_m | n_others]`` with the noise ``n_m = z_m - a_m e_y``. Zero
        where a modality is a copy of another."""
        offsets = np.array(self.offsets)[:, None, None]
        noise: np.ndarray = z - offsets * np.eye(self.classes)[y]
        own: np.ndarray = np.empty_like(noise)
        for i in range(len(noise)):
            others = [j for j in range(len(noise)) if j != i]
            between = self.correlation[np.ix_(others, others)]
            weights = np.linalg.lstsq(between, self.correlation[others, i], rcond=None)[0]
            own[i] = noise[i] - np.tensordot(weights, noise[others], axes=1)
        return own

    def _hint_of(self, chosen: Sequence[int]) -> float | None:
        """Fewer than all symbols say nothing."""
        return self.hint if len(set(chosen)) == len(self.offsets) else None
