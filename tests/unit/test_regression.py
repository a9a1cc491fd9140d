"""Metrics of numbers against scikit-learn and scipy."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmbench.errors import DataError
from mmbench.evaluate.regression import mean_absolute_error, pearson_correlation

Pair = tuple[np.ndarray, np.ndarray]


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """Targets and predictions; many are small integers, so that ties and constants are common."""
    rows = draw(st.integers(1, 20))
    value = st.one_of(st.integers(-2, 2).map(float), st.floats(-1e3, 1e3))
    return draw(arrays(np.float64, rows, elements=value)), draw(
        arrays(np.float64, rows, elements=value)
    )


@settings(max_examples=100, deadline=None)
@given(pairs())
def test_error_and_correlation_agree_with_scikit_learn_and_scipy(case: Pair) -> None:
    targets, predicted = case
    expected = sklearn.metrics.mean_absolute_error(targets, predicted)
    assert mean_absolute_error(targets, predicted) == pytest.approx(expected)
    found = pearson_correlation(targets, predicted)
    if np.ptp(targets) == 0 or np.ptp(predicted) == 0:
        assert math.isnan(found)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            theirs = scipy.stats.pearsonr(targets, predicted).statistic
        except RuntimeWarning:  # nearly constant: scipy does not trust its own number
            return
    assert found == pytest.approx(theirs, abs=1e-9)


def test_a_line_is_perfect_and_its_mirror_is_the_opposite() -> None:
    x = np.array([1.0, 2.0, 4.0])
    assert pearson_correlation(x, 3 * x + 1) == pytest.approx(1)
    assert pearson_correlation(x, -x) == pytest.approx(-1)
    assert pearson_correlation(1e200 * x, x) == pytest.approx(1)


@pytest.mark.parametrize(
    ("targets", "predicted", "words"),
    [
        (np.zeros(0), np.zeros(0), "empty"),
        (np.zeros(2), np.zeros(3), r"\(2,\) and \(3,\)"),
        (np.zeros((2, 1)), np.zeros((2, 1)), "one number a row"),
        (np.array([0.0, np.nan]), np.zeros(2), "target of row 1"),
        (np.zeros(2), np.array([np.inf, 0.0]), "prediction of row 0"),
    ],
)
def test_numbers_without_a_metric_are_refused(
    targets: np.ndarray, predicted: np.ndarray, words: str
) -> None:
    for metric in (mean_absolute_error, pearson_correlation):
        with pytest.raises(DataError, match=words):
            metric(targets, predicted)
