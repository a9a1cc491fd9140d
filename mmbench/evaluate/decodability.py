"""How well frozen features tell a target, by probes of three kinds, with intervals over groups.

A probe that is linear, one of near neighbours and one with a hidden layer stand beside each other,
so that "not linearly decodable" is not taken for "lost".
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """``(N, D)`` numbers, or ``(N, 1)`` ones where the class is training's most frequent."""
    of_classes: bool

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Return the score for each row of ``weights (R, N)``, which say how often a test row
        counts: mean R² over the targets, or accuracy above chance ``(acc - c) / (1 - c)`` with c
        the share of the most frequent training class among the test rows."""
        total = weights.sum(axis=1, keepdims=True)
        wrong = weights @ self.errors
        if self.of_classes:
            chance = float(self.target.mean())
            return np.asarray((1 - wrong[:, 0] / total[:, 0] - chance) / (1 - chance))
        centred = self.target - self.target.mean(axis=0)
        spread = weights @ centred**2 - (weights @ centred) ** 2 / total
        return np.asarray((1 - wrong / np.maximum(spread, 1e-12)).mean(axis=1))

    def score(self) -> float:
        return float(self.scores(np.ones((1, len(self.errors))))[0])


def decode(train: Table, val: Table, test: Table, kind: ProbeKind, seed: int = 0) -> Decoded:
    """Return what a probe fitted to training rows predicts for test rows; its penalty, or when it
    stops, is chosen on validation rows. Features and numeric targets are standardised by train."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.features)
    x, x_val, x_test = (scaler.transform(t.features) for t in (train, val, test))
    if of_classes := train.target.ndim == 1:
        y, y_val, y_test = (t.target for t in (train, val, test))
    else:
        units = StandardScaler().fit(train.target)
        y, y_val, y_test = (units.transform(t.target) for t in (train, val, test))
        y = y.ravel() if y.shape[1] == 1 else y  # as scikit-learn wants a single one
    models = [_quietly(model, x, y) for model in _probes(kind, x, y, of_classes, seed)]
    best = max(models, key=lambda m: float(m.score(x_val, y_val))) if models[1:] else models[0]
    predicted = best.predict(x_test).reshape(y_test.shape)
    if of_classes:
        wrong, frequent = predicted != y_test, y_test == np.bincount(y).argmax()
        return Decoded(wrong[:, None].astype(float), frequent[:, None].astype(float), True)
    return Decoded((predicted - y_test) ** 2, y_test, False)


def _probes(
    kind: ProbeKind, x: np.ndarray, y: np.ndarray, of_classes: bool, seed: int
) -> list[Any]:
    """Return the models among which validation chooses, to be fitted to ``x (N, d)`` and ``y``."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    if kind == "neighbours":
        nearest = KNeighborsClassifier if of_classes else KNeighborsRegressor
        return [nearest(min(NEIGHBOURS, len(x)))]
    if kind == "mlp":
        # A tenth of the rows say when to stop: of classes, some of each have to be among them.
        rarest = np.bincount(y)[np.unique(y)].min() if of_classes else len(x)
        network = MLPClassifier if of_classes else MLPRegressor
        return [
            network(
                hidden_layer_sizes=(HIDDEN,),
                early_stopping=bool(rarest >= (20 if of_classes else 50)),
                max_iter=200,
                random_state=seed,
            )
        ]
    # The penalty grows with the rows, as that of a mean loss does.
    penalties = [penalty * len(x) for penalty in PENALTIES]
    if of_classes:
        return [LogisticRegression(C=1 / penalty, max_iter=500) for penalty in penalties]
    return [Ridge(alpha=penalty) for penalty in penalties]


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
