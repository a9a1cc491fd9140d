"""Shapley values against all orders of the modalities, their axioms, and networks whose
contributions are known by construction; leaving one out against predictions row by row."""

import math
from itertools import chain, combinations, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbench.config import Recipe
from mmbench.data.dataset import Modality, Rows, Split
from mmbench.evaluate.contributions import (
    contribution,
    masked,
    permutation,
    shapley,
    stand_ins,
)
from mmbench.evaluate.metrics import nll
from mmbench.evaluate.readout import Readout, predict_from, read_out
from mmbench.methods.joint import Joint
from mmbench.nets.fusion import FUSIONS
from mmbench.nets.network import NetworkSpec
from mmbench.train.method import Method, Output
from mmbench.train.run import Run

Game = tuple[tuple[str, ...], dict[frozenset[str], float]]


def subsets(modalities: tuple[str, ...]) -> list[frozenset[str]]:
    sizes = range(len(modalities) + 1)
    return [frozenset(s) for s in chain(*(combinations(modalities, size) for size in sizes))]


@st.composite
def games(draw: st.DrawFn) -> Game:
    modalities = tuple("abcde"[: draw(st.integers(1, 5))])
    value = st.floats(-1, 1, allow_nan=False)
    return modalities, {s: draw(value) for s in subsets(modalities)}


every_game = settings(max_examples=60, deadline=None)


@every_game
@given(games())
def test_values_are_the_mean_gain_over_all_orders_and_sum_to_the_whole(game: Game) -> None:
    modalities, v = game
    phi = shapley(modalities, v.__getitem__)
    orders = list(permutations(modalities))
    for m in modalities:
        gains = []
        for order in orders:
            before = frozenset(order[: order.index(m)])
            gains.append(v[before | {m}] - v[before])
        assert phi[m] == pytest.approx(sum(gains) / len(orders), abs=1e-12)
    whole = v[frozenset(modalities)] - v[frozenset()]
    assert math.fsum(phi.values()) == pytest.approx(whole, abs=1e-12)


@every_game
@given(games(), games())
def test_values_of_a_sum_are_sums_of_values(one: Game, other: Game) -> None:
    modalities = min(one[0], other[0], key=len)
    v, w = one[1], other[1]
    both = shapley(modalities, lambda s: v[s] + w[s])
    apart = shapley(modalities, v.__getitem__), shapley(modalities, w.__getitem__)
    for m in modalities:
        assert both[m] == pytest.approx(apart[0][m] + apart[1][m], abs=1e-12)


@every_game
@given(games())
def test_a_modality_that_changes_nothing_gets_zero(game: Game) -> None:
    modalities, v = game
    idle = modalities[0]
    assert shapley(modalities, lambda s: v[s - {idle}])[idle] == 0


@every_game
@given(games())
def test_interchangeable_modalities_get_the_same(game: Game) -> None:
    modalities, v = game
    if len(modalities) < 2:
        return
    first, second = modalities[:2]

    def symmetric(s: frozenset[str]) -> float:
        swap = {first: second, second: first}
        return v[s] + v[frozenset(swap.get(m, m) for m in s)]

    phi = shapley(modalities, symmetric)
    assert phi[first] == pytest.approx(phi[second], abs=1e-12)


def test_each_subset_is_valued_once() -> None:
    asked: list[frozenset[str]] = []

    def value(s: frozenset[str]) -> float:
        asked.append(s)
        return 0.0

    shapley("abcd", value)
    assert len(asked) == len(set(asked)) == 16


# -- a trained method --------------------------------------------------------------------------


def fixture(
    fusion: str = "concat",
    modalities: str = "abc",
    method: type[Method] = Joint,
    rows: int = 40,
    precision: str = "fp32",
) -> SimpleNamespace:
    """An untrained method over vectors of four numbers and its read-out of ``rows`` rows."""
    rng = np.random.default_rng(0)
    inputs = {m: Rows(rng.normal(size=(rows, 4))) for m in modalities}
    split = Split(inputs, torch.arange(rows) % 3, np.array([f"row-{i}" for i in range(rows)]))
    specs = {m: Modality("vector", (4,)) for m in modalities}
    spec = NetworkSpec(specs, dict.fromkeys(modalities, "mlp"), 3, fusion, seed=5)
    run = Run(split, spec, Recipe(), torch.device("cpu"), precision)
    run.main = run.network = spec.build()
    trained = method(method.Config())
    return SimpleNamespace(
        run=run, method=trained, split=split, readout=read_out(run, trained, split)
    )


@pytest.mark.parametrize("fusion", FUSIONS)
def test_contributions_are_those_of_predictions_made_subset_by_subset(fusion: str) -> None:
    case = fixture(fusion)
    h = {m: feature.numpy() for m, feature in case.readout.features.items()}
    labels = case.readout.y.numpy()

    def value(present: frozenset[str]) -> float:
        right = 0
        with torch.no_grad():
            for i in range(len(labels)):
                row = {m: h[m][i] if m in present else h[m].mean(axis=0) for m in "abc"}
                z = case.run.network.fusion({m: torch.tensor(x)[None] for m, x in row.items()})
                right += int(z.argmax()) == labels[i]
        return right / len(labels)

    absent = stand_ins(case.readout.features, "train_mean_feature")
    found = contribution(case.run, case.method, case.readout, absent)
    assert found is not None
    expected = shapley("abc", value)
    assert found.values == pytest.approx(expected, abs=1e-12)
    assert found.none == value(frozenset())
    assert found.all == value(frozenset("abc"))
    assert math.fsum(found.values.values()) == pytest.approx(found.all - found.none, abs=1e-12)
    everyone = frozenset("abc")
    expected = {m: value(everyone) - value(everyone - {m}) for m in "abc"}
    assert found.losses == pytest.approx(expected, abs=1e-12)


