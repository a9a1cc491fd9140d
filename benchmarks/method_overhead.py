"""What a method costs: time per training step over that of joint training.

    python benchmarks/method_overhead.py
    python benchmarks/method_overhead.py --workload resnet18 --method agm --pairs 12
    python benchmarks/method_overhead.py --workload tiny --output overhead.csv

Workloads, all of random rows:

    features   MLPs on pooled features of 2,048, 768 and 512 numbers, batch 128: what people train
               on extracted features
    resnet18   two ResNet-18 from scratch on pictures of 64 x 64, batch 64: what people train end to
               end, with fewer pixels, so that a method's work on weights is more of the whole
    tiny       MLPs on 76, 47 and 6 numbers, batch 64, as in mfeat: the worst case, a step of a
               millisecond in which every operation on a small tensor shows

Each method trains through mmbench's trainer. Before or after each of its steps on a full batch, in
alternation, joint training with the same fusion makes a step on the same batch, in the same
process; the ratio is the mean of the middle half of these pairs. On a CPU with one thread it is
one of processor time, which other processes on the machine disturb less than time on the wall.

`by count` is what the method's own forwards, backwards and updates would cost at joint's speed:
floating-point operations in the backward passes and outside of them, and the number of weights that
a step updates, each over joint's and weighted by the time that joint spends on it. They are counted
on the smaller batch at the end of each epoch that is timed. `over` is the ratio to that.

Stages before the one that trains the tested network are cut to an epoch and not timed. Of 100
epochs the eighth to the twentieth are timed, or as many as it takes: warm-ups have ended by then,
and the windows in which methods act are still open. What is not timed learns from few rows of each
batch. `hooks` is the time of the method's work at the start and end of an epoch, in joint steps.
"""

import argparse
import contextlib
import csv
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import torch
from scipy.stats import trim_mean
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmbench import registry
from mmbench.config import Recipe
from mmbench.data.dataset import Splits
from mmbench.nets.network import NetworkSpec, resolve_encoders
from mmbench.testing.workloads import (
    CLASSES,
    SEED,
    TYPICAL,
    WORKLOADS,
    Workload,
    now,
    random_splits,
)
from mmbench.train.method import Batch, Method, Stage
from mmbench.train.optim import build_optimizer
from mmbench.train.run import Run
from mmbench.train.trainer import Trainer

TARGETS = {
    **dict.fromkeys(["ogm_ge", "mslr", "mmcosine", "pmr", "lfm"], 1.05),
    **dict.fromkeys(["opm", "cml", "mbsd", "inforeg"], 1.10),
}
"""Ratios to stay below; of other methods, `over` is to stay below :data:`OVER`."""

OVER = 1.15

EPOCHS = 100
FIRST, LAST = 7, 19
"""Epochs that are timed, from 0: warm-ups have ended, and the shortest window in which a method
acts, a fifth of all epochs, is still open."""
FEW = 8
"""Rows of a batch that steps learn from which are not timed."""

WORK = {**TYPICAL, "tiny": replace(WORKLOADS["mlp"], rows=1632)}
PAIRS = {"features": 180, "resnet18": 12, "tiny": 300}

COLUMNS = ("method", "ratio", "low", "high", "by_count", "over", "hooks", "target", "met", "pairs")


@dataclass
class Work:
    """Floating-point operations of a step, and weights that it updates."""

    forward: float = 0.0
    backward: float = 0.0
    updated: float = 0.0


@dataclass
class Times:
    """Seconds of paired steps, and the work of a step over that of joint's."""

    stage: str = ""
    """The stage they are of."""
    method: list[float] = field(default_factory=list)
    joint: list[float] = field(default_factory=list)
    parts: list[tuple[float, float, float]] = field(default_factory=list)
    """Of joint's steps: forward with loss, backward, update."""
    work: list[tuple[float, float, float]] = field(default_factory=list)
    """Of the method's counted steps, in the same order."""
    hooks: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [ours / joint for ours, joint in zip(self.method, self.joint, strict=True)]

    @property
    def ratio(self) -> float:
        """Return the mean of the middle half: a few disturbed pairs change it little, and where
        steps of two kinds alternate both count."""
        return float(trim_mean(self.ratios, 0.25))

    @property
    def by_count(self) -> float:
        each = [statistics.median(part) for part in zip(*self.parts, strict=True)]
        work = [statistics.mean(part) for part in zip(*self.work, strict=True)]
        return float(sum(w * t for w, t in zip(work, each, strict=True)) / sum(each))

    @property
    def epoch_hooks(self) -> float:
        """Return the work around an epoch, in steps of joint training."""
        return statistics.median(self.hooks) / statistics.median(self.joint)

    def row(self, name: str) -> dict[str, str | float]:
        """Return the figures in :data:`COLUMNS`."""
        low, _, high = statistics.quantiles(self.ratios, n=4)
        over = self.ratio / self.by_count
        value, target = (self.ratio, TARGETS[name]) if name in TARGETS else (over, OVER)
        values = self.ratio, low, high, self.by_count, over, self.epoch_hooks, target
        shown = [round(v, 3) for v in values]
        met = "yes" if value <= target else "no"
        return dict(zip(COLUMNS, [name, *shown, met, len(self.method)], strict=True))


