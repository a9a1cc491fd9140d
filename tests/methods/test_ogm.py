"""OGM and OGM-GE: gradients right before the update, against the equations written as loops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmbench.data.dataset import Batch, Modality, Rows, Split, Splits
from mmbench.errors import RequestError
from mmbench.methods.joint import Joint
from mmbench.methods.ogm import OGM
from mmbench.methods.ogm_ge import OGMGE
from mmbench.nets.network import Output
from mmbench.testing.contract import CLASSES, make_splits
from mmbench.train.method import Method, Stage
from mmbench.train.run import Run
from tests.methods.support import begun, configured, trainer


@dataclass
class Case:
    """One step in double precision, stopped before the update."""

    run: Run
    method: Method
    batch: Batch
    plain: dict[str, Tensor]
    """Gradients after the backward pass."""
    modulated: dict[str, Tensor]
    """Gradients after `modulate`."""
    noise: torch.Generator
    """The run's generator as it was before `modulate`."""


def gradients(run: Run) -> dict[str, Tensor]:
    named = run.network.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def step(
    kind: type[Method],
    count: int,
    seed: int,
    fusion: str = "concat",
    *,
    epoch: int = 0,
    splits: Splits | None = None,
    **options: Any,
) -> Case:
    made = begun(kind, splits or make_splits(count), fusion, options)
    run, method = made.run, made.method
    run.stage = Stage("train", 10)
    run.begin_epoch(epoch)
    random = torch.Generator().manual_seed(seed)
    run.network.double()
    with torch.no_grad():
        for p in run.network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=random, dtype=torch.float64))
    batch = run.train.batch(torch.randperm(60, generator=random)[:12], run.modalities)
    batch.inputs = {m: x.double() for m, x in batch.inputs.items()}
    fusion_part = run.network.fusion
    assert fusion_part is not None
    # `Network.encode` ends in float32; the same layers without that step stay in double precision.
    features = {m: run.network.encoders[m](batch.inputs[m]) for m in run.modalities}
    out = Output(fusion_part(features), features, fusion_part)
    run.backward(method.loss(run, out, batch))
    plain = gradients(run)
    noise = torch.Generator()
    noise.set_state(run.rng.get_state())
    method.modulate(run, out, batch)
    return Case(run, method, batch, plain, gradients(run), noise)


def slow_split_logits(case: Case) -> dict[str, list[list[float]]]:
    """``z_m = h_m W_m^T + b / M`` of concat fusion, one number at a time."""
    network: Any = case.run.network
    weight, bias = network.fusion.head.weight.detach(), network.fusion.head.bias.detach()
    count, begin = len(case.run.modalities), 0
    logits: dict[str, list[list[float]]] = {}
    for m in case.run.modalities:
        first, _, second, _ = network.encoders[m].layers
        logits[m] = []
        for x in case.batch.inputs[m]:
            hidden = (first.weight @ x + first.bias).clamp(min=0)
            h = (second.weight @ hidden + second.bias).clamp(min=0).detach()
            own = weight[:, begin : begin + len(h)]
            row = [float((own[c] * h).sum()) + float(bias[c]) / count for c in range(CLASSES)]
            logits[m].append(row)
        begin += network.widths[m]
    return logits


def slow_coefficients(case: Case, alpha: float) -> dict[str, float]:
    logits, y = slow_split_logits(case), [int(c) for c in case.batch.y]
    score = {}
    for m, rows in logits.items():
        score[m] = 0.0
        for row, label in zip(rows, y, strict=True):
            score[m] += math.exp(row[label]) / sum(math.exp(z) for z in row)
    coefficients = {}
    for m in score:
        others = [s for other, s in score.items() if other != m]
        ratio = score[m] / (sum(others) / len(others))
        coefficients[m] = 1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0
    return coefficients


def modality_of(name: str) -> str | None:
    """Return the modality whose encoder a parameter belongs to, or None for the fusion's."""
    first, second, *_ = name.split(".")
    return second if first == "encoders" else None


