"""How a stored run's modalities share what it can do, and how training treated them.

Everything is read from what the run left: its record, its history and, for the gap to unimodal
training, other runs of the same store. Nothing is trained and torch is not imported. Definitions:
docs/contributions.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmbench.errors import StoreError
from mmbench.store.frame import Shapley, StoredRun, learning_curves, predictions

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("test", "val")

Section = Literal["contribution", "encoder", "training", "method", "metrics", "classes"]
Unit = Literal["%", "points", "nats", ""]

LOSSES = {"leave_one_out": "loss without it", "permutation": "loss when permuted"}
READOUTS = ("probe", "split", "own_head", "zero_feature")
TRAINING = ("recipe.", "encoder.", "precision")
"""Settings in which a unimodal run has to agree with the run that it is compared with."""

AGAIN = "`mmbench run --config` on its config.yaml, with --overwrite, stores it again"

STANDARD_ERRORS = 1.96
"""An accuracy less than so many standard errors above that without modalities is nothing to
divide."""


@dataclass(frozen=True)
class Quantity:
    """One number for each modality."""

    section: Section
    name: str
    title: str
    split: str
    """``val``, ``test``, or empty for what belongs to no split."""
    unit: Unit
    """Of what people read: for ``%`` and ``points`` the value times 100."""
    values: dict[str, float]
    fused: float | None = None
    """The same of the fused prediction, where it has it."""


@dataclass
class Balance:
    """What is known of one run, and sentences on what is not."""

    run: StoredRun
    modalities: tuple[str, ...]
    quantities: list[Quantity] = field(default_factory=list)
    imbalance: dict[str, float] = field(default_factory=dict)
    """:func:`imbalance` of the Shapley values, by split."""
    discrepancy: float | None = None
    """:func:`discrepancy` of the confidence ratios."""
    outcomes: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By split: fused accuracy without any modality, and with all."""
    missing: list[str] = field(default_factory=list)

    def find(self, name: str, split: str = "") -> Quantity | None:
        """Return a quantity by name and split; None where the run has none."""
        chosen = (q for q in self.quantities if (q.name, q.split) == (name, split))
        return next(chosen, None)


def balance_of(run: StoredRun, store: Iterable[StoredRun] = ()) -> Balance:
    """Return all that is known of how a finished run's modalities are balanced. ``store`` holds the
    runs among which those of unimodal training are looked for."""
    record = run.finished
    known = dict.fromkeys(
        m for shapley in record.contributions.shapley.values() for m in shapley.values
    )
    modalities = tuple(m for m in record.modalities if m in known or m in record.per_modality)
    result = Balance(run, modalities)
    if not modalities:
        result.missing.append(f"{run.method} uses no modality: there is nothing to divide")
        return result
    if "val" not in record.metrics:
        result.missing.append("nothing is said of validation rows: the method was trained on them")
    _add_contributions(result)
    _add_readouts(result)
    _add_gaps(result, list(store))
    _add_training(result)
    return result


# -- the scalar ------------------------------------------------------------------------------------


def imbalance(values: Mapping[str, float]) -> float:
    """Return ``(max phi - min phi) / sum |phi|`` of Shapley values, in [0, 1].

    0 for equal contributions, 1 when one modality contributes everything, or all that does not
    harm. NaN where it has no meaning: fewer than two modalities, or no contribution at all. Why
    this one: docs/decisions/0004-one-number-for-imbalance.md.
    """
    total = math.fsum(map(abs, values.values()))
    if len(values) < 2 or total == 0:
        return math.nan
    return min((max(values.values()) - min(values.values())) / total, 1.0)


def _is_nothing_to_divide(shapley: Shapley, rows: int) -> bool:
    """Whether the fused accuracy on so many rows is within noise of that without modalities."""
    variance = shapley.all * (1 - shapley.all) + shapley.none * (1 - shapley.none)
    return shapley.all - shapley.none <= STANDARD_ERRORS * math.sqrt(variance / rows)


def _rows(run: StoredRun) -> dict[str, int]:
    """Return the number of rows of each split, from the predictions."""
    try:
        arrays = predictions(run)
    except StoreError:
        return {}
    return {s: len(arrays[f"{s}_labels"]) for s in SPLITS if f"{s}_labels" in arrays}


# -- from the record -------------------------------------------------------------------------------


def _add_contributions(result: Balance) -> None:
    contributions = result.run.finished.contributions
    rows = _rows(result.run)
    if not rows:
        result.missing.append(
            "the predictions cannot be read, so whether contributions exceed noise is not checked"
        )
    for split in SPLITS:
        if (shapley := contributions.shapley.get(split)) is None:
            continue
        result.outcomes[split] = shapley.none, shapley.all
        result.quantities.append(
            Quantity("contribution", "shapley", "Shapley value", split, "points", shapley.values)
        )
        if len(shapley.values) < 2:
            result.missing.append(f"imbalance, {split}: one modality has nothing to balance")
        elif math.isnan(index := imbalance(shapley.values)) or (
            split in rows and _is_nothing_to_divide(shapley, rows[split])
        ):
            result.missing.append(
                f"imbalance, {split}: not told, because the fused accuracy "
                f"({100 * shapley.all:.1f} %) is not distinguishable from that without any "
                f"modality ({100 * shapley.none:.1f} %)"
            )
        else:
            result.imbalance[split] = index
    for kind, title in LOSSES.items():
        by_split: dict[str, dict[str, float]] = getattr(contributions, kind)
        result.quantities += [
            Quantity("contribution", kind, title, split, "points", by_split[split])
            for split in SPLITS
            if by_split.get(split)
        ]
    if contributions.shapley and not contributions.leave_one_out:
        result.missing.append(f"leave-one-out: the run was stored before it was computed; {AGAIN}")


