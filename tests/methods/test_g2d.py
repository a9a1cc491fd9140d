"""G2D: its loss and coefficients against slow loops, who waits and when, and what waiting means.

What it has in common with other methods with teachers is tested in test_umt.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmbench.data.dataset import Batch, Rows
from mmbench.errors import RequestError
from mmbench.methods.g2d import G2D
from mmbench.nets.network import Network, Output
from mmbench.testing.contract import make_splits
from mmbench.train.run import Run
from mmbench.train.teachers import Teachers
from tests.methods.double import (
    Case,
    Gradients,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
    output,
)
from tests.methods.support import configured, trainer
from tests.unit.test_freezing import fitted_on_pictures

STUDENT = "network."


def teachers_of(method: nn.Module) -> Teachers:
    assert isinstance(method, G2D)
    assert method.teachers is not None
    return method.teachers


def teacher(made: Case, m: str) -> Network:
    network = teachers_of(made.method).networks[m]
    assert isinstance(network, Network)
    return network


# -- the equations ---------------------------------------------------------------------------------


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    total = sum(math.exp(z / temperature) for z in row)
    return [math.exp(z / temperature) / total for z in row]


def slow_loss(
    made: Case, network: Network, batch: Batch, a: float, b: float, temperature: float
) -> Tensor:
    """The loss, one number at a time."""
    logits = output(network, batch.inputs)
    loss = cross_entropy(logits, batch.y)
    for m, h in encode_in_double(network, batch.inputs).items():
        t = encode_in_double(teacher(made, m), batch.inputs)[m].tolist()
        square = torch.zeros((), dtype=torch.float64)
        for i in range(h.shape[0]):
            for j in range(h.shape[1]):
                square = square + (h[i, j] - t[i][j]) ** 2
        loss = loss + a * square / (h.shape[0] * h.shape[1])
        divergence = torch.zeros((), dtype=torch.float64)
        for z, v in zip(logits, output(teacher(made, m), batch.inputs).tolist(), strict=True):
            log_total = torch.log(torch.exp(z / temperature).sum())
            for c, p in enumerate(softmax(v, temperature)):
                divergence = divergence + p * (math.log(p) - (z[c] / temperature - log_total))
        loss = loss + b * temperature**2 * divergence / len(batch.y)
    return loss


def slow_confidences(made: Case, batch: Batch) -> dict[str, float]:
    confidences = {}
    for m in made.run.modalities:
        rows = output(teacher(made, m), batch.inputs).tolist()
        right = [softmax(v)[label] for v, label in zip(rows, batch.y.tolist(), strict=True)]
        confidences[m] = sum(right) / len(right)
    return confidences


def waiting(made: Case, batch: Batch, place: int | None) -> set[str]:
    """Return the modalities that wait while the one at a place from the weakest learns."""
    confidences = slow_confidences(made, batch)
    ranked = sorted(confidences, key=lambda m: confidences[m])
    return set() if place is None else {m for i, m in enumerate(ranked) if i != place}


def plain_gradients(
    made: Case, batch: Batch, a: float = 1.0, b: float = 1.0, temperature: float = 1.0
) -> Gradients:
    network = made.network()
    return gradients_of(
        slow_loss(made, network, batch, a, b, temperature),
        {STUDENT + name: p for name, p in network.named_parameters()},
    )


def held_back(gradients: Gradients, waits: set[str], dimensions: int) -> Gradients:
    return {
        name: torch.zeros_like(g)
        if g.dim() >= dimensions and any(f".encoders.{m}." in name for m in waits)
        else g
        for name, g in gradients.items()
    }


def of_student(gradients: Gradients) -> Gradients:
    assert not any(g.any() for name, g in gradients.items() if not name.startswith(STUDENT))
    return {name: g for name, g in gradients.items() if name.startswith(STUDENT)}


@pytest.mark.parametrize(
    ("count", "epoch", "place"),
    # Of 10 epochs, those up to the sixth are in the window; three modalities divide it by two.
    [(2, 0, 0), (2, 5, 0), (2, 6, None), (3, 0, 0), (3, 2, 0), (3, 3, 1), (3, 5, 1), (3, 6, None)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_are_those_of_the_equations(
    seed: int, count: int, epoch: int, place: int | None
) -> None:
    made = case(G2D, count, seed, "late", epochs=10, epoch=epoch)
    batch = made.batch(rows=4)
    waits = waiting(made, batch, place)
    assert len(waits) == (0 if place is None else count - 1)
    expected = held_back(plain_gradients(made, batch), waits, dimensions=2)
    found = of_student(made.step(batch))
    assert_close(found, expected)
    for name, g in found.items():
        if name.endswith("bias"):
            assert g.any(), "biases and heads do not wait"


@pytest.mark.parametrize(
    ("a", "b", "temperature"), [(0.5, 2.0, 3.0), (2.0, 0.0, 1.0), (0.0, 1.0, 0.5), (0.0, 0.0, 1.0)]
)
@pytest.mark.parametrize("fusion", ["concat", "gated"])
def test_weights_and_temperature_are_those_of_the_equations(
    a: float, b: float, temperature: float, fusion: str
) -> None:
    given: dict[str, Any] = {"feature_weight": a, "logit_weight": b, "temperature": temperature}
    made = case(G2D, 2, 5, fusion, **given)
    batch = made.batch(rows=4)
    plain = plain_gradients(made, batch, a, b, temperature)
    expected = held_back(plain, waiting(made, batch, 0), dimensions=2)
    assert_close(of_student(made.step(batch)), expected)


class Filtered(nn.Module):
    """An encoder behind a convolution, whose weights have four dimensions."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.filter = nn.Conv2d(1, 1, kernel_size=1)
        self.encoder = encoder
        nn.init.ones_(self.filter.weight)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.encoder(self.filter(x.view(-1, 1, 2, 3)).flatten(1))
        return features


