"""The confidence ratio over training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmbench.report.comparison import compare
from mmbench.report.figures.confidence import confidence_figure, confidence_ratios
from mmbench.train.modulation import confidence_ratios as in_training
from tests.unit.drawn import points_of
from tests.unit.records import write_run


def test_ratios_are_those_that_training_steers_by() -> None:
    stream = torch.Generator().manual_seed(0)
    y = torch.randint(4, (50,), generator=stream)
    logits = {m: torch.randn(50, 4, generator=stream) for m in "abc"}
    confidence = {
        m: np.array([[float(z.softmax(1)[torch.arange(50), y].mean())]]) for m, z in logits.items()
    }
    ratios = confidence_ratios(confidence)
    expected = in_training(logits, y).tolist()
    assert [float(ratios[m][0, 0]) for m in "abc"] == pytest.approx(expected, rel=1e-5)


def test_a_ratio_needs_two_modalities_that_have_confidence() -> None:
    assert confidence_ratios({"a": np.array([[0.5]])}) == {}
    ratios = confidence_ratios(
        {"a": np.array([[0.5, 0.5, 0.0]]), "b": np.array([[np.nan, 0.0, 0.3]])}
    )
    assert np.isnan(list(ratios.values())).all()


def test_curves_are_geometric_means_over_seeds_on_a_logarithmic_axis(tmp_path: Path) -> None:
    history = "stage,epoch,val_accuracy,val_confidence.fourier,val_confidence.zernike\n"
    for seed, ratio in ((0, 8), (1, 2)):
        folder = write_run(tmp_path, "joint", seed)
        confidence = f"train,1,0.5,0.4,0.4\ntrain,2,0.6,{0.1 * ratio},0.1\n"
        (folder / "history.csv").write_text(history + confidence)
    write_run(tmp_path, "unimodal", 0, changed={"modality": "fourier"}, probes={"fourier": 0.7})
    figure = confidence_figure(compare(tmp_path).groups[0])
    assert figure is not None
    (axis,) = figure.axes  # a single modality has no ratio
    assert axis.get_title() == "joint"
    one, *curves = axis.lines
    assert [y for _, y in points_of(one)] == [0, 0]
    # Equal at first, then the geometric mean of 8 and 2 is 4: two doublings.
    assert [np.array(points_of(line)) for line in curves] == [
        pytest.approx(np.array([(1, 0), (2, 2)])),
        pytest.approx(np.array([(1, 0), (2, -2)])),
    ]
    low, high = axis.get_ylim()
    assert low == -high
    written = [label.get_text() for label in axis.get_yticklabels()]
    ticks = dict(zip(axis.get_yticks(), written, strict=True))
    assert [ticks[place] for place in (-2, 0, 2)] == ["1/4", "1", "4"]


def test_histories_without_confidence_have_no_figure(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0)
    (folder / "history.csv").write_text("stage,epoch,val_accuracy\ntrain,1,0.5\n")
    assert confidence_figure(compare(tmp_path).groups[0]) is None
