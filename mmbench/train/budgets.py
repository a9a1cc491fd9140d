"""Intrinsic information budgets: how much each modality can tell about the class.

From held-out losses of unimodal predictors to usable information (Xu et al., ICLR 2020) in nats,

    I_m = mean(h) - mean(nll_m),    B_m = clip(I_m / mean(h), 0, 1)

where ``h`` is the loss of the best input-free predictor on the same rows, and to a prior over
modalities. :class:`BudgetEstimator` lays out the stages that train the predictors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mmbench.evaluate.calibration import fit_temperature
from mmbench.evaluate.probes import fit_probe
from mmbench.seeds import Key, numpy_stream
from mmbench.train.method import Stage
from mmbench.train.run import Run

Floats = NDArray[np.float64]

BOOTSTRAPS = 1000
NEGLIGIBLE = 0.02
"""Below this largest budget nothing is known of any modality: no anchor, uniform prior."""


@dataclass(frozen=True)
class Budgets:
    """Budgets of M modalities, in the order of ``modalities``."""

    modalities: tuple[str, ...]
    values: tuple[float, ...]
    """``B_m`` in [0, 1]."""
    intervals: tuple[tuple[float, float], ...]
    """95 % bootstrap interval of each ``B_m`` over held-out rows, clipped as ``B_m`` is."""
    information: tuple[float, ...]
    """``I_m`` in nats, not clipped: below zero where the predictor did worse than none."""
    entropy: float
    """Loss of the input-free predictor in nats; for accuracy budgets the chance error."""
    tied: tuple[str, ...]
    """Modalities that cannot be told from the best one, itself included."""

    @property
    def are_negligible(self) -> bool:
        return max(self.values) < NEGLIGIBLE

    @classmethod
    def certain(cls, names: tuple[str, ...], values: Sequence[float], entropy: float) -> Budgets:
        """Return budgets that were given, not estimated."""
        return cls(
            names,
            tuple(values),
            tuple((b, b) for b in values),
            tuple(b * entropy for b in values),
            entropy,
            tuple(m for m, b in zip(names, values, strict=True) if b == max(values)),
        )

    def reversed(self) -> Budgets:
        """Return the same budgets given to the modalities in reverse order of rank: the best gets
        the worst one's. A negative control."""
        order = np.argsort(self.information, kind="stable")
        swapped = {int(a): int(b) for a, b in zip(order, order[::-1], strict=True)}
        takes = [swapped[i] for i in range(len(order))]
        best = [self.modalities.index(m) for m in self.tied]
        return Budgets(
            self.modalities,
            tuple(self.values[i] for i in takes),
            tuple(self.intervals[i] for i in takes),
            tuple(self.information[i] for i in takes),
            self.entropy,
            tuple(m for i, m in enumerate(self.modalities) if takes[i] in best),
        )


def estimate_budgets(losses: Mapping[str, Floats], baseline: Floats, *key: Key) -> Budgets:
    """Return the budgets for held-out losses ``{m: (N,)}`` and the input-free loss ``(N,)``.

    Accuracy budgets, (acc - 1/C) / (1 - 1/C), are the same formula with errors (0 or 1) as losses
    and 1 - 1/C as baseline. Intervals, and whether a modality ties with the best, come from 1,000
    bootstraps in which all modalities share the rows drawn.
    """
    names = tuple(losses)
    gains = np.stack([baseline - losses[m] for m in names])
    information, entropy = gains.mean(axis=1), float(baseline.mean())
    rng = numpy_stream(*key, "bootstrap")
    draws = np.empty((BOOTSTRAPS, len(names)))
    for i in range(BOOTSTRAPS):
        rows = rng.integers(len(baseline), size=len(baseline))
        draws[i] = gains[:, rows].mean(axis=1) / baseline[rows].mean()
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    best = int(np.argmax(information))
    behind = np.quantile(draws[:, [best]] - draws, 0.025, axis=0)
    return Budgets(
        modalities=names,
        values=tuple(float(v) for v in np.clip(information / entropy, 0, 1)),
        intervals=tuple(
            (float(a), float(b)) for a, b in np.clip(np.stack([low, high], axis=1), 0, 1)
        ),
        information=tuple(float(v) for v in information),
        entropy=entropy,
        tied=tuple(m for m, gap in zip(names, behind, strict=True) if gap <= 0),
    )