def _add_readouts(result: Balance) -> None:
    record = result.run.finished
    for readout in READOUTS:
        for split in SPLITS:
            found = {
                m: accuracy
                for m in result.modalities
                if (accuracy := _accuracy(result.run, m, readout, split)) is not None
            }
            if found:
                fused = record.metrics[split].accuracy
                title = f"accuracy by {readout}"
                result.quantities.append(
                    Quantity("encoder", readout, title, split, "%", found, fused)
                )
    weights = dict(by_modality(record.report, result.modalities))
    for name, values in weights.items():
        result.quantities.append(
            Quantity("method", f"report.{name}", f"reported {name}", "", "", values)
        )


def _accuracy(run: StoredRun, modality: str, readout: str, split: str) -> float | None:
    return run.finished.per_modality.get(modality, {}).get(readout, {}).get(split)


def by_modality(
    report: Mapping[str, Any], modalities: Sequence[str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what a method's report has for each modality: every table in it, at any depth, that
    has a finite number for each of them, under its dotted name (``gate.mean_weight``)."""
    for name, value in report.items():
        if not isinstance(value, Mapping):
            continue
        if all(_is_number(value.get(m)) for m in modalities):
            yield name, {m: float(value[m]) for m in modalities}
        else:
            yield from ((f"{name}.{n}", v) for n, v in by_modality(value, modalities))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -- against unimodal training ---------------------------------------------------------------------


def unimodal_run(run: StoredRun, modality: str, store: Iterable[StoredRun]) -> StoredRun:
    """Return the stored run of unimodal training that a run's encoder is compared with: of the same
    modality, dataset, protocol, seed, split and data, with the same settings of training.

    Raises :class:`StoreError`, in words, where there is none.
    """
    candidates = [
        other
        for other in store
        if other.method == "unimodal"
        and (other.dataset, other.seed) == (run.dataset, run.seed)
        and other.protocol == run.finished.protocol
        and (other.changed or {}).get("modality") == modality
    ]
    where = f"no unimodal run of {modality} with seed {run.seed}"
    if not candidates:
        raise StoreError(f"{where} is stored")
    done = [other for other in candidates if other.status == "done"]
    if not done:
        raise StoreError(f"{where} is finished: it {candidates[0].status}")
    same_rows = [other for other in done if _same_data(other, run)]
    if not same_rows:
        raise StoreError(f"{where} saw the same split and data")
    for other in same_rows:
        if _training(other) == _training(run):
            return other
    differ = sorted(
        name
        for name in _training(same_rows[0]).keys() | _training(run).keys()
        if _training(same_rows[0]).get(name) != _training(run).get(name)
    )
    raise StoreError(f"{where} was trained alike: it differs in {', '.join(differ)}")


def _same_data(run: StoredRun, other: StoredRun) -> bool:
    ours, theirs = run.finished.fingerprints, other.finished.fingerprints
    return all(ours.get(name) == theirs.get(name) for name in ("split", "data"))


def _training(run: StoredRun) -> dict[str, Any]:
    changed = run.finished.changed
    return {name: value for name, value in changed.items() if name.startswith(TRAINING)}


def _add_gaps(result: Balance, store: Sequence[StoredRun]) -> None:
    run = result.run
    if run.method == "unimodal":
        result.missing.append("gap to unimodal training: this is unimodal training")
        return
    alone: dict[str, StoredRun] = {}
    reasons: list[str] = []
    for m in result.modalities:
        try:
            alone[m] = unimodal_run(run, m, store)
        except StoreError as error:
            reasons.append(str(error))
    if reasons:
        result.missing.append(
            f"gap to unimodal training: {'; '.join(reasons)}; `mmbench run --method unimodal "
            f"--dataset {run.dataset} --protocol {run.finished.protocol} --seed {run.seed}` with "
            "the settings of this run mends it"
        )
    for split in SPLITS:
        probes = {
            m: (theirs, ours)
            for m, other in alone.items()
            if (theirs := _accuracy(other, m, "probe", split)) is not None
            and (ours := _accuracy(run, m, "probe", split)) is not None
        }
        if not probes:
            continue
        reached = {m: theirs for m, (theirs, _) in probes.items()}
        gaps = {m: theirs - ours for m, (theirs, ours) in probes.items()}
        result.quantities += [
            Quantity("encoder", "unimodal_probe", "probe, trained alone", split, "%", reached),
            Quantity("encoder", "gap", "gap: alone minus here", split, "points", gaps),
        ]


# -- from the history ------------------------------------------------------------------------------


def confidence_ratios(confidences: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return for each modality, epoch by epoch, its mean probability of the true class over the
    mean of that of the other modalities; arrays ``(T,)`` in and out.

    With two modalities these are OGM's discrepancy ratio and its inverse (Peng et al., CVPR 2022),
    read on validation rows. At least two modalities are needed.
    """
    total = np.sum(list(confidences.values()), axis=0)
    others = len(confidences) - 1
    return {m: c * others / (total - c) for m, c in confidences.items()}


def discrepancy(ratios: Mapping[str, np.ndarray]) -> float:
    """Return the mean of ``|log ratio|`` over epochs and modalities: 0 where all are equally sure
    of the true class at all times, without an upper end."""
    return float(np.mean([np.abs(np.log(ratio)) for ratio in ratios.values()]))


def _add_training(result: Balance) -> None:
    try:
        history = learning_curves(result.run)
    except StoreError as error:
        result.missing.append(f"nothing is said of training: {error}")
        return
    epochs = _selected_epochs(result.run, history)
    _add_confidence(result, epochs)
    _add_gradients(result, epochs)
    logged = list(_logged(epochs, result.modalities))
    for name, means, lasts in logged:
        result.quantities += [
            Quantity("method", f"{name}.mean", f"logged {name}, mean over epochs", "", "", means),
            Quantity("method", f"{name}.last", f"logged {name}, last epoch", "", "", lasts),
        ]
    if not logged and not any(q.name.startswith("report.") for q in result.quantities):
        result.missing.append("weights: the method reports none of its own for the modalities")


def _selected_epochs(run: StoredRun, history: pd.DataFrame) -> pd.DataFrame:
    """Return the history of the stages that trained the tested models."""
    stages = {kept.get("stage") for kept in run.finished.selected}
    if "stage" not in history:
        return history
    return history[history["stage"].isin(stages)]


def _table(epochs: pd.DataFrame, name: str, modalities: Sequence[str]) -> pd.DataFrame | None:
    """Return the columns ``name.<m>``, named by modality; None unless each modality has one with
    any number."""
    columns = {f"{name}.{m}": m for m in modalities}
    if not set(columns) <= set(epochs.columns):
        return None
    chosen = epochs[list(columns)].rename(columns=columns)
    return None if chosen.isna().all(axis=0).any() else chosen


def _add_confidence(result: Balance, epochs: pd.DataFrame) -> None:
    table = None
    if len(result.modalities) >= 2:
        table = _table(epochs, "val_confidence", result.modalities)
    if table is None or (table := table.dropna()).empty or not (table > 0).all(axis=None):
        reason = (
            "one modality has no other to be compared with"
            if len(result.modalities) < 2
            else "no epoch has the confidence of every modality on validation rows"
        )
        result.missing.append(f"confidence ratio: {reason}")
        return
    confidences = {m: table[m].to_numpy(dtype=np.float64) for m in result.modalities}
    ratios = confidence_ratios(confidences)
    result.discrepancy = discrepancy(ratios)
    over_training = {
        "first": {m: float(ratio[0]) for m, ratio in ratios.items()},
        "last": {m: float(ratio[-1]) for m, ratio in ratios.items()},
        "mean": {m: float(np.exp(np.log(ratio).mean())) for m, ratio in ratios.items()},
    }
    titles = {"first": "first epoch", "last": "last epoch", "mean": "geometric mean"}
    result.quantities += [
        Quantity(
            "training", f"confidence_ratio.{k}", f"confidence ratio, {titles[k]}", "val", "", v
        )
        for k, v in over_training.items()
    ]


def _add_gradients(result: Balance, epochs: pd.DataFrame) -> None:
    table = _table(epochs, "gradient_norm", result.modalities)
    if table is None:
        result.missing.append(
            "gradient norms: the history has none for every modality (the run may be older than "
            f"they are: {AGAIN})"
        )
        return
    for name, title, values in (
        ("first", "first epoch", table.bfill().iloc[0]),
        ("last", "last epoch", table.ffill().iloc[-1]),
        ("mean", "mean over epochs", table.mean()),
    ):
        result.quantities.append(
            Quantity(
                "training",
                f"gradient_norm.{name}",
                f"gradient norm, {title}",
                "",
                "",
                {m: float(values[m]) for m in result.modalities},
            )
        )


def _logged(
    epochs: pd.DataFrame, modalities: Sequence[str]
) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    """Yield what the method logged of each modality: name, means over epochs, last values."""
    first = modalities[0]
    for column in epochs.columns:
        name = column.removesuffix(f".{first}")
        if name == column or name == "gradient_norm" or name.startswith(("val_", "test_")):
            continue
        if (table := _table(epochs, name, modalities)) is not None:
            last = table.ffill().iloc[-1]
            means = table.mean()
            yield (
                name,
                {m: float(means[m]) for m in modalities},
                {m: float(last[m]) for m in modalities},
            )
