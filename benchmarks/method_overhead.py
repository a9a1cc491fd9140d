"""What a method costs: time per training step over that of joint training.

    python benchmarks/method_overhead.py --encoder mlp
    python benchmarks/method_overhead.py --encoder resnet18 --method agm --method mmpareto

Each method trains on random rows through mmbench's trainer. Before or after each of its steps, in
alternation, joint training with the same fusion makes a step on the same batch, in the same
process; the ratio is the median over these pairs. `by count` is what the step's forwards,
backwards and updates would cost if each took as long as joint's; `over` is the ratio to that.
Stages before the one that trains the tested network are cut to an epoch and not timed. Of 100
epochs a few after the seventh are timed: warm-ups have ended by then, and the windows in which
methods act are still open. `hooks` is the time of the method's work at the start and end of an
epoch, in joint steps.
"""

import argparse
import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import torch

from mmbench import registry
from mmbench.config import Recipe
from mmbench.data.dataset import Splits
from mmbench.nets.network import NetworkSpec, resolve_encoders
from mmbench.testing.workloads import CLASSES, SEED, WORKLOADS, Workload, now, random_splits
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
FIRST = 7
"""Epochs that are not timed."""

SMALL = {
    "mlp": replace(WORKLOADS["mlp"], rows=640),
    "resnet18": replace(WORKLOADS["resnet18"], rows=160),
}
"""Enough rows for the methods that hold some out."""


@dataclass
class Times:
    """Seconds of paired steps, and the work of a step."""

    method: list[float] = field(default_factory=list)
    joint: list[float] = field(default_factory=list)
    parts: list[tuple[float, float, float]] = field(default_factory=list)
    """Of joint's steps: forward with loss, backward, update."""
    work: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Of the method's steps: forwards (of all encoders), backwards, updates."""
    hooks: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        pairs = zip(self.method, self.joint, strict=True)
        return statistics.median(ours / joint for ours, joint in pairs)

    @property
    def by_count(self) -> float:
        each: list[float] = [statistics.median(part) for part in zip(*self.parts, strict=True)]
        return sum(w * t for w, t in zip(self.work, each, strict=True)) / sum(each)

    @property
    def epoch_hooks(self) -> float:
        """Return the work around an epoch, in steps of joint training."""
        return statistics.median(self.hooks) / statistics.median(self.joint)


class Joint:
    """Joint training, a step at a time."""

    def __init__(self, splits: Splits, spec: NetworkSpec, recipe: Recipe, cpu: torch.device):
        method = registry.load_method("joint")
        trainer = Trainer(method(method.Config()), splits, spec, recipe, cpu)
        self.run, self.method = trainer.run, trainer.method
        self.run.stage = Stage("train", recipe.epochs)
        self.run.optimizer = build_optimizer(self.method.param_groups(self.run), recipe)
        self.run.network.train()

    def step(self, batch: Batch) -> tuple[float, float, float]:
        """Train on a batch; return the seconds of forward, backward and update."""
        device = self.run.device
        marks = [now(device)]
        loss = self.method.loss(self.run, self.run.net(batch), batch)
        marks.append(now(device))
        self.run.backward(loss)
        marks.append(now(device))
        self.run.step()
        marks.append(now(device))
        self.run.take_features()
        return marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]


class Enough(Exception):
    """All epochs that are timed are over."""


@contextlib.contextmanager
def timed(method: Method, joint: Joint, times: Times, last: int) -> Iterator[None]:
    """Time a method's steps on the tested network, in pairs with joint's, before epoch ``last``."""
    kind = type(method)
    step, start, end = kind.train_step, kind.on_epoch_start, kind.on_epoch_end
    work: list[tuple[float, ...]] = []
    before_epoch = [0.0]

    def counts(run: Run) -> tuple[float, float, float]:
        c = run.counts
        return c.encoder_forwards / len(run.modalities), c.backwards, c.updates

    def train_step(self: Method, run: Run, batch: Batch) -> torch.Tensor:
        if run.stage.fresh or run.epoch < FIRST:
            return step(self, run, batch)
        is_first = len(times.method) % 2 == 0
        if is_first:
            times.parts.append(joint.step(batch))
        done, began = counts(run), now(run.device)
        loss = step(self, run, batch)
        times.method.append(now(run.device) - began)
        work.append(tuple(b - a for a, b in zip(done, counts(run), strict=True)))
        if not is_first:
            times.parts.append(joint.step(batch))
        times.joint.append(sum(times.parts[-1]))
        return loss

    def on_epoch_start(self: Method, run: Run) -> None:
        if not run.stage.fresh and run.epoch >= last:
            raise Enough
        began = now(run.device)
        start(self, run)
        before_epoch[0] = now(run.device) - began

    def on_epoch_end(self: Method, run: Run) -> None:
        began = now(run.device)
        end(self, run)
        if not run.stage.fresh and run.epoch >= FIRST:
            times.hooks.append(before_epoch[0] + now(run.device) - began)

    with (
        patch.object(kind, "train_step", train_step),
        patch.object(kind, "on_epoch_start", on_epoch_start),
        patch.object(kind, "on_epoch_end", on_epoch_end),
        contextlib.suppress(Enough),
    ):
        yield
    if work:
        times.work = tuple(statistics.mean(part) for part in zip(*work, strict=True))


def measure(name: str, workload: Workload, timed_epochs: int, device: torch.device) -> Times:
    """Train a method with its defaults, and return the times of its steps."""
    splits = random_splits(workload, device)
    kind = registry.load_method(name)
    options = kind.variants(kind.Config(), tuple(workload.modalities))[0]
    method = kind(options)
    encoders = resolve_encoders(workload.modalities, {})
    spec = NetworkSpec(workload.modalities, encoders, CLASSES, kind.info.default_fusion, SEED)
    recipe = Recipe(epochs=EPOCHS, batch_size=workload.batch_size, select="last")
    times = Times()
    stages = method.stages

    def shortened(run: Run) -> list[Stage]:
        return [replace(s, epochs=min(s.epochs, 1)) if s.fresh else s for s in stages(run)]

    joint = Joint(splits, spec, recipe, device)
    shorter = patch.object(method, "stages", shortened)
    with shorter, timed(method, joint, times, last=FIRST + timed_epochs):
        Trainer(method, splits, spec, recipe, device).fit()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", choices=list(SMALL), default="mlp")
    parser.add_argument("--method", action="append", help="default: all that train every modality")
    parser.add_argument("--epochs", type=int, help="timed (mlp: 12, resnet18: 1)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    epochs: int = asked.epochs or {"mlp": 12, "resnet18": 1}[asked.encoder]
    names = asked.method or [
        entry.name
        for entry in registry.entries("method")
        if entry.name not in ("majority", "unimodal", "ensemble", "joint")
    ]
    print(
        f"{asked.encoder}: time per step over joint's, "
        f"epochs {FIRST + 1} to {FIRST + epochs} of {EPOCHS}"
    )
    print(f"{'method':14}{'ratio':>7}{'by count':>10}{'over':>7}{'hooks':>8}{'target':>10}")
    for name in names:
        times = measure(name, SMALL[asked.encoder], epochs, torch.device(asked.device))
        if not times.method:
            print(f"{name:14}  no step of the tested network")
            continue
        over = times.ratio / times.by_count
        value, target = (times.ratio, TARGETS[name]) if name in TARGETS else (over, OVER)
        print(
            f"{name:14}{times.ratio:7.2f}{times.by_count:10.2f}{over:7.2f}"
            f"{times.epoch_hooks:8.1f}{target:9.2f}{' ' if value <= target else '*'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