def subset_gains(
    modalities: tuple[str, ...], gains: Mapping[frozenset[str], Floats]
) -> dict[str, Floats]:
    """Return each modality's Shapley share, row by row ``(N,)``, of the gains ``{S: (N,)}`` of
    predictors that see the modalities in S; no modality gains nothing."""
    count = len(modalities)
    none = np.zeros_like(next(iter(gains.values())))
    shares = {}
    for m in modalities:
        others = [o for o in modalities if o != m]
        share = none.copy()
        for size in range(count):
            weight = factorial(size) * factorial(count - size - 1) / factorial(count)
            for chosen in combinations(others, size):
                without = frozenset(chosen)
                share += weight * (gains[without | {m}] - gains.get(without, none))
        shares[m] = share
    return shares


def softmax_prior(values: Floats, temperature: float) -> Floats:
    """Return ``pi = softmax(B / temperature)``."""
    scaled = (values - values.max()) / temperature
    return np.asarray(np.exp(scaled) / np.exp(scaled).sum())


def power_prior(values: Floats, exponent: float) -> Floats:
    """Return ``pi_m`` in proportion to ``(B_m + 1e-3) ^ exponent``."""
    raised = (values + 1e-3) ** exponent
    return np.asarray(raised / raised.sum())


@dataclass(frozen=True)
class Fold:
    """Rows of train that a predictor is fitted, calibrated and measured on."""

    fit: NDArray[np.int64]
    calibrate: NDArray[np.int64]
    measure: NDArray[np.int64]


