"""The loop that every method goes through. It knows nothing of any method."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from mmbench.config import Recipe
from mmbench.data.dataset import Batch, Split, Splits
from mmbench.errors import StoreError
from mmbench.evaluate.readout import Readout, read_out
from mmbench.nets.network import Network, NetworkSpec
from mmbench.train.checkpoint import START_AGAIN, Checkpointer, State
from mmbench.train.flops import counted
from mmbench.train.method import Method, Stage
from mmbench.train.optim import build_optimizer, build_schedule
from mmbench.train.run import Counts, Run
from mmbench.train.watch import Watch

HistoryRow = dict[str, float | int | str]


class Progress(Protocol):
    """What is told as training goes on."""

    def stage(self, name: str, number: int, stages: int, epochs: int) -> None: ...

    def epoch(self, done: int, row: Mapping[str, float | int | str]) -> None: ...


class Silent:
    """Progress that is shown to nobody."""

    def stage(self, name: str, number: int, stages: int, epochs: int) -> None: ...

    def epoch(self, done: int, row: Mapping[str, float | int | str]) -> None: ...


@dataclass
class Selected:
    """The epoch whose model is kept."""

    epoch: int
    score: tuple[float, ...]
    network: State
    method: State


@dataclass
class Fitted:
    """A trained method and how it got there."""

    run: Run
    method: Method
    history: list[HistoryRow]
    seconds: dict[str, float]
    """Training time per stage. Evaluation on validation, checkpoints and the step whose operations
    are counted are left out."""
    selected: list[dict[str, int | str]] = field(default_factory=list)
    """Stage, epoch and rule of every model that was kept."""
    step_flops: int | None = None
    """Floating-point operations of a training step, summed over the stages that keep a model."""


class Trainer:
    """Trains a method on splits that are already on the device."""

    def __init__(
        self,
        method: Method,
        splits: Splits,
        spec: NetworkSpec,
        recipe: Recipe,
        device: torch.device,
        precision: str = "fp32",
        progress: Progress | None = None,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        self.method = method
        self.splits = splits
        self.recipe = recipe
        self.device = device
        self.progress = progress or Silent()
        self.checkpointer = checkpointer
        self.run = Run(splits.train, spec, recipe, device, precision)
        self.main: Network = spec.build(method.modalities(tuple(spec.modalities))).to(device)
        self.run.main = self.run.network = self.main
        self.history: list[HistoryRow] = []
        self.seconds: dict[str, float] = {}
        self.selected: dict[str, dict[str, int | str]] = {}
        self.step_flops: dict[str, int] = {}
        """Of the first training step of each stage whose model is tested."""
        self._untimed = 0.0
        self._saved_at = time.monotonic()

    def fit(self) -> Fitted:
        """Train all stages, from the last checkpoint if there is one."""
        self.method.setup(self.run)
        self.method.to(self.device)
        stages = self.method.stages(self.run)
        state = self.checkpointer.load() if self.checkpointer else None
        first, epochs_done = 0, 0
        if state is not None:
            first, epochs_done = self._resume(state, stages)
        for number in range(first, len(stages)):
            self.progress.stage(stages[number].name, number + 1, len(stages), stages[number].epochs)
            self._train_stage(number, stages[number], state if epochs_done else None)
            state, epochs_done = None, 0
        self.run.network = self.main
        self.main.eval()
        self.method.eval()
        return Fitted(
            self.run,
            self.method,
            self.history,
            self.seconds,
            list(self.selected.values()),
            sum(self.step_flops.values()) if self.step_flops else None,
        )

    def _train_stage(self, number: int, stage: Stage, state: State | None) -> None:
        run, method = self.run, self.method
        began = self._now()
        run.stage, run.epoch, run.stage_is_over = stage, 0, False
        run.network = (
            run.fresh_network(stage.modalities, stage.fusion) if stage.fresh else self.main
        )
        run.begin_epoch(0)
        method.on_stage_start(run)
        method.to(self.device)
        best: Selected | None = None
        if stage.epochs > 0:
            run.optimizer = build_optimizer(method.param_groups(run), self.recipe)
            schedule = build_schedule(run.optimizer, self.recipe, stage.epochs)
            done = 0
            if state is not None:
                best, done = self._restore_stage(state, schedule)
            began = self._charge(stage, began)
            for epoch in range(done, stage.epochs):
                row = self._train_epoch(number, stage, epoch)
                schedule.step()
                began = self._charge(stage, began)
                best = self._look(stage, epoch, row, best)
                self.history.append(row)
                self.progress.epoch(epoch + 1, row)
                if epoch + 1 < stage.epochs and not run.stage_is_over:
                    self._save(number, epoch + 1, schedule, best)
                began = self._now()
                if run.stage_is_over:
                    break
            run.optimizer = None
            run.unfreeze()
        if best is not None:
            run.network.load_state_dict(best.network)
            method.load_state_dict(best.method)
        method.on_stage_end(run)
        self._charge(stage, began)
        run.network = self.main
        self._save(number + 1, 0, None, None)

    def _train_epoch(self, number: int, stage: Stage, epoch: int) -> HistoryRow:
        run, method = self.run, self.method
        run.begin_epoch(epoch)
        run.network.train()
        method.train()
        method.on_epoch_start(run)
        assert run.optimizer is not None
        rate = run.optimizer.param_groups[0]["lr"]
        rows = np.arange(len(run.train)) if stage.rows is None else stage.rows
        watch = Watch(run)
        batches = run.shuffled(rows, epoch)
        run.measured = run.network
        if epoch == 0 and stage.select == "protocol":
            watch.step(self._count_step(stage, next(batches)))
            run.measured = None
        for batch in batches:
            watch.step(method.train_step(run, batch))
            run.measured = None
        mean_loss = watch.finish()
        method.on_epoch_end(run)
        row: HistoryRow = {"stage": stage.name, "epoch": epoch + 1, "lr": rate}
        row["train_loss"] = mean_loss
        return row | run.take_logged()

    def _count_step(self, stage: Stage, batch: Batch) -> Tensor:
        """Do a training step and note its operations. Counting makes a step slower, so that it is
        left out of the stage's time."""
        began = self._now()
        step = partial(self.method.train_step, self.run, batch)
        loss, self.step_flops[stage.name] = counted(step)
        self._untimed += self._now() - began
        return loss

    def _look(
        self, stage: Stage, epoch: int, row: HistoryRow, best: Selected | None
    ) -> Selected | None:
        """Evaluate where the stage selects, note it in the history, and keep the better model."""
        rule = self.recipe.select if stage.select == "protocol" else stage.select
        score: tuple[float, ...] | None = None
        if stage.select == "rows":
            assert stage.select_rows is not None, f"stage '{stage.name}' names no select_rows"
            loss = self._read(self.splits.train, stage.select_rows).nll()
            row["select_nll"] = loss
            score = (-loss,)
        elif stage.select == "protocol":
            if self.recipe.train_on == "train":
                score = self._note(row, "val", self._read(self.splits.val))
            if rule == "best-test":
                score = self._note(row, "test", self._read(self.splits.test))
        if rule == "last" or score is None:
            if stage.select == "protocol":
                self._select(stage, epoch, rule)
            return None
        if best is not None and score <= best.score:
            return best
        if stage.select == "protocol":
            self._select(stage, epoch, rule)
        return Selected(
            epoch + 1, score, _copy(self.run.network.state_dict()), _copy(self.method.state_dict())
        )

    def _select(self, stage: Stage, epoch: int, rule: str) -> None:
        self.selected[stage.name] = {"stage": stage.name, "epoch": epoch + 1, "rule": rule}

    def _note(self, row: HistoryRow, split: str, readout: Readout) -> tuple[float, ...]:
        """Put accuracies into a history row; return the score that selection compares: accuracy,
        and where it ties the lower loss."""
        row[f"{split}_accuracy"] = accuracy = readout.accuracy()
        row[f"{split}_nll"] = loss = readout.nll()
        for m in readout.parts:
            row[f"{split}_split_accuracy.{m}"] = readout.accuracy(readout.parts[m])
            row[f"{split}_confidence.{m}"] = readout.confidence(readout.parts[m])
        for m in readout.own:
            row[f"{split}_own_head_accuracy.{m}"] = readout.accuracy(readout.own[m])
        return accuracy, -loss

    def _read(self, split: Split, rows: np.ndarray | None = None) -> Readout:
        return read_out(self.run, self.method, split, rows)

    # -- time ------------------------------------------------------------------------------------

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _charge(self, stage: Stage, began: float) -> float:
        now = self._now()
        spent, self._untimed = now - began - self._untimed, 0.0
        self.seconds[stage.name] = self.seconds.get(stage.name, 0.0) + spent
        return now

    # -- checkpoints -----------------------------------------------------------------------------

    def _save(
        self, number: int, epochs: int, schedule: LRScheduler | None, best: Selected | None
    ) -> None:
        """Keep the state before epoch ``epochs`` of stage ``number``, if it is time to."""
        keeper = self.checkpointer
        if keeper is None or time.monotonic() - self._saved_at < keeper.seconds:
            return
        run = self.run
        keeper.save(
            {
                "stage": number,
                "epoch": epochs,
                "main": self.main.state_dict(),
                "network": run.network.state_dict() if epochs else None,
                "method": self.method.state_dict(),
                "optimizer": run.optimizer.state_dict() if run.optimizer and epochs else None,
                "schedule": schedule.state_dict() if schedule else None,
                "best": None if best is None else vars(best),
                "history": self.history,
                "counts": run.counts.as_dict(),
                "seconds": self.seconds,
                "step_flops": self.step_flops,
                "selected": self.selected,
                "notes": run.notes,
            }
        )
        self._saved_at = time.monotonic()

    def _resume(self, state: State, stages: list[Stage]) -> tuple[int, int]:
        with _reading_checkpoint():
            self.main.load_state_dict(state["main"])
            self.method.load_state_dict(state["method"])
            self.history = list(state["history"])
            self.seconds = dict(state["seconds"])
            self.step_flops = dict(state["step_flops"])
            self.selected = dict(state["selected"])
            for note in state["notes"]:
                self.run.note(note)
            self.run.counts = Counts(**state["counts"])
            number, epochs = int(state["stage"]), int(state["epoch"])
            if number > len(stages) or epochs >= (stages[number].epochs if epochs else 1):
                raise ValueError("it is of another number of stages or epochs")
        return number, epochs

    def _restore_stage(self, state: State, schedule: LRScheduler) -> tuple[Selected | None, int]:
        run = self.run
        assert run.optimizer is not None
        with _reading_checkpoint():
            run.network.load_state_dict(state["network"])
            self.method.load_state_dict(state["method"])
            run.optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            run.counts = Counts(**state["counts"])
            best = None if state["best"] is None else Selected(**state["best"])
        return best, int(state["epoch"])


@contextmanager
def _reading_checkpoint() -> Iterator[None]:
    """Say of a state that does not fit what to do about it."""
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"the checkpoint does not fit this run: {START_AGAIN}") from error


def _copy(state: Mapping[str, Any]) -> State:
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in state.items()}
