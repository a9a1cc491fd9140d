"""How a trained run stands a modality that is corrupted or missing. Definitions:
docs/robustness.md.

Test rows are predicted again, one modality corrupted at a time; nothing is trained. What comes out
is stored beside the run (:mod:`mmbench.store.robustness`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mmbench.data.dataset import Modality, Split
from mmbench.errors import RequestError, RunFailed, unknown_name
from mmbench.evaluate.contributions import masked, stand_ins
from mmbench.evaluate.corruptions import (
    CORRUPTIONS,
    corrupted,
    corruptions_of,
    measured_for,
)
from mmbench.evaluate.metrics import accuracy, nll
from mmbench.evaluate.readout import Readout, evaluating, predict_from, read_out
from mmbench.restoring import Restored, restore
from mmbench.store.frame import StoredRun
from mmbench.store.record import read_predictions
from mmbench.store.robustness import Point, levels_of, read_robustness, write_robustness
from mmbench.train.run import batches, evaluation_batch

MISSING = ("mean_feature", "absent")
"""Ways to be missing: the feature vector replaced by its mean over the training rows, or left out
of the forward pass."""

ALL = (*MISSING, *CORRUPTIONS)

Curve = tuple[str, str]
"""Modality and corruption."""


@dataclass(frozen=True)
class Choice:
    """What is asked for; None is everything that applies."""

    modalities: tuple[str, ...] | None = None
    corruptions: Mapping[str, tuple[float, ...] | None] | None = None
    """Names, with levels or None for the default ones."""

    def __post_init__(self) -> None:
        for name, levels in (self.corruptions or {}).items():
            if name in MISSING and levels is not None:
                raise RequestError(f"'{name}' has no levels: leave them out")
            if name not in MISSING and name not in CORRUPTIONS:
                raise unknown_name("corruption", name, ALL)
            if levels is not None:
                CORRUPTIONS[name].ordered(levels)

    def curves(self, modalities: Mapping[str, Modality]) -> dict[Curve, tuple[float, ...]]:
        """Return the curves to measure on a network over these modalities, with their levels.

        Raises :class:`RequestError` for a modality that is not there, and for a named corruption or
        modality that nothing named with it goes with.
        """
        for m in self.modalities or ():
            if m not in modalities:
                raise unknown_name("modality of the network", m, modalities)
        names = [m for m in modalities if self.modalities is None or m in self.modalities]
        everything: dict[str, tuple[float, ...] | None] = dict.fromkeys(ALL)
        asked = everything if self.corruptions is None else self.corruptions
        found: dict[Curve, tuple[float, ...]] = {}
        for m in names:
            applicable = [*MISSING, *corruptions_of(modalities[m])]
            for corruption in ALL:
                if corruption in asked and corruption in applicable:
                    found[m, corruption] = _levels(corruption, asked[corruption])
        for corruption in self.corruptions or ():
            if names and not any(corruption == name for _, name in found):
                kinds = ", ".join(f"'{m}' ({modalities[m].kind})" for m in names)
                fitting = dict.fromkeys(c for m in names for c in corruptions_of(modalities[m]))
                raise RequestError(
                    f"corruption '{corruption}' does not apply to {kinds}: use "
                    f"{', '.join((*fitting, *MISSING))}"
                )
        for m in self.modalities or ():
            if not any(m == name for name, _ in found):
                fitting = dict.fromkeys((*corruptions_of(modalities[m]), *MISSING))
                raise RequestError(
                    f"{', '.join(asked)} does not apply to modality '{m}' of kind "
                    f"'{modalities[m].kind}': use {', '.join(fitting)}"
                )
        return found


def _levels(corruption: str, asked: tuple[float, ...] | None) -> tuple[float, ...]:
    if corruption in MISSING:
        return ()
    known = CORRUPTIONS[corruption]
    return known.levels if asked is None else known.ordered(asked)


# -- one run ---------------------------------------------------------------------------------------


@dataclass
class Subject:
    """A restored run, and what its predictions of the clean test rows are."""

    restored: Restored

    @property
    def test(self) -> Split:
        return self.restored.splits.test

    @property
    def modalities(self) -> dict[str, Modality]:
        """The modalities that the network reads."""
        network = self.restored.run.network
        return {m: self.restored.splits.modalities[m] for m in network.modalities}

    @cached_property
    def clean(self) -> Readout:
        return read_out(self.restored.run, self.restored.method, self.test)

    @cached_property
    def mean_features(self) -> dict[str, Tensor]:
        run = self.restored.run
        features = read_out(run, self.restored.method, run.train).features
        return stand_ins(features, "train_mean_feature")

    @cached_property
    def chance(self) -> float:
        """Share of the test rows that are of the most frequent class among the training rows."""
        most = self.restored.run.train.y.bincount().argmax()
        return float((self.test.y == most).double().mean())

    def points(self, curves: Mapping[Curve, tuple[float, ...]]) -> Iterator[Point]:
        """Yield the points of each curve, the clean one first."""
        for (m, corruption), levels in curves.items():
            yield self._point(m, corruption, 0, math.nan, self.clean.logits)
            if corruption in MISSING:
                logits = self.missing(m, corruption)
                yield self._point(m, corruption, 1, math.nan, logits)
                continue
            known, modality = CORRUPTIONS[corruption], self.modalities[m]
            run = self.restored.run
            measured = measured_for(known, modality, run.train.inputs[m], run.device)
            for severity, level in enumerate(levels, start=1):
                split = corrupted(self.test, m, modality, known, level, measured, run.seed)
                yield self._point(m, corruption, severity, level, self.predict(split, m))

    def missing(self, m: str, how: str) -> Tensor:
        """Return the logits ``(N, C)`` without a modality."""
        run, method = self.restored.run, self.restored.method
        others = [name for name in run.network.modalities if name != m]
        if how == "absent":
            return read_out(run, method, self.test, keep=others).logits
        features = masked(self.clean.features, others, self.mean_features)
        return predict_from(run, method, features)

    def predict(self, split: Split, m: str) -> Tensor:
        """Return the logits ``(N, C)`` for a split that differs from test in one modality. Only
        its encoder runs again, unless encoders gate each other."""
        run, method = self.restored.run, self.restored.method
        if run.network.bridges is not None:
            return read_out(run, method, split).logits
        features = []
        with evaluating(run.network), run.autocast():
            rows = np.arange(len(split))
            size = evaluation_batch(run.modality_specs)
            for batch in batches(split, rows, [m], size, run.device):
                features.append(run.network.encode(batch.inputs)[m].float().cpu())
        return predict_from(run, method, {**self.clean.features, m: torch.cat(features)})

    def _point(self, m: str, corruption: str, severity: int, level: float, logits: Tensor) -> Point:
        if not bool(logits.max(dim=1).values.isfinite().all()):
            raise RequestError(
                f"{self.restored.path}: the logits are not finite with {corruption} "
                f"{level:g} of '{m}': choose milder levels"
            )
        labels, found = self.test.y.cpu().numpy(), logits.numpy()
        return Point(
            m,
            corruption,
            severity,
            level,
            accuracy(labels, found),
            nll(labels, found),
            self.chance,
        )

    def remarks(self) -> list[str]:
        """Return what to know of the clean predictions: where they are not those stored."""
        stored = read_predictions(self.restored.path)
        before = accuracy(stored["test_labels"], stored["test_logits"])
        now = self.clean.accuracy()
        if before == now:
            return []
        return [
            f"{self.restored.path}: the clean test accuracy is {now:.4f} here and {before:.4f} as "
            "stored: another device or version; robustness is relative to the former"
        ]


def assess(restored: Restored, choice: Choice | None = None) -> list[Point]:
    """Return how the accuracy of a restored run falls, without storing it. Raises
    :class:`RequestError` for a choice that does not fit the run."""
    subject = Subject(restored)
    return list(subject.points((choice or Choice()).curves(subject.modalities)))


# -- stored runs -----------------------------------------------------------------------------------


@dataclass
class Assessor:
    """Measures stored runs and stores what comes of it, each curve once."""

    choice: Choice = field(default_factory=Choice)
    overwrite: bool = False
    device: str = "auto"
    remarks: list[str] = field(default_factory=list)
    """What a reader has to know of the runs measured."""
    _modalities: dict[str, dict[str, Modality]] = field(default_factory=dict)
    """Of data seen before, by fingerprint: a run on them whose curves are stored need not be
    restored."""

    def __call__(self, stored: StoredRun) -> int:
        """Measure the curves of a finished run that are not stored, store them beside it, and
        return how many they were.

        Raises :class:`RunFailed` for a run that did not end, :class:`RequestError` where curves are
        stored with other levels, and what :func:`mmbench.restoring.restore` raises; what was stored
        stays.
        """
        if stored.status in ("failed", "interrupted"):
            raise RunFailed(f"{stored.path}: {stored.status}: {stored.reason}")
        record = stored.finished
        if not record.per_modality:
            raise RequestError(f"'{stored.method}' reads no modality: there is none to corrupt")
        before = [] if self._replaces_all else read_robustness(stored.path)
        subject: Subject | None = None
        data = record.fingerprints["data"]
        if data not in self._modalities:
            subject = Subject(restore(stored.path, self.device))
            self._modalities[data] = dict(subject.restored.splits.modalities)
        read = {m: self._modalities[data][m] for m in record.per_modality}
        curves = self._missing(stored, self.choice.curves(read), levels_of(before))
        if not curves:
            return 0
        if subject is None:
            subject = Subject(restore(stored.path, self.device))
        points = list(subject.points(curves))
        kept = [point for point in before if point.curve not in curves]
        write_robustness(stored.path, sorted(kept + points, key=_in_order([*read])))
        self.remarks += subject.remarks()
        return len(curves)

    @property
    def _replaces_all(self) -> bool:
        return self.overwrite and self.choice == Choice()

    def _missing(
        self,
        stored: StoredRun,
        wanted: Mapping[Curve, tuple[float, ...]],
        before: Mapping[Curve, tuple[float, ...]],
    ) -> dict[Curve, tuple[float, ...]]:
        if self.overwrite:
            return dict(wanted)
        for (m, corruption), levels in wanted.items():
            known = before.get((m, corruption), levels)
            # A curve stored with levels of somebody's choice is what a request without levels gets.
            chosen = (self.choice.corruptions or {}).get(corruption)
            if chosen is not None and known != levels:
                raise RequestError(
                    f"{stored.path}: {corruption} of '{m}' is stored with the levels "
                    f"{', '.join(f'{level:g}' for level in known)}: add --overwrite to replace them"
                )
        return {curve: levels for curve, levels in wanted.items() if curve not in before}


def _in_order(modalities: Sequence[str]) -> Callable[[Point], tuple[int, int, int]]:
    """Return what puts points in the order of modalities, corruptions and severities."""

    def place(name: str, names: Sequence[str]) -> int:
        return names.index(name) if name in names else len(names)

    def key(point: Point) -> tuple[int, int, int]:
        m, corruption = point.curve
        return place(m, modalities), place(corruption, ALL), point.severity

    return key
