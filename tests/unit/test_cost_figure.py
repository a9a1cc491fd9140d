"""Accuracy against cost: points, front, and names that do not overlap."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from mmbench.report.comparison import compare
from mmbench.report.figures.cost import cost_figure, on_front, spread
from tests.unit.drawn import assert_readable, points_of
from tests.unit.records import write_setting


def test_points_stand_at_cost_and_mean_and_open_ones_are_beaten(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", [0.80, 0.82], updates=100)
    write_setting(tmp_path, "slow", [0.90, 0.92], updates=5000)
    write_setting(tmp_path, "worse", [0.70, 0.72], updates=200)
    write_setting(tmp_path, "majority", [0.25, 0.25], updates=0)
    group = compare(tmp_path).groups[0]
    figure = cost_figure(group)
    assert figure is not None
    assert_readable(figure)
    updates, seconds, names = figure.axes
    points = {
        (x, round(y, 6)): line.get_markerfacecolor()
        for line in updates.lines
        if line.get_gid() == "row"
        for x, y in points_of(line)
    }
    assert set(points) == {(100, 81.0), (5000, 91.0), (200, 71.0)}
    assert [key for key, face in points.items() if face == "w"] == [(200, 71.0)]
    assert updates.get_xscale() == "log"
    assert seconds.get_xscale() == "linear"
    assert seconds.get_xlabel() == "training time (s) on cpu"
    assert {text.get_text() for text in names.texts} == {"joint", "slow", "worse"}
    assert updates.get_ylim() == seconds.get_ylim() == names.get_ylim()


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", [0.6], updates=100)
    write_setting(tmp_path, "ogm", [0.9], updates=100)
    group = compare(tmp_path, metric="nll").groups[0]
    assert group.rows[0].value.mean > group.rows[1].value.mean
    figure = cost_figure(group)
    assert figure is not None
    faces = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_gid() == "row"]
    assert [face == "w" for face in faces] == [True, False]  # joint is beaten


@pytest.mark.parametrize("most", [301, 2_900, 3_100, 4_300, 60_000, 10**7])
def test_numbers_of_an_axis_do_not_overlap_whatever_the_costs(tmp_path: Path, most: int) -> None:
    write_setting(tmp_path, "joint", [0.8], updates=300)
    write_setting(tmp_path, "ogm", [0.9], updates=most)
    figure = cost_figure(compare(tmp_path).groups[0])
    assert figure is not None
    assert_readable(figure)
    low, high = figure.axes[0].get_xlim()
    assert sum(low <= tick <= high for tick in figure.axes[0].get_xticks()) >= 2


def test_rows_that_train_nothing_have_no_cost(tmp_path: Path) -> None:
    write_setting(tmp_path, "majority", [0.25], updates=0)
    assert cost_figure(compare(tmp_path).groups[0]) is None


def test_the_front_is_what_no_other_beats() -> None:
    costs, scores = [1.0, 2.0, 2.0, 3.0, 3.0, 1.0], [0.5, 0.7, 0.6, 0.7, 0.9, 0.5]
    assert on_front(costs, scores) == [True, True, False, False, True, True]


@given(some.lists(some.floats(0, 10), min_size=1, max_size=30), some.integers(0, 2**32 - 1))
def test_names_keep_order_and_room_and_stay_within_the_axis(values: list[float], seed: int) -> None:
    room = np.random.default_rng(seed).uniform(0.05, 0.3, len(values))  # together at most 9
    places = spread(values, room, (0.0, 10.0))
    order = np.lexsort((places, np.array(values)))
    low, high = places - room / 2, places + room / 2
    assert low.min() >= -1e-9
    assert high.max() <= 10 + 1e-9
    for below, above in itertools.pairwise(order):
        assert high[below] <= low[above] + 1e-9


def test_names_with_room_stand_at_their_values() -> None:
    values, room = [1.0, 5.0, 9.0], np.array([1.0, 1.0, 1.0])
    assert spread(values, room, (0, 10)) == pytest.approx(values)
    # Two that would overlap part by half of what they lack.
    assert spread([5.0, 5.5], np.array([1.0, 1.0]), (0, 10)) == pytest.approx([4.75, 5.75])