def test_with_every_modality_absent_all_rows_get_one_prediction() -> None:
    case = fixture()
    absent = stand_ins(case.readout.features, "train_mean_feature")
    logits = predict_from(case.run, case.method, masked(case.readout.features, (), absent))
    assert (logits == logits[0]).all()


def test_a_modality_the_fusion_ignores_contributes_nothing() -> None:
    case = fixture("sum")
    case.run.network.fusion.heads["b"].weight.data.zero_()
    readout = read_out(case.run, case.method, case.split)
    absent = stand_ins(readout.features, "train_mean_feature")
    found = contribution(case.run, case.method, readout, absent, nll)
    assert found is not None
    assert found.values["b"] == pytest.approx(0, abs=1e-6)
    losses = permutation(case.run, case.method, readout, 0, metric=nll)
    assert losses["b"] == pytest.approx(0, abs=1e-6)
    assert all(abs(found.values[m]) > 1e-3 and abs(losses[m]) > 1e-3 for m in "ac")


def test_contributions_of_an_additive_fusion_to_an_additive_value_are_its_gains() -> None:
    """With logits that are sums, the mean logit of class 0 is additive, so each contribution is
    what the modality's own head adds over its value at the mean feature."""
    case = fixture("sum")
    absent = stand_ins(case.readout.features, "zero_feature")

    def mean_logit(labels: np.ndarray, logits: np.ndarray) -> float:
        return float(logits[:, 0].astype(np.float64).mean())

    found = contribution(case.run, case.method, case.readout, absent, mean_logit)
    assert found is not None
    for m, h in case.readout.features.items():
        weight = case.run.network.fusion.heads[m].weight.detach()[0]
        assert found.values[m] == pytest.approx(float((h @ weight).mean()), abs=1e-5)


def test_what_stands_in_for_an_absent_modality() -> None:
    features = {"a": torch.tensor([[1.0, 2.0], [3.0, 6.0]])}
    assert stand_ins(features, "train_mean_feature")["a"].tolist() == [2.0, 4.0]
    assert stand_ins(features, "zero_feature")["a"].tolist() == [0.0, 0.0]


class ReadsFeatures(Joint):
    """Ignores the network's logits: class 2 where the first feature of modality a is positive."""

    def predict(self, run: Run, out: Output) -> torch.Tensor:
        positive = (out.features["a"][:, 0] > 0).float()
        return torch.stack([torch.full_like(positive, 0.5), 0 * positive, positive], dim=1)


def test_the_prediction_is_the_methods_not_the_networks() -> None:
    case = fixture(method=ReadsFeatures)
    absent = stand_ins(case.readout.features, "train_mean_feature")
    found = contribution(case.run, case.method, case.readout, absent)
    assert found is not None
    assert found.values["b"] == found.values["c"] == 0
    assert found.losses["b"] == found.losses["c"] == 0
    assert found.losses["a"] == pytest.approx(found.all - found.none)
    assert found.values["a"] == pytest.approx(found.all - found.none)
    assert permutation(case.run, case.method, case.readout, 0)["b"] == 0


def test_only_the_fusion_is_evaluated_again() -> None:
    case = fixture()
    absent = stand_ins(case.readout.features, "train_mean_feature")
    for encoder in case.run.network.encoders.values():
        encoder.forward = None
    contribution(case.run, case.method, case.readout, absent)
    permutation(case.run, case.method, case.readout, 0)


def test_predictions_from_features_are_those_read_out_whatever_the_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = fixture(rows=41)
    monkeypatch.setattr("mmbench.train.run.EVALUATION_BATCH", 8)
    again = predict_from(case.run, case.method, case.readout.features)
    torch.testing.assert_close(again, case.readout.logits)


def test_low_precision_leaves_predictions_from_features_equal() -> None:
    case = fixture(precision="bf16")
    again = predict_from(case.run, case.method, case.readout.features)
    torch.testing.assert_close(again, case.readout.logits)


def test_permuting_is_repeatable_and_follows_its_key() -> None:
    case = fixture()
    first = permutation(case.run, case.method, case.readout, 3, "test", metric=nll)
    torch.manual_seed(99)
    assert permutation(case.run, case.method, case.readout, 3, "test", metric=nll) == first
    assert permutation(case.run, case.method, case.readout, 4, "test", metric=nll) != first


def test_permuting_costs_the_share_of_rows_that_get_a_wrong_stranger() -> None:
    """One modality, a perfect prediction of four equally frequent classes: a row whose features
    come from a random other row is right a quarter of the time."""
    rows = 4000
    y = torch.arange(rows) % 4
    h = torch.nn.functional.one_hot(y, 4).float()
    case = fixture(modalities="a", rows=8)
    case.run.network.fusion.head = torch.nn.Identity()
    readout = Readout(y, h, {}, {}, {"a": h})
    loss = permutation(case.run, case.method, readout, 0)["a"]
    assert loss == pytest.approx(0.75, abs=0.03)


def test_a_network_without_modalities_has_no_contributions() -> None:
    case = fixture()
    case.run.main = case.run.network = case.run.spec.build(())
    readout = read_out(case.run, case.method, case.split)
    assert contribution(case.run, case.method, readout, {}) is None
    assert permutation(case.run, case.method, readout, 0) == {}
