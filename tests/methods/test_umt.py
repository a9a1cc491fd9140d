"""UMT: its loss against slow loops; and what all methods with teachers have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmbench.config import Recipe
from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.evaluate.readout import evaluating, read_out
from mmbench.methods.ensemble import Ensemble
from mmbench.methods.g2d import G2D
from mmbench.methods.joint import Joint
from mmbench.methods.umt import UMT
from mmbench.nets.network import Network
from mmbench.testing import contract
from mmbench.testing.contract import make_splits
from mmbench.train.run import Run
from mmbench.train.teachers import Distillation, Teachers
from tests.methods.double import (
    Gradients,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
    named_parameters,
    output,
)
from tests.methods.support import batch_counts, configured, trainer
from tests.unit.test_freezing import fitted_on_pictures, pictures

STUDENT = "network."


def teachers_of(method: nn.Module) -> Teachers:
    assert isinstance(method, Distillation)
    assert method.teachers is not None
    return method.teachers


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []


# -- the loss of UMT -------------------------------------------------------------------------------


def slow_loss(network: Network, teachers: Teachers, batch: Batch, strength: float) -> Tensor:
    """The equation, one number at a time."""
    loss = cross_entropy(output(network, batch.inputs), batch.y)
    features = encode_in_double(network, batch.inputs)
    for m, h in features.items():
        teacher = teachers.networks[m]
        assert isinstance(teacher, Network)
        t = encode_in_double(teacher, batch.inputs)[m].tolist()
        total = torch.zeros((), dtype=torch.float64)
        for i in range(h.shape[0]):
            for j in range(h.shape[1]):
                total = total + (h[i, j] - t[i][j]) ** 2
        loss = loss + strength * total / (h.shape[0] * h.shape[1])
    return loss


@pytest.mark.parametrize("fusion", ["concat", "gated"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_are_those_of_the_equations(seed: int, count: int, fusion: str) -> None:
    made = case(UMT, count, seed, fusion, strength=7.0)
    batch = made.batch(rows=4)
    network = made.network()
    expected = gradients_of(
        slow_loss(network, teachers_of(made.method), batch, 7.0),
        {STUDENT + name: p for name, p in network.named_parameters()},
    )
    joint = gradients_of(
        cross_entropy(output(network, batch.inputs), batch.y),
        {STUDENT + name: p for name, p in network.named_parameters()},
    )
    found = made.step(batch)
    assert_close(of_student(found), expected)
    assert not any(g.any() for name, g in found.items() if not name.startswith(STUDENT))
    differing = [name for name in joint if not torch.equal(joint[name], expected[name])]
    assert all("encoders" in name for name in differing)
    assert {name.split(".")[2] for name in differing} == set(made.run.modalities)


def of_student(gradients: Gradients) -> Gradients:
    return {name: g for name, g in gradients.items() if name.startswith(STUDENT)}


def test_a_strong_pull_brings_features_nearer_to_the_teachers_than_next_to_none() -> None:
    distances = []
    for strength in (1e-6, 50.0):
        method = configured(UMT, {"strength": strength})
        history = trainer(method, make_splits(2), fusion="concat", epochs=4).fit().history
        distances.append([float(history[-1][f"feature_distance.view{i}"]) for i in (1, 2)])
    assert np.all(np.diff(np.array(distances), axis=0) < 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"strength": -1}, "strength"), ({"strength": "much"}, "strength"), ({"alpha": 1}, "alpha")],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(UMT, options)
    assert "\n" not in str(caught.value)


# -- teachers --------------------------------------------------------------------------------------

KINDS: list[type[Distillation]] = [UMT, G2D]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_teachers_are_the_models_of_the_ensemble(kind: type[Distillation], count: int) -> None:
    splits = make_splits(count)
    recipe: dict[str, Any] = {"epochs": 3, "select": "best-val"}
    taught = trainer(configured(kind), splits, **recipe).fit()
    ensemble = trainer(configured(Ensemble), splits, **recipe).fit()
    parts = read_out(ensemble.run, ensemble.method, splits.test).parts
    (batch,) = [splits.test.batch(torch.arange(len(splits.test)), taught.run.modalities)]
    for m, said in teachers_of(taught.method)(taught.run, batch).items():
        assert torch.equal(said.logits, parts[m])


class Watching(Distillation):
    """Keeps what the teachers are as the last stage begins and while it trains."""

    before: dict[str, Tensor]
    optimised: set[int]
    teachers_modes: set[bool]
    own_mode: bool

    def on_stage_start(self, run: Run) -> None:
        super().on_stage_start(run)
        if run.stage.name == "train":
            self.before = state_of(teachers_of(self))

    def on_epoch_end(self, run: Run) -> None:
        assert run.optimizer is not None
        groups = run.optimizer.param_groups
        self.optimised = {id(p) for group in groups for p in group["params"]}
        self.teachers_modes = {part.training for part in teachers_of(self).modules()}
        self.own_mode = self.training


class WatchedUMT(Watching, UMT):
    pass


class WatchedG2D(Watching, G2D):
    pass


WATCHED: list[type[Watching]] = [WatchedUMT, WatchedG2D]


def watched(kind: type[Watching], **recipe: Any) -> tuple[Watching, Run]:
    """Train on images, so that the encoders have batch norms."""
    fitted = fitted_on_pictures(configured(kind), **recipe)
    assert isinstance(fitted.method, Watching)
    return fitted.method, fitted.run


@pytest.mark.parametrize("kind", WATCHED)
def test_teachers_do_not_change_while_the_network_learns(kind: type[Watching]) -> None:
    method, run = watched(kind, weight_decay=0.1)
    after = state_of(teachers_of(method))
    assert any("running_mean" in name for name in after)
    assert_equal(after, method.before)
    for name, value in run.network.state_dict().items():
        if "running_mean" in name:
            m = name.split(".")[1]
            theirs = after[f"networks.{m}.{name}"]
            assert not torch.equal(value, theirs), "the network's own have moved on"
            assert theirs.any(), "the teacher's are those of its training"


@pytest.mark.parametrize("kind", WATCHED)
def test_only_the_network_is_in_the_optimiser(kind: type[Watching]) -> None:
    method, run = watched(kind)
    assert method.optimised == {id(p) for p in run.network.parameters()}
    teachers = teachers_of(method)
    assert not any(p.requires_grad for p in teachers.parameters())
    assert all(p.grad is None for p in teachers.parameters())


@pytest.mark.parametrize("kind", WATCHED)
def test_teachers_stay_in_evaluation_mode_whatever_the_method_does(kind: type[Watching]) -> None:
    method, _ = watched(kind)
    teachers = teachers_of(method)
    assert method.teachers_modes == {False}, "while the network learned"
    assert method.own_mode
    for mode in (True, False):
        assert method.train(mode).training == mode
        assert not any(part.training for part in teachers.modules())
    with evaluating(method):
        assert not any(part.training for part in teachers.modules())
    assert not any(part.training for part in teachers.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_what_teachers_say_of_a_row_does_not_depend_on_the_batch(kind: type[Distillation]) -> None:
    fitted = fitted_on_pictures(configured(kind))
    fitted.method.train()
    run, teachers, data = fitted.run, teachers_of(fitted.method), pictures().train
    whole = teachers(run, data.batch(torch.arange(8), run.modalities))
    half = teachers(run, data.batch(torch.arange(4), run.modalities))
    for m in run.modalities:
        torch.testing.assert_close(whole[m].features[m][:4], half[m].features[m])
        torch.testing.assert_close(whole[m].logits[:4], half[m].logits)
        assert not whole[m].logits.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_their_weights_are_in_the_state(kind: type[Distillation]) -> None:
    fitted = fitted_on_pictures(configured(kind))
    fresh = configured(kind)
    fresh.setup(fitted.run)
    started = state_of(teachers_of(fresh))
    trained = state_of(teachers_of(fitted.method))
    assert any(not torch.equal(started[name], value) for name, value in trained.items())
    fresh.load_state_dict(fitted.method.state_dict())
    assert_equal(state_of(teachers_of(fresh)), trained)


@pytest.mark.parametrize("kind", KINDS)
def test_it_resumes_where_the_encoders_have_batch_norms(
    kind: type[Distillation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_pictures(method: type[Distillation], *_: Any, **given: Any) -> Any:
        made = trainer(
            configured(method), pictures(), fusion="sum", encoder="small_cnn", batch_size=8
        )
        made.checkpointer = given["checkpointer"]
        return made

    monkeypatch.setattr(contract, "make_trainer", on_pictures)
    contract.check_resumes(kind, 2)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_teachers_are_counted(kind: type[Distillation], count: int) -> None:
    """A step has one forward of each teacher besides its own, and no other backward; beforehand
    each teacher has an ordinary training."""
    splits = make_splits(count)
    counts = trainer(configured(kind), splits, fusion="late", epochs=3).fit().run.counts
    steps = 3 * batch_counts(len(splits.train), Recipe(batch_size=16).batch_size)
    assert counts.updates == counts.backwards == (count + 1) * steps
    assert counts.forwards == (count + 1 + count) * steps
    assert counts.encoder_forwards == (count + 2 * count) * steps


@pytest.mark.parametrize(
    ("kind", "off"),
    [
        (UMT, {"strength": 0}),
        (G2D, {"feature_weight": 0, "logit_weight": 0, "prioritise": False}),
    ],
)
def test_where_nothing_is_asked_of_teachers_none_is_trained(
    kind: type[Distillation], off: dict[str, Any]
) -> None:
    splits = make_splits(2)
    fitted = trainer(configured(kind, off), splits).fit()
    joint = trainer(configured(Joint), splits).fit()
    assert fitted.run.counts == joint.run.counts
    assert {row["stage"] for row in fitted.history} == {"train"}
    assert named_parameters(fitted.run.network, fitted.method).keys() == {
        STUDENT + name for name, _ in joint.run.network.named_parameters()
    }
