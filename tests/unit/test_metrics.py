"""Metrics against scikit-learn, torchmetrics, torch and loops written from the definitions."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_calibration_error

from mmbench.errors import DataError
from mmbench.evaluate.metrics import METRICS, accuracy, all_metrics, brier, ece, macro_f1, nll

Rows = tuple[np.ndarray, np.ndarray]


@st.composite
def predictions(draw: st.DrawFn, min_classes: int = 1) -> Rows:
    """Labels and logits; many logits are small integers, so that ties are common."""
    classes = draw(st.integers(min_classes, 6))
    rows = draw(st.integers(1, 25))
    labels = draw(arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    value = st.one_of(
        st.integers(-2, 2).map(float), st.floats(-60, 60, allow_nan=False, allow_infinity=False)
    )
    return labels, draw(arrays(np.float64, (rows, classes), elements=value))


every_case = settings(max_examples=60, deadline=None)


@every_case
@given(predictions())
def test_accuracy_and_f1_agree_with_scikit_learn(case: Rows) -> None:
    labels, logits = case
    predicted = [int(np.flatnonzero(row == row.max())[0]) for row in logits]
    assert accuracy(labels, logits) == pytest.approx(
        sklearn.metrics.accuracy_score(labels, predicted)
    )
    expected = sklearn.metrics.f1_score(
        labels, predicted, labels=range(logits.shape[1]), average="macro", zero_division=0
    )
    assert macro_f1(labels, logits) == pytest.approx(expected)


@every_case
@given(predictions())
def test_nll_agrees_with_torch(case: Rows) -> None:
    labels, logits = case
    expected = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert nll(labels, logits) == pytest.approx(float(expected), abs=1e-12)


@every_case
@given(predictions(min_classes=2))
def test_brier_agrees_with_scikit_learn(case: Rows) -> None:
    labels, logits = case
    classes = list(range(logits.shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # float64 rows that sum to 1 - 1e-16
        expected = sklearn.metrics.brier_score_loss(
            labels, softmax(logits, axis=1), labels=classes, scale_by_half=False
        )
    assert brier(labels, logits) == pytest.approx(expected, abs=1e-12)


def ece_by_loops(labels: np.ndarray, logits: np.ndarray) -> float:
    probability = softmax(logits, axis=1)
    total = 0.0
    for b in range(15):
        rows = [i for i in range(len(labels)) if b / 15 < probability[i].max() <= (b + 1) / 15]
        if rows:
            right = [int(np.argmax(probability[i])) == labels[i] for i in rows]
            confidence = [probability[i].max() for i in rows]
            total += len(rows) / len(labels) * abs(np.mean(right) - np.mean(confidence))
    return float(total)


def test_ece_agrees_with_loops_and_torchmetrics() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        classes = int(rng.integers(2, 8))
        labels = rng.integers(0, classes, 200)
        logits = rng.normal(scale=3, size=(200, classes))
        assert ece(labels, logits) == pytest.approx(ece_by_loops(labels, logits), abs=1e-12)
        theirs = multiclass_calibration_error(
            torch.from_numpy(softmax(logits, axis=1)), torch.from_numpy(labels), classes, n_bins=15
        )
        assert ece(labels, logits) == pytest.approx(float(theirs), abs=1e-6)


def test_ece_of_a_certain_and_a_uniform_prediction() -> None:
    certain = np.array([[200.0, 0.0], [200.0, 0.0], [200.0, 0.0], [200.0, 0.0]])
    assert ece(np.array([0, 0, 0, 1]), certain) == pytest.approx(0.25)
    uniform = np.zeros((4, 4))
    assert ece(np.array([0, 1, 2, 3]), uniform) == pytest.approx(0.0)
    assert ece(np.array([0, 0, 0, 0]), uniform) == pytest.approx(0.75)


def test_rows_of_one_bin_are_averaged_before_they_are_compared() -> None:
    """Confidence .81 and .85 share the bin (12/15, 13/15]: a right and a wrong row there differ
    from the mean confidence .83 by .33, not by the mean of .19 and .85."""
    logits = np.log(np.array([[0.81, 0.19], [0.85, 0.15]]))
    assert ece(np.array([0, 1]), logits) == pytest.approx(0.33)


def test_ties_go_to_the_first_class() -> None:
    assert accuracy(np.array([0, 1]), np.zeros((2, 2))) == 0.5


def test_one_class_is_always_right() -> None:
    expected = {"accuracy": 1.0, "macro_f1": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}
    assert all_metrics(np.zeros(3, np.int64), np.array([[1.0], [-5.0], [0.0]])) == expected


def test_a_class_that_never_occurs_counts_as_zero_in_f1() -> None:
    logits = np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    assert macro_f1(np.array([0, 1]), logits) == pytest.approx(2 / 3)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e6, 0.0], [0.0, 1e6]], dtype=np.float32)
    assert nll(np.array([0, 0]), logits) == pytest.approx(5e5)
    assert brier(np.array([0, 0]), logits) == pytest.approx(1.0)


def test_a_class_of_probability_zero_has_infinite_loss_and_finite_other_metrics() -> None:
    labels, logits = np.array([0, 1]), np.array([[0.0, -np.inf], [0.0, -np.inf]])
    values = all_metrics(labels, logits)
    assert values["nll"] == math.inf
    assert values["accuracy"] == 0.5
    assert values["brier"] == 1.0
    assert values["ece"] == 0.5


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize(
    ("labels", "logits", "message"),
    [
        (np.zeros(0, np.int64), np.zeros((0, 3)), "empty"),
        (np.zeros(2, np.int64), np.zeros((2, 0)), "empty"),
        (np.zeros(2, np.int64), np.zeros((3, 3)), r"\(2,\) and \(3, 3\)"),
        (np.zeros(2, np.int64), np.zeros(2), r"labels \(N,\) and logits \(N, C\)"),
        (np.array([0, 3]), np.zeros((2, 3)), "0 to 3, but the logits have 3 classes"),
        (np.array([-1, 1]), np.zeros((2, 3)), "-1 to 1"),
        (np.array([0.0, 1.0]), np.zeros((2, 3)), "class numbers"),
        (np.array([0, 1]), np.array([[0.0, 1.0], [np.nan, 0.0]]), "row 1"),
        (np.array([0, 1]), np.array([[np.inf, 1.0], [0.0, 0.0]]), "row 0"),
        (np.array([0, 1]), np.array([[0.0, 0.0], [-np.inf, -np.inf]]), "row 1"),
    ],
)
def test_input_without_a_metric_is_refused(
    metric: object, labels: np.ndarray, logits: np.ndarray, message: str
) -> None:
    assert callable(metric)
    with pytest.raises(DataError, match=message):
        metric(labels, logits)
