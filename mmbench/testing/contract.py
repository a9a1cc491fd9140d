"""What every method promises, as checks that name none. See docs/adding-a-method.md.

Each check trains on small Gaussian data and raises AssertionError when a promise is broken::

    from mmbench.testing.contract import check_method
    check_method(MyMethod)
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmbench.config import Recipe
from mmbench.data.dataset import Modality, Rows, Split, Splits
from mmbench.evaluate.readout import read_out
from mmbench.nets.fusion import FUSIONS
from mmbench.nets.network import NetworkSpec
from mmbench.options import Options, set_dotted, validated
from mmbench.seeds import numpy_stream
from mmbench.train.checkpoint import Checkpointer, State
from mmbench.train.method import Method
from mmbench.train.run import batches
from mmbench.train.trainer import Fitted, Trainer

CLASSES = 3
EPOCHS = 2


def check_method(method: type[Method]) -> None:
    """Run every check on a method, for each number of modalities and fusion it supports."""
    for count in supported_modalities(method):
        for fusion in supported_fusions(method, count):
            check_trains(method, count, fusion)
            check_neutral_equals_joint(method, count, fusion)
        check_resumes(method, count)
        check_state_is_complete(method, count)
        check_sees_training_rows_only(method, count)
        check_work_per_step_is_constant(method, count)


# -- what is checked -----------------------------------------------------------------------------


def check_trains(method: type[Method], count: int, fusion: str) -> None:
    """The method trains and predicts finite logits; additive parts sum to the network's logits."""
    trainer = make_trainer(method, count, fusion)
    fitted = trainer.fit()
    out = read_out(fitted.run, fitted.method, trainer.splits.test)
    assert out.logits.shape == (len(trainer.splits.test), CLASSES)
    assert out.logits.isfinite().all()
    for row in fitted.history:
        assert all(np.isfinite(v) for v in row.values() if not isinstance(v, str)), row
    assert set(fitted.run.counts.as_dict()) == {
        "forwards",
        "encoder_forwards",
        "backwards",
        "updates",
    }


def check_neutral_equals_joint(method: type[Method], count: int, fusion: str) -> None:
    """With its strength at zero the method is joint training, bit for bit."""
    if method.info.neutral is None:
        return
    neutral: dict[str, Any] = {}
    for name, value in method.info.neutral.items():
        set_dotted(neutral, name, value, "info.neutral")
    ours = final_state(make_trainer(method, count, fusion, neutral).fit())
    joint = final_state(make_trainer(_Plain, count, fusion).fit())
    _assert_same(ours, joint, "with neutral options the network differs from joint training's")


def check_resumes(method: type[Method], count: int, most: int | None = None) -> None:
    """Killed at any epoch boundary and resumed, the run ends bit-identical. Where there are more
    boundaries than ``most``, so many of them are tried, the first and the last among them."""
    fusion = method.info.default_fusion
    whole = _Recorder(Path("unused"))
    unbroken = make_trainer(method, count, fusion, checkpointer=whole).fit()
    expected = _everything(unbroken)
    chosen = range(len(whole.states))
    if most is not None and len(whole.states) > most:
        chosen = np.linspace(0, len(whole.states) - 1, most).round().astype(int).tolist()
    for i in chosen:
        state = whole.states[i]
        with tempfile.TemporaryDirectory() as folder:
            keeper = Checkpointer(Path(folder), seconds=1e9)
            keeper.save(state)
            resumed = make_trainer(method, count, fusion, checkpointer=keeper).fit()
        where = f"stage {state['stage'] + 1}, epoch {state['epoch']} (checkpoint {i + 1})"
        _assert_same(_everything(resumed), expected, f"resumed at {where}, the run ends otherwise")
        assert _without_time(resumed) == _without_time(unbroken), f"resumed at {where}: history"


def check_state_is_complete(method: type[Method], count: int) -> None:
    """All that was learned is in the ``state_dict``: a method that loads it predicts alike."""
    fusion = method.info.default_fusion
    trainer = make_trainer(method, count, fusion)
    fitted = trainer.fit()
    expected = read_out(fitted.run, fitted.method, trainer.splits.test).logits
    other = make_trainer(method, count, fusion)
    other.method.setup(other.run)
    other.method.load_state_dict(copy.deepcopy(fitted.method.state_dict()))
    other.main.load_state_dict(fitted.run.network.state_dict())
    got = read_out(other.run, other.method, other.splits.test).logits
    assert torch.equal(got, expected), "a method that loads the state_dict predicts otherwise"


def check_sees_training_rows_only(method: type[Method], count: int) -> None:
    """Validation and test rows have no influence on what is learned."""
    fusion = method.info.default_fusion
    plain = make_trainer(method, count, fusion, select="last").fit()
    splits = make_splits(count)
    for split in (splits.val, splits.test):
        split.inputs = {m: Rows(torch.randn(len(split), 6)) for m in split.inputs}
        split.y = (split.y + 1) % CLASSES
    other = make_trainer(method, count, fusion, select="last", splits=splits).fit()
    _assert_same(
        final_state(other), final_state(plain), "validation or test rows leak into training"
    )


