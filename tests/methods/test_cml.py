"""CML: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.cml import CML
from mmbench.methods.joint import Joint
from mmbench.nets.network import Network
from mmbench.nets.probabilities import log_probabilities
from mmbench.testing.contract import CLASSES, make_splits
from tests.methods.double import (
    Case,
    assert_close,
    case,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import configured, trainer


def method_of(of: Case) -> CML:
    assert isinstance(of.method, CML)
    return of.method


def next_orders(of: Case, size: int) -> list[list[str]]:
    """Return in which order each sample of the next batch will lose its modalities."""
    state = of.run.rng.get_state()
    turns = method_of(of).turns(of.run, size).tolist()
    of.run.rng.set_state(state)
    names = of.run.modalities
    return [[names[row.index(turn)] for turn in range(len(names))] for row in turns]


def logits_of(network: Network, features: dict[str, Tensor], present: list[str]) -> Tensor:
    """Return the fused logits of one sample ``(C,)`` that has only these modalities."""
    fusion: Any = network.fusion
    name = network.spec.fusion
    total: Tensor = torch.zeros(CLASSES, dtype=torch.float64)
    if name == "concat":
        begin = 0
        for m, h in features.items():
            if m in present:
                total = total + fusion.head.weight[:, begin : begin + len(h)] @ h
            begin += len(h)
        bias: Tensor = fusion.head.bias
        return total + bias
    if name == "sum":
        for m, h in features.items():
            if m in present:
                total = total + fusion.heads[m].weight @ h
            total = total + fusion.heads[m].bias
        return total
    left = {m: (h if m in present else 0 * h).unsqueeze(0) for m, h in features.items()}
    logits: Tensor = fusion(left)[0]
    return logits


def slow_loss(
    of: Case, network: Network, batch: Batch, orders: list[list[str]]
) -> tuple[Tensor, Counter[str]]:
    """Return the loss and how many removals of which kind there were."""
    options, size = of.method.config, len(batch)
    features = encode_in_double(network, batch.inputs)
    cross_entropies, penalties = torch.zeros(2, dtype=torch.float64).unbind()
    kinds: Counter[str] = Counter()
    for i in range(size):
        label = int(batch.y[i])
        present = list(of.run.modalities)
        before: tuple[Tensor, bool] | None = None
        for gone in ["", *orders[i][:-1]]:
            present = [m for m in present if m != gone]
            scores = torch.exp(logits_of(network, {m: h[i] for m, h in features.items()}, present))
            p = scores / scores.sum()
            if options.classify == "chain":
                share = 1 / len(orders[i])
            else:
                share = 1.0 if before is None else 0.0
            cross_entropies = cross_entropies - share * torch.log(p[label])
            known = p.tolist()
            best = known.index(max(known))
            confidence, is_right = p[best], best == label
            if before is not None:
                surer, was_right = before
                rise = confidence - surer
                if options.exempt == "release-miwae" and not (was_right or is_right):
                    rise = confidence - surer.detach()
                is_exempt = options.exempt != "none" and is_right and not was_right
                kinds["exempt" if is_exempt else "risen" if rise > 0 else "not risen"] += 1
                kinds["both wrong"] += int(rise > 0 and not (was_right or is_right))
                if rise > 0 and not is_exempt:
                    penalties = penalties + rise
            before = confidence, is_right
    return cross_entropies / size + options.weight * penalties / size, kinds


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "options"),
    [
        (0, "concat", {}),
        (1, "sum", {"weight": 20.0}),
        (2, "concat", {"classify": "full", "weight": 0.5}),
        (3, "attention", {}),
        (4, "film", {"weight": 2.0}),
        (5, "concat", {"weight": 0.0}),
        (6, "concat", {"exempt": "release"}),
        (7, "sum", {"exempt": "release-miwae"}),
        (8, "concat", {"exempt": "release-miwae", "classify": "full"}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, fusion: str, options: dict[str, Any]
) -> None:
    of = case(CML, count, seed, fusion, **options)
    batch = of.batch(20)
    network = of.network()
    loss, kinds = slow_loss(of, network, batch, next_orders(of, len(batch)))
    expected = gradients_of(loss, named_parameters(network, of.method))
    assert_close(of.step(batch), expected)
    assert kinds["risen"] > 0 < kinds["not risen"]
    if options.get("exempt"):
        assert kinds["exempt"] > 0 < kinds["both wrong"]


def test_every_sample_of_every_batch_has_its_own_order_and_all_are_equally_likely() -> None:
    of = case(CML, 3, 0)
    seen: Counter[tuple[int, ...]] = Counter()
    draws = [method_of(of).turns(of.run, 300) for _ in range(10)]
    assert not torch.equal(draws[0], draws[1])
    for turns in draws:
        seen.update(tuple(row) for row in turns.tolist())
    assert len(seen) == 6
    assert all(sorted(order) == [0, 1, 2] for order in seen)
    # 3000 draws of 6 orders: 500 each, standard deviation 20.4
    assert all(abs(times - 500) < 5 * 20.4 for times in seen.values())


def test_a_removal_subtracts_the_modalitys_part_and_leaves_the_whole_bias() -> None:
    of = case(CML, 3, 1)
    batch = of.batch(12)
    orders = next_orders(of, 12)
    out = of.run.network.fuse(encode_in_double(of.run.network, batch.inputs))
    fusion: Any = of.run.network.fusion
    expected = [row.clone() for row in out.logits]
    for removed, logits in enumerate(method_of(of).chain(of.run, out)):
        for i, order in enumerate(orders):
            if removed:
                expected[i] = expected[i] - out.parts[order[removed - 1]][i] + fusion.head.bias / 3
        torch.testing.assert_close(logits, torch.stack(expected))


@pytest.mark.parametrize("exempt", ["none", "release", "release-miwae"])
def test_confidence_that_never_rises_costs_nothing(exempt: str) -> None:
    method = configured(CML, {"exempt": exempt})
    assert isinstance(method, CML)
    smaller = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    chain = torch.stack([3 * smaller, smaller, smaller])
    assert not method.penalties(log_probabilities(chain), torch.arange(50) % 4).any()


def test_violations_of_different_samples_do_not_cancel() -> None:
    method = configured(CML)
    assert isinstance(method, CML)
    sure, unsure = torch.tensor([9.0, 0.0]), torch.tensor([0.0, 0.0])
    chain = torch.stack([torch.stack([sure, unsure]), torch.stack([unsure, sure])])
    (got,) = method.penalties(log_probabilities(chain), torch.tensor([0, 0]))
    rise = float(sure.softmax(dim=0)[0]) - 0.5
    assert got.tolist() == pytest.approx([0.0, rise])


def test_the_mean_over_the_batch_does_not_depend_on_how_often_it_is_repeated() -> None:
    of = case(CML, 2, 0, classify="full")
    batch = of.batch(8)
    twice = Batch(
        {m: torch.cat([x, x]) for m, x in batch.inputs.items()},
        torch.cat([batch.y, batch.y]),
        torch.cat([batch.rows, batch.rows]),
    )
    order = method_of(of).turns(of.run, 8)
    of.method.turns = lambda run, size: order.repeat(size // 8, 1)  # type: ignore[assignment]
    assert_close(of.step(twice), of.step(batch))


def test_with_the_full_set_alone_and_no_penalty_it_is_joint_training() -> None:
    of, plain = case(CML, 3, 1, weight=0, classify="full"), case(Joint, 3, 1)
    batch = of.batch()
    got, expected = of.step(batch), plain.step(batch)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("count", [2, 3])
def test_the_penaltys_part_of_the_gradient_leads_to_less_penalty(count: int) -> None:
    of, plain = case(CML, count, 0, classify="full", weight=1), case(Joint, count, 0)
    batch = of.batch(40)
    order = method_of(of).turns(of.run, 40)
    of.method.turns = lambda run, size: order  # type: ignore[assignment]
    penalties = []
    for _ in range(5):
        plain.run.network.load_state_dict(of.run.network.state_dict())
        whole, joint = of.step(batch), plain.step(batch)
        penalties.append(of.run.take_logged()["penalty"])
        of.descend({name: whole[name] - joint[name] for name in whole}, rate=0.1)
    assert all(after < before for before, after in pairwise(penalties))


def test_cost_is_one_pass_forward_and_one_backward_a_step() -> None:
    counts = trainer(configured(CML), make_splits(3)).fit().run.counts
    assert counts.forwards == counts.backwards == counts.updates == 2 * 4  # 60 rows in fours of 16


@pytest.mark.parametrize(
    ("option", "value"), [("weight", -1), ("classify", "none"), ("exempt", "all")]
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of cml"):
        configured(CML, {option: value})