class Clock:
    """Seconds of processor time on a CPU with one thread, and otherwise on the wall."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_processor_time = device.type == "cpu" and torch.get_num_threads() == 1

    def __call__(self) -> float:
        return time.process_time() if self.is_processor_time else now(self.device)


@contextlib.contextmanager
def counting(work: Work) -> Iterator[None]:
    """Count what training steps do inside the block."""
    backward, step = Run.backward, Run.step

    def counted_backward(self: Run, loss: Tensor, retain_graph: bool = False) -> None:
        done = counter.get_total_flops()
        backward(self, loss, retain_graph)
        work.backward += counter.get_total_flops() - done

    def counted_step(self: Run) -> None:
        assert self.optimizer is not None
        moving = [p for group in self.optimizer.param_groups for p in group["params"]]
        work.updated += sum(p.numel() for p in moving if p.grad is not None)
        step(self)

    with (
        patch.object(Run, "backward", counted_backward),
        patch.object(Run, "step", counted_step),
        FlopCounterMode(display=False) as counter,
    ):
        yield
    work.forward += counter.get_total_flops() - work.backward


class Joint:
    """Joint training, a step at a time."""

    def __init__(self, splits: Splits, spec: NetworkSpec, recipe: Recipe, clock: Clock) -> None:
        method = registry.load_method("joint")
        trainer = Trainer(method(method.Config()), splits, spec, recipe, clock.device)
        self.clock = clock
        self.run, self.method = trainer.run, trainer.method
        self.run.stage = Stage("train", recipe.epochs)
        self.run.optimizer = build_optimizer(self.method.param_groups(self.run), recipe)
        self.run.network.train()
        self.of_a_row: Work | None = None

    def step(self, batch: Batch) -> tuple[float, tuple[float, float, float]]:
        """Train on a batch; return the seconds, and those of forward, backward and update, which
        are taken from another clock: that of the processor would show in them."""
        began, marks = self.clock(), [now(self.clock.device)]
        loss = self.method.loss(self.run, self.run.net(batch), batch)
        marks.append(now(self.clock.device))
        self.run.backward(loss)
        marks.append(now(self.clock.device))
        self.run.step()
        marks.append(now(self.clock.device))
        seconds = self.clock() - began
        self.run.take_features()
        return seconds, (marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2])

    def share(self, work: Work, batch: Batch) -> tuple[float, float, float]:
        """Return a step's work on a batch over that of joint training."""
        if self.of_a_row is None:
            own = Work()
            with counting(own):
                self.step(batch)
            rows = len(batch.y)
            self.of_a_row = Work(own.forward / rows, own.backward / rows, own.updated)
        forward, backward = self.of_a_row.forward, self.of_a_row.backward
        return (
            work.forward / (forward * len(batch.y)),
            work.backward / (backward * len(batch.y)),
            work.updated / self.of_a_row.updated,
        )


def first_rows(batch: Batch, count: int) -> Batch:
    inputs = {m: x[:count] for m, x in batch.inputs.items()}
    return Batch(inputs, batch.y[:count], batch.rows[:count])


class Enough(Exception):
    """All pairs have been timed."""


