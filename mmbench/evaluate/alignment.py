"""Did aligning modalities cost them what each alone knows?

Compared are two trained runs of the same data and seed: one under test, and a reference without
alignment. Of each encoder's features is asked how well they tell what only their modality knows (a
residual of its raw input that the other modalities cannot predict), and as a control the label.
The word "lost" is used only where a linear probe and one with a hidden layer both tell less, the
control does not drop, and the features have not collapsed.

The question is that of R. Thoreau, N. Levillain, D. Derksen (arXiv 2509.17943); the quantities
here are mmbench's own, not theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mmbench.data.dataset import Split
from mmbench.errors import RequestError
from mmbench.evaluate.decodability import (
    Decoded,
    ProbeKind,
    Table,
    decoded_by_all,
    interval,
    resampling,
)
from mmbench.evaluate.readout import read_out
from mmbench.restoring import Restored

COMPONENTS = 32
"""Principal components of a raw input that residual targets are made of."""
LARGEST_INPUT = 4096
"""Numbers of a sample above which it is pooled before the principal components."""
RESAMPLES = 1000
COLLAPSED = 0.5
"""Features have collapsed when their effective rank is below this share of the reference's."""

Splits3 = Mapping[str, np.ndarray]
"""Arrays for train, val and test."""


@dataclass(frozen=True)
class Change:
    """A score in the reference and in the run under test."""

    reference: float
    run: float
    low: float
    """95 % interval of the loss, reference minus run, over groups of test rows."""
    high: float

    @property
    def loss(self) -> float:
        return self.reference - self.run

    @property
    def retention(self) -> float:
        """Return the share of the reference's score that the run kept."""
        return self.run / max(self.reference, 0.01)

    @property
    def is_drop(self) -> bool:
        return self.low > 0


@dataclass(frozen=True)
class ModalityDiagnosis:
    """What became of one modality's features."""

    own: dict[ProbeKind, Change]
    """How well they tell what only this modality knows: mean R² over the residual's components."""
    label: dict[ProbeKind, Change]
    """How well they tell the class: accuracy above chance."""
    rank: tuple[float, float]
    """Effective rank of the features, reference and run."""

    @property
    def verdict(self) -> str:
        """Return ``modality-specific loss`` or ``no evidence``."""
        both = self.own["linear"].is_drop and self.own["mlp"].is_drop
        control = self.label["linear"].is_drop or self.label["mlp"].is_drop
        collapsed = self.rank[1] < COLLAPSED * self.rank[0]
        return "modality-specific loss" if both and not (control or collapsed) else "no evidence"


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


def diagnose(run: Restored, reference: Restored, resamples: int = RESAMPLES) -> Diagnosis:
    """Compare a run with a reference without alignment.

    Raises :class:`RequestError` for runs of other data, seeds or modalities, or without validation
    rows.
    """
    _check(run, reference)
    names = tuple(run.run.network.modalities)
    splits = {name: getattr(run.splits, name) for name in ("train", "val", "test")}
    labels = {name: split.y.cpu().numpy() for name, split in splits.items()}
    raw = {m: {name: _raw(split, m) for name, split in splits.items()} for m in names}
    residual = residuals(raw, splits["train"].groups, run.run.seed)
    features = {
        which: {name: _features(restored, split) for name, split in splits.items()}
        for which, restored in (("reference", reference), ("run", run))
    }
    test = splits["test"]
    weights = resampling(test.groups, len(test), resamples, run.run.seed)
    modalities = {}
    for m in names:
        mine = {which: {s: found[s][m] for s in splits} for which, found in features.items()}
        modalities[m] = ModalityDiagnosis(
            _changes(mine, residual[m], weights),
            _changes(mine, labels, weights),
            (effective_rank(mine["reference"]["test"]), effective_rank(mine["run"]["test"])),
        )
    pairs = {
        (first, second): _pair(features, first, second)
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    }
    return Diagnosis(modalities, pairs, len(test))


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


def _raw(split: Split, modality: str) -> np.ndarray:
    """Return a modality's inputs ``(N, d)``, each flattened; large ones are pooled first."""
    parts = []
    device = split.y.device
    for start in range(0, len(split), 256):
        rows = torch.arange(start, min(start + 256, len(split)), device=device)
        x = split.inputs[modality].batch(rows, None).float()
        if x[0].numel() > LARGEST_INPUT:
            x = _pooled(x)
        parts.append(x.flatten(1).cpu().numpy().astype(np.float64))
    return np.concatenate(parts)


