"""Training one job, and storing what comes of it."""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmbench.config import RunConfig
from mmbench.environment import describe, make_repeatable
from mmbench.errors import MmbenchError, RequestError, RunFailed
from mmbench.evaluate.evaluation import Evaluation, evaluate
from mmbench.nets.network import NetworkSpec
from mmbench.planning import Job
from mmbench.registry import failing_place
from mmbench.store.record import RunFolder, RunRecord, finite, read_predictions
from mmbench.train.checkpoint import Checkpointer, save_state
from mmbench.train.method import Method
from mmbench.train.trainer import Fitted, Progress, Trainer

CHECKPOINT_SECONDS = 30.0
"""A killed run loses at most this much work, and the epoch it was in."""


@dataclass
class Outcome:
    """What became of a job."""

    what: Literal["trained", "stored before", "repeated", "failed"]
    path: Path
    record: dict[str, Any]
    is_identical: bool | None = None
    """For a repeated run: whether its predictions equal the stored ones, bit for bit."""


def execute(
    job: Job,
    results: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    repeat: bool = False,
    progress: Progress | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Outcome:
    """Train a job and store it, unless it is stored already.

    With ``repeat`` a stored run is trained again and compared with what is stored, which stays as
    it is. A run that fails is stored as failed, unless that would take the place of one that is
    done. Raises :class:`RequestError` or :class:`StoreError` when nothing could be started or
    stored, and KeyboardInterrupt after noting it.
    """
    folder = RunFolder(results, job.config)
    stored = folder.stored()
    if stored is not None and stored["status"] == "done" and not overwrite:
        check_same_data(stored, job, folder.path)
        if repeat:
            return _repeat(job, folder, stored, progress)
        return Outcome("stored before", folder.path, stored)
    record = _new_record(job)
    if resume and (begun := folder.begun()) is not None:
        check_same_data(begun, job, folder.partial)
    folder.begin(record, resume, overwrite)
    try:
        keeper = Checkpointer(folder.checkpoints, checkpoint_seconds)
        fitted, evaluation = _train(job, keeper, progress)
        _fill(record, job, fitted, evaluation)
        state = {"network": fitted.run.network.state_dict(), "method": fitted.method.state_dict()}
        save_state(folder.checkpoints / "model.pt", state)
    except RequestError:
        folder.abandon()
        raise
    except KeyboardInterrupt:
        record.status, record.reason = "interrupted", "stopped by a signal"
        record.finished = _now()
        folder.keep_partial(record)
        raise
    except Exception as error:
        failed = replace(_new_record(job), status="failed", reason=_reason(error, job.method))
        failed.started, failed.finished = record.started, _now()
        if stored is not None and stored["status"] == "done":
            folder.abandon(keep_checkpoint=False)
        else:
            folder.finish(failed, [], {}, "".join(traceback.format_exception(error)))
        return Outcome("failed", folder.path, vars(failed))
    folder.finish(record, fitted.history, evaluation.predictions)
    return Outcome("trained", folder.path, vars(record))


def build_trainer(
    job: Job, keeper: Checkpointer | None = None, progress: Progress | None = None
) -> Trainer:
    """Return the trainer of a job, with the data on its device."""
    config = job.config
    device = torch.device(config.device)
    make_repeatable(config.threads, config.precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    splits = job.splits.with_val_in_train() if _trains_on_val(config) else job.splits
    spec = NetworkSpec(
        splits.modalities, config.encoders, len(splits.classes), config.fusion, config.seed
    )
    return Trainer(
        job.method(job.options),
        splits.to(device),
        spec,
        config.recipe,
        device,
        config.precision,
        progress,
        keeper,
    )


def _train(
    job: Job, keeper: Checkpointer | None, progress: Progress | None
) -> tuple[Fitted, Evaluation]:
    trainer = build_trainer(job, keeper, progress)
    fitted = trainer.fit()
    return fitted, evaluate(fitted, trainer.splits, not _trains_on_val(job.config))


def _trains_on_val(config: RunConfig) -> bool:
    return config.recipe.train_on == "train+val"


def _repeat(
    job: Job, folder: RunFolder, stored: dict[str, Any], progress: Progress | None
) -> Outcome:
    _, evaluation = _train(job, None, progress)
    before, now = read_predictions(folder.path), evaluation.predictions
    identical = before.keys() == now.keys() and all(
        np.array_equal(before[name], now[name], equal_nan=before[name].dtype.kind == "f")
        for name in before
    )
    return Outcome("repeated", folder.path, stored, identical)


def check_same_data(stored: dict[str, Any], job: Job, path: Path) -> None:
    """Raise :class:`RequestError` where a job's data are not those of the stored record."""
    now = job.splits.fingerprints()
    for kind, before in stored["fingerprints"].items():
        if kind in now and now[kind] != before:
            raise RequestError(
                f"{path} was run on other data ({kind} {before}, now {now[kind]}): restore the "
                "data, add --overwrite, or choose another --results folder"
            )


def _new_record(job: Job) -> RunRecord:
    config = job.config
    return RunRecord(
        status="done",
        dataset=Path(config.dataset).stem,
        protocol=config.protocol,
        method=Path(config.method).stem,
        fusion=config.fusion,
        seed=config.seed,
        config_hash=config.config_hash(),
        changed=job.changed,
        modalities=list(job.splits.modalities),
        classes=list(job.splits.classes),
        fingerprints={**job.splits.fingerprints(), **config.files},
        environment=describe(torch.device(config.device), config.threads),
        started=_now(),
        notes=[*job.splits.notes, *([job.method.info.note] if job.method.info.note else [])],
        truth=job.splits.truth,
    )


def _fill(record: RunRecord, job: Job, fitted: Fitted, evaluation: Evaluation) -> None:
    run, method = fitted.run, fitted.method
    record.finished = _now()
    record.notes += [*run.notes, *evaluation.notes]
    record.metrics = evaluation.metrics
    record.per_modality = evaluation.per_modality
    record.contributions = evaluation.contributions
    record.report = _plain(method.report(run))
    record.selected = fitted.selected
    learned = [*run.network.parameters(), *method.parameters()]
    is_gpu = run.device.type == "cuda"
    record.cost = {
        **run.counts.as_dict(),
        "train_seconds": sum(fitted.seconds.values()),
        "stage_seconds": fitted.seconds,
        "parameters": sum(p.numel() for p in learned if p.requires_grad),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(run.device) if is_gpu else None,
        "step_flops": fitted.step_flops,
    }


def _plain(report: dict[str, Any]) -> dict[str, Any]:
    """Return a method's report if it is what ``record.json`` can hold."""
    try:
        json.dumps(finite(report))
    except (TypeError, ValueError) as error:
        raise RunFailed(f"the method's report is not plain numbers and texts: {error}") from error
    return report


def _reason(error: Exception, method: type[Method]) -> str:
    """Return one line that says why a run failed, with the place if it was not foreseen."""
    if isinstance(error, RunFailed | MmbenchError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory on the device: lower -t batch_size=... or use --precision bf16"
    return failing_place(error, method)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
