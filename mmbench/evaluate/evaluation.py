"""Everything that is stored of a trained method's predictions. Format: docs/results-format.md.

This is the one place that reads the test split (except ``select=best-test``, which repeats a fault
of many papers). Nothing is trained but the probes, and the run is left as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mmbench.data.dataset import Split, Splits
from mmbench.errors import RunFailed
from mmbench.evaluate.contributions import contribution, masked, permutation, stand_ins
from mmbench.evaluate.metrics import accuracy, all_metrics
from mmbench.evaluate.probes import ITERATIONS, Probe, fit_probe
from mmbench.evaluate.readout import Readout, predict_from, read_out

if TYPE_CHECKING:
    from mmbench.train.method import Method
    from mmbench.train.run import Run
    from mmbench.train.trainer import Fitted


@dataclass
class Evaluation:
    """What ``record.json`` and ``predictions.npz`` hold of the predictions; splits are ``val``,
    where its rows were not trained on, and ``test``."""

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """``{split: {metric: value}}`` of the fused logits."""
    per_modality: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """``{modality: {readout: {split: accuracy}}}``."""
    contributions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """``{"shapley": {split: {"values": {m: phi}, "none": v, "all": v}}, "leave_one_out" and
    "permutation": {split: {m: loss of accuracy}}}``; without splits for a network without
    modalities."""
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays by their names in ``predictions.npz``."""
    notes: tuple[str, ...] = ()
    """What a reader has to know, such as a probe that did not converge."""


def evaluate(fitted: Fitted, splits: Splits, include_val: bool) -> Evaluation:
    """Return the evaluation of a trained method on test, and on validation if asked for.

    Probes and mean features are made from the rows that the method was trained on. Raises
    :class:`RunFailed` when the trained network gives features or logits that are not numbers.
    """
    run, method = fitted.run, fitted.method
    result = Evaluation(contributions={"shapley": {}, "leave_one_out": {}, "permutation": {}})
    features = _trained_features(run, method)
    labels = run.train.y.cpu().numpy()
    probes = {m: fit_probe(h.numpy(), labels, run.classes) for m, h in features.items()}
    result.notes = tuple(
        f"the probe of modality '{m}' did not converge in {ITERATIONS} iterations"
        for m, probe in probes.items()
        if not probe.converged
    )
    mean = stand_ins(features, "train_mean_feature")
    wanted = {"val": splits.val, "test": splits.test} if include_val else {"test": splits.test}
    for name, split in wanted.items():
        readout = read_out(run, method, split)
        _check_numbers(readout, name)
        result.metrics[name] = all_metrics(readout.y.numpy(), readout.logits.numpy())
        readouts = _readouts(run, method, readout, probes)
        result.predictions |= _arrays(name, split, readout, readouts)
        for kind, logits_by_modality in readouts.items():
            for m, logits in logits_by_modality.items():
                of_modality = result.per_modality.setdefault(m, {})
                of_modality.setdefault(kind, {})[name] = accuracy(readout.y.numpy(), logits)
        if (shapley := contribution(run, method, readout, mean)) is not None:
            values = asdict(shapley)
            result.contributions["leave_one_out"][name] = values.pop("losses")
            result.contributions["shapley"][name] = values
            result.contributions["permutation"][name] = permutation(
                run, method, readout, run.seed, name
            )
    return result


def _trained_features(run: Run, method: Method) -> dict[str, Tensor]:
    """Return the features ``{m: (N, width_m)}`` of the rows trained on, without augmentation."""
    if not run.network.modalities:
        return {}
    readout = read_out(run, method, run.train)
    _check_numbers(readout, "train")
    return readout.features


def _readouts(
    run: Run, method: Method, readout: Readout, probes: Mapping[str, Probe]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the logits ``(N, C)`` of each modality by each read-out that exists here."""
    zero = stand_ins(readout.features, "zero_feature")
    alone = {
        m: predict_from(run, method, masked(readout.features, [m], zero)) for m in readout.features
    }
    fusion = run.network.fusion
    split = readout.parts if fusion is not None and fusion.parts_are_exact else {}
    return {
        "split": {m: logits.numpy() for m, logits in split.items()},
        "zero_feature": {m: logits.numpy() for m, logits in alone.items()},
        "own_head": {m: logits.numpy() for m, logits in readout.own.items()},
        "probe": {m: probe.logits(readout.features[m].numpy()) for m, probe in probes.items()},
    }


def _arrays(
    name: str, split: Split, readout: Readout, readouts: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return a split's part of ``predictions.npz``."""
    arrays = {
        f"{name}_ids": np.asarray(split.ids, dtype=np.str_),
        f"{name}_labels": readout.y.numpy().astype(np.int64),
        f"{name}_logits": readout.logits.numpy(),
    }
    arrays |= {f"{name}_parts.{m}": part.numpy() for m, part in readout.parts.items()}
    for kind in ("own_head", "probe"):
        arrays |= {f"{name}_{kind}.{m}": logits for m, logits in readouts[kind].items()}
    return arrays


def _check_numbers(readout: Readout, split: str) -> None:
    bad = [m for m, h in readout.features.items() if not bool(h.isfinite().all())]
    if bad:
        what = f"the features of {', '.join(bad)}"
    elif not bool(readout.logits.max(dim=1).values.isfinite().all()):
        what = "the logits"
    else:
        return
    raise RunFailed(
        f"{what} are not finite on {split} after training; lower the learning rate (-t lr=...) or "
        "clip (-t clip_norm=1)"
    )