def _pooled(x: torch.Tensor) -> torch.Tensor:
    """Return inputs ``(B, ..., H, W)`` or ``(B, L)`` averaged down to a coarse grid."""
    if x.dim() == 2:
        return torch.nn.functional.adaptive_avg_pool1d(x.unsqueeze(1), LARGEST_INPUT // 4)
    if x.dim() == 3:
        return torch.nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), 16)
    return torch.nn.functional.adaptive_avg_pool2d(x.flatten(1, -3), 16)


def residuals(
    raw: Mapping[str, Splits3], groups: np.ndarray | None, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return, for each modality and split, what of its raw input the others cannot predict.

    ``raw[m][split] (N, d_m)`` is reduced to principal components ``(N, D)``, D at most
    :data:`COMPONENTS`; from them is taken their ridge prediction from the others' components. On
    training rows that prediction is cross-fitted, whole groups at a time; components and
    predictions are fitted to training rows alone.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    reduced: dict[str, dict[str, np.ndarray]] = {}
    for m, arrays in raw.items():
        count = min(COMPONENTS, *arrays["train"].shape)
        steps = make_pipeline(
            StandardScaler(),
            PCA(count, svd_solver="full" if count < COMPONENTS else "auto", random_state=seed),
        ).fit(arrays["train"])
        reduced[m] = {name: steps.transform(x) for name, x in arrays.items()}
    several = groups is not None and len(np.unique(groups)) >= 5
    folds = GroupKFold(5) if several else KFold(5, shuffle=True, random_state=seed)
    found: dict[str, dict[str, np.ndarray]] = {}
    for m, mine in reduced.items():
        others = {
            name: np.concatenate([reduced[o][name] for o in reduced if o != m], axis=1)
            for name in mine
        }
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 4, 7)))
        kept = groups if several else None
        crossed = cross_val_predict(model, others["train"], mine["train"], cv=folds, groups=kept)
        model.fit(others["train"], mine["train"])
        found[m] = {
            name: x - (crossed if name == "train" else model.predict(others[name])).reshape(x.shape)
            for name, x in mine.items()
        }
    return found


def _changes(
    features: Mapping[str, Splits3], target: Splits3, weights: np.ndarray
) -> dict[ProbeKind, Change]:
    decoded: dict[str, dict[ProbeKind, Decoded]] = {
        which: decoded_by_all({name: Table(h[name], target[name]) for name in h})
        for which, h in features.items()
    }
    changes: dict[ProbeKind, Change] = {}
    for kind, before in decoded["reference"].items():
        after = decoded["run"][kind]
        low, high = interval(before.scores(weights) - after.scores(weights))
        changes[kind] = Change(before.score(), after.score(), low, high)
    return changes


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


# -- how alike two sets of features are ------------------------------------------------------------


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return linear centred kernel alignment of ``x (N, d)`` and ``y (N, e)``: 1 when one is a
    rotation of the other up to scale (Kornblith et al., ICML 2019)."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    shared = float(np.linalg.norm(x.T @ y) ** 2)
    norms = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return shared / norms if norms > 0 else 0.0


def paired_cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean cosine of paired rows ``(N, d)`` after centring."""
    return float((_direction(x) * _direction(y)).sum(axis=1).mean())


def retrieval(x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of rows of ``x (N, d)`` whose nearest row of ``y``, by cosine after
    centring, is their own."""
    nearest = (_direction(x) @ _direction(y).T).argmax(axis=1)
    return float((nearest == np.arange(len(x))).mean())


def modality_gap(x: np.ndarray, y: np.ndarray) -> float:
    """Return the distance between the means of the unit rows of ``x`` and ``y (N, d)``."""
    return float(np.linalg.norm(_unit(x).mean(axis=0) - _unit(y).mean(axis=0)))


def _direction(x: np.ndarray) -> np.ndarray:
    return _unit(x - x.mean(axis=0))


def _unit(x: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.maximum(lengths, 1e-12))


def effective_rank(h: np.ndarray) -> float:
    """Return the exponential of the entropy of the normalised singular values of the centred
    features ``(N, d)``: from 1 to d (Roy and Vetterli, 2007)."""
    values = np.linalg.svd(h - h.mean(axis=0), compute_uv=False)
    if values.sum() <= 0:
        return 1.0
    p = values / values.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))
