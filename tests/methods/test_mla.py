"""MLA: turns, projection and entropy fusion against the equations written as loops."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmbench.config import Recipe
from mmbench.data.dataset import Batch, Modality, Rows, Split, Splits
from mmbench.errors import RequestError
from mmbench.evaluate.readout import read_out
from mmbench.methods.mla import MLA, batches_per_epoch, fusion_weights, move_projection
from mmbench.nets.network import Network, NetworkSpec
from mmbench.nets.shared_head import Branch, branch_of
from mmbench.planning import check_support
from mmbench.testing.contract import make_splits
from mmbench.train.run import batches
from mmbench.train.trainer import Trainer
from tests.methods.double import (
    Case,
    Gradients,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradient_of,
    gradients_of,
)
from tests.methods.support import batch_counts, begun, configured, trainer

RATE = 0.1


def turns(of: Case, batch: Batch) -> list[Gradients]:
    """Return the gradients that reach the optimiser in each of a step's updates, which here are
    plain gradient descent."""
    seen: list[Gradients] = []
    parameters = dict(of.run.network.named_parameters())

    def descend() -> None:
        seen.append({name: gradient_of(p) for name, p in parameters.items()})
        with torch.no_grad():
            for p in parameters.values():
                if p.grad is not None:
                    p.sub_(RATE * p.grad)
                    p.grad = None

    with (
        patch.object(Network, "encode", encode_in_double),
        patch.object(of.run, "step", descend),
    ):
        of.method.train_step(of.run, batch)
    return seen


class Slow:
    """The method on a network of its own; P is the inverse of a sum instead of a recursion."""

    def __init__(self, of: Case, project: bool, damping: float, batches: int) -> None:
        self.network = of.network()
        self.project = project
        self.damping = damping
        self.batches = batches
        head = branch_of(self.network, self.network.modalities[0]).head
        assert isinstance(head, nn.Linear)
        self.head = head
        self.p = torch.eye(self.head.in_features, dtype=torch.float64)
        self.updates = 0

    def step(self, batch: Batch, number: int) -> list[Gradients]:
        seen = []
        parameters = dict(self.network.named_parameters())
        for m in self.network.modalities:
            h = encode_in_double(self.network, {m: batch.inputs[m]})[m]
            x = branch_of(self.network, m).adapter(h)
            rows = [
                torch.stack([(w * v).sum() + c for w, c in self.pairs()]) for v in x
            ]  # the head of this turn
            found = gradients_of(cross_entropy(torch.stack(rows), batch.y), parameters)
            if self.project and self.updates > 0:
                r = sum(v.detach() for v in x) / len(x)
                assert isinstance(r, Tensor)
                a = self.damping * self.damping ** (number / self.batches)
                self.p = torch.linalg.inv(torch.linalg.inv(self.p) + torch.outer(r, r) / a)
                self.p = self.p / math.sqrt(float((self.p * self.p).sum()))
                name = next(n for n, p in parameters.items() if p is self.head.weight)
                found[name] = torch.stack([self.p @ row for row in found[name]])
            with torch.no_grad():
                for name, p in parameters.items():
                    p.sub_(RATE * found[name])
            self.updates += 1
            seen.append(found)
        return seen

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.head.weight, self.head.bias, strict=True))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {}),
        (1, {"damping": 0.5}),
        (2, {"project": False}),
        (3, {"width": 7}),
    ],
)
def test_each_turns_gradients_are_those_of_the_equations(
    count: int, seed: int, options: dict[str, Any]
) -> None:
    of = case(MLA, count, seed, "sum", **options)
    slow = Slow(of, options.get("project", True), options.get("damping", 0.1), batches=4)
    for number in range(3):
        batch = of.batch()
        expected = slow.step(batch, number)
        got = turns(of, batch)
        assert len(got) == len(expected) == count
        for ours, theirs in zip(got, expected, strict=True):
            assert_close(ours, theirs)


def test_a_later_epoch_projects_from_its_first_turn_and_starts_the_damping_again() -> None:
    of = case(MLA, 2, 5, "sum", epoch=1)
    slow = Slow(of, True, 0.1, batches=4)
    slow.updates = 99
    batch = of.batch()
    for _ in range(2):
        of.method.on_epoch_start(of.run)
        for ours, theirs in zip(turns(of, batch), slow.step(batch, 0), strict=True):
            assert_close(ours, theirs)


def test_projection_stays_symmetric_positive_and_of_norm_one() -> None:
    random = torch.Generator().manual_seed(0)
    p = torch.eye(12)
    for i in range(50):
        move_projection(p, torch.randn(12, generator=random).relu(), 0.1 ** (1 + i / 50))
        assert torch.equal(p, p.T)
        assert float(p.norm()) == pytest.approx(1, rel=1e-5)
        assert float(torch.linalg.eigvalsh(p.double()).min()) > -1e-7


def test_directions_that_were_seen_are_the_least_changed() -> None:
    p = torch.eye(3)
    for _ in range(30):
        move_projection(p, torch.tensor([2.0, 0.0, 0.0]), 0.1)
    # Along what was seen 1/P grows by 4/0.1 each time; elsewhere P stays.
    assert float(p[0, 0]) < 0.01
    assert float(p[1, 1]) == pytest.approx(math.sqrt(0.5), rel=1e-3)


# -- turns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_a_turn_moves_its_encoder_and_the_head_alone(count: int) -> None:
    splits = make_splits(count)
    made = trainer(configured(MLA), splits, weight_decay=0.1, momentum=0.9)
    run, states = made.run, []
    step = run.step

    def watched() -> None:
        before = {name: p.clone() for name, p in run.network.named_parameters()}
        step()
        after = dict(run.network.named_parameters())
        states.append({name for name, p in before.items() if not torch.equal(p, after[name])})

    with patch.object(run, "step", watched):
        made.fit()
    names = list(splits.modalities)
    for i, moved in enumerate(states):
        groups = {".".join(name.split(".")[:2]) for name in moved}
        assert groups == {f"encoders.{names[i % count]}", "fusion.heads"}


@pytest.mark.parametrize("count", [2, 3])
def test_one_forward_and_as_many_updates_as_modalities(count: int) -> None:
    splits = make_splits(count)
    fitted = trainer(configured(MLA), splits).fit()
    steps = 2 * batch_counts(60, 16)
    assert fitted.run.counts.as_dict() == {
        "forwards": steps,
        "encoder_forwards": count * steps,
        "backwards": count * steps,
        "updates": count * steps,
    }


def test_all_modalities_read_the_same_head() -> None:
    fitted = trainer(configured(MLA), make_splits(3)).fit()
    branches = [branch_of(fitted.run.network, m) for m in fitted.run.modalities]
    assert all(branch.head is branches[0].head for branch in branches)
    # 3 encoders of 2 layers and one head, weights and biases.
    assert len(list(fitted.run.network.parameters())) == 14
    assert not list(fitted.method.parameters())


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 32, 33, 60])
def test_batches_are_counted_as_they_are_made(rows: int) -> None:
    splits = make_splits(2)
    made = batches(splits.train, np.arange(rows), ["view1"], 16, torch.device("cpu"))
    assert batches_per_epoch(rows, 16) == len(list(made))


def test_release_and_paper_part_at_the_second_turn() -> None:
    ours, theirs = (case(MLA, 2, 4, "sum", project=project) for project in (True, False))
    batch = ours.batch()
    (a, b), (c, d) = turns(ours, batch), turns(theirs, batch)
    assert_close(a, c)
    name = "fusion.heads.view1.head.weight"
    assert not torch.allclose(b[name], d[name])
    assert b.keys() == d.keys()
    assert_close({n: g for n, g in b.items() if n != name}, {n: d[n] for n in d if n != name})


# -- fusion ----------------------------------------------------------------------------------------


def entropy(probabilities: list[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities)


def softmax(values: list[float]) -> list[float]:
    total = math.fsum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def slow_weights(entropies: list[float]) -> list[float]:
    raised = [math.exp(max(entropies) - h) for h in entropies]
    return [w / math.fsum(raised) for w in raised]


@pytest.mark.parametrize("count", [2, 3])
def test_predictions_are_weighed_by_each_samples_entropy(count: int) -> None:
    splits = make_splits(count)
    fitted = trainer(configured(MLA), splits, lr=0.1).fit()
    out = read_out(fitted.run, fitted.method, splits.test)
    for i in range(len(splits.test)):
        logits = {m: z[i].double().tolist() for m, z in out.own.items()}
        weights = slow_weights([entropy(softmax(z)) for z in logits.values()])
        expected = [
            math.fsum(w * z[c] for w, z in zip(weights, logits.values(), strict=True))
            for c in range(3)
        ]
        assert out.logits[i].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_weights_of_the_release_are_those_of_probabilities_over_samples() -> None:
    logits = 3 * torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    columns = logits.double().transpose(1, 2).tolist()
    entropies = [math.fsum(entropy(softmax(c)) for c in of_modality) for of_modality in columns]
    got = fusion_weights(logits, each_sample=False)
    assert got.flatten().tolist() == pytest.approx(slow_weights(entropies), rel=1e-4)
    one = fusion_weights(logits[:, :1], each_sample=False)
    assert torch.allclose(one, torch.full((3, 1, 1), 1 / 3))


def test_weights_sum_to_one_and_equal_entropies_share_alike() -> None:
    logits = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    weights = fusion_weights(logits, each_sample=True)
    assert torch.allclose(weights.sum(dim=0), torch.ones(6, 1))
    rolled = torch.stack([logits[0].roll(i, dims=1) for i in range(3)])
    assert torch.allclose(fusion_weights(rolled, each_sample=True), torch.tensor(1 / 3))
    certain = torch.stack([10 * logits[0], logits[0], torch.zeros(6, 4)])
    of_first, of_second, of_none = fusion_weights(certain, each_sample=True).squeeze(2)
    assert bool(((of_first > of_second) & (of_second > of_none)).all())


@pytest.mark.parametrize(("combine", "alone"), [("entropy", True), ("batch_entropy", False)])
def test_a_samples_prediction_depends_on_the_others_in_the_release_only(
    combine: str, alone: bool
) -> None:
    splits = make_splits(2)
    fitted = trainer(configured(MLA, {"combine": combine}), splits, lr=0.1).fit()
    every = read_out(fitted.run, fitted.method, splits.test).logits[:5]
    few = read_out(fitted.run, fitted.method, splits.test, np.arange(5)).logits
    assert torch.allclose(every, few, atol=1e-5) == alone


def test_the_mean_takes_no_weights() -> None:
    splits = make_splits(3)
    fitted = trainer(configured(MLA, {"combine": "mean"}), splits).fit()
    out = read_out(fitted.run, fitted.method, splits.test)
    assert torch.allclose(out.logits, sum(out.own.values()) / torch.tensor(3.0), atol=1e-6)


# -- requests --------------------------------------------------------------------------------------


def uneven(width: int | None = None) -> Trainer:
    """Return a trainer of a vector, whose features are 128 wide, and an image, 64 wide."""
    random = np.random.default_rng(0)
    names = ("vector", "image")
    shapes = {"vector": (6,), "image": (1, 8, 8)}

    def part(name: str, rows: int) -> Split:
        inputs = {m: Rows(random.normal(size=(rows, *shapes[m]))) for m in names}
        ids = np.array([f"{name}-{i}" for i in range(rows)])
        return Split(inputs, torch.arange(rows) % 3, ids)

    specs = {"vector": Modality("vector", (6,)), "image": Modality("image", (1, 8, 8))}
    splits = Splits(part("train", 20), part("val", 6), part("test", 6), specs, ("a", "b", "c"))
    spec = NetworkSpec(specs, {"vector": "mlp", "image": "small_cnn"}, 3, "sum", 0)
    recipe = Recipe.model_validate({"epochs": 2, "batch_size": 10, "lr": 0.01, "select": "last"})
    return Trainer(configured(MLA, {"width": width}), splits, spec, recipe, torch.device("cpu"))


def test_features_of_unequal_width_are_refused_before_training() -> None:
    with pytest.raises(RequestError, match=r"vector 128, image 64.*-o width=64") as caught:
        uneven().fit()
    assert "\n" not in str(caught.value)


def test_a_layer_per_modality_brings_features_to_one_width() -> None:
    made = uneven(width=16)
    made.method.setup(made.run)
    before = {n: p.clone() for n, p in made.run.network.named_parameters() if "adapter" in n}
    assert {name: tuple(p.shape) for name, p in before.items() if p.dim() == 2} == {
        "fusion.heads.vector.adapter.weight": (16, 128),
        "fusion.heads.image.adapter.weight": (16, 64),
    }
    made = uneven(width=16)
    network = made.fit().run.network
    after = dict(network.named_parameters())
    assert not any(torch.equal(p, after[name]) for name, p in before.items())
    branches = [branch_of(network, m) for m in network.modalities]
    assert all(isinstance(branch, Branch) for branch in branches)
    assert branches[0].head is branches[1].head


@pytest.mark.parametrize("fusion", ["concat", "late", "film", "gated", "attention"])
def test_other_fusions_are_refused(fusion: str) -> None:
    with pytest.raises(RequestError, match="use sum"):
        check_support(MLA, fusion, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"damping": 0}, "damping"),
        ({"damping": 1.5}, "damping"),
        ({"project": False, "damping": 0.5}, "damping is not used with project=false"),
        ({"combine": "sum"}, "combine"),
        ({"width": 0}, "width"),
        ({"alpha": 1}, "alpha"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(MLA, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "project", "noted"),
    [("sgd", True, False), ("adam", True, True), ("adam", False, False)],
)
def test_an_optimiser_that_undoes_the_projection_is_noted(
    optimizer: str, project: bool, noted: bool
) -> None:
    made = trainer(configured(MLA, {"project": project}), make_splits(2), optimizer=optimizer)
    made.method.setup(made.run)
    assert bool(made.run.notes) == noted


def test_setup_leaves_the_projection_at_the_identity() -> None:
    made = begun(MLA, make_splits(2), "sum", {})
    assert torch.equal(made.method.get_buffer("projection"), torch.eye(128))
