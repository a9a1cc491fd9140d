"""Robustness curves: what is measured is drawn, for two rows and for thirty."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmbench.errors import RequestError
from mmbench.report.comparison import compare
from mmbench.report.figures import group_robustness_figure, robustness_figure
from mmbench.store.robustness import Point, write_robustness
from tests.unit.drawn import assert_readable, points_of
from tests.unit.records import write_setting


def measured(rows: int, modalities: tuple[str, ...], seeds: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    lines = [
        (f"a_method_with_a_long_name_{i}", m, corruption, severity, rng.uniform(0.2, 0.9))
        for i in range(rows)
        for m in modalities
        for corruption, last in (("absent", 1), ("gaussian_noise", 5))
        for severity in range(last + 1)
        for _ in range(seeds)
    ]
    return pd.DataFrame(lines, columns=["row", "modality", "corruption", "severity", "accuracy"])


def test_curves_are_means_over_repeated_lines() -> None:
    data = measured(2, ("audio", "video"), seeds=3)
    figure = robustness_figure(data)
    assert figure is not None
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [
        "audio\nabsent",
        "audio\ngaussian_noise",
        "video\nabsent",
        "video\ngaussian_noise",
    ]
    for axis in figure.axes:
        m, corruption = axis.get_title().split("\n")
        of_panel = data[(data["modality"] == m) & (data["corruption"] == corruption)]
        for line, row in zip(axis.lines, data["row"].unique(), strict=True):
            for x, y in points_of(line):
                chosen = of_panel[(of_panel["row"] == row) & (of_panel["severity"] == x)]
                assert len(chosen) == 3
                assert y == pytest.approx(100 * chosen["accuracy"].sum() / 3)
    # One modality a line of panels.
    places = [axis.get_position().y0 for axis in figure.axes]
    assert places[0] == places[1] > places[2] == places[3]


def test_few_rows_differ_by_colour_line_and_shape() -> None:
    figure = robustness_figure(measured(8, ("audio",)))
    assert figure is not None
    lines = figure.axes[0].lines
    assert len({str(line.get_color()) for line in lines}) == 8
    assert len({line.get_marker() for line in lines}) == 8


def test_of_many_rows_those_that_are_asked_for_are_told_apart() -> None:
    data = measured(12, ("audio",))
    chosen = ["a_method_with_a_long_name_11", "a_method_with_a_long_name_3"]
    figure = robustness_figure(data, told_apart=chosen)
    assert figure is not None
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == [chosen[1], chosen[0], "10 other rows"]
    assert len(figure.axes[0].lines) == 12
    with pytest.raises(RequestError, match="no row ogm"):
        robustness_figure(data, told_apart=["ogm"])


def test_by_default_the_best_of_many_rows_are_told_apart() -> None:
    data = measured(12, ("audio",))
    figure = robustness_figure(data)
    assert figure is not None
    means = {row: data.loc[data["row"] == row, "accuracy"].mean() for row in set(data["row"])}
    best = sorted(means, key=lambda row: -means[row])[:8]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(said) == {*best, "4 other rows"}


@pytest.mark.parametrize(
    ("rows", "modalities"),
    [
        (1, ("x",)),
        (9, ("audio", "a_modality_with_a_long_name")),
        pytest.param(30, tuple(f"a_long_modality_{c}" for c in "abcdef"), marks=pytest.mark.slow),
    ],
)
def test_no_text_is_cut_or_hidden(rows: int, modalities: tuple[str, ...]) -> None:
    figure = robustness_figure(measured(rows, modalities), "mfeat few: with a modality corrupted")
    assert figure is not None
    assert_readable(figure)


def test_data_that_cannot_be_drawn_are_refused() -> None:
    data = measured(1, ("x",))
    assert robustness_figure(data.iloc[:0]) is None
    with pytest.raises(RequestError, match="no column corruption, severity"):
        robustness_figure(data.drop(columns=["severity", "corruption"]))
    data.loc[3, "accuracy"] = np.nan
    with pytest.raises(RequestError, match="not a number"):
        robustness_figure(data)


def test_what_is_stored_beside_runs_is_drawn(tmp_path: Path) -> None:
    for method in ("joint", "ogm"):
        for folder, last in zip(
            write_setting(tmp_path, method, [0.8, 0.8]), (0.5, 0.6), strict=True
        ):
            points = [
                Point("fourier", "absent", severity, np.nan, accuracy, 1.0, 0.25)
                for severity, accuracy in enumerate((0.8, last))
            ]
            write_robustness(folder, points)
    figure = group_robustness_figure(compare(tmp_path).groups[0])
    assert figure is not None
    (axis,) = figure.axes
    for line in axis.lines:
        assert [y for _, y in points_of(line)] == pytest.approx([80, 55])