def slow_plain(case: Case) -> dict[str, Tensor]:
    """Gradients of the joint loss, written sample by sample."""
    network: Any = case.run.network
    total = torch.zeros((), dtype=torch.float64)
    for i, label in enumerate(case.batch.y.tolist()):
        features = []
        for m in case.run.modalities:
            first, _, second, _ = network.encoders[m].layers
            hidden = (first.weight @ case.batch.inputs[m][i] + first.bias).clamp(min=0)
            features.append((second.weight @ hidden + second.bias).clamp(min=0))
        z = network.fusion.head.weight @ torch.cat(features) + network.fusion.head.bias
        total = total + (torch.log(torch.exp(z).sum()) - z[label]) / len(case.batch)
    named = dict(network.named_parameters())
    found = torch.autograd.grad(total, list(named.values()))
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scope", ["weights", "all"])
def test_ogm_gradients_are_those_of_the_equations(count: int, seed: int, scope: str) -> None:
    case = step(OGM, count, seed, alpha=0.7, scope=scope)
    coefficients = slow_coefficients(case, 0.7)
    assert min(coefficients.values()) < 1
    for name, gradient in slow_plain(case).items():
        m = modality_of(name)
        acts = m is not None and (gradient.dim() >= 2 or scope == "all")
        factor = coefficients[m] if acts and m is not None else 1.0
        torch.testing.assert_close(
            case.modulated[name], factor * gradient, rtol=1e-6, atol=1e-13, msg=name
        )


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_ogm_ge_gradients_are_those_of_the_equations(count: int, seed: int) -> None:
    case = step(OGMGE, count, seed, alpha=0.4, noise=1.5)
    coefficients = slow_coefficients(case, 0.4)
    for name, gradient in slow_plain(case).items():
        m = modality_of(name)
        expected, smallest = gradient, 1e-12
        if m is not None and gradient.dim() >= 2:
            values = gradient.flatten().tolist()
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((g - mean) ** 2 for g in values) / (len(values) - 1))
            drawn = torch.randn(gradient.shape, generator=case.noise).double()
            expected = coefficients[m] * gradient + 1.5 * (deviation + 1e-8) * drawn
            smallest = 1e-6 * deviation  # the draw is in single precision, and may cancel
        torch.testing.assert_close(
            case.modulated[name], expected, rtol=1e-6, atol=smallest, msg=name
        )


@pytest.mark.parametrize("fusion", ["concat", "sum", "late", "attention", "film", "gated"])
@pytest.mark.parametrize("seed", range(3))
def test_exactly_one_of_two_modalities_is_scaled_and_nothing_else_changes(
    fusion: str, seed: int
) -> None:
    case = step(OGM, 2, seed, fusion, alpha=0.8)
    changed = set()
    factors = set()
    for name, before in case.plain.items():
        after = case.modulated[name]
        if torch.equal(before, after):
            continue
        assert before.dim() >= 2, f"{name} is a bias"
        changed.add(modality_of(name))
        kept = before.abs() > 1e-12
        ratio = after[kept] / before[kept]
        assert float(ratio.std()) < 1e-9
        factors.add(round(float(ratio.mean()), 9))
    assert len(changed) == 1
    assert None not in changed, "heads are left alone"
    (factor,) = factors
    # rho > 1 where the rule acts, so that the factor jumps to at most 1 - tanh(alpha).
    assert 0 < factor < 1 - math.tanh(0.8)


@pytest.mark.parametrize("kind", [OGM, OGMGE])
def test_outside_the_window_gradients_are_untouched(kind: type[Method]) -> None:
    windows: list[tuple[dict[str, Any], set[int]]] = [
        ({}, {0, 1, 2, 3, 4, 5}),  # half of 10 epochs, inclusive, as 50 of 100 released
        ({"first_epoch": 2, "last_epoch": 3}, {2, 3}),
        ({"last_epoch": 0}, {0}),
        ({"first_epoch": 6, "last_epoch": 9}, {6, 7, 8, 9}),
    ]
    for options, active in windows:
        for epoch in range(10):
            case = step(kind, 2, 0, epoch=epoch, **options)
            same = all(torch.equal(case.plain[name], case.modulated[name]) for name in case.plain)
            assert same == (epoch not in active), (options, epoch)


@pytest.mark.parametrize("count", [2, 3])
def test_strength_zero_leaves_every_bit(count: int) -> None:
    for case in (step(OGM, count, 1, alpha=0.0), step(OGMGE, count, 1, alpha=0.0, noise=0.0)):
        for name, before in case.plain.items():
            assert torch.equal(case.modulated[name], before), name


