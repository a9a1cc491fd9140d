"""Diagnosing and re-learning: diagnosis and re-initialisation against the rule written as loops."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from mmbench.errors import RequestError
from mmbench.methods.joint import Joint
from mmbench.methods.relearning import Relearning, purity
from mmbench.nets.network import Network
from mmbench.options import option
from mmbench.testing import contract
from mmbench.testing.contract import final_state, make_splits
from mmbench.train.method import Stage
from mmbench.train.run import Run
from mmbench.train.trainer import Trainer
from tests.methods.double import (
    assert_close,
    case,
    cross_entropy,
    gradients_of,
    named_parameters,
    output,
)
from tests.methods.support import begun, configured, trainer


def slow_purity(features: list[list[float]], labels: list[int], classes: int) -> float:
    """Scale each column to [-1, 1], cluster, and count sample by sample."""
    scaled = []
    low = [min(column) for column in zip(*features, strict=True)]
    high = [max(column) for column in zip(*features, strict=True)]
    for row in features:
        pairs = zip(row, low, high, strict=True)
        scaled.append([-1.0 if h == a else 2 * (x - a) / (h - a) - 1 for x, a, h in pairs])
    clusters = KMeans(n_clusters=classes, n_init=10, random_state=0).fit(np.array(scaled)).labels_
    right = 0
    for cluster in set(clusters):
        inside = [label for label, c in zip(labels, clusters, strict=True) if c == cluster]
        right += max(inside.count(label) for label in inside)
    return right / len(labels)


def started(count: int, fusion: str, seed: int, **options: Any) -> tuple[Trainer, Network]:
    """Return a trainer at the end of an epoch in which it re-initialises, with moved weights and
    momentum, and a copy of the network it started from."""
    made = begun(Relearning, make_splits(count), fusion, {"every": 2, "holdout": 0.3} | options)
    run, initial = made.run, copy.deepcopy(made.run.network)
    random = torch.Generator().manual_seed(seed)
    for m in run.modalities:
        run.network.encoders[m].register_buffer("statistic", torch.randn(3, generator=random))
    with torch.no_grad():
        for p in run.network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=random))
    run.optimizer = torch.optim.SGD(run.network.parameters(), lr=0.0, momentum=0.9)
    for p in run.network.parameters():
        p.grad = torch.randn(p.shape, generator=random)
    run.optimizer.step()
    run.stage = Stage("train", 6)
    run.begin_epoch(2)
    return made, initial


def method_of(made: Trainer) -> Relearning:
    assert isinstance(made.method, Relearning)
    return made.method


def slow_purities(made: Trainer, rows: np.ndarray) -> dict[str, float]:
    """Return the purity of each modality's features, taken row by row."""
    run, network = made.run, made.run.network
    network.eval()
    labels = [int(run.train.y[row]) for row in rows]
    found = {}
    for m in run.modalities:
        features = []
        for row in rows:
            x = run.train.batch(torch.tensor([row]), [m]).inputs[m]
            features.append(network.encoders[m](x)[0].double().tolist())
        found[m] = slow_purity(features, labels, run.classes)
    return found


# -- the diagnosis ---------------------------------------------------------------------------------


def test_purity_counts_the_most_frequent_class_of_every_cluster() -> None:
    # Eight rows at one place, of which six of class 0; eight at another, of which five of class 1.
    features = np.array([[0.0, 0.0]] * 8 + [[5.0, 5.0]] * 8)
    features += 0.01 * np.random.default_rng(0).normal(size=features.shape)
    labels = np.array([0] * 6 + [1] * 2 + [1] * 5 + [0] * 3)
    assert purity(features, labels, 2) == 11 / 16


def test_a_feature_counts_as_much_in_other_units() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(60) % 2
    telling = labels[:, None] + 0.05 * random.normal(size=(60, 2))
    vague = 1000 * random.normal(size=(60, 1))
    assert purity(np.hstack([telling, vague]), labels, 2) == 1.0


def test_an_encoder_that_died_is_as_pure_as_its_most_frequent_class() -> None:
    assert purity(np.ones((10, 4)), np.array([0] * 7 + [1] * 2 + [2]), 3) == 0.7


@pytest.mark.parametrize("seed", range(3))
def test_purity_is_that_of_the_loops(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(4, size=50)
    features = random.normal(size=(50, 5)) + labels[:, None] * 0.8
    assert purity(features, labels, 4) == slow_purity(features.tolist(), labels.tolist(), 4)


# -- the re-initialisation -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "strength"), [(0, "concat", 3.0), (1, "film", 1.0), (2, "sum", 10.0)]
)
def test_encoders_go_back_by_the_gap_in_purity(
    count: int, seed: int, fusion: str, strength: float
) -> None:
    made, initial = started(count, fusion, seed, strength=strength)
    method, run = method_of(made), made.run
    seen, unseen = slow_purities(made, method.kept), slow_purities(made, method.held)
    before = {name: value.double().clone() for name, value in run.network.state_dict().items()}
    start = {name: value.double() for name, value in initial.state_dict().items()}
    assert run.optimizer is not None
    momenta = copy.deepcopy(run.optimizer.state_dict()["state"])
    run.network.train()
    method.on_epoch_end(run)
    assert run.network.training
    weights = {m: math.tanh(strength * abs(seen[m] - unseen[m])) for m in run.modalities}
    assert max(weights.values()) > 0
    for name, value in run.network.state_dict().items():
        m = name.split(".")[1] if name.startswith("encoders.") else None
        if m is None or name.endswith("statistic"):
            assert torch.equal(value.double(), before[name]), name
        else:
            expected = weights[m] * start[name] + (1 - weights[m]) * before[name]
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    for number, state in run.optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], momenta[number]["momentum_buffer"])
    (diagnosis,) = method.report(run)["diagnoses"]
    assert diagnosis["epoch"] == 3
    assert diagnosis["purity"] == pytest.approx(seen)
    assert diagnosis["held_out_purity"] == pytest.approx(unseen)
    assert diagnosis["coefficient"] == pytest.approx(weights)


