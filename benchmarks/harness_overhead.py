"""What the harness costs: time per training step of mmbench's Trainer over a bare PyTorch loop.

    python benchmarks/harness_overhead.py --encoder both

Both train the same network from the same weights on the same batches with the same optimiser, in
one process, taking turns epoch by epoch; the order within a pair alternates. The ratio is the
median over the pairs, so that a shared machine's changes of speed matter little. Evaluation between
epochs is no part of a step and is not timed. In the end the weights of the two must be equal, bit
for bit on a CPU, or they did not do the same work.

Targets: below 1.05 for MLPs at batch 64, below 1.02 for ResNet-18.
"""

import argparse
import statistics

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.config import Recipe
from mmbench.data.dataset import Split
from mmbench.nets.network import Network, NetworkSpec, resolve_encoders
from mmbench.seeds import numpy_stream
from mmbench.testing.workloads import CLASSES, SEED, WORKLOADS, Workload, now, random_splits
from mmbench.train.method import Method, MethodInfo
from mmbench.train.run import Run
from mmbench.train.trainer import Trainer


class Plain(Method):
    """Cross-entropy of the fused logits through every default hook, timed epoch by epoch."""

    info = MethodInfo("", "control", "", "", "", min_modalities=1)

    def __init__(self, device: torch.device, turn: "Turn") -> None:
        super().__init__(self.Config())
        self.device = device
        self.turn = turn

    def on_epoch_start(self, run: Run) -> None:
        self.turn.before_harness()
        self.began = now(self.device)

    def on_epoch_end(self, run: Run) -> None:
        self.turn.after_harness(now(self.device) - self.began)


class BareLoop:
    """The loop that one writes without a harness: index, forward, loss, backward, step."""

    def __init__(
        self, network: Network, train: Split, recipe: Recipe, device: torch.device
    ) -> None:
        self.network = network
        self.tensors = {m: resident(train, m) for m in network.modalities}
        self.y = train.y
        self.size = recipe.batch_size
        self.device = device
        self.optimizer = torch.optim.SGD(
            network.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay
        )

    def epoch(self, number: int) -> float:
        """Train an epoch in the order that the harness has, and return its seconds."""
        order = numpy_stream(SEED, "order", number).permutation(len(self.y))
        self.network.train()
        began = now(self.device)
        rows = torch.as_tensor(order).to(self.device)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(rows), self.size):
            batch = rows[start : start + self.size]
            inputs = {m: tensor.index_select(0, batch) for m, tensor in self.tensors.items()}
            logits = self.network(inputs).logits
            loss = functional.cross_entropy(logits, self.y.index_select(0, batch))
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
        total.item()  # a loop that reports its loss waits for the device once an epoch
        return now(self.device) - began


class Turn:
    """Lets the bare loop train its epoch before or after that of the harness, in alternation."""

    def __init__(self, bare: BareLoop) -> None:
        self.bare = bare
        self.bare_seconds: list[float] = []
        self.harness_seconds: list[float] = []

    def before_harness(self) -> None:
        if len(self.harness_seconds) % 2:
            self._train_bare()

    def after_harness(self, seconds: float) -> None:
        if len(self.harness_seconds) % 2 == 0:
            self._train_bare()
        self.harness_seconds.append(seconds)

    def _train_bare(self) -> None:
        self.bare_seconds.append(self.bare.epoch(len(self.bare_seconds)))


def resident(split: Split, modality: str) -> Tensor:
    """Return all rows of a modality as one tensor on the split's device."""
    return split.inputs[modality].batch(torch.arange(len(split), device=split.y.device), None)


def measure(workload: Workload, epochs: int, device: torch.device) -> Turn:
    """Train both, and return the seconds of their epochs.

    Raises ``SystemExit`` when their weights differ in the end.
    """
    splits = random_splits(workload, device)
    encoders = resolve_encoders(workload.modalities, {})
    spec = NetworkSpec(workload.modalities, encoders, CLASSES, "concat", SEED)
    recipe = Recipe(epochs=epochs, batch_size=workload.batch_size, select="last")
    bare = BareLoop(spec.build().to(device), splits.train, recipe, device)
    turn = Turn(bare)
    trainer = Trainer(Plain(device, turn), splits, spec, recipe, device)
    trainer.fit()
    for (name, ours), theirs in zip(
        trainer.main.state_dict().items(), bare.network.state_dict().values(), strict=True
    ):
        if not torch.equal(ours, theirs):
            raise SystemExit(f"the two loops end with different weights ({name})")
    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", choices=[*WORKLOADS, "both"], default="both")
    parser.add_argument("--epochs", type=int, help="pairs of epochs (mlp: 200, resnet18: 12)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for name in WORKLOADS if asked.encoder == "both" else [asked.encoder]:
        workload = WORKLOADS[name]
        epochs: int = asked.epochs or {"mlp": 200, "resnet18": 12}[name]
        turn = measure(workload, epochs, torch.device(asked.device))
        # The first pair warms up.
        pairs = list(zip(turn.harness_seconds[1:], turn.bare_seconds[1:], strict=True))
        ratios = [ours / bare for ours, bare in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        steps = workload.rows // workload.batch_size
        ours, bare = (statistics.median(times) / steps * 1e3 for times in zip(*pairs, strict=True))
        print(
            f"{name}: mmbench / bare {middle:.3f} (quartiles {low:.3f} to {high:.3f}, "
            f"target below {workload.target}); {ours:.3f} ms and {bare:.3f} ms per step of "
            f"{workload.batch_size} rows, {len(pairs)} pairs of epochs of {steps} steps"
        )


if __name__ == "__main__":
    main()
