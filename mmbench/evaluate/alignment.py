"""Did aligning modalities cost them what each alone knows?

Compared are two trained runs of the same data and seed: one under test, and a reference without
alignment. Of each encoder's features is asked how well they tell what only their modality knows
(the data's own labels of it, and a residual of its raw input that the other modalities cannot
predict), and as a control the class. The word "lost" is used only where a linear probe and one with
a hidden layer both tell less, the control does not drop, and the features have not collapsed.

The question is that of R. Thoreau, N. Levillain, D. Derksen (arXiv 2509.17943); the quantities
here are mmbench's own, not theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmbench.data.dataset import Split
from mmbench.errors import RequestError, StoreError
from mmbench.evaluate.decodability import (
    Decoded,
    ProbeKind,
    Table,
    decoded_by_all,
    interval,
    resampling,
)
from mmbench.evaluate.experts import experts, only_right
from mmbench.evaluate.likeness import (
    effective_rank,
    linear_cka,
    modality_gap,
    paired_cosine,
    retrieval,
)
from mmbench.evaluate.readout import read_out
from mmbench.evaluate.residuals import raw_inputs, residuals
from mmbench.evaluate.targets import (
    PARTS,
    UNIQUE,
    Kind,
    Target,
    class_target,
    group_target,
    label_targets,
    row_numbers,
    stacked,
    stacked_groups,
    unique_target,
)
from mmbench.restoring import Restored

RESAMPLES = 1000
FEWEST_GROUPS = 5
"""Groups of test rows below which no interval is told: resampling so few is too sure of itself."""
COLLAPSED = 0.5
"""Features have collapsed when their effective rank is below this share of the reference's."""
RUNS = ("reference", "run")


@dataclass(frozen=True)
class Change:
    """A score in the reference and in the run under test."""

    reference: float
    run: float
    low: float | None
    """95 % interval of the loss, reference minus run, over groups of test rows; None where they
    are too few."""
    high: float | None

    @property
    def loss(self) -> float:
        return self.reference - self.run

    @property
    def retention(self) -> float:
        """Return the share of the reference's score that the run kept."""
        return self.run / max(self.reference, 0.01)

    @property
    def is_drop(self) -> bool:
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Answer:
    """How well a modality's features tell a target, in the reference and in the run."""

    target: str
    kind: Kind
    of_classes: bool
    """Whether scores are accuracies above chance; else they are mean R²."""
    training_rows: int
    rows: int
    """Test rows that scores are of."""
    groups: int | None
    """Groups of these rows; None where rows stand for themselves."""
    probes: dict[ProbeKind, Change]

    @property
    def is_lost(self) -> bool:
        """Return whether neither the linear probe nor the hidden layer tells it as well."""
        return self.probes["linear"].is_drop and self.probes["mlp"].is_drop


@dataclass(frozen=True)
class ModalityDiagnosis:
    """What became of one modality's features."""

    answers: tuple[Answer, ...]
    rank: tuple[float, float]
    """Effective rank of the features, reference and run."""

    @property
    def decided_by(self) -> Answer | None:
        """Return the answer that the verdict goes by: the first of what it alone knows."""
        return next((answer for answer in self.answers if answer.kind == "own"), None)

    @property
    def verdict(self) -> str:
        """Return ``modality-specific loss`` or ``no evidence``."""
        own = self.decided_by
        control = next((answer for answer in self.answers if answer.kind == "class"), None)
        if own is None or control is None or not own.is_lost:
            return "no evidence"
        is_explained = control.probes["linear"].is_drop or control.probes["mlp"].is_drop
        collapsed = self.rank[1] < COLLAPSED * self.rank[0]
        return "no evidence" if is_explained or collapsed else "modality-specific loss"


@dataclass(frozen=True)
class PairDiagnosis:
    """How alike two modalities' features are, reference and run."""

    cka: tuple[float, float]
    """Linear centred kernel alignment, 0 to 1."""
    decoded: tuple[float, float]
    """R² of the second's features from the first's, by ridge regression."""
    cosine: tuple[float, float] | None
    """Mean cosine of paired rows after centring; None for unequal widths, as the next two."""
    retrieval: tuple[float, float] | None
    """Share of rows whose nearest row of the other modality is their own."""
    gap: tuple[float, float] | None
    """Distance between the means of the unit rows."""


@dataclass(frozen=True)
class Diagnosis:
    """The comparison of a run with its reference."""

    modalities: dict[str, ModalityDiagnosis]
    pairs: dict[tuple[str, str], PairDiagnosis]
    test_rows: int
    """Test rows that ranks and likeness are of."""
    missing: tuple[str, ...]
    """Why a target was not asked for, a sentence each."""


