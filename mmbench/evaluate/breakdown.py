"""Every metric of each modality, and of each class, from a stored run's predictions."""

from __future__ import annotations

import math

from mmbench.errors import DataError, unknown_name
from mmbench.evaluate.balance import SPLITS, Quantity, Unit
from mmbench.evaluate.metrics import all_metrics, per_class
from mmbench.evaluate.stored import READOUT_ARRAYS, logits_by_modality, per_modality
from mmbench.store.frame import StoredRun, predictions

UNITS: dict[str, Unit] = {"nll": "nats", "brier": ""}
"""Of metrics that are no shares."""


def metrics_by_modality(run: StoredRun, readout: str) -> list[Quantity]:
    """Return every metric but accuracy of the fused prediction and of each modality by a readout,
    on each split. A metric that is not defined for all of these is left out."""
    arrays = predictions(run)
    found: list[Quantity] = []
    for split in _splits(run, readout):
        by_modality = per_modality(arrays, split, readout)
        fused = all_metrics(arrays[f"{split}_labels"], arrays[f"{split}_logits"])
        del fused["accuracy"]  # stands among the readouts
        for name, value in fused.items():
            values = {m: metrics[name] for m, metrics in by_modality.items()}
            if all(math.isfinite(number) for number in (value, *values.values())):
                unit = UNITS.get(name, "%")
                title = f"{name} by {readout}"
                found.append(
                    Quantity("metrics", f"{name}.{readout}", title, split, unit, values, value)
                )
    return found


def f1_by_class(run: StoredRun, readout: str) -> list[Quantity]:
    """Return F1 of each class on each split: of the fused prediction and of each modality."""
    arrays = predictions(run)
    found: list[Quantity] = []
    for split in _splits(run, readout):
        labels = arrays[f"{split}_labels"]
        fused = per_class(labels, arrays[f"{split}_logits"])
        scores = {
            m: per_class(labels, logits).f1
            for m, logits in logits_by_modality(arrays, split, readout).items()
        }
        for number, name in enumerate(run.finished.classes):
            title = f"F1 of class {name} ({fused.rows[number]} rows)"
            values = {m: float(f1[number]) for m, f1 in scores.items()}
            whole = float(fused.f1[number])
            found.append(Quantity("classes", f"f1.{name}", title, split, "%", values, whole))
    return found


def _splits(run: StoredRun, readout: str) -> list[str]:
    """Return the splits whose predictions are stored and of which modalities were read out.

    Raises :class:`DataError` where there are none, and for predictions of another run.
    """
    if readout not in READOUT_ARRAYS:
        raise unknown_name("readout of stored predictions", readout, READOUT_ARRAYS)
    arrays = predictions(run)
    chosen = [s for s in SPLITS if logits_by_modality(arrays, s, readout)]
    if not chosen:
        raise DataError(f"{run.path}: the predictions have no '{readout}' of any modality")
    for split in chosen:
        scores = run.finished.metrics.get(split)
        again = all_metrics(arrays[f"{split}_labels"], arrays[f"{split}_logits"])["accuracy"]
        if scores is None or not math.isclose(again, scores.accuracy, abs_tol=1e-9):
            raise DataError(
                f"{run.path}: predictions.npz is not of this record: its accuracy on {split} "
                f"differs; delete the folder and run again"
            )
    return chosen