def test_without_noise_ogm_ge_is_ogm() -> None:
    plain, silent = step(OGM, 3, 2), step(OGMGE, 3, 2, noise=0.0)
    for name, gradient in plain.modulated.items():
        assert torch.equal(silent.modulated[name], gradient), name


@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_noise_has_mean_zero_and_the_spread_of_the_gradient(alpha: float) -> None:
    """For every encoder, also one that is not scaled (all of them at alpha 0)."""
    case = step(OGMGE, 2, 3, alpha=alpha)
    coefficients = slow_coefficients(case, alpha)
    assert max(coefficients.values()) == 1
    for m in case.run.modalities:
        name = f"encoders.{m}.layers.2.weight"
        before = case.plain[name]
        noise = case.modulated[name] - coefficients[m] * before
        unit = noise / before.std()
        size = unit.numel()
        assert size == 256 * 128
        assert abs(float(unit.mean())) < 4 / math.sqrt(size)
        assert abs(float(unit.std()) - 1) < 4 / math.sqrt(2 * size)
        together = np.corrcoef(unit.flatten().numpy(), before.flatten().numpy())[0, 1]
        assert abs(float(together)) < 4 / math.sqrt(size)


def test_noise_differs_between_steps_and_repeats_by_seed_and_epoch() -> None:
    one, same = step(OGMGE, 2, 0), step(OGMGE, 2, 0)
    other = step(OGMGE, 2, 0, epoch=1)
    name = "encoders.view1.layers.0.weight"
    assert torch.equal(one.modulated[name], same.modulated[name])
    assert not torch.equal(one.modulated[name], other.modulated[name])


def picture_splits() -> Splits:
    random = np.random.default_rng(0)
    y = np.arange(60) % 3

    def split(name: str) -> Split:
        inputs = {
            m: Rows(random.normal(size=(60, 1, 8, 8)) + height * y[:, None, None, None])
            for m, height in (("left", 1.0), ("right", 0.2))
        }
        return Split(inputs, torch.as_tensor(y), np.array([f"{name}{i}" for i in range(60)]))

    specs = {m: Modality("image", (1, 8, 8)) for m in ("left", "right")}
    return Splits(split("train"), split("val"), split("test"), specs, tuple("abc"))


def convolution_step(kind: type[Method], **options: Any) -> tuple[Run, dict[str, Tensor]]:
    made = trainer(
        configured(kind, options), picture_splits(), fusion="concat", encoder="small_cnn"
    )
    run, method = made.run, made.method
    method.setup(run)
    run.stage = Stage("train", 10)
    run.begin_epoch(0)
    run.network.train()
    batch = run.train.batch(torch.arange(30), run.modalities)
    out = run.net(batch)
    run.backward(method.loss(run, out, batch))
    method.modulate(run, out, batch)
    return run, gradients(run)


@pytest.mark.parametrize("scope", ["conv", "weights", "all"])
def test_batch_norm_is_left_alone_unless_all_is_asked_for(scope: str) -> None:
    _, plain = convolution_step(Joint)
    _, modulated = convolution_step(OGM, scope=scope)
    changed = {n for n in plain if not torch.equal(plain[n], modulated[n])}
    (modality,) = {modality_of(name) for name in changed}
    smallest = {"conv": 4, "weights": 2, "all": 1}[scope]
    assert changed == {
        name for name in plain if modality_of(name) == modality and plain[name].dim() >= smallest
    }


def test_the_released_scope_does_nothing_without_convolutions() -> None:
    for kind in (OGM, OGMGE):
        case = step(kind, 2, 0, scope="conv")
        assert all(torch.equal(case.plain[n], case.modulated[n]) for n in case.plain)


def test_a_tensor_of_one_element_gets_no_noise() -> None:
    """Its standard deviation does not exist."""
    made = begun(OGMGE, make_splits(2), "concat", {"scope": "all"})
    assert isinstance(made.method, OGMGE)
    single = nn.Parameter(torch.ones(1))
    single.grad = torch.ones(1)
    made.method.edit(made.run, [single], torch.tensor(0.5))
    assert float(single.grad) == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"scope": "linear"}, "scope"),
        ({"first_epoch": -1}, "first_epoch"),
        ({"noise": 1.0}, "noise"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(OGM, options)
    assert "\n" not in str(caught.value)
