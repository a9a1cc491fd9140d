"""Drawing splits: stratified by class, whole by group, decided by a key alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmbench.errors import DataError
from mmbench.seeds import Key, numpy_stream


def stratified_parts(y: np.ndarray, sizes: Sequence[int], *key: Key) -> list[np.ndarray]:
    """Return disjoint row arrays of exactly the given sizes, each with the classes in proportion.

    Rows are drawn class by class; what rounding leaves over goes to the classes with the largest
    remainders. Raises :class:`DataError` when the sizes ask for more rows than there are.
    """
    if sum(sizes) > len(y):
        raise DataError(f"{sum(sizes)} rows asked for, {len(y)} exist")
    rng = numpy_stream(*key)
    pool = {int(c): rng.permutation(np.flatnonzero(y == c)) for c in np.unique(y)}
    parts: list[np.ndarray] = []
    for size in sizes:
        left = sum(len(rows) for rows in pool.values())
        quota = {c: size * len(rows) / left for c, rows in pool.items()}
        take = {c: int(q) for c, q in quota.items()}
        by_remainder = sorted(quota, key=lambda c: (take[c] - quota[c], c))
        for c in by_remainder[: size - sum(take.values())]:
            take[c] += 1
        parts.append(np.sort(np.concatenate([pool[c][: take[c]] for c in pool])))
        pool = {c: rows[take[c] :] for c, rows in pool.items()}
    return parts


def folds(y: np.ndarray, groups: np.ndarray | None, count: int, *key: Key) -> list[np.ndarray]:
    """Return ``count`` disjoint row arrays that cover all rows.

    Without groups, classes are spread evenly. With groups, no group is divided: groups go, largest
    first, to the fold with the fewest rows. Raises :class:`DataError` with fewer groups than folds.
    """
    rng = numpy_stream(*key)
    fold_of = np.empty(len(y), dtype=np.int64)
    if groups is None:
        offset = 0
        for c in np.unique(y):
            rows = rng.permutation(np.flatnonzero(y == c))
            fold_of[rows] = (offset + np.arange(len(rows))) % count
            offset += len(rows)
    else:
        names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        if len(names) < count:
            raise DataError(f"{count} folds need at least {count} groups, {len(names)} exist")
        order = rng.permutation(len(names))
        filled = np.zeros(count, dtype=np.int64)
        fold_of_group = np.empty(len(names), dtype=np.int64)
        for i in order[np.argsort(-sizes[order], kind="stable")]:
            fold = int(np.argmin(filled))
            fold_of_group[i] = fold
            filled[fold] += sizes[i]
        fold_of = fold_of_group[group_of]
    return [np.flatnonzero(fold_of == fold) for fold in range(count)]


def carve(y: np.ndarray, groups: np.ndarray | None, fraction: float, *key: Key) -> np.ndarray:
    """Return about ``fraction`` of the rows, stratified by class or whole by group: a validation
    or held-out part. At least one row, and with groups at least one group, stays on either side."""
    if groups is None:
        size = min(max(1, round(fraction * len(y))), len(y) - 1)
        return stratified_parts(y, [size], *key)[0]
    count = min(max(2, round(1 / fraction)), len(np.unique(groups)))
    return folds(y, groups, count, *key)[0]
