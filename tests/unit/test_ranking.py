"""Ranks over datasets: against published tables, scipy, scikit-posthocs and simulation."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mmbench.errors import RequestError
from mmbench.report.comparison import compare
from mmbench.report.ranking import (
    Ranked,
    Ranking,
    critical_difference,
    friedman_p,
    nemenyi_p,
    rank,
    ranks_of,
)
from mmbench.report.statistics import Estimate
from tests.unit.records import write_setting

DEMSAR = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
"""Quantiles q(0.05) of the Nemenyi test, Demšar 2006, table 5a."""


@pytest.mark.parametrize("rows", DEMSAR)
def test_the_critical_difference_is_that_of_demsars_table(rows: int) -> None:
    expected = DEMSAR[rows] * np.sqrt(rows * (rows + 1) / (6 * 14))
    assert critical_difference(rows, 14) == pytest.approx(expected, abs=1e-3)


def test_ranks_are_shared_by_ties_and_follow_the_direction() -> None:
    means = np.array([[0.9, 0.7 + 0.1, 0.8, 0.1], [0.5, 0.5, 0.5, 0.5]])
    assert ranks_of(means).tolist() == [[1, 2.5, 2.5, 4], [2.5, 2.5, 2.5, 2.5]]
    assert ranks_of(means, higher_is_better=False)[0].tolist() == [4, 2.5, 2.5, 1]


def test_the_friedman_test_counts_orders_of_the_ranks() -> None:
    ranks = np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [1.0, 2.5, 2.5]])
    orders = [list(itertools.permutations(row)) for row in ranks]
    spread = [np.var(np.sum(chosen, axis=0)) for chosen in itertools.product(*orders)]
    expected = np.mean(np.array(spread) >= np.var(ranks.sum(axis=0)) - 1e-9)
    assert friedman_p(ranks) == pytest.approx(expected, abs=0.015)


def test_the_friedman_test_is_scipys_for_many_datasets() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 4)) + np.array([0, 0, 0.2, 0.4])
    expected = stats.friedmanchisquare(*values.T).pvalue
    assert 0.01 < expected < 0.5
    assert friedman_p(ranks_of(values)) == pytest.approx(expected, abs=0.03)


def test_ties_everywhere_and_single_datasets_are_no_evidence() -> None:
    assert friedman_p(np.full((5, 4), 2.5)) == 1
    assert friedman_p(np.array([[1.0, 2.0, 3.0]])) is None
    assert friedman_p(np.ones((4, 1))) is None


@pytest.mark.parametrize(("rows", "datasets"), [(2, 6), (3, 5), (8, 5), (40, 5)])
def test_ranks_without_a_difference_are_called_different_once_in_twenty(
    rows: int, datasets: int
) -> None:
    rng = np.random.default_rng(rows)
    trials = 200 if rows < 40 else 25
    rejected = apart = 0
    edge = critical_difference(rows, datasets)
    for _ in range(trials):
        ranks = ranks_of(rng.normal(size=(datasets, rows)))
        p = friedman_p(ranks)
        assert p is not None
        rejected += p < 0.05
        apart += p < 0.05 and np.ptp(ranks.mean(axis=0)) >= edge
    assert rejected / trials <= 0.05 + 3 * (0.0475 / trials) ** 0.5
    assert apart <= rejected


@pytest.mark.slow
def test_nemenyis_p_values_are_those_of_scikit_posthocs() -> None:
    import scikit_posthocs

    values = np.random.default_rng(0).normal(size=(7, 5)) + np.arange(5) / 2
    ranks = ranks_of(values)
    expected = scikit_posthocs.posthoc_nemenyi_friedman(values).to_numpy()
    assert nemenyi_p(ranks.mean(axis=0), 7) == pytest.approx(expected, abs=1e-6)


def test_nemenyis_p_value_is_the_level_at_the_critical_difference() -> None:
    edge = critical_difference(6, 9)
    found = nemenyi_p(np.array([1.0, 1 + edge, 1.0, 3.0, 3.0, 3.0]), 9)
    assert found[0, 1] == found[1, 0] == pytest.approx(0.05, abs=1e-6)
    assert found[0, 2] == found[0, 0] == pytest.approx(1)


def ranking(averages: list[float], edge: float, friedman: float = 0.001) -> Ranking:
    rows = tuple(Ranked(f"r{i}", a, (), Estimate(0.5)) for i, a in enumerate(averages))
    return Ranking(("a", "b"), rows, friedman, edge, np.ones((len(rows), len(rows))))


def test_cliques_are_the_largest_sets_within_the_critical_difference() -> None:
    averages = [1.0, 1.8, 2.5, 3.4, 6.0]
    close = {
        frozenset(chosen)
        for count in range(2, 6)
        for chosen in itertools.combinations(range(5), count)
        if averages[chosen[-1]] - averages[chosen[0]] < 1.6
    }
    expected = {c for c in close if not any(c < other for other in close)}
    found = ranking(averages, 1.6).cliques
    assert {frozenset(int(name[1]) for name in clique) for clique in found} == expected
    assert ranking(averages, 0.1).cliques == ()
    assert ranking(averages, 1.6, friedman=0.2).cliques == (("r0", "r1", "r2", "r3", "r4"),)


# -- of stored runs --------------------------------------------------------------------------------


LEVELS = {"joint": 0.70, "good": 0.80, "fair": 0.75}


def store(root: Path, datasets: int) -> None:
    for number in range(datasets):
        for method, level in LEVELS.items():
            values = [level + step + number / 100 for step in (0.0, 0.02, -0.02, 0.01)]
            write_setting(root, method, values, dataset=f"set{number}")


def test_rows_of_all_datasets_are_ranked_by_their_means(tmp_path: Path) -> None:
    store(tmp_path, 3)
    write_setting(tmp_path, "only_here", [0.9], dataset="set1")
    found = rank(compare(tmp_path).groups)
    assert [(row.label, row.average_rank, row.ranks) for row in found.rows] == [
        ("good", 1, (1, 1, 1)),
        ("fair", 2, (2, 2, 2)),
        ("joint", 3, (3, 3, 3)),
    ]
    assert found.datasets == ("set0 few", "set1 few", "set2 few")
    assert found.left_out == ("only_here",)
    assert found.repeated == ()
    good, _, joint = found.rows
    assert good.score.value == pytest.approx(0.81, abs=0.005)
    assert good.score.low is not None
    assert good.score.low < 0.81
    assert joint.improvement is None
    assert good.improvement is not None
    expected = stats.binomtest(12, 12).proportion_ci(0.95, "exact")
    assert good.improvement.value == 1
    assert good.improvement.low == pytest.approx(expected.low)
    text = " ".join(found.sentences)
    assert "good has the best average rank of 3 rows over 3 datasets, 1.00." in text
    assert "only_here" in text
    # All three datasets agree, which of 6^3 orders happens in 6: p = 0.028.
    assert found.friedman_p == pytest.approx(6 / 216, abs=0.006)
    assert "(Nemenyi), none is worse than it" in text or "worse than it are joint" in text


def test_two_datasets_distinguish_nothing_and_repeats_are_told(tmp_path: Path) -> None:
    store(tmp_path, 1)
    for method, level in LEVELS.items():
        write_setting(tmp_path, method, [level], dataset="set0", protocol="full")
    found = rank(compare(tmp_path).groups)
    assert not found.is_distinguishable
    assert found.cliques == (("good", "fair", "joint"),)
    text = " ".join(found.sentences)
    assert "not distinguishable" in text
    assert "set0 counts more than once" in text
    assert found.rows[0].improvement is not None


def test_rows_whose_mean_is_no_number_are_left_out(tmp_path: Path) -> None:
    store(tmp_path, 2)
    scores = {"accuracy": 0.5, "macro_f1": 0.5, "nll": None, "ece": 0.1, "brier": 0.5}
    changes = {"metrics": {"test": scores}}
    write_setting(tmp_path, "broken", [0.5], dataset="set0", record_changes=changes)
    write_setting(tmp_path, "broken", [0.5], dataset="set1")
    assert rank(compare(tmp_path, metric="nll").groups).left_out == ("broken",)
    assert rank(compare(tmp_path).groups).left_out == ()


def test_what_cannot_be_ranked_is_a_sentence(tmp_path: Path) -> None:
    store(tmp_path, 1)
    groups = compare(tmp_path).groups
    with pytest.raises(RequestError, match="two datasets or more"):
        rank(groups)
    with pytest.raises(RequestError, match="same metric"):
        rank([*groups, *compare(tmp_path, metric="nll").groups])
    write_setting(tmp_path, "alone", [0.5], dataset="other")
    with pytest.raises(RequestError, match="fewer than two rows in common"):
        rank(compare(tmp_path).groups)
