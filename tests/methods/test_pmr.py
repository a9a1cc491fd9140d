"""PMR: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.joint import Joint
from mmbench.methods.pmr import PMR, Distances
from mmbench.nets.network import Network
from mmbench.planning import check_support
from mmbench.testing.contract import CLASSES, make_splits
from tests.methods.double import (
    Case,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import configured, splits_of, trainer


def means_of(of: Case, m: str) -> Distances:
    assert isinstance(of.method, PMR)
    return of.method.class_means(m)


def with_prototypes(of: Case, seen: list[bool], near: list[float]) -> Case:
    """Give every modality prototypes of the classes that are seen: a share ``near`` of the class
    means plus noise, so that some modalities know the classes better than others."""
    batch = of.run.train.batch(torch.arange(60), of.run.modalities)
    inputs = {m: x.double() for m, x in batch.inputs.items()}
    features = encode_in_double(of.run.network, inputs)
    for m, share in zip(of.run.modalities, near, strict=True):
        means = means_of(of, m)
        means.seen.copy_(torch.tensor(seen))
        for c in range(CLASSES):
            mean = features[m][batch.y == c].mean(dim=0).detach()
            noise = 0.1 * torch.randn(mean.shape, generator=of.random, dtype=torch.float64)
            means.rows[c] = share * mean + noise if seen[c] else 0.0
    return of


def slow_loss(of: Case, network: Network, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch and the coefficients, sample by sample and class by class."""
    names, options = list(of.run.modalities), of.method.config
    features = encode_in_double(network, batch.inputs)
    seen = [c for c in range(CLASSES) if bool(means_of(of, names[0]).seen[c])]
    scores = dict.fromkeys(names, 0.0)
    losses: dict[str, list[Tensor]] = {m: [] for m in names}
    entropies: dict[str, list[Tensor]] = {m: [] for m in names}
    for m in names:
        prototypes = means_of(of, m).rows
        for h, label in zip(features[m], batch.y.tolist(), strict=True):
            similar = {c: -((h - prototypes[c]) ** 2).sum().sqrt() for c in seen}
            whole = torch.stack([torch.exp(q) for q in similar.values()]).sum()
            p = {c: torch.exp(q) / whole for c, q in similar.items()}
            entropies[m].append(-torch.stack([x * torch.log(x) for x in p.values()]).sum())
            if label in seen:
                scores[m] += float(p[label].detach())
                losses[m].append(-torch.log(p[label]))
    best = max(scores.values())
    coefficients = {}
    for m in names:
        if options.variant == "released":
            coefficients[m] = 1.0 if scores[m] < best else 0.0
        else:
            coefficients[m] = min(max(best / scores[m] - 1, 0.0), 1.0)
    assert network.fusion is not None
    loss = cross_entropy(network.fusion(features), batch.y)
    for m in names:
        mean = torch.stack(losses[m]).sum() / len(losses[m])
        loss = loss + options.alpha * coefficients[m] * mean
    if options.variant == "paper" and of.run.epoch < 3:
        lead = max(names, key=lambda m: scores[m])
        entropy = torch.stack(entropies[lead]).sum() / len(batch)
        loss = loss - options.entropy_weight * max(coefficients.values()) * entropy
    return loss, coefficients