def test_a_weight_of_one_restores_the_initial_encoders_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, initial = started(2, "concat", 0, strength=100.0)
    kept = len(method_of(made).kept)
    monkeypatch.setattr(
        "mmbench.methods.relearning.purity",
        lambda features, labels, classes: 1.0 if len(labels) == kept else 0.5,
    )
    made.method.on_epoch_end(made.run)
    for m in made.run.modalities:
        for now, first in zip(
            made.run.encoder_params(m), initial.encoders[m].parameters(), strict=True
        ):
            assert torch.equal(now, first)


def test_without_a_gap_no_bit_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = started(3, "concat", 0)
    monkeypatch.setattr("mmbench.methods.relearning.purity", lambda *_: 0.5)
    before = copy.deepcopy(made.run.network.state_dict())
    made.method.on_epoch_end(made.run)
    after = made.run.network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("total", "options", "expected"),
    [
        (90, {}, [20, 40, 60]),
        (45, {}, [10, 20, 30]),
        (9, {}, [2, 4, 6]),
        (100, {"every": 20}, [20, 40, 60]),
        (100, {"every": 20, "times": 1}, [20]),
        (100, {"every": 20, "times": 9}, [20, 40, 60, 80]),
        (41, {"every": 20}, [20]),
        (42, {"every": 20}, [20, 40]),
        (4, {}, [1, 2]),
        (2, {}, []),
    ],
)
def test_the_released_times_are_stretched_unless_given(
    total: int, options: dict[str, Any], expected: list[int]
) -> None:
    method = configured(Relearning, options)
    assert isinstance(method, Relearning)
    assert method.epochs(total) == expected


def test_it_acts_at_the_end_of_those_epochs_alone() -> None:
    fitted = trainer(configured(Relearning, {"every": 2}), make_splits(2), epochs=7).fit()
    acted = [row["epoch"] for row in fitted.history if "coefficient.view1" in row]
    assert acted == [3, 5]
    assert [d["epoch"] for d in fitted.method.report(fitted.run)["diagnoses"]] == [3, 5]
    # 54 rows learned from in batches of 16, for seven epochs; two diagnoses of two passes each.
    assert fitted.run.counts.updates == fitted.run.counts.backwards == 7 * 4
    assert fitted.run.counts.forwards == 7 * 4 + 2 * 2


# -- everything else is joint training on the rows that are kept -----------------------------------


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("seed", "fusion"), [(0, "concat"), (1, "gated"), (2, "attention")])
def test_gradients_are_those_of_the_fused_loss(count: int, seed: int, fusion: str) -> None:
    of = case(Relearning, count, seed, fusion)
    batch, network = of.batch(), of.network()
    loss = cross_entropy(output(network, batch.inputs), batch.y)
    expected = gradients_of(loss, named_parameters(network, of.method))
    assert_close(of.step(batch), expected)


def test_before_the_first_time_it_is_joint_training_on_the_rows_kept() -> None:
    splits = make_splits(2)
    fitted = trainer(configured(Relearning, {"every": 3}), splits, epochs=3).fit()
    assert isinstance(fitted.method, Relearning)
    kept, held = fitted.method.kept, fitted.method.held
    assert sorted([*kept, *held]) == list(range(60))

    class OnKept(Joint):
        def stages(self, run: Run) -> list[Stage]:
            (stage,) = super().stages(run)
            return [Stage(stage.name, stage.epochs, rows=kept, select="protocol")]

    joint = final_state(trainer(configured(OnKept), splits, epochs=3).fit())
    ours = final_state(fitted)
    assert all(torch.equal(ours[name], joint[name]) for name in joint)
    assert any("re-initialises nothing in 3 epochs" in note for note in fitted.run.notes)


class Often(Relearning):
    class Config(Relearning.Config):
        every: int | None = option(1, "")


def test_it_resumes_between_re_initialisations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "EPOCHS", 4)
    contract.check_resumes(Often, 2)


def test_diagnoses_are_in_the_state() -> None:
    made, _ = started(2, "concat", 0)
    made.method.on_epoch_end(made.run)
    other = configured(Relearning)
    other.setup(made.run)
    other.load_state_dict(copy.deepcopy(made.method.state_dict()))
    assert other.report(made.run) == made.method.report(made.run) != {"diagnoses": []}


# -- wrong requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strength": -1}, "strength"),
        ({"every": 0}, "every"),
        ({"times": 0}, "times"),
        ({"holdout": 1.0}, "holdout"),
        ({"strength": 0, "every": 3}, "every is not used with strength=0"),
        ({"strength": 0, "holdout": 0.2}, "holdout is not used with strength=0"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(Relearning, options)
    assert "\n" not in str(caught.value)


def test_too_few_rows_to_diagnose_on_are_named_before_training() -> None:
    with pytest.raises(RequestError, match=r"relearning: a holdout of 0\.01 leaves .* to measure"):
        begun(Relearning, make_splits(2), "concat", {"holdout": 0.01})


def test_few_held_out_rows_are_noted() -> None:
    few = begun(Relearning, make_splits(2), "concat", {"holdout": 0.2}).run.notes
    assert any("diagnoses on 12 held-out rows of 3 classes" in note for note in few)
    enough = begun(Relearning, make_splits(2, rows=240), "concat", {"holdout": 0.2}).run.notes
    assert not any("held-out rows" in note for note in enough)