@pytest.mark.parametrize(("scope", "dimensions"), [("weights", 2), ("conv", 4), ("all", 0)])
def test_the_scope_says_which_parameters_wait(scope: str, dimensions: int) -> None:
    made = case(G2D, 3, 1, "late", wrap=Filtered, scope=scope)
    batch = made.batch(rows=4)
    plain = plain_gradients(made, batch)
    waits = waiting(made, batch, 0)
    expected = held_back(plain, waits, dimensions)
    assert any(not torch.equal(plain[name], expected[name]) for name in plain)
    assert_close(of_student(made.step(batch)), expected)


def test_hard_freeze_withholds_every_gradient_of_who_waits_and_only_for_the_step() -> None:
    made = case(G2D, 3, 2, "late", hard_freeze=True)
    for epoch, place in [(0, 0), (3, 1)]:
        made.run.epoch = epoch
        batch = made.batch(rows=4)
        waits = waiting(made, batch, place)
        expected = held_back(plain_gradients(made, batch), waits, dimensions=0)
        assert_close(of_student(made.step(batch)), expected)
        assert all(p.requires_grad for p in made.run.network.parameters())


@pytest.mark.parametrize(
    ("confidences", "epoch", "expected"),
    [
        ([0.3, 0.3, 0.6], 0, [1, 1, 0]),
        ([0.3, 0.3, 0.6], 3, [1, 1, 0]),
        ([0.6, 0.3, 0.6], 0, [0, 1, 0]),
        ([0.6, 0.3, 0.6], 3, [1, 0, 1]),
        ([0.5, 0.5], 0, [1, 1]),
        ([0.5, 0.4], 0, [0, 1]),
    ],
)
def test_modalities_with_equally_confident_teachers_learn_together(
    confidences: list[float], epoch: int, expected: list[int]
) -> None:
    made = case(G2D, len(confidences), 4, "late", epochs=10, epoch=epoch)
    assert isinstance(made.method, G2D)
    y = torch.tensor([0, 2, 1, 1])
    taught = {}
    for m, p in zip(made.run.modalities, confidences, strict=True):
        probability = torch.full((4, 3), (1 - p) / 2)
        probability[torch.arange(4), y] = p
        taught[m] = Output(probability.log(), {}, None)
    coefficients = made.method.coefficients(made.run, taught, y)
    assert coefficients is not None
    assert coefficients.tolist() == expected


# -- when ------------------------------------------------------------------------------------------


def leaders(count: int, **options: Any) -> list[str | None]:
    """Return who learned in most batches of each of 6 epochs, None where all did in all. Of the
    modalities view1, view2 and so on each is much noisier than the one before."""
    splits = make_splits(count)
    for i, m in enumerate(splits.modalities):
        for split in (splits.train, splits.val, splits.test):
            source = split.inputs[m]
            assert isinstance(source, Rows)
            random = torch.Generator().manual_seed(i)
            source.tensor.add_(3 * i * torch.randn(source.tensor.shape, generator=random))
    fitted = trainer(configured(G2D, options), splits, fusion="late", epochs=6, lr=0.03).fit()
    found: list[str | None] = []
    for row in fitted.history:
        if row["stage"] != "train":
            continue
        if "coefficient.view1" not in row:
            found.append(None)
            continue
        shares = {m: float(row[f"coefficient.{m}"]) for m in fitted.run.modalities}
        assert sum(shares.values()) == pytest.approx(1), "one at a time"
        found.append(max(shares, key=lambda m: shares[m]))
    return found


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (2, {}, [2, 2, 2, 2, 0, 0]),
        (2, {"first_epoch": 1, "last_epoch": 2}, [0, 2, 2, 0, 0, 0]),
        (2, {"last_epoch": 40, "hard_freeze": True}, [2, 2, 2, 2, 2, 2]),
        (2, {"prioritise": False}, [0, 0, 0, 0, 0, 0]),
        (3, {}, [3, 3, 2, 2, 0, 0]),
        (3, {"first_epoch": 2, "last_epoch": 5}, [0, 0, 3, 3, 2, 2]),
        (3, {"last_epoch": 0}, [3, 0, 0, 0, 0, 0]),
    ],
)
def test_the_weakest_learns_alone_first_then_the_next_and_in_the_end_all(
    count: int, options: dict[str, Any], expected: list[int]
) -> None:
    assert leaders(count, **options) == [f"view{i}" if i else None for i in expected]


