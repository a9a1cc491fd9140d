"""Linear probes against scikit-learn's own probabilities and the conditions of the optimum."""

import warnings

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmbench.errors import DataError
from mmbench.evaluate import probes
from mmbench.evaluate.probes import fit_probe


def blobs(
    classes: int, rows: int = 120, width: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = rng.normal(size=(classes, width))
    features = centres[labels] + rng.normal(size=(rows, width))
    return features * 10 ** rng.uniform(-3, 3, width) + 7, labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_probabilities_are_those_of_scikit_learn(classes: int) -> None:
    features, labels = blobs(classes)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000))
    expected = reference.fit(features[:80], labels[:80]).predict_proba(features[80:])
    logits = fit_probe(features[:80], labels[:80], classes).logits(features[80:])
    assert logits.shape == (40, classes)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(softmax(logits, axis=1), expected, atol=1e-5)


def test_the_penalised_loss_is_at_its_minimum() -> None:
    """At the optimum the gradient of ``sum CE + |W|^2 / 2`` is zero: weights and biases follow from
    what the definition says, not from the library that found them."""
    features, labels = blobs(4)
    probe = fit_probe(features, labels, 4)
    standard = (features - features.mean(0)) / features.std(0)
    error = softmax(standard @ probe.weight.T + probe.bias, axis=1) - np.eye(4)[labels]
    # scikit-learn stops when the gradient of the mean loss is below 1e-4
    np.testing.assert_allclose((error.T @ standard + probe.weight) / len(labels), 0, atol=2e-4)
    np.testing.assert_allclose(error.sum(0) / len(labels), 0, atol=2e-4)


def test_scale_and_offset_of_a_feature_change_nothing() -> None:
    features, labels = blobs(3)
    moved = features * np.array([1e-4, 10, 1e3, 1, 5]) + np.array([3, -1e3, 0, 5, 1])
    expected = fit_probe(features, labels, 3).logits(features)
    np.testing.assert_allclose(fit_probe(moved, labels, 3).logits(moved), expected, atol=1e-3)


def test_constant_features_have_no_say() -> None:
    features, labels = blobs(3)
    dead = np.column_stack([features, np.zeros(len(features)), np.full(len(features), 0.1)])
    probe = fit_probe(dead, labels, 3)
    np.testing.assert_allclose(probe.weight[:, 5:], 0, atol=1e-12)
    awake = dead + np.array([0, 0, 0, 0, 0, 100.0, -100.0])
    np.testing.assert_allclose(probe.logits(awake), probe.logits(dead), atol=1e-6)


def test_only_constant_features_give_the_class_frequencies() -> None:
    labels = np.array([0, 0, 0, 1])
    logits = fit_probe(np.ones((4, 3)), labels, 2).logits(np.ones((1, 3)))
    np.testing.assert_allclose(softmax(logits, axis=1), [[0.75, 0.25]], atol=1e-4)


def test_a_class_without_training_rows_gets_probability_zero() -> None:
    features, labels = blobs(2)
    logits = fit_probe(features, np.where(labels == 1, 3, 1), 5).logits(features)
    chances = softmax(logits, axis=1)
    np.testing.assert_array_equal(chances[:, [0, 2, 4]], 0)
    plain = softmax(fit_probe(features, labels, 2).logits(features), axis=1)
    np.testing.assert_allclose(chances[:, [1, 3]], plain, atol=1e-6)


def test_one_training_class_is_always_predicted() -> None:
    features = np.random.default_rng(0).normal(size=(6, 2))
    logits = fit_probe(features, np.full(6, 1), 3).logits(features)
    np.testing.assert_array_equal(log_softmax(logits, axis=1), [[-np.inf, 0, -np.inf]] * 6)


def test_the_same_rows_give_the_same_probe_and_leave_global_randomness_alone() -> None:
    features, labels = blobs(3)
    before = np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    first, second = fit_probe(features, labels, 3), fit_probe(features, labels, 3)
    np.testing.assert_array_equal(first.weight, second.weight)
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before  # noqa: NPY002


def test_a_fit_that_runs_out_of_iterations_is_noted_and_shown_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, labels = blobs(3)
    assert fit_probe(features, labels, 3).converged
    monkeypatch.setattr(probes, "ITERATIONS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fit_probe(features, labels, 3).converged


def test_separable_rows_converge() -> None:
    features = np.eye(10).repeat(20, axis=0)
    labels = np.arange(10).repeat(20)
    probe = fit_probe(features, labels, 10)
    assert probe.converged
    assert (probe.logits(features).argmax(1) == labels).all()


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, np.int64), "N > 0"),
        (np.zeros((3, 0)), np.zeros(3, np.int64), "N > 0"),
        (np.zeros((3, 2)), np.zeros(4, np.int64), r"\(3, 2\) and \(4,\)"),
        (np.array([[0.0], [np.nan]]), np.array([0, 1]), "finite"),
        (np.array([[0.0], [np.inf]]), np.array([0, 1]), "finite"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused(
    features: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit_probe(features, labels, 2)