def diagnose(
    run: Restored,
    reference: Restored,
    alone: Sequence[Path] = (),
    resamples: int = RESAMPLES,
) -> Diagnosis:
    """Compare a run with a reference without alignment.

    ``alone`` are folders of unimodal runs, one a modality, whose predictions say which rows only
    one modality gets right; without them they are looked for beside the run. Raises
    :class:`RequestError` for runs of other data, seeds or modalities, or without validation rows.
    """
    _check(run, reference)
    names = tuple(run.run.network.modalities)
    splits, seed = run.splits, run.run.seed
    found = {
        which: {name: _features(restored, part) for name, part in splits.named().items()}
        for which, restored in zip(RUNS, (reference, run), strict=True)
    }
    targets, missing = _targets(run, alone)
    draws = _Draws(stacked_groups(splits), resamples, seed)
    modalities = {}
    for m in names:
        features = {
            which: stacked({part: found[which][part][m] for part in PARTS}) for which in RUNS
        }
        answers = []
        for target in targets[m]:
            if reason := target.why_not():
                missing.append(f"{m} {target.name}: {reason}")
            else:
                answers.append(_answer(features, target, draws))
        before, after = (effective_rank(found[which]["test"][m]) for which in RUNS)
        modalities[m] = ModalityDiagnosis(tuple(answers), (before, after))
    pairs = {
        (first, second): _pair(found, first, second)
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    }
    return Diagnosis(modalities, pairs, len(splits.test), tuple(missing))


def _targets(run: Restored, alone: Sequence[Path]) -> tuple[dict[str, list[Target]], list[str]]:
    """Return what each modality is asked for, and what none can be asked for, with the reason."""
    splits, seed = run.splits, run.run.seed
    names = run.run.network.modalities
    shared, missing = [class_target(splits)], []
    if isinstance(group := group_target(splits, seed), str):
        missing.append(f"group: {group}")
    else:
        shared.append(group)
    unique: dict[str, np.ndarray] = {}
    try:
        unique = only_right(experts(run, alone))
    except StoreError as error:
        if alone:
            raise
        missing.append(f"{UNIQUE}: {error}")
    raw = {m: {name: raw_inputs(part, m) for name, part in splits.named().items()} for m in names}
    residual = residuals(raw, splits.train.groups, seed)
    targets = {}
    for m in names:
        known = label_targets(splits, m)
        own = Target("own residual", "own", stacked(residual[m]), row_numbers(splits))
        only = [unique_target(splits, unique[m])] if m in unique else []
        targets[m] = [*known, own, *shared, *only]
    return targets, missing


@dataclass(frozen=True)
class _Draws:
    """How scores are resampled."""

    groups: np.ndarray | None
    """Of all rows, one after the other."""
    resamples: int
    seed: int


def _answer(features: Mapping[str, np.ndarray], target: Target, draws: _Draws) -> Answer:
    """Return how well the features ``(N, d)`` of both runs tell a target."""
    decoded = {
        which: decoded_by_all(
            {part: Table(h[rows], target.values[rows]) for part, rows in target.rows.items()}
        )
        for which, h in features.items()
    }
    tested = target.rows["test"]
    groups = None if draws.groups is None else draws.groups[tested]
    count = None if groups is None else len(np.unique(groups))
    weights = None
    if count is None or count >= FEWEST_GROUPS:
        weights = resampling(groups, len(tested), draws.resamples, draws.seed)
    probes = {
        kind: _change(before, decoded["run"][kind], weights)
        for kind, before in decoded["reference"].items()
    }
    return Answer(
        target.name,
        target.kind,
        target.of_classes,
        len(target.rows["train"]),
        len(tested),
        count,
        probes,
    )


def _change(before: Decoded, after: Decoded, weights: np.ndarray | None) -> Change:
    low, high = None, None
    if weights is not None:
        low, high = interval(before.scores(weights) - after.scores(weights))
    return Change(before.score(), after.score(), low, high)


def _check(run: Restored, reference: Restored) -> None:
    for what, ours, theirs in (
        ("dataset", run.record["dataset"], reference.record["dataset"]),
        ("seed", run.record["seed"], reference.record["seed"]),
        ("data", run.record["fingerprints"]["data"], reference.record["fingerprints"]["data"]),
        ("split", run.record["fingerprints"]["split"], reference.record["fingerprints"]["split"]),
        ("modalities", run.run.network.modalities, reference.run.network.modalities),
    ):
        if ours != theirs:
            raise RequestError(
                f"{run.path} and {reference.path} differ in {what} ({ours}, {theirs}): choose a "
                "reference of the same data and seed"
            )
    if len(run.run.network.modalities) < 2:
        raise RequestError(f"{run.path} has one modality: alignment needs two")
    for one in (run, reference):
        if one.run.recipe.train_on != "train":
            raise RequestError(f"{one.path} trained on validation rows: probes need them apart")


def _features(restored: Restored, split: Split) -> dict[str, np.ndarray]:
    readout = read_out(restored.run, restored.method, split)
    return {m: h.double().numpy() for m, h in readout.features.items()}


def _pair(
    features: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], first: str, second: str
) -> PairDiagnosis:
    x, y = ([features[which]["test"][m] for which in ("reference", "run")] for m in (first, second))
    tables = [
        {name: Table(s[first], s[second]) for name, s in features[which].items()}
        for which in ("reference", "run")
    ]
    decoded = [decoded_by_all(t, probes=("linear",))["linear"].score() for t in tables]
    equal = x[0].shape == y[0].shape
    return PairDiagnosis(
        (linear_cka(x[0], y[0]), linear_cka(x[1], y[1])),
        (decoded[0], decoded[1]),
        (paired_cosine(x[0], y[0]), paired_cosine(x[1], y[1])) if equal else None,
        (retrieval(x[0], y[0]), retrieval(x[1], y[1])) if equal else None,
        (modality_gap(x[0], y[0]), modality_gap(x[1], y[1])) if equal else None,
    )
