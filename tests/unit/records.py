"""Writes result folders in the documented format, with metrics computed from the predictions."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    log_loss,
    roc_auc_score,
)

CLASSES = ("ant", "bee", "cat", "dog")
MODALITIES = ("fourier", "zernike")
READOUTS = {"split": "parts", "own_head": "own_head", "probe": "probe"}
ROWS = 400


def logits_with_accuracy(
    labels: np.ndarray, accuracy: float, rng: np.random.Generator, classes: int = len(CLASSES)
) -> np.ndarray:
    """Return float32 logits ``(N, C)`` of which the given share, rounded, is right."""
    n = len(labels)
    logits = rng.normal(0, 0.3, (n, classes))
    right = np.zeros(n, dtype=bool)
    right[rng.permutation(n)[: round(accuracy * n)]] = True
    wrong = (labels + rng.integers(1, classes, n)) % classes
    chosen = np.where(right, labels, wrong)
    logits[np.arange(n), chosen] += 3.0
    return logits.astype(np.float32)


def metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    exponent = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
    p = exponent / exponent.sum(axis=1, keepdims=True)
    chosen, confidence = p.argmax(axis=1), p.max(axis=1)
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    gaps = [
        abs(np.mean(chosen[bins == b] == labels[bins == b]) - confidence[bins == b].mean())
        * np.mean(bins == b)
        for b in np.unique(bins)
    ]
    # Fifteen runs of rows from the least to the most confident; no two rows are equally confident.
    group = np.argsort(np.argsort(confidence)) * 15 // len(labels)
    adaptive = [
        abs(np.sum(chosen[group == b] == labels[group == b]) - confidence[group == b].sum())
        for b in range(15)
    ]
    onehot = np.eye(p.shape[1])[labels]
    return {
        "accuracy": float(accuracy_score(labels, chosen)),
        "macro_f1": float(f1_score(labels, chosen, average="macro")),
        "weighted_f1": float(f1_score(labels, chosen, average="weighted")),
        "mean_average_precision": float(average_precision_score(onehot, p, average="macro")),
        "auroc": float(roc_auc_score(onehot, p, average="macro")),
        "adaptive_ece": float(np.sum(adaptive) / len(labels)),
        "nll": float(log_loss(labels, p, labels=np.arange(p.shape[1]))),
        "ece": float(np.sum(gaps)),
        "brier": float(((p - np.eye(p.shape[1])[labels]) ** 2).sum(axis=1).mean()),
    }


def write_run(
    root: Path,
    method: str,
    seed: int,
    accuracy: float = 0.8,
    *,
    changed: Mapping[str, Any] | None = None,
    dataset: str = "mfeat",
    protocol: str = "few",
    modalities: Sequence[str] = MODALITIES,
    probes: Mapping[str, float] | None = None,
    shapley: Mapping[str, float] | None = None,
    status: str = "done",
    reason: str | None = None,
    notes: Sequence[str] = (),
    fingerprint: str = "same",
    extra_fingerprints: Mapping[str, str] | None = None,
    epochs: int = 6,
    updates: int = 300,
    select: str = "best-val",
    version: str = "0.1.0",
    config_hash: str | None = None,
    record_changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write one run and return its folder. ``probes`` are probe accuracies by modality; the other
    readouts lie 2 (split) and 1 (own_head) points below."""
    changed = dict(changed or {})
    identity = json.dumps([method, changed, dataset, protocol], sort_keys=True)
    setting = config_hash or hashlib.sha256(identity.encode()).hexdigest()[:12]
    folder = root / dataset / method / setting / f"seed-{seed}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16)])
    probes = dict(probes) if probes is not None else dict.fromkeys(modalities, accuracy - 0.1)
    arrays: dict[str, np.ndarray] = {}
    scores: dict[str, dict[str, float]] = {}
    per_modality: dict[str, dict[str, dict[str, float]]] = {m: {} for m in probes}
    for split in ("val", "test"):
        labels = rng.permutation(np.arange(ROWS) % len(CLASSES)).astype(np.int64)
        arrays[f"{split}_ids"] = np.array([f"{split}-{i}" for i in range(ROWS)])
        arrays[f"{split}_labels"] = labels
        arrays[f"{split}_logits"] = logits_with_accuracy(labels, accuracy, rng)
        scores[split] = metrics(labels, arrays[f"{split}_logits"])
        for m, probe in probes.items():
            for (readout, name), below in zip(READOUTS.items(), (0.02, 0.01, 0.0), strict=True):
                logits = logits_with_accuracy(labels, probe - below, rng)
                arrays[f"{split}_{name}.{m}"] = logits
                found = float(accuracy_score(labels, logits.argmax(axis=1)))
                per_modality[m].setdefault(readout, {})[split] = found
    shares = (
        dict(shapley) if shapley is not None else dict.fromkeys(modalities, 1 / len(modalities))
    )
    chance = 1 / len(CLASSES)
    total = scores["test"]["accuracy"] - chance
    record: dict[str, Any] = {
        "schema": 1,
        "status": status,
        "reason": reason,
        "dataset": dataset,
        "protocol": protocol,
        "method": method,
        "fusion": changed.get("fusion", "concat"),
        "seed": seed,
        "config_hash": setting,
        "changed": changed,
        "modalities": list(modalities),
        "classes": list(CLASSES),
        "notes": list(notes),
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "environment": {"mmbench": version, "device": "cpu"},
        "fingerprints": {
            "split": f"split-{fingerprint}-{seed}",
            "data": f"data-{fingerprint}",
            **(extra_fingerprints or {}),
        },
    }
    if status == "done":
        record |= {
            "metrics": scores,
            "per_modality": per_modality,
            "contributions": {
                "shapley": {
                    "test": {
                        "values": {m: share * total for m, share in shares.items()},
                        "none": chance,
                        "all": scores["test"]["accuracy"],
                    }
                },
                "leave_one_out": {"test": {m: share * total / 2 for m, share in shares.items()}},
                "permutation": {"test": {m: share * total for m, share in shares.items()}},
            },
            "report": {},
            "truth": {},
            "cost": {
                "updates": updates,
                "forwards": updates,
                "encoder_forwards": updates * len(modalities),
                "backwards": updates,
                "train_seconds": 1.5 + 0.1 * seed,
                "stage_seconds": {"train": 1.5 + 0.1 * seed},
                "parameters": 123456,
                "peak_memory_bytes": None,
            },
            "selected": [{"stage": "train", "epoch": epochs, "rule": select}],
        }
        np.savez(folder / "predictions.npz", **arrays)  # type: ignore[arg-type]
    record |= dict(record_changes or {})
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    _write_history(folder / "history.csv", epochs, accuracy, probes, rng)
    return folder


def _write_history(
    file: Path,
    epochs: int,
    accuracy: float,
    probes: Mapping[str, float],
    rng: np.random.Generator,
) -> None:
    names = ["stage", "epoch", "lr", "train_loss", "val_accuracy", "val_nll"]
    names += [f"val_split_accuracy.{m}" for m in probes]
    names += [f"val_confidence.{m}" for m in probes]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        for epoch in range(1, epochs + 1):
            reached = 1 - np.exp(-3 * epoch / epochs)
            curve = [
                0.25 + (top - 0.25) * reached + rng.normal(0, 0.01)
                for top in (accuracy, *probes.values())
            ]
            # A confidence a little below the accuracy, as of a modality that is sure of its hits.
            confidence = [0.9 * value for value in curve[1:]]
            row = ["train", epoch, 0.01, 2 - reached, curve[0], 1 - reached / 2]
            writer.writerow([*row, *curve[1:], *confidence])


def write_setting(
    root: Path, method: str, accuracies: Sequence[float], **options: Any
) -> list[Path]:
    """Write one run a seed, with these test accuracies."""
    return [write_run(root, method, s, a, **options) for s, a in enumerate(accuracies)]
