"""How well frozen features tell a target, by probes of three kinds, with intervals over groups.

A probe that is linear, one of near neighbours and one with a hidden layer stand beside each other,
so that "not linearly decodable" is not taken for "lost".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

ProbeKind = Literal["linear", "neighbours", "mlp"]
PROBES: tuple[ProbeKind, ...] = ("linear", "neighbours", "mlp")

PENALTIES = tuple(10.0**power for power in range(-4, 3))
"""Penalties of the linear probe; validation chooses."""
NEIGHBOURS = 20
HIDDEN = 128


@dataclass(frozen=True)
class Table:
    """Rows of one split: features ``(N, d)`` and what they are to tell."""

    features: np.ndarray
    target: np.ndarray
    """``(N, D)`` numbers, or ``(N,)`` class numbers."""


@dataclass(frozen=True)
class Decoded:
    """A probe's predictions on test rows, kept per row so that scores can be resampled."""

    errors: np.ndarray
    """``(N, D)`` squared errors, or ``(N, 1)`` zeros and ones where the class is wrong."""
    target: np.ndarray
    """``(N, D)`` centred numbers; empty for classes."""
    chance: float
    """Share of the most frequent training class among the test rows; 0 for numbers."""

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Return the score for each row of ``weights (R, N)``, which say how often a test row
        counts: mean R² over the targets, or accuracy above chance ``(acc - c) / (1 - c)``."""
        total = weights.sum(axis=1, keepdims=True)
        wrong = weights @ self.errors
        if self.target.size == 0:
            accuracy = 1 - wrong[:, 0] / total[:, 0]
            return np.asarray((accuracy - self.chance) / (1 - self.chance))
        spread = weights @ self.target**2 - (weights @ self.target) ** 2 / total
        return np.asarray((1 - wrong / np.maximum(spread, 1e-12)).mean(axis=1))

    def score(self) -> float:
        return float(self.scores(np.ones((1, len(self.errors))))[0])


def decode(train: Table, val: Table, test: Table, kind: ProbeKind, seed: int = 0) -> Decoded:
    """Return what a probe fitted to training rows predicts for test rows; its penalty, or when it
    stops, is chosen on validation rows. Features and numeric targets are standardised by train."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.features)
    x, x_val, x_test = (scaler.transform(t.features) for t in (train, val, test))
    if train.target.ndim == 1:
        predict = _classifier(kind, x, train.target, x_val, val.target, seed)
        errors = (predict(x_test) != test.target).astype(np.float64)[:, None]
        frequent = np.bincount(train.target).argmax()
        return Decoded(errors, np.empty(0), float((test.target == frequent).mean()))
    units = StandardScaler().fit(train.target)
    y, y_val, y_test = (units.transform(t.target) for t in (train, val, test))
    predict = _regressor(kind, x, y, x_val, y_val, seed)
    predicted = predict(x_test).reshape(y_test.shape)
    return Decoded((predicted - y_test) ** 2, y_test - y_test.mean(axis=0), 0.0)


Predict = Callable[[np.ndarray], np.ndarray]


def _regressor(
    kind: ProbeKind,
    x: np.ndarray,
    y: np.ndarray,
    x_val: np.ndarray,
    y_val: np.ndarray,
    seed: int,
) -> Predict:
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.neural_network import MLPRegressor

    if kind == "neighbours":
        model = KNeighborsRegressor(min(NEIGHBOURS, len(x))).fit(x, y)
    elif kind == "mlp":
        model = MLPRegressor(
            hidden_layer_sizes=(HIDDEN,),
            early_stopping=len(x) >= 50,
            max_iter=200,
            random_state=seed,
        )
        _quietly(model, x, y if y.shape[1] > 1 else y.ravel())
    else:
        # The penalty grows with the rows, as that of a mean loss does.
        models = [Ridge(alpha=penalty * len(x)).fit(x, y) for penalty in PENALTIES]
        model = min(models, key=lambda m: float(((m.predict(x_val) - y_val) ** 2).mean()))
    return model.predict  # type: ignore[no-any-return]


def _classifier(
    kind: ProbeKind,
    x: np.ndarray,
    y: np.ndarray,
    x_val: np.ndarray,
    y_val: np.ndarray,
    seed: int,
) -> Predict:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier

    if kind == "neighbours":
        model = KNeighborsClassifier(min(NEIGHBOURS, len(x))).fit(x, y)
    elif kind == "mlp":
        enough = bool(np.bincount(y)[np.unique(y)].min() >= 20)
        model = MLPClassifier(
            hidden_layer_sizes=(HIDDEN,), early_stopping=enough, max_iter=200, random_state=seed
        )
        _quietly(model, x, y)
    else:
        models = [
            _quietly(LogisticRegression(C=1 / (penalty * len(x)), max_iter=500), x, y)
            for penalty in PENALTIES
        ]
        model = max(models, key=lambda m: float(m.score(x_val, y_val)))
    return model.predict  # type: ignore[no-any-return]


def _quietly(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """Fit a model that may stop before it converged, which is one way of being regularised."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def resampling(groups: np.ndarray | None, rows: int, count: int, seed: int) -> np.ndarray:
    """Return bootstrap weights ``(count, rows)``: how often each row is drawn when whole groups
    are drawn with replacement, or single rows where there are none."""
    random = np.random.default_rng(seed)
    if groups is None:
        return random.multinomial(rows, np.full(rows, 1 / rows), size=count).astype(np.float64)
    _, member = np.unique(groups, return_inverse=True)
    number = int(member.max()) + 1
    drawn = random.multinomial(number, np.full(number, 1 / number), size=count)
    return drawn[:, member].astype(np.float64)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def decoded_by_all(
    tables: Mapping[str, Table], seed: int = 0, probes: tuple[ProbeKind, ...] = PROBES
) -> dict[ProbeKind, Decoded]:
    """Return what each probe decodes; ``tables`` are train, val and test."""
    train, val, test = (tables[name] for name in ("train", "val", "test"))
    return {kind: decode(train, val, test, kind, seed) for kind in probes}
