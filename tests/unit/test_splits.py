"""Splits: sizes, classes, groups, and that the key alone decides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbench.data.splits import carve, folds, stratified_parts
from mmbench.errors import DataError

LABELS = st.lists(st.integers(0, 4), min_size=6, max_size=80).map(np.array)


@settings(max_examples=60, deadline=None)
@given(
    y=LABELS, shares=st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)), seed=st.integers(0, 9)
)
def test_parts_are_disjoint_of_exact_size_and_in_proportion(
    y: np.ndarray, shares: tuple[float, float], seed: int
) -> None:
    sizes = [int(share * len(y)) for share in shares]
    parts = stratified_parts(y, sizes, seed)
    assert [len(part) for part in parts] == sizes
    rows = np.concatenate(parts)
    assert len(set(rows.tolist())) == len(rows)
    first = parts[0]
    for c in np.unique(y):
        exact = len(first) * np.mean(y == c)
        assert abs(np.sum(y[first] == c) - exact) < 1
    assert all(np.array_equal(part, np.sort(part)) for part in parts)


def test_proportions_are_exact_where_they_can_be() -> None:
    y = np.repeat([0, 1, 2], [60, 30, 10])
    one, two = stratified_parts(y, [50, 20], "key")
    assert np.bincount(y[one]).tolist() == [30, 15, 5]
    assert np.bincount(y[two]).tolist() == [12, 6, 2]


def test_more_rows_than_exist_are_refused() -> None:
    with pytest.raises(DataError, match="7 rows asked for, 6 exist"):
        stratified_parts(np.zeros(6), [4, 3], 0)


@settings(max_examples=60, deadline=None)
@given(y=LABELS, count=st.integers(1, 6), seed=st.integers(0, 9))
def test_folds_cover_every_row_once_and_spread_the_classes(
    y: np.ndarray, count: int, seed: int
) -> None:
    parts = folds(y, None, count, seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(y)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for c in np.unique(y):
        members = [int(np.sum(y[part] == c)) for part in parts]
        assert max(members) - min(members) <= 1


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=9),
    count=st.integers(2, 3),
    seed=st.integers(0, 9),
)
def test_folds_by_group_divide_no_group_and_leave_no_fold_empty(
    sizes: list[int], count: int, seed: int
) -> None:
    groups = np.repeat([f"g{i}" for i in range(len(sizes))], sizes)
    parts = folds(np.zeros(len(groups)), groups, count, seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(groups)))
    owners = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, owners)) == len(sizes)
    assert all(owners)
    # Largest first to the smallest fold: no two folds differ by more than the largest group.
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= max(sizes)


def test_fewer_groups_than_folds_are_refused() -> None:
    groups = np.array(["a", "a", "b"])
    with pytest.raises(DataError, match="3 folds need at least 3 groups, 2 exist"):
        folds(np.zeros(3), groups, 3, 0)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_a_carved_part_leaves_rows_on_either_side(fraction: float) -> None:
    y = np.arange(10) % 2
    held = carve(y, None, fraction, 0)
    assert len(held) == min(max(1, round(10 * fraction)), 9)
    groups = np.repeat(["a", "b", "c", "d", "e"], 2)
    held = carve(y, groups, fraction, 0)
    inside, outside = set(groups[held]), set(groups) - set(groups[held])
    assert inside
    assert outside
    assert not set(groups[np.setdiff1d(np.arange(10), held)]) & inside


def test_the_key_alone_decides() -> None:
    y = np.arange(60) % 3
    groups = np.array([f"g{i % 7}" for i in range(60)])
    for by in (None, groups):
        same = [np.concatenate(folds(y, by, 3, 1, "a")) for _ in range(2)]
        assert np.array_equal(same[0], same[1])
    drawn = {tuple(np.concatenate(folds(y, None, 3, seed))) for seed in range(5)}
    assert len(drawn) == 5
