"""Metrics against scikit-learn, torchmetrics, torch and loops written from the definitions."""

import math
import warnings
from random import Random

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from torch.nn import functional
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_auroc,
    multiclass_average_precision,
    multiclass_calibration_error,
)

from mmbench.errors import DataError
from mmbench.evaluate.metrics import (
    METRICS,
    accuracy,
    adaptive_ece,
    all_metrics,
    auroc,
    brier,
    ece,
    macro_f1,
    mean_average_precision,
    nll,
    per_class,
    weighted_f1,
)

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
    expected = sklearn.metrics.f1_score(labels, predicted, average="weighted", zero_division=0)
    assert weighted_f1(labels, logits) == pytest.approx(expected)


@every_case
@given(predictions())
def test_rankings_agree_with_scikit_learn_class_by_class(case: Rows) -> None:
    """Absent classes, ties and a single class included."""
    labels, logits = case
    probability = np.exp(log_softmax(logits, axis=1))
    areas, precisions = [], []
    found = per_class(labels, logits)
    for c in range(logits.shape[1]):
        is_class, p = labels == c, probability[:, c]
        if is_class.any():
            precisions.append(sklearn.metrics.average_precision_score(is_class, p))
            assert found.average_precision[c] == pytest.approx(precisions[-1])
        else:
            assert math.isnan(found.average_precision[c])
        if is_class.any() and not is_class.all():
            areas.append(sklearn.metrics.roc_auc_score(is_class, p))
            assert found.auroc[c] == pytest.approx(areas[-1])
        else:
            assert math.isnan(found.auroc[c])
    assert mean_average_precision(labels, logits) == pytest.approx(np.mean(precisions))
    if areas:
        assert auroc(labels, logits) == pytest.approx(np.mean(areas))
    else:
        assert math.isnan(auroc(labels, logits))


def test_rankings_agree_with_torchmetrics() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        classes = int(rng.integers(2, 6))
        labels = np.concatenate([np.arange(classes), rng.integers(0, classes, 80)])
        logits = rng.normal(scale=2, size=(len(labels), classes))
        p, y = torch.from_numpy(softmax(logits, axis=1)), torch.from_numpy(labels)
        theirs = multiclass_auroc(p, y, classes, average="macro")
        assert auroc(labels, logits) == pytest.approx(float(theirs), abs=1e-5)
        theirs = multiclass_average_precision(p, y, classes, average="macro")
        assert mean_average_precision(labels, logits) == pytest.approx(float(theirs), abs=1e-5)


@every_case
@given(predictions())
def test_classes_agree_with_scikit_learn(case: Rows) -> None:
    labels, logits = case
    classes = range(logits.shape[1])
    predicted = logits.argmax(axis=1)
    precision, recall, f1, rows = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=np.nan
    )
    found = per_class(labels, logits)
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.f1, np.nan_to_num(f1))
    np.testing.assert_array_equal(found.rows, rows)


@every_case
@given(predictions(min_classes=2))
def test_losses_of_the_classes_make_up_the_whole(case: Rows) -> None:
    labels, logits = case
    found = per_class(labels, logits)
    assert np.sum(found.brier) == pytest.approx(brier(labels, logits))
    assert np.nansum(found.nll * found.rows) / len(labels) == pytest.approx(nll(labels, logits))
    p = softmax(logits, axis=1)
    for c in range(logits.shape[1]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a probability of 1 + 1e-16
            theirs = sklearn.metrics.brier_score_loss(
                labels == c, np.minimum(p[:, c], 1), pos_label=True, labels=[False, True]
            )
        assert found.brier[c] == pytest.approx(theirs, abs=1e-12)


@every_case
@given(predictions(), st.randoms(use_true_random=False))
def test_no_metric_depends_on_the_order_of_rows(case: Rows, random: Random) -> None:
    labels, logits = case
    order = list(range(len(labels)))
    random.shuffle(order)
    again = all_metrics(labels[order], logits[order])
    assert again == pytest.approx(all_metrics(labels, logits), nan_ok=True, abs=1e-12)


@every_case
@given(predictions())
def test_shares_lie_between_0_and_1(case: Rows) -> None:
    for name, value in all_metrics(*case).items():
        if name not in ("nll", "brier") and not math.isnan(value):
            assert 0 <= value <= 1 + 1e-12, name


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


def adaptive_ece_by_loops(labels: np.ndarray, logits: np.ndarray) -> float:
    """Rows are dealt to 15 bins in order of confidence; one as sure as that before joins it."""
    probability = softmax(logits, axis=1)
    bins: dict[int, list[tuple[bool, float]]] = {}
    order = sorted(range(len(labels)), key=lambda i: probability[i].max())
    bin_of, before = 0, -1.0
    for rank, i in enumerate(order):
        confidence = float(probability[i].max())
        if confidence != before:
            bin_of, before = rank * 15 // len(labels), confidence
        right = int(np.argmax(logits[i])) == labels[i]
        bins.setdefault(bin_of, []).append((right, confidence))
    return sum(abs(sum(r - c for r, c in rows)) for rows in bins.values()) / len(labels)


def test_adaptive_ece_agrees_with_loops_and_with_scikit_learns_quantiles() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels, logits = rng.integers(0, 4, 300), rng.normal(scale=2, size=(300, 4))
        found = adaptive_ece(labels, logits)
        assert found == pytest.approx(adaptive_ece_by_loops(labels, logits), abs=1e-12)
        confidence = softmax(logits, axis=1).max(axis=1)
        right, mean = calibration_curve(
            logits.argmax(axis=1) == labels, confidence, n_bins=15, strategy="quantile"
        )
        # 300 distinct confidences in 15 bins are 20 rows each.
        assert found == pytest.approx(np.abs(right - mean).mean(), abs=1e-12)


def test_rows_of_equal_confidence_are_one_bin_of_the_adaptive_error() -> None:
    labels = np.array([0, 1] * 20)
    assert adaptive_ece(labels, np.zeros((40, 2))) == pytest.approx(0)
    assert adaptive_ece(np.sort(labels), np.zeros((40, 2))) == pytest.approx(0)


def test_class_wise_calibration_agrees_with_torchmetrics() -> None:
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 3, 200), rng.normal(scale=2, size=(200, 3))
    p = softmax(logits, axis=1)
    for c, found in enumerate(per_class(labels, logits).ece):
        theirs = binary_calibration_error(
            torch.from_numpy(p[:, c].copy()),
            torch.from_numpy((labels == c).astype(np.int64)),
            n_bins=15,
        )
        assert found == pytest.approx(float(theirs), abs=1e-6)


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
    found = all_metrics(np.zeros(3, np.int64), np.array([[1.0], [-5.0], [0.0]]))
    assert math.isnan(found.pop("auroc"))
    best = dict.fromkeys(("accuracy", "macro_f1", "weighted_f1", "mean_average_precision"), 1.0)
    assert found == best | dict.fromkeys(("nll", "ece", "adaptive_ece", "brier"), 0.0)


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