PAPER = {"entropy_weight": 0.7, "entropy_epochs": 3}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "epoch", "fusion", "seen", "options"),
    [
        (0, 0, "concat", [True, True, True], PAPER),
        (1, 2, "film", [True, False, True], PAPER),
        (2, 3, "concat", [True, True, True], PAPER | {"alpha": 0.6}),
        (3, 0, "attention", [True, True, True], {"variant": "released", "alpha": 2.0}),
        (4, 5, "concat", [False, True, True], {"variant": "released"}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, epoch: int, fusion: str, seen: list[bool], options: dict[str, Any]
) -> None:
    near = [1.0, 0.3, 0.6][:count] if seed % 2 else [0.3, 1.0, 0.6][:count]
    of = with_prototypes(case(PMR, count, seed, fusion, epoch=epoch, **options), seen, near)
    batch = of.batch()
    network = of.network()
    loss, coefficients = slow_loss(of, network, batch)
    expected = gradients_of(loss, named_parameters(network, of.method))
    assert_close(of.step(batch), expected)
    assert sorted(coefficients.values())[0] == 0 < sorted(coefficients.values())[1]


def prototypes_after_an_epoch_start(
    of: Case, monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Start an epoch; return the rows it took and the features of all rows in evaluation mode."""
    taken: list[np.ndarray] = []
    outputs = of.run.outputs

    def watched(rows: np.ndarray) -> Any:
        taken.append(rows)
        return outputs(rows)

    of.run.network.float()
    monkeypatch.setattr(of.run, "outputs", watched)
    of.method.on_epoch_start(of.run)
    assert of.run.network.training
    everything = np.arange(len(of.run.train))
    features = {
        m: torch.cat([out.features[m] for out, _ in outputs(everything)]) for m in of.run.modalities
    }
    monkeypatch.setattr(of.run, "outputs", outputs)
    return taken[0], features


def test_prototypes_are_running_means_over_a_share_of_rows_and_absent_classes_keep_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = case(PMR, 2, 0, share=0.07, momentum=0.2)  # 4 rows of 60
    of.method.float()
    kept: dict[str, dict[int, Tensor]] = {m: {} for m in of.run.modalities}
    absent = 0
    for epoch in range(4):
        of.run.begin_epoch(epoch)
        rows, features = prototypes_after_an_epoch_start(of, monkeypatch)
        assert len(set(rows.tolist())) == 4
        y = of.run.train.y[rows]
        for m in of.run.modalities:
            for c in range(CLASSES):
                members = [features[m][row] for row in rows if int(of.run.train.y[row]) == c]
                if members:
                    mean = torch.stack(members).mean(dim=0)
                    old = kept[m].get(c)
                    kept[m][c] = mean if old is None else 0.8 * mean + 0.2 * old
                assert bool(means_of(of, m).seen[c]) == (c in kept[m])
                if c in kept[m]:
                    torch.testing.assert_close(means_of(of, m).rows[c], kept[m][c])
        absent += CLASSES - len(set(y.tolist()))
        with torch.no_grad():
            for p in of.run.network.parameters():
                p.mul_(1.1)
    assert absent > 0


def test_another_epoch_takes_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    of = case(PMR, 2, 0)
    of.method.float()
    taken = []
    for epoch in range(2):
        of.run.begin_epoch(epoch)
        taken.append(prototypes_after_an_epoch_start(of, monkeypatch)[0].tolist())
    assert taken[0] != taken[1]


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_equal_scores_add_nothing(variant: str) -> None:
    method = configured(PMR, {"variant": variant})
    assert isinstance(method, PMR)
    for count in (2, 3):
        assert method.coefficients(torch.full((count,), 3.7)).tolist() == [0.0] * count


def test_coefficients_of_two_modalities_are_the_papers() -> None:
    method = configured(PMR)
    assert isinstance(method, PMR)
    for first, second in [(2.0, 3.0), (5.0, 1.0), (1.0, 1.9), (0.0, 1.0)]:
        rho = first / second
        inverse = second / first if first else math.inf
        expected = [min(max(inverse - 1, 0), 1), min(max(rho - 1, 0), 1)]
        got = method.coefficients(torch.tensor([first, second])).tolist()
        assert got == pytest.approx(expected)


def test_the_entropy_term_raises_the_entropy_of_the_lead_alone() -> None:
    strengths: list[dict[str, Tensor]] = []
    for weight in (0.0, 1.0):
        of = case(PMR, 2, 5, entropy_weight=weight, entropy_epochs=1)
        with_prototypes(of, [True, True, True], [1.0, 0.2])
        batch = of.batch()
        strengths.append(of.step(batch))
    _, coefficients = slow_loss(of, of.network(), batch)
    lead = min(coefficients, key=lambda m: coefficients[m])
    for name, before in strengths[0].items():
        is_of_lead = name.startswith(f"network.encoders.{lead}.")
        assert torch.equal(before, strengths[1][name]) != is_of_lead


def test_a_feature_that_is_its_prototype_has_a_finite_gradient() -> None:
    means = Distances(2, 3, 0.2)
    means.update(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]), torch.tensor([0, 1]))
    h = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    loss = torch.nn.functional.cross_entropy(means(h), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, h)
    assert gradient.isfinite().all()


def test_a_batch_of_classes_without_prototypes_trains_as_joint_does() -> None:
    of, plain = case(PMR, 2, 0), case(Joint, 2, 0)
    batch = of.batch()
    assert_close(of.step(batch), plain.step(batch))


@pytest.mark.parametrize("options", [{"last_epoch": 4}, {"first_epoch": 6}])
def test_outside_the_window_it_is_joint_training(options: dict[str, Any]) -> None:
    of = case(PMR, 2, 1, epoch=5, **options)
    with_prototypes(of, [True, True, True], [1.0, 0.2])
    plain = case(Joint, 2, 1, epoch=5)
    batch = of.batch()
    assert_close(of.step(batch), plain.step(batch))
    forwards = of.run.counts.forwards
    of.method.on_epoch_start(of.run)
    assert of.run.counts.forwards == forwards


def test_a_rare_class_that_no_prototype_was_drawn_for_does_no_harm() -> None:
    random = np.random.default_rng(0)
    y = np.array([0] * 30 + [1] * 29 + [2])
    train = {m: random.normal(size=(60, 6)).astype(np.float32) + y[:, None] for m in "ab"}
    fitted = trainer(configured(PMR, {"share": 0.05}), splits_of(train, y, 3), epochs=3).fit()
    assert all(math.isfinite(float(row["train_loss"])) for row in fitted.history)


def test_cost_is_a_pass_over_the_share_at_each_epochs_start_in_the_window() -> None:
    fitted = trainer(configured(PMR, {"last_epoch": 1}), make_splits(3), epochs=3).fit()
    counts = fitted.run.counts
    assert counts.forwards == 3 * 4 + 2  # 60 rows in batches of 16, and two epochs' prototypes
    assert counts.backwards == counts.updates == 12


@pytest.mark.parametrize(
    ("option", "value"),
    [("alpha", -1), ("momentum", 1), ("share", 0), ("variant", "code"), ("entropy_weight", -1)],
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of pmr"):
        configured(PMR, {option: value})


def test_the_entropy_term_is_not_part_of_what_was_released() -> None:
    with pytest.raises(RequestError, match="entropy_epochs is not used by variant=released"):
        configured(PMR, {"variant": "released", "entropy_epochs": 2})


def test_a_single_modality_is_refused_before_training() -> None:
    with pytest.raises(RequestError, match="'pmr' needs at least 2 modalities"):
        check_support(PMR, "concat", 1)
