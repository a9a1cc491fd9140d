"""Critical differences: average ranks, and bars over what cannot be told apart."""

import itertools

import numpy as np
import pytest

from mmbench.report.figures.ranks import critical_difference_figure, lanes_of
from mmbench.report.ranking import (
    Ranked,
    Ranking,
    critical_difference,
    friedman_p,
    nemenyi_p,
    ranks_of,
)
from mmbench.report.statistics import Estimate
from tests.unit.drawn import assert_readable, points_of


def ranking(rows: int, datasets: int, noise: float) -> Ranking:
    rng = np.random.default_rng(0)
    ranks = ranks_of(-np.arange(rows) + rng.normal(0, noise, (datasets, rows)))
    average = ranks.mean(axis=0)
    order = np.argsort(average, kind="stable")
    return Ranking(
        tuple(f"dataset {i}" for i in range(datasets)),
        tuple(
            Ranked(
                f"a_method_with_a_long_name_{i}[align.gate=off, temperature=0.5]",
                float(average[i]),
                tuple(ranks[:, i].tolist()),
                Estimate(0.5),
            )
            for i in order
        ),
        friedman_p(ranks),
        critical_difference(rows, datasets),
        nemenyi_p(average[order], datasets),
    )


@pytest.mark.parametrize(("rows", "noise"), [(2, 0.1), (30, 5.0)])
def test_no_text_is_cut_or_hidden(rows: int, noise: float) -> None:
    assert_readable(critical_difference_figure(ranking(rows, 6, noise)))


def test_points_are_average_ranks_and_bars_join_what_is_not_distinguishable() -> None:
    found = ranking(8, 12, 1.5)
    assert found.is_distinguishable
    figure = critical_difference_figure(found)
    axis, bars = figure.axes
    names = [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()]
    assert [name.split("[")[0].strip() for name in names] == [
        row.label.split("[")[0] for row in found.rows
    ]
    places = axis.get_yticks()
    dots = [points_of(line)[0] for line in axis.lines if line.get_marker() == "o"]
    ranks = {y: x for x, y in dots}
    assert [ranks[place] for place in places] == [row.average_rank for row in found.rows]
    joined = set()
    for bar in bars.lines:
        top, bottom = (y for _, y in points_of(bar))
        inside = zip(found.rows, places, strict=True)
        joined.add(frozenset(row.label for row, place in inside if top <= place <= bottom))
    assert joined == {frozenset(clique) for clique in found.cliques}
    (ruler,) = [
        line for line in axis.lines if line.get_linestyle() == "-" and line.get_linewidth() == 1.2
    ]
    first, last = (x for x, _ in points_of(ruler))
    assert last - first == pytest.approx(found.critical_difference)
    assert axis.get_xlim()[1] >= max(last, 8)


def test_without_a_difference_all_rows_are_joined() -> None:
    found = ranking(4, 3, 50.0)
    assert not found.is_distinguishable
    figure = critical_difference_figure(found)
    assert len(figure.axes[1].lines) == 1
    assert figure.get_suptitle().startswith("Average ranks of 4 rows: ranks are not distinguish")


def test_bars_in_a_lane_do_not_meet() -> None:
    spans = [(0, 3), (1, 4), (4, 6), (5, 9), (7, 8)]
    lanes = lanes_of(spans)
    assert max(lanes) == 1
    for (i, a), (j, b) in itertools.combinations(enumerate(spans), 2):
        assert lanes[i] != lanes[j] or a[1] < b[0] or b[1] < a[0]