# -- what waiting means ----------------------------------------------------------------------------


class InTurn(G2D):
    """G2D whose modalities wait in turn, step by step, and which keeps the encoders' state."""

    turn: int
    states: list[tuple[int, dict[str, Tensor], dict[str, Tensor]]]

    def coefficients(self, run: Run, taught: dict[str, Output], y: Tensor) -> Tensor | None:
        if self.phase(run) is None:
            return None
        return torch.eye(2)[self.turn]

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        if run.stage.name != "train":
            return super().train_step(run, batch)
        if not hasattr(self, "states"):
            self.states, self.turn = [], 0
        before = {name: value.clone() for name, value in run.network.state_dict().items()}
        loss = super().train_step(run, batch)
        if self.phase(run) is not None:
            after = {name: value.clone() for name, value in run.network.state_dict().items()}
            self.states.append((self.turn, before, after))
            self.turn = 1 - self.turn
        return loss


def changed(options: dict[str, Any], **recipe: Any) -> tuple[list[set[str]], list[set[str]]]:
    """Return what a step changed, in each step in which modalities wait in turn: names of what
    waits and of what learns, the modality's own left out. The first epoch is without."""
    method = configured(InTurn, {"first_epoch": 1, "last_epoch": 2} | options)
    fitted = fitted_on_pictures(method, **recipe)
    assert isinstance(fitted.method, InTurn)
    waits: list[set[str]] = []
    learns: list[set[str]] = []
    for turn, before, after in fitted.method.states:
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        for i, m in enumerate(fitted.run.modalities):
            own = f"encoders.{m}."
            names = {name.removeprefix(own) for name in moved if name.startswith(own)}
            (learns if i == turn else waits).append(names)
    return waits, learns


DECAY = {"weight_decay": 0.1}


def test_hard_freeze_stops_weights_momentum_decay_and_batch_norms() -> None:
    waits, learns = changed({"hard_freeze": True}, **DECAY)
    assert len(waits) == len(learns) == 6, "2 epochs of 3 steps"
    assert waits == [set()] * 6
    assert all(any("running_mean" in name for name in names) for names in learns)
    assert all(any(name.endswith("weight") for name in names) for names in learns)


def test_without_hard_freeze_momentum_and_decay_go_on() -> None:
    waits, learns = changed({}, **DECAY)
    assert waits == learns, "everything moves"
    still, _ = changed({"scope": "all"}, weight_decay=0.0, momentum=0.0)
    assert all(names and all("running" in n or "num_" in n for n in names) for names in still)


def test_scaling_the_update_stops_the_weights_but_not_batch_norms_and_biases() -> None:
    waits, learns = changed({"scale_where": "update"}, **DECAY)
    of_weights = np.array([len(b - a) for a, b in zip(waits, learns, strict=True)])
    assert (of_weights > 0).all()
    assert all(any("running_mean" in name for name in names) for names in waits)
    everything, _ = changed({"scale_where": "update", "scope": "all"}, **DECAY)
    assert all(all("running" in n or "num_" in n for n in names) for names in everything)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"feature_weight": -1}, "feature_weight"),
        ({"logit_weight": -0.1}, "logit_weight"),
        ({"temperature": 0}, "temperature"),
        ({"first_epoch": -1}, "first_epoch"),
        ({"scope": "heads"}, "scope"),
        ({"scale_where": "loss"}, "scale_where"),
        ({"logit_weight": 0, "temperature": 2}, "temperature is not used with logit_weight=0"),
        ({"prioritise": False, "first_epoch": 1}, "first_epoch is not used"),
        ({"prioritise": False, "scope": "all"}, "scope is not used"),
        ({"prioritise": False, "hard_freeze": True}, "hard_freeze is not used"),
        ({"hard_freeze": True, "scope": "conv"}, "scope is not used with hard_freeze"),
        ({"hard_freeze": True, "scale_where": "update"}, "scale_where is not used"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(G2D, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"first_epoch": 4, "last_epoch": 3}, {"first_epoch": 3}, {"first_epoch": 20}]
)
def test_a_window_without_epochs_is_refused_before_training(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="g2d: no epoch is in the window") as caught:
        trainer(configured(G2D, options), make_splits(2), epochs=5).fit()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "is_said"),
    [
        ({}, True),
        ({"scale_where": "update"}, False),
        ({"hard_freeze": True}, False),
        ({"prioritise": False}, False),
    ],
)
def test_an_optimiser_that_undoes_it_is_said_so(options: dict[str, Any], is_said: bool) -> None:
    made = trainer(configured(G2D, options), make_splits(2), optimizer="adam")
    made.method.setup(made.run)
    assert any("undoes" in note for note in made.run.notes) is is_said
