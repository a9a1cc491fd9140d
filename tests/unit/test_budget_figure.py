"""Budgets against contributions."""

from pathlib import Path
from typing import Any

import pytest

from mmbench.report.comparison import compare
from mmbench.report.figures.budgets import budget_figure
from tests.unit.drawn import points_of
from tests.unit.records import write_run

VALUES: list[Any] = [0.6, 0.2]


def report(values: object = VALUES, names: object = ("fourier", "zernike")) -> dict[str, Any]:
    return {"report": {"budgets": {"modalities": names, "values": values}}}


def test_points_are_shares_of_means(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "joint", seed, shapley={"fourier": 0.9, "zernike": 0.1})
        budgets = report([0.6, 0.2] if seed else [0.5, 0.3])
        shapley = {"fourier": 0.7, "zernike": 0.3}
        write_run(tmp_path, "iibalance", seed, shapley=shapley, record_changes=budgets)
    figure = budget_figure(compare(tmp_path).groups[0])
    assert figure is not None
    (axis,) = figure.axes
    assert axis.get_title() == "iibalance"
    points = [
        (*points_of(line)[0], line.get_markerfacecolor() == "w")
        for line in axis.lines
        if line.get_marker() != "None"
    ]
    # Budgets are 0.55 and 0.25 in the mean: 68.75 % and 31.25 %. Open points are joint's.
    expected = [(68.75, 90, True), (31.25, 10, True), (68.75, 70, False), (31.25, 30, False)]
    assert [point[2] for point in points] == [point[2] for point in expected]
    for point, wanted in zip(points, expected, strict=True):
        assert point[:2] == pytest.approx(wanted[:2])
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["fourier", "zernike", "open: in joint", "in proportion"]


@pytest.mark.parametrize(
    "changes",
    [
        {"report": {}},
        {"report": {"budgets": "none"}},
        report(values=[0.6]),
        report(values=[0.6, None]),
        report(values=[0.6, float("nan")]),
        report(values=[0.0, 0.0]),
        report(names=["fourier", "audio"]),
    ],
)
def test_a_report_without_budgets_is_not_drawn(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_run(tmp_path, "iibalance", 0, record_changes=changes)
    assert budget_figure(compare(tmp_path).groups[0]) is None