@contextlib.contextmanager
def timed(method: Method, joint: Joint, times: Times, size: int, pairs: int) -> Iterator[None]:
    """Time a method's steps on full batches, in pairs with joint's, until there are enough; count
    the work of those on smaller batches."""
    kind, clock = type(method), joint.clock
    step, start, end = kind.train_step, kind.on_epoch_start, kind.on_epoch_end
    before_epoch = [0.0]

    def is_timed(run: Run) -> bool:
        return run.stage.name == times.stage and run.epoch >= FIRST

    def train_step(self: Method, run: Run, batch: Batch) -> Tensor:
        if not is_timed(run):
            return step(self, run, first_rows(batch, FEW))
        if len(batch.y) < size:
            work = Work()
            with counting(work):
                loss = step(self, run, batch)
            times.work.append(joint.share(work, batch))
            return loss
        is_first = len(times.method) % 2 == 0
        of_joint = joint.step(batch) if is_first else None
        began = clock()
        loss = step(self, run, batch)
        times.method.append(clock() - began)
        seconds, parts = of_joint or joint.step(batch)
        times.joint.append(seconds)
        times.parts.append(parts)
        return loss

    def on_epoch_start(self: Method, run: Run) -> None:
        if len(times.method) >= pairs or (is_timed(run) and run.epoch > LAST):
            raise Enough
        began = clock()
        start(self, run)
        before_epoch[0] = clock() - began

    def on_epoch_end(self: Method, run: Run) -> None:
        began = clock()
        end(self, run)
        if is_timed(run):
            times.hooks.append(before_epoch[0] + clock() - began)

    with (
        patch.object(kind, "train_step", train_step),
        patch.object(kind, "on_epoch_start", on_epoch_start),
        patch.object(kind, "on_epoch_end", on_epoch_end),
        contextlib.suppress(Enough),
    ):
        yield


def measure(name: str, workload: Workload, pairs: int, clock: Clock) -> Times:
    """Train a method with its defaults, and return the times of its steps."""
    splits = random_splits(workload, clock.device)
    kind = registry.load_method(name)
    options = kind.variants(kind.Config(), tuple(workload.modalities))[0]
    method = kind(options)
    encoders = resolve_encoders(workload.modalities, {})
    spec = NetworkSpec(workload.modalities, encoders, CLASSES, kind.info.default_fusion, SEED)
    recipe = Recipe(epochs=EPOCHS, batch_size=workload.batch_size, select="last")
    times = Times()
    stages = method.stages

    def shortened(run: Run) -> list[Stage]:
        planned = stages(run)
        times.stage = [stage.name for stage in planned if stage.epochs and not stage.fresh][-1]
        return [
            stage if stage.name == times.stage else replace(stage, epochs=min(stage.epochs, 1))
            for stage in planned
        ]

    joint = Joint(splits, spec, recipe, clock)
    shorter = patch.object(method, "stages", shortened)
    with shorter, timed(method, joint, times, workload.batch_size, pairs):
        Trainer(method, splits, spec, recipe, clock.device).fit()
    return times


def enlarged(workload: Workload, side: int) -> Workload:
    """Return the workload with pictures of as many pixels a side."""
    larger = {
        m: replace(spec, shape=(spec.shape[0], side, side)) if len(spec.shape) == 3 else spec
        for m, spec in workload.modalities.items()
    }
    return replace(workload, modalities=larger)


def keep(row: dict[str, str | float], workload: str, output: Path) -> None:
    """Append a row to a file, with a header where it is new."""
    is_new = not output.exists()
    with output.open("a", newline="") as file:
        writer = csv.DictWriter(file, ["workload", *COLUMNS])
        if is_new:
            writer.writeheader()
        writer.writerow({"workload": workload, **row})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workload", choices=list(WORK), default="features")
    parser.add_argument("--method", action="append", help="default: all that train every modality")
    defaults = ", ".join(f"{name} {pairs}" for name, pairs in PAIRS.items())
    parser.add_argument("--pairs", type=int, help=f"steps that are timed, about ({defaults})")
    parser.add_argument("--side", type=int, default=64, help="of the pictures of resnet18 (64)")
    parser.add_argument("--output", type=Path, help="a CSV file that the figures are appended to")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clock = Clock(torch.device(asked.device))
    workload = enlarged(WORK[asked.workload], asked.side)
    pairs: int = asked.pairs or PAIRS[asked.workload]
    names = asked.method or [
        entry.name
        for entry in registry.entries("method")
        if entry.name not in ("majority", "unimodal", "ensemble", "joint")
    ]
    kind = "processor time" if clock.is_processor_time else "time"
    print(f"{asked.workload}: {kind} per step over joint's, {pairs} pairs of steps")
    print("".join(f"{c:<13}" if c == "method" else f"{c:>9}" for c in COLUMNS))
    for name in names:
        times = measure(name, workload, pairs, clock)
        if not times.method or not times.work:
            print(f"{name:<13}  no step of the tested network")
            continue
        row = times.row(name)
        shown = [f"{v:>9.2f}" if isinstance(v, float) else f"{v:>9}" for v in row.values()]
        print("".join([f"{name:<13}", *shown[1:]]), flush=True)
        if asked.output:
            keep(row, asked.workload, asked.output)


if __name__ == "__main__":
    main()
