"""Reliability diagrams: their points are the stored predictions."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from mmbench.report.comparison import compare
from mmbench.report.figures.reliability import reliability_figure, row_bins
from tests.unit.records import write_setting


def stored(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Whether each test row is right, and its largest probability, from the files."""
    with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
        labels, logits = arrays["test_labels"], arrays["test_logits"].astype(float)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return p.argmax(axis=1) == labels, p.max(axis=1)


def test_points_are_those_of_scikit_learn_over_the_rows_of_all_seeds(tmp_path: Path) -> None:
    folders = write_setting(tmp_path, "joint", [0.8, 0.7])
    group = compare(tmp_path).groups[0]
    bins = row_bins(group.rows[0])
    assert bins is not None
    right, confidence = (np.concatenate(parts) for parts in zip(*map(stored, folders), strict=True))
    y, x = calibration_curve(right, confidence, n_bins=15)
    shown = [values[~np.isnan(values)] for values in bins.points]
    assert shown[0] == pytest.approx(x)
    assert shown[1] == pytest.approx(y)
    figure = reliability_figure(group)
    assert figure is not None
    (axis,) = figure.axes
    points = axis.lines[-1]
    assert np.asarray(points.get_xdata()) == pytest.approx(x)
    assert np.asarray(points.get_ydata()) == pytest.approx(y)
    counts, _ = np.histogram(confidence, np.arange(16) / 15)
    assert axis.patches[0].get_data().values == pytest.approx(counts / 800)  # type: ignore[attr-defined]


def test_the_title_has_the_calibration_error_of_the_table(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", [0.8, 0.7, 0.9])
    row = compare(tmp_path, metric="ece").groups[0].rows[0]
    bins = row_bins(row)
    assert bins is not None
    assert bins.ece == pytest.approx(row.value.mean, abs=1e-6)
    figure = reliability_figure(compare(tmp_path).groups[0])
    assert figure is not None
    assert figure.axes[0].get_title() == f"joint\nECE {100 * row.value.mean:.1f} %"


def test_bars_go_from_the_lowest_to_the_highest_seed(tmp_path: Path) -> None:
    folders = write_setting(tmp_path, "joint", [0.9, 0.6])
    figure = reliability_figure(compare(tmp_path).groups[0])
    assert figure is not None
    by_seed = []
    for right, confidence in map(stored, folders):
        inside = (confidence > 12 / 15) & (confidence <= 13 / 15)
        by_seed.append(right[inside].mean())
    ends = [segment[:, 1] for segment in figure.axes[0].collections[0].get_segments()]  # type: ignore[attr-defined]
    assert any(end == pytest.approx(sorted(by_seed)) for end in ends)


@pytest.mark.parametrize("damage", ["missing", "damaged", "of another run"])
def test_a_row_without_its_predictions_is_named_and_not_drawn(tmp_path: Path, damage: str) -> None:
    (good,) = write_setting(tmp_path, "joint", [0.8])
    bad, _ = write_setting(tmp_path, "ogm", [0.7, 0.7])
    file = bad / "predictions.npz"
    if damage == "missing":
        file.unlink()
    elif damage == "damaged":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file.write_bytes((good / "predictions.npz").read_bytes())
    figure = reliability_figure(compare(tmp_path).groups[0])
    assert figure is not None
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == ["joint"]
    heading = re.sub(r"\s+", " ", figure.texts[0].get_text())
    assert "Left out, as their predictions are not stored: ogm" in heading


def test_without_any_predictions_there_is_no_figure(tmp_path: Path) -> None:
    (folder,) = write_setting(tmp_path, "joint", [0.8])
    (folder / "predictions.npz").unlink()
    assert reliability_figure(compare(tmp_path).groups[0]) is None