def check_work_per_step_is_constant(method: type[Method], count: int) -> None:
    """A training step runs as many tensor operations for 40 rows as for 8: no loop over samples."""
    operations = [_operations_per_step(method, count, size) for size in (8, 40)]
    assert operations[0] == operations[1], f"operations for 8 and 40 rows: {operations}"


# -- parts ---------------------------------------------------------------------------------------


def supported_modalities(method: type[Method]) -> list[int]:
    """Return which of 2 and 3 modalities a method supports."""
    least, most = method.info.min_modalities, method.info.max_modalities
    return [count for count in (2, 3) if least <= count and (most is None or count <= most)]


def supported_fusions(method: type[Method], count: int) -> list[str]:
    """Return the fusions that a method supports for so many modalities."""
    allowed = FUSIONS if method.info.fusions is None else method.info.fusions
    return [name for name in allowed if FUSIONS[name].min_modalities <= count]


def make_splits(count: int, rows: int = 60) -> Splits:
    """Return Gaussian data: three classes, modality ``m`` with separation falling from 2 to 1."""
    rng = numpy_stream("contract", count, rows)
    names = [f"view{i + 1}" for i in range(count)]
    means = {m: rng.normal(size=(CLASSES, 6)) for m in names}

    def split(name: str, size: int) -> Split:
        y = np.arange(size) % CLASSES
        inputs = {
            m: Rows((2 - i / count) * means[m][y] + rng.normal(size=(size, 6)))
            for i, m in enumerate(names)
        }
        return Split(inputs, torch.as_tensor(y), np.array([f"{name}-{i}" for i in range(size)]))

    specs = {m: Modality("vector", (6,)) for m in names}
    classes = tuple("abc")
    return Splits(split("train", rows), split("val", 24), split("test", 24), specs, classes)


def make_trainer(
    method: type[Method],
    count: int,
    fusion: str,
    options: Mapping[str, Any] | None = None,
    *,
    checkpointer: Checkpointer | None = None,
    select: str = "best-val",
    splits: Splits | None = None,
    device: str = "cpu",
    precision: str = "fp32",
) -> Trainer:
    """Return a trainer on small data; a method with variants takes its first."""
    data = splits or make_splits(count)
    asked = validated(method.Config, dict(options or {}), method.name())
    assert isinstance(asked, Options)
    config = method.variants(asked, tuple(data.modalities))[0]
    spec = NetworkSpec(data.modalities, dict.fromkeys(data.modalities, "mlp"), CLASSES, fusion, 0)
    recipe = Recipe.model_validate(
        {"epochs": EPOCHS, "batch_size": 16, "lr": 0.01, "select": select}
    )
    place = torch.device(device)
    return Trainer(
        method(config), data.to(place), spec, recipe, place, precision, checkpointer=checkpointer
    )


def final_state(fitted: Fitted) -> dict[str, Tensor]:
    """Return the weights of the trained network."""
    return dict(fitted.run.network.state_dict())


class _Plain(Method):
    """Joint training: the base class as it is."""


class _Recorder(Checkpointer):
    """Keeps a copy of every state instead of writing it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, seconds=0)
        self.states: list[State] = []

    def load(self) -> State | None:
        return None

    def save(self, state: State) -> None:
        self.states.append(copy.deepcopy(state))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _operations_per_step(method: type[Method], count: int, size: int) -> int:
    trainer = make_trainer(method, count, method.info.default_fusion)
    fitted = trainer.fit()
    run, trained = fitted.run, fitted.method
    if not run.network.modalities:
        return 0
    parameters = [*run.network.parameters(), *trained.parameters()]
    run.optimizer = torch.optim.SGD(parameters, lr=0.0)
    (batch,) = batches(trainer.splits.train, np.arange(size), run.modalities, size, run.device)
    run.network.train()
    trained.train()
    with _Operations() as operations:
        trained.train_step(run, batch)
    return int(operations.count)


def _everything(fitted: Fitted) -> dict[str, Tensor]:
    method = {
        f"method.{name}": value
        for name, value in fitted.method.state_dict().items()
        if isinstance(value, Tensor)
    }
    return {**final_state(fitted), **method}


def _without_time(fitted: Fitted) -> tuple[object, ...]:
    return fitted.history, fitted.run.counts, fitted.selected


def _assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], message: str) -> None:
    assert got.keys() == expected.keys(), f"{message}: other tensors {got.keys() ^ expected.keys()}"
    differing = [name for name in expected if not torch.equal(got[name], expected[name])]
    assert not differing, f"{message}: {', '.join(differing[:3])}"
