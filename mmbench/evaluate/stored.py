"""Metrics of a stored run, computed again from its ``predictions.npz``; torch is not needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mmbench.errors import DataError, MmbenchError
from mmbench.evaluate.metrics import METRICS, all_metrics
from mmbench.store.frame import Scores, StoredRun, predictions

READOUT_ARRAYS = {"split": "parts", "own_head": "own_head", "probe": "probe"}
"""Readouts of a modality by the name of their logits in ``predictions.npz``. ``parts`` are the
readout ``split`` only where the fusion is additive; else they are a zero-feature ablation of the
network."""


def logits_by_modality(
    arrays: Mapping[str, np.ndarray], split: str, readout: str
) -> dict[str, np.ndarray]:
    """Return the logits ``{m: (N, C)}`` of a readout among the arrays of ``predictions.npz``;
    empty where the run has none."""
    prefix = f"{split}_{READOUT_ARRAYS[readout]}."
    return {
        name.removeprefix(prefix): logits
        for name, logits in arrays.items()
        if name.startswith(prefix)
    }


def per_modality(
    arrays: Mapping[str, np.ndarray], split: str, readout: str = "probe"
) -> dict[str, dict[str, float]]:
    """Return ``{modality: {metric: value}}`` of a readout (``split``, ``own_head`` or ``probe``)
    from the arrays of ``predictions.npz``."""
    labels = arrays.get(f"{split}_labels")
    if labels is None:
        raise DataError(f"the predictions have no split '{split}'")
    found = logits_by_modality(arrays, split, readout)
    return {m: all_metrics(labels, logits) for m, logits in found.items()}


def with_metric(run: StoredRun, metric: str) -> StoredRun:
    """Return a finished run that has a metric of the fused prediction: the run itself where its
    record has it, else one whose record is completed from the predictions beside it.

    A record lacks a metric that mmbench did not know when the run was stored. It stays without
    where the predictions cannot be read or are not those of the record (their accuracy differs).
    """
    record = run.finished
    missing = [s for s, scores in record.metrics.items() if getattr(scores, metric, 0) is None]
    if metric not in METRICS or not missing:
        return run
    try:
        arrays = predictions(run)
        found = {s: (arrays[f"{s}_labels"], arrays[f"{s}_logits"]) for s in missing}
        completed = {s: _completed(record.metrics[s], *found[s]) for s in missing}
    except (MmbenchError, KeyError):
        return run
    metrics = {s: completed.get(s, scores) for s, scores in record.metrics.items()}
    return replace(run, record=record.model_copy(update={"metrics": metrics}))


def _completed(scores: Scores, labels: np.ndarray, logits: np.ndarray) -> Scores:
    again = all_metrics(labels, logits)
    if not math.isclose(again["accuracy"], scores.accuracy, abs_tol=1e-9):
        raise DataError("the predictions are not those of the record")
    lacking = {
        name: value
        for name, value in again.items()
        if getattr(scores, name) is None and math.isfinite(value)
    }
    return scores.model_copy(update=lacking)
