"""Greedy: steps against the equations written as loops, its gates, and what it promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmbench.data.dataset import Batch, Modality, Rows
from mmbench.errors import RequestError
from mmbench.evaluate.readout import read_out
from mmbench.methods.greedy import Greedy
from mmbench.nets.encoders import Encoder, build_encoder
from mmbench.nets.mmtm import MMTM, Bridges
from mmbench.planning import check_support
from mmbench.seeds import default_stream
from mmbench.testing.contract import make_splits
from mmbench.train.method import Stage
from mmbench.train.run import Run
from mmbench.train.trainer import Fitted, Trainer
from tests.methods.slow import Named, assert_gradients, copies, in_double, loss_of, read
from tests.methods.support import begun, configured, trainer

# -- the encoders, block by block ----------------------------------------------------------------

MODALITIES = {
    "mlp": Modality("vector", (7,)),
    "small_cnn": Modality("image", (1, 12, 9)),
    "resnet18": Modality("image", (1, 32, 32)),
    "resnet18 over frames": Modality("frames", (3, 3, 32, 32)),
    "transformer": Modality("sequence", (6, 5)),
    "transformer over tokens": Modality("tokens", (6,), vocabulary=9),
}


def encoder(name: str) -> Encoder:
    with default_stream("blocks"):
        made = build_encoder(name.split()[0], "m", MODALITIES[name])
    for part in made.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0  # two passes are compared
        elif isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    return made


def samples(name: str, rows: int = 4) -> Tensor:
    random = torch.Generator().manual_seed(1)
    modality = MODALITIES[name]
    if modality.kind == "tokens":
        tokens = torch.randint(1, 9, (rows, *modality.shape), generator=random)
        tokens[0, 3:] = 0
        return tokens
    x = torch.randn(rows, *modality.shape, generator=random)
    if modality.kind == "sequence":
        x[1, 4:] = 0
    return x


def run_by_blocks(
    made: Encoder, x: Tensor, gates: list[Tensor | None]
) -> tuple[list[Tensor], Tensor]:
    """Return the summaries and the features."""
    blocks = made.by_blocks(x)
    passed = [next(blocks), *[blocks.send(gate) for gate in gates]]
    assert next(blocks, None) is None, "the features come last"
    return passed[:-1], passed[-1]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODALITIES)
def test_block_by_block_an_encoder_gives_what_it_gives_at_once(name: str, training: bool) -> None:
    made, x = encoder(name).train(training), samples(name)
    ones: list[Tensor | None] = [torch.ones(len(x), width) for width in made.block_widths]
    expected = made(x)
    nothing: list[Tensor | None] = [None] * len(ones)
    for gates in (ones, nothing):
        summaries, features = run_by_blocks(made, x, gates)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
        assert [s.shape for s in summaries] == [(len(x), w) for w in made.block_widths]


def blocks_of(made: Any) -> list[nn.Module]:
    """Return the modules whose outputs are to be gated."""
    return {
        "MLP": lambda: [made.layers[1], made.layers[3]],
        "SmallCNN": lambda: [made.layers[7], made.layers[11]],
        "ResNet18": lambda: [made.backbone.layer2, made.backbone.layer3, made.backbone.layer4],
        "Transformer": lambda: list(made.layers.layers),
    }[type(made).__name__]()


def sample_by_sample(made: Encoder, x: Tensor, gates: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return features and summaries of an encoder whose blocks are gated by hooks, one sample at a
    time, through its own forward pass."""
    rows: list[Tensor] = []
    summaries: list[list[Tensor]] = [[] for _ in gates]

    def hook(number: int, row: int) -> Callable[..., Tensor]:
        def scale(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            gate = gates[number][row]
            if output.dim() == 3:
                kept = (x[row] != 0) if x.dim() == 2 else (x[row] != 0).any(dim=-1)
                summaries[number].append(output[0, kept].mean(dim=0))
                return output * gate
            if output.dim() == 4:
                summaries[number].append(output.mean(dim=(0, 2, 3)))
                return output * gate[:, None, None]
            summaries[number].append(output[0])
            return output * gate

        return scale

    for row in range(len(x)):
        hooks = [
            block.register_forward_hook(hook(number, row))
            for number, block in enumerate(blocks_of(made))
        ]
        rows.append(made(x[row : row + 1])[0])
        for handle in hooks:
            handle.remove()
    return torch.stack(rows), [torch.stack(found) for found in summaries]


@pytest.mark.parametrize("name", MODALITIES)
def test_gates_multiply_the_channels_of_the_blocks(name: str) -> None:
    made, x = encoder(name).eval(), samples(name)
    random = torch.Generator().manual_seed(2)
    gates = [torch.rand(len(x), width, generator=random) for width in made.block_widths]
    summaries, features = run_by_blocks(made, x, list(gates))
    expected, means = sample_by_sample(made, x, gates)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    for summary, mean in zip(summaries, means, strict=True):
        torch.testing.assert_close(summary, mean, rtol=1e-4, atol=1e-5)


# -- a slow reference ------------------------------------------------------------------------------


@dataclass
class Slow:
    """Greedy as plain loops, for MLP encoders; its memory is Python numbers."""

    names: list[str]
    epsilon: float
    window: int
    averages_of_first: bool = False
    seen: int = 0
    averages: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    bypass: dict[str, float] = field(default_factory=dict)
    main: dict[str, float] = field(default_factory=dict)
    held: str | None = None
    steps: int = 0

    def loss(self, weights: Named, batch: Batch) -> Tensor:
        """Return the loss; the running averages take the batch in."""
        hidden = {m: list(batch.inputs[m]) for m in self.names}
        for block, layer in enumerate((0, 2)):
            for m in self.names:
                place = f"encoders.{m}.layers.{layer}"
                hidden[m] = [read(weights, place, h).clamp(min=0) for h in hidden[m]]
            gates: dict[str, list[Tensor]] = {m: [] for m in self.names}
            module = f"bridges.mmtms.{block}"
            for i in range(len(batch)):
                joined = torch.cat([hidden[m][i] for m in self.names])
                shared = read(weights, f"{module}.squeeze", joined).clamp(min=0)
                for m in self.names:
                    z = read(weights, f"{module}.excite.{m}.layer", shared)
                    gates[m].append(1 / (1 + torch.exp(-z)))
            for m in self.names:
                of = gates[self.names[0] if self.averages_of_first else m]
                mean = torch.stack(of).detach().sum(dim=0) / len(of)
                before = self.averages.get((block, m), torch.zeros_like(mean))
                self.averages[block, m] = (mean + self.seen * before) / (self.seen + 1)
            for m in self.names:
                for i in range(len(batch)):
                    gate = self.averages[block, m] if m == self.held else gates[m][i]
                    hidden[m][i] = hidden[m][i] * gate
        self.seen += 1
        total = torch.zeros((), dtype=torch.float64)
        for m in self.names:
            for h, label in zip(hidden[m], batch.y.tolist(), strict=True):
                total = total + loss_of(read(weights, f"fusion.heads.{m}", h), label) / len(batch)
        return total

    def choose(self, weights: Named) -> None:
        """Decide whose gates are held in the next step, from the gradients of this one."""
        if self.held is not None:
            self.steps += 1
            if self.steps == self.window:
                self.held = None
            return
        for m in self.names:
            for speed, belongs in ((self.bypass, is_bypass), (self.main, is_main)):
                names = [name for name in weights if belongs(name, m)]
                grad = sum(float((gradient(weights[n]) ** 2).sum()) for n in names)
                size = sum(float((weights[n].detach() ** 2).sum()) for n in names)
                speed[m] = speed.get(m, 0.0) + grad / size
        rate = {m: math.log10(self.bypass[m] / self.main[m]) for m in self.names}
        best, chosen = self.epsilon, None
        for m in self.names:
            others = [rate[j] for j in self.names if j != m]
            lead = rate[m] - sum(others) / len(others)
            if lead > best:
                best, chosen = lead, m
        self.held, self.steps = chosen, 0


def gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def is_bypass(name: str, m: str) -> bool:
    return name.startswith("bridges") and (".squeeze." in name or f".excite.{m}." in name)


def is_main(name: str, m: str) -> bool:
    return name.startswith((f"encoders.{m}.", f"fusion.heads.{m}."))


def held_names(run: Run) -> list[str]:
    assert run.main.bridges is not None
    flags = run.main.bridges.held.tolist()
    return [m for m, is_held in zip(run.modalities, flags, strict=True) if is_held]


@pytest.mark.parametrize(
    ("count", "seed", "average_of"), [(2, 0, "own"), (2, 1, "first"), (3, 2, "own"), (3, 3, "own")]
)
def test_steps_are_those_of_the_equations(
    count: int, seed: int, average_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients, speeds, averages and windows over nine steps in double precision."""
    options = {"epsilon": 0.02, "window": 2, "first_epoch": 0, "average_of": average_of}
    made = begun(Greedy, make_splits(count), "late", options)
    run, method = made.run, made.method
    assert isinstance(method, Greedy)
    run.stage = Stage("train", 10)
    in_double(made, monkeypatch, seed)
    with torch.no_grad():
        for p in run.network.parameters():
            p.mul_(0.5)  # keeps gates and logits, written out as exponentials, in range
    slow = Slow(list(run.modalities), 0.02, 2, average_of == "first")
    found: dict[str, Tensor | None] = {}

    def descend(self: Run) -> None:
        with torch.no_grad():
            for name, p in run.network.named_parameters():
                found[name] = None if p.grad is None else p.grad.clone()
                p.sub_(0.05 * (0 if p.grad is None else p.grad))
                p.grad = None

    monkeypatch.setattr(Run, "step", descend)
    random = torch.Generator().manual_seed(seed)
    windows = []
    for _ in range(9):
        rows = torch.randperm(len(run.train), generator=random)[:5]
        batch = run.train.batch(rows, run.modalities)
        batch.inputs = {m: x.double() for m, x in batch.inputs.items()}
        assert held_names(run) == ([] if slow.held is None else [slow.held])
        windows.append(slow.held)
        weights = copies(made)
        loss = slow.loss(weights, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        slow.choose(weights)
        torch.testing.assert_close(method.train_step(run, batch).detach(), loss.detach())
        assert_gradients(found, {name: w.grad for name, w in weights.items()}, weights)
        expected = [math.log10(slow.bypass[m] / slow.main[m]) for m in slow.names]
        torch.testing.assert_close(method.speeds(), torch.tensor(expected, dtype=torch.float64))
        for i, mmtm in enumerate(mmtms(run)):
            for m in slow.names:
                torch.testing.assert_close(mmtm.excitation(m).average, slow.averages[i, m])
    assert None in windows
    assert len({*windows}) >= 2, "there was a window"


def mmtms(run: Run) -> Iterator[MMTM]:
    assert run.main.bridges is not None
    for mmtm in run.main.bridges.mmtms:
        assert isinstance(mmtm, MMTM)
        yield mmtm


# -- what is promised ------------------------------------------------------------------------------


def prepared(count: int = 2, hold: str | None = None, **options: Any) -> Trainer:
    """Return a trainer whose gates differ between samples, with some averages."""
    made = begun(Greedy, make_splits(count), "late", options)
    made.run.stage = Stage("train", 10)
    made.run.begin_epoch(1)
    made.main.train()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.main.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=random))
    for start in (0, 20):
        made.run.net(made.splits.train.batch(torch.arange(start, start + 20), made.run.modalities))
    if hold is not None:
        assert made.main.bridges is not None
        made.main.bridges.held[list(made.run.modalities).index(hold)] = True
    return made


@pytest.mark.parametrize("count", [2, 3])
def test_a_held_branch_learns_from_its_own_input_alone(count: int) -> None:
    for hold, reached in ((None, True), ("view2", False)):
        run = prepared(count, hold).run
        batch = run.train.batch(torch.arange(20), run.modalities)
        out = run.net(batch)
        out.features["view2"].square().sum().backward()  # type: ignore[no-untyped-call]
        for m in run.modalities:
            gradients = [p.grad for p in run.encoder_params(m)]
            is_reached = any(g is not None and bool(g.any()) for g in gradients)
            assert is_reached == (reached or m == "view2"), (hold, m)


def test_the_branches_that_are_not_held_still_listen() -> None:
    run = prepared(3, "view2").run
    batch = run.train.batch(torch.arange(20), run.modalities)
    run.net(batch).features["view1"].sum().backward()  # type: ignore[no-untyped-call]
    for m in run.modalities:
        assert any(p.grad is not None and bool(p.grad.any()) for p in run.encoder_params(m)), m


@pytest.mark.parametrize("count", [2, 3])
def test_without_the_others_an_encoder_has_its_average_gates(count: int) -> None:
    made = prepared(count)
    run, network = made.run, made.main.eval()
    batch = run.train.batch(torch.arange(8), run.modalities)
    for m in run.modalities:
        kept = network(batch.inputs, [m]).features
        encoder = network.encoders[m]
        assert isinstance(encoder, Encoder)
        averages = [mmtm.excitation(m).average.repeat(8, 1) for mmtm in mmtms(run)]
        _, expected = run_by_blocks(encoder, batch.inputs[m], list(averages))
        torch.testing.assert_close(kept[m], expected)
        assert not torch.allclose(kept[m], network(batch.inputs).features[m])
        assert all(not kept[other].any() for other in run.modalities if other != m)


def test_evaluation_changes_nothing_and_holds_no_gates() -> None:
    made = prepared(2, "view1")
    before = {name: value.clone() for name, value in made.main.state_dict().items()}
    held = read_out(made.run, made.method, made.splits.test).logits
    after = made.main.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    free = prepared(2)
    assert torch.equal(read_out(free.run, free.method, free.splits.test).logits, held)


def test_the_prediction_is_the_mean_of_the_own_heads() -> None:
    splits = make_splits(3)
    fitted = trainer(configured(Greedy), splits, fusion="late").fit()
    batch = splits.test.batch(torch.arange(24), fitted.run.modalities)
    out = fitted.run.main(batch.inputs)
    own = fitted.method.own_logits(fitted.run, out)
    mean = torch.stack([*own.values()]).mean(dim=0)
    torch.testing.assert_close(fitted.method.predict(fitted.run, out), mean)
    torch.testing.assert_close(read_out(fitted.run, fitted.method, splits.test).logits, mean)


def test_what_is_read_of_a_modality_depends_on_it_alone() -> None:
    """Probes and own heads of one modality do not see the others through the gates; the fused
    logits and their parts do."""
    made = prepared(2)
    before = read_out(made.run, made.method, made.splits.test)
    test = made.splits.test
    test.inputs = {**test.inputs, "view2": Rows(torch.randn(24, 6))}
    after = read_out(made.run, made.method, made.splits.test)
    assert torch.equal(before.features["view1"], after.features["view1"])
    assert torch.equal(before.own["view1"], after.own["view1"])
    assert not torch.equal(before.parts["view1"], after.parts["view1"])
    assert not torch.equal(before.features["view2"], after.features["view2"])
    for out in (before, after):
        torch.testing.assert_close(torch.stack([*out.parts.values()]).sum(dim=0), out.logits)


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that make the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).startswith(("aten._local_scalar_dense", "aten.nonzero"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("curation", ["guided", "random", "none"])
def test_a_step_does_not_wait_for_the_device(curation: str) -> None:
    made = prepared(3, curation=curation)
    made.run.optimizer = torch.optim.SGD(made.main.parameters(), lr=0.01)
    batch = made.run.train.batch(torch.arange(20), made.run.modalities)
    with Waits() as waits:  # type: ignore[no-untyped-call]
        for _ in range(3):
            made.method.train_step(made.run, batch)
    assert waits.count == 0


class Watched(Greedy):
    """Notes whose gates are held in each step, with the epoch."""

    seen: list[tuple[int, tuple[str, ...]]]

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        self.seen.append((run.epoch, tuple(held_names(run))))
        return super().train_step(run, batch)


def watched(count: int, epochs: int = 4, **options: Any) -> tuple[Fitted, list[Any]]:
    method = configured(Watched, options)
    assert isinstance(method, Watched)
    method.seen = []
    fitted = trainer(method, make_splits(count), fusion="late", epochs=epochs).fit()
    return fitted, method.seen


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_is_as_long_as_asked_and_a_free_step_lies_between_two(window: int) -> None:
    """With epsilon 0 one modality is always ahead, so that windows follow each other at once. Four
    steps an epoch; the first epoch is free, and so is the step after it, which decides."""
    _, seen = watched(2, epochs=5, epsilon=0.0, window=window)
    lengths = [len(held) for _, held in seen]
    assert lengths[:5] == [0, 0, 0, 0, 0]
    pattern = [1] * window + [0]
    rest = lengths[5:]
    assert rest == (pattern * len(rest))[: len(rest)]


def test_gates_that_are_never_held_are_those_of_no_curation() -> None:
    states = [
        watched(2, **options)[0].run.main.state_dict()
        for options in ({"epsilon": 1e6}, {"curation": "none"}, {"first_epoch": 4}, {})
    ]
    for state in states[1:3]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    assert any(not torch.equal(states[3][name], states[0][name]) for name in states[0])


@pytest.mark.parametrize("count", [2, 3])
def test_the_random_control_holds_each_modality_or_none_equally_often(count: int) -> None:
    made = prepared(count, curation="random")
    assert isinstance(made.method, Greedy)
    drawn: list[list[tuple[str, ...]]] = [[], []]
    for again in drawn:
        made.run.begin_epoch(1)
        for _ in range(600):
            made.method.choose(made.run)
            again.append(tuple(held_names(made.run)))
    assert drawn[0] == drawn[1], "seed and epoch decide"
    names: list[tuple[str, ...]] = [(), *[(m,) for m in made.run.modalities]]
    share = 1 / len(names)
    for name in names:
        deviation = math.sqrt(share * (1 - share) / 600)
        assert abs(drawn[0].count(name) / 600 - share) < 4 * deviation, name


def test_the_random_control_begins_in_the_epoch_asked_for() -> None:
    _, seen = watched(2, epochs=5, curation="random", first_epoch=3)
    # The first step of an epoch runs with what the last step before it has drawn.
    assert {held for epoch, held in seen if epoch < 3} == {()}
    assert {held for epoch, held in seen if epoch >= 3} != {()}


def test_the_history_has_speeds_and_shares_of_held_steps() -> None:
    fitted, seen = watched(2, epochs=3, epsilon=0.0, window=1)
    for epoch, row in enumerate(fitted.history):
        for m in ("view1", "view2"):
            steps = [held for at, held in seen if at == epoch]
            share = sum(m in held for held in steps) / len(steps)
            assert row[f"held.{m}"] == pytest.approx(share)
            assert math.isfinite(float(row[f"speed.{m}"]))
    assert fitted.method.report(fitted.run)["speed"].keys() == {"view1", "view2"}


# -- bridges between encoders that differ ----------------------------------------------------------


def test_encoders_of_different_depth_meet_at_their_last_blocks() -> None:
    shapes = {"deep": MODALITIES["resnet18"], "flat": MODALITIES["mlp"]}
    encoders = nn.ModuleDict({"deep": encoder("resnet18").eval(), "flat": encoder("mlp").eval()})
    bridges = Bridges(encoders, 4, 0).eval()
    found = []
    for mmtm in bridges.mmtms:
        assert isinstance(mmtm, MMTM)
        widths = {m: len(mmtm.excitation(m).average) for m in shapes}
        found.append(widths)
        assert mmtm.squeeze.out_features == 2 * sum(widths.values()) // 4
    assert found == [{"deep": 256, "flat": 256}, {"deep": 512, "flat": 128}]
    inputs = {"deep": samples("resnet18"), "flat": samples("mlp")}
    alone = bridges(encoders, {"deep": inputs["deep"]})["deep"]
    half = torch.full((4, 1), 0.5)  # the averages before any batch
    deep = encoders["deep"]
    assert isinstance(deep, Encoder)
    expected = run_by_blocks(deep, inputs["deep"], [None, half.expand(4, 256), half.expand(4, 512)])
    torch.testing.assert_close(alone, expected[1])
    assert {m: h.shape[1] for m, h in bridges(encoders, inputs).items()} == {
        "deep": 512,
        "flat": 128,
    }


def test_averages_of_the_first_need_gates_of_one_width() -> None:
    made = begun(Greedy, make_splits(2), "late", {})
    made.main.encoders["view2"] = encoder("small_cnn")
    other = configured(Greedy, {"average_of": "first"})
    with pytest.raises(RequestError, match="view1 256, view2 32 wide: use average_of=own") as told:
        other.setup(made.run)
    assert "\n" not in str(told.value)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"curation": "always"}, "curation"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"window": 0}, "window"),
        ({"first_epoch": -1}, "first_epoch"),
        ({"ratio": 0}, "ratio"),
        ({"average_of": "last"}, "average_of"),
        ({"curation": "random", "epsilon": 0.1}, "epsilon is not used by curation=random"),
        ({"curation": "random", "window": 3}, "window is not used by curation=random"),
        ({"curation": "none", "first_epoch": 3}, "first_epoch is not used by curation=none"),
        ({"curation": "none", "average_of": "first"}, "average_of is not used by curation=none"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(Greedy, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fusion", ["concat", "sum", "film", "gated", "attention"])
def test_other_fusions_are_refused_before_training(fusion: str) -> None:
    with pytest.raises(RequestError, match=f"cannot use fusion '{fusion}': use late"):
        check_support(Greedy, fusion, 2)
