"""What features are asked for: labels of one modality, residuals, the class, and whose a row is.

Rows of train, validation and test stand one after the other here, so that a target can say by
number which of them a probe is fitted to, chosen by and scored on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmbench.data.dataset import Splits
from mmbench.data.splits import stratified_parts

Kind = Literal["own", "class", "nuisance", "unique"]
"""``own``: what a modality alone knows. ``nuisance``: whose a row is; losing it can be wanted.
``unique``: the class, of rows that only the model of this modality gets right."""

UNIQUE = "class of unique rows"
PARTS = ("train", "val", "test")
FEWEST_ROWS = 10
"""Rows to fit a probe to, and to score it on, below which a target is not asked for; and training
rows of a group that is to be recognised."""


@dataclass(frozen=True)
class Target:
    """What features are to tell."""

    name: str
    kind: Kind
    values: np.ndarray
    """``(N, D)`` numbers or ``(N,)`` class numbers of all rows; those outside ``rows`` are not
    looked at."""
    rows: Mapping[str, np.ndarray]
    """Numbers of the rows that a probe is fitted to (``train``), chosen by and scored on."""

    @property
    def of_classes(self) -> bool:
        return self.values.ndim == 1

    def why_not(self) -> str | None:
        """Return why probes would say nothing of it; None where they can be asked."""
        train, val, test = (self.values[self.rows[part]] for part in PARTS)
        if len(train) < FEWEST_ROWS or len(test) < FEWEST_ROWS or len(val) < 2:
            return f"{len(train)} training, {len(val)} validation and {len(test)} test rows have it"
        if self.of_classes and len(np.unique(train)) < 2:
            return "all training rows are of one class"
        if self.of_classes and (test == np.bincount(train).argmax()).all():
            return "all test rows are of the most frequent training class"
        if not self.of_classes and (train.std(axis=0) * test.std(axis=0) == 0).any():
            return "a number in it is the same in all training or all test rows"
        return None


def stacked(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the rows of train, validation and test one after the other."""
    return np.concatenate([parts[part] for part in PARTS])


def row_numbers(splits: Splits) -> dict[str, np.ndarray]:
    """Return which of the rows, one after the other, are those of each split."""
    ends = np.cumsum([len(part) for part in splits.named().values()])
    return dict(zip(PARTS, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))


def stacked_groups(splits: Splits) -> np.ndarray | None:
    """Return the group of every row; None unless each split has groups."""
    named = {name: part.groups for name, part in splits.named().items()}
    groups = {name: values for name, values in named.items() if values is not None}
    return stacked(groups) if len(groups) == len(named) else None


def label_targets(splits: Splits, modality: str) -> list[Target]:
    """Return the labels of one modality that the data have, each of the rows where it is known."""
    parts, targets = splits.named(), []
    for name in splits.train.labels.get(modality, {}):
        values = stacked({part: split.labels[modality][name] for part, split in parts.items()})
        if values.ndim == 1:
            known = values != ""
            values = np.unique(values, return_inverse=True)[1]
        else:
            known = ~np.isnan(values).any(axis=1)
        rows = {part: numbers[known[numbers]] for part, numbers in row_numbers(splits).items()}
        targets.append(Target(name, "own", values, rows))
    return targets


def class_target(splits: Splits) -> Target:
    """Return the class of all rows."""
    labels = stacked({part: split.y.cpu().numpy() for part, split in splits.named().items()})
    return Target("class", "class", labels, row_numbers(splits))


def unique_target(splits: Splits, right: np.ndarray) -> Target:
    """Return the class again, scored on the test rows that a mask ``(N,)`` names alone."""
    rows = row_numbers(splits)
    values = class_target(splits).values
    return Target(UNIQUE, "unique", values, rows | {"test": rows["test"][right]})


def group_target(splits: Splits, seed: int) -> Target | str:
    """Return whose each row is, of the groups that stand in train and in test; or why that is not
    asked. A fifth of their training rows chooses the probe: validation may be of other groups."""
    groups, rows = stacked_groups(splits), row_numbers(splits)
    if groups is None:
        return "the rows have no groups"
    names, counts = np.unique(groups[rows["train"]], return_counts=True)
    tested = np.unique(groups[rows["test"]])
    shared = np.intersect1d(names[counts >= FEWEST_ROWS], tested)
    if len(shared) < 2:
        return (
            f"{len(shared)} of the {len(tested)} groups of test rows have {FEWEST_ROWS} training "
            "rows or more; telling whose a row is takes two"
        )
    train, test = (rows[part][np.isin(groups[rows[part]], shared)] for part in ("train", "test"))
    codes = np.unique(groups, return_inverse=True)[1]
    (held,) = stratified_parts(codes[train], [len(train) // 5], seed, "diagnose", "groups")
    parts = {"train": np.delete(train, held), "val": train[held], "test": test}
    return Target("group", "nuisance", codes, parts)