class BudgetEstimator(nn.Module):
    """Cross-fitted predictors for subsets of modalities, and the budgets that follow from them.

    Every fold and subset is a stage of its own: a fresh network (the run's encoders, a linear head,
    and the run's fusion for more than one modality, so that what an additive fusion cannot use does
    not count as known) fitted on ``fit``, kept where the loss on ``calibrate`` is lowest, its
    temperature set there, and its losses taken on ``measure``. Validation and test rows play no
    part.
    """

    losses: Tensor
    baseline: Tensor
    measured: Tensor

    def __init__(
        self,
        run: Run,
        folds: int,
        epochs: int,
        *,
        by_error: bool = False,
        by_subset: bool = False,
        linear: bool = False,
        in_sample: bool = False,
        by_group: bool = True,
    ) -> None:
        """``folds`` of 1 takes one 80/10/10 division. ``by_error`` measures 0/1 errors instead of
        nats, ``by_subset`` all subsets for Shapley shares, ``linear`` a linear classifier on the
        inputs instead of the encoders, ``in_sample`` the rows that were fitted (an ablation: every
        over-parameterised model then seems to know everything). Without ``by_group`` folds divide
        groups."""
        super().__init__()
        self.epochs = epochs
        self.by_error = by_error
        self.linear = linear
        self.in_sample = in_sample
        names = run.modalities
        sizes = range(1, len(names) + 1) if by_subset else (1,)
        self.subsets = [chosen for size in sizes for chosen in combinations(names, size)]
        self.modalities = names
        self.folds = [self._all_rows(run)] if in_sample else self._divide(run, folds, by_group)
        rows = len(run.train)
        self.register_buffer("losses", torch.zeros(len(self.subsets), rows, dtype=torch.float64))
        self.register_buffer("baseline", torch.zeros(rows, dtype=torch.float64))
        self.register_buffer("measured", torch.zeros(rows, dtype=torch.bool))
        self._plan = {
            f"budget/{k + 1}/{'+'.join(subset)}": (k, i)
            for k in range(len(self.folds))
            for i, subset in enumerate(self.subsets)
        }

    @staticmethod
    def _all_rows(run: Run) -> Fold:
        rows = np.arange(len(run.train))
        return Fold(rows, rows, rows)

    @staticmethod
    def _divide(run: Run, count: int, by_group: bool) -> list[Fold]:
        groups = run.train.groups if by_group else None
        tenths = 10 if groups is None else min(10, len(np.unique(groups)))
        parts = run.folds(tenths if count == 1 else count, "budget", by_group=by_group)
        kept = len(parts) if count > 1 else 1
        return [
            Fold(
                np.sort(np.concatenate([p for j, p in enumerate(parts) if j not in (k, other)])),
                parts[other],
                parts[k],
            )
            for k in range(kept)
            for other in [(k + 1) % len(parts)]
        ]

    def stages(self) -> list[Stage]:
        """Return the stages that train the predictors; none for ``linear``."""
        if self.linear:
            return []
        return [
            Stage(
                name,
                self.epochs,
                rows=self.folds[k].fit,
                modalities=self.subsets[i],
                fusion="sum" if len(self.subsets[i]) == 1 else None,
                fresh=True,
                select="last" if self.in_sample else "rows",
                select_rows=None if self.in_sample else self.folds[k].calibrate,
            )
            for name, (k, i) in self._plan.items()
        ]

    def owns(self, stage: Stage) -> bool:
        return stage.name in self._plan

    def collect(self, run: Run) -> None:
        """Take the losses of the predictor whose stage has just ended."""
        k, i = self._plan[run.stage.name]
        fold = self.folds[k]

        def logits(rows: NDArray[np.int64]) -> Tensor:
            return torch.cat([out.logits for out, _ in run.outputs(rows)])

        self._measure(run, fold, i, logits(fold.calibrate), logits(fold.measure))

    def _measure(self, run: Run, fold: Fold, i: int, calibration: Tensor, logits: Tensor) -> None:
        y = run.train.y
        rows = torch.as_tensor(fold.measure, device=y.device)
        target = y[rows]
        if self.by_error:
            chance = 1 - 1 / run.classes
            self.losses[i, rows] = (logits.argmax(dim=1) != target).double()
            self.baseline[rows] = chance
        else:
            held = y[torch.as_tensor(fold.calibrate, device=y.device)]
            temperature = 1.0 if self.in_sample else fit_temperature(calibration, held)
            scaled = logits.double() / temperature
            self.losses[i, rows] = functional.cross_entropy(scaled, target, reduction="none")
            fitted = y[torch.as_tensor(fold.fit, device=y.device)]
            counts = torch.bincount(fitted, minlength=run.classes).double() + 1
            self.baseline[rows] = -torch.log(counts / counts.sum())[target]
        self.measured[rows] = True

    def estimate(self, run: Run) -> Budgets:
        """Return the budgets, once every predictor has been collected."""
        if self.linear:
            self._fit_linear(run)
        rows = self.measured.cpu().numpy()
        baseline = self.baseline.cpu().numpy()[rows]
        losses = self.losses.cpu().numpy()[:, rows]
        if len(self.subsets) > len(self.modalities):
            gains = {
                frozenset(subset): baseline - losses[i] for i, subset in enumerate(self.subsets)
            }
            shares = subset_gains(self.modalities, gains)
            by_modality = {m: baseline - shares[m] for m in self.modalities}
        else:
            by_modality = dict(zip(self.modalities, losses, strict=True))
        return estimate_budgets(by_modality, baseline, run.seed, "budget")

    def _fit_linear(self, run: Run) -> None:
        def inputs(m: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
            batch = run.train.batch(torch.as_tensor(rows, device=run.device), [m])
            return batch.inputs[m].flatten(1).double().cpu().numpy()

        y = run.train.y.cpu().numpy()
        for fold in self.folds:
            for i, (m,) in enumerate(self.subsets):
                probe = fit_probe(inputs(m, fold.fit), y[fold.fit], run.classes)
                calibration, logits = (
                    torch.as_tensor(probe.logits(inputs(m, rows)), device=run.device)
                    for rows in (fold.calibrate, fold.measure)
                )
                self._measure(run, fold, i, calibration, logits)
