"""AGM: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import math
from itertools import permutations
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.agm import AGM
from mmbench.methods.joint import Joint
from mmbench.nets.network import Network
from mmbench.planning import check_support
from mmbench.testing.contract import make_splits
from tests.methods.double import (
    Case,
    Gradients,
    assert_close,
    case,
    encode_in_double,
    gradients_of,
    named_parameters,
    output,
)
from tests.methods.support import configured, trainer


def with_batch_norm(encoder: nn.Module) -> nn.Module:
    return nn.Sequential(encoder, nn.BatchNorm1d(128))


def slow_parts(network: Network, batch: Batch) -> dict[str, Tensor]:
    """``phi_m``: the mean over all orders in which the modalities can join of what m adds to the
    logits, each found by a pass of the whole network; whoever comes first adds all of it."""

    def fused(members: tuple[str, ...]) -> Tensor:
        inputs = {m: x if m in members else 0 * x for m, x in batch.inputs.items()}
        network.train(len(members) == len(batch.inputs))
        return output(network, inputs)

    names = network.modalities
    known = {frozenset(names): fused(names)}
    for order in permutations(names):
        for size in range(1, len(names)):
            if frozenset(order[:size]) not in known:
                known[frozenset(order[:size])] = fused(order[:size])
    orders = list(permutations(names))
    parts = {}
    for m in names:
        total = torch.zeros_like(known[frozenset(names)])
        for order in orders:
            before = order[: order.index(m)]
            total = total + known[frozenset((*before, m))]
            if before:
                total = total - known[frozenset(before)]
        parts[m] = total / len(orders)
    return parts


def slow_scores(parts: dict[str, Tensor], batch: Batch) -> dict[str, float]:
    scores = {}
    for m, part in parts.items():
        losses = []
        for row, label in zip(part.tolist(), batch.y.tolist(), strict=True):
            probability = math.exp(row[label]) / sum(math.exp(z) for z in row)
            losses.append(-math.log(max(probability, 1e-8)))
        scores[m] = sum(losses) / len(losses)
    return scores


def slow_coefficients(
    scores: dict[str, float], past: list[dict[str, float]], alpha: float, cap: float
) -> dict[str, float]:
    def ahead(values: dict[str, float], m: str) -> float:
        gaps = [values[other] - values[m] for other in values if other != m]
        return math.exp(sum(gaps) / len(gaps))

    before = {m: sum(s[m] for s in past) / len(past) if past else 0.0 for m in scores}
    return {m: math.exp(alpha * min(ahead(before, m) - ahead(scores, m), cap)) for m in scores}


def slow_gradients(
    of: Case, batch: Batch, past: list[dict[str, float]], alpha: float, cap: float
) -> Gradients:
    """Return the gradients of a step and append the batch's scores to ``past``."""
    network = of.network()
    parts = slow_parts(network, batch)
    scores = slow_scores(parts, batch)
    factors = slow_coefficients(scores, past, alpha, cap)
    past.append(scores)
    fused = sum(part.detach() for part in parts.values())
    assert isinstance(fused, Tensor)
    seen_by_parts = torch.zeros((), dtype=torch.float64)
    for i, label in enumerate(batch.y.tolist()):
        whole = sum(math.exp(z) for z in fused[i].tolist())
        for c, z in enumerate(fused[i].tolist()):
            slope = (math.exp(z) / whole - (c == label)) / len(batch)
            for m, part in parts.items():
                seen_by_parts = seen_by_parts + factors[m] * slope * part[i, c]
    return gradients_of(seen_by_parts, named_parameters(network, of.method))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "batch_norm", "alpha", "cap"),
    [
        (0, "concat", False, 1.0, 10.0),
        (1, "concat", True, 2.5, 10.0),
        (2, "film", True, 0.5, 0.01),
        (3, "attention", False, 1.0, 10.0),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, fusion: str, batch_norm: bool, alpha: float, cap: float
) -> None:
    wrap = with_batch_norm if batch_norm else None
    of = case(AGM, count, seed, fusion, wrap=wrap, alpha=alpha, cap=cap, clip_norm=None)
    past: list[dict[str, float]] = []
    for _ in range(3):
        batch = of.batch()
        expected = slow_gradients(of, batch, past, alpha, cap)
        got = of.step(batch)
        assert_close(got, expected)
        of.descend(got)
    means = [sum(s[m] for s in past) / 3 for m in of.run.modalities]
    assert of.method.get_buffer("mean_scores").tolist() == pytest.approx(means, rel=1e-9)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_on_parameters_each_encoder_has_its_plain_gradient_times_one_coefficient(
    count: int, seed: int
) -> None:
    of = case(AGM, count, seed, wrap=with_batch_norm, apply="param", clip_norm=None)
    past: list[dict[str, float]] = []
    for _ in range(2):
        batch = of.batch()
        reference = of.network()
        scores = slow_scores(slow_parts(reference, batch), batch)
        factors = slow_coefficients(scores, past, 1.0, 10.0)
        past.append(scores)
        plain = case(Joint, count, seed, wrap=with_batch_norm)
        plain.run.network = of.network()
        expected = plain.step(batch)
        for name in expected:
            if name.startswith("network.encoders."):
                expected[name] = factors[name.split(".")[2]] * expected[name]
        got = of.step(batch)
        assert_close(got, expected)
        of.descend(got)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("fusion", ["concat", "late", "film", "gated"])
def test_the_parts_sum_to_the_fused_logits_of_the_training_mode(count: int, fusion: str) -> None:
    of = case(AGM, count, 5, fusion, wrap=with_batch_norm, alpha=1.0)
    method, batch = of.method, of.batch()
    assert isinstance(method, AGM)
    of.run.network.float()
    batch.inputs = {m: x.float() for m, x in batch.inputs.items()}
    out = of.run.net(batch)
    parts = method.mono_modal_logits(of.run, out, batch)
    torch.testing.assert_close(parts.sum(dim=0), out.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("fusion", ["concat", "film"])
def test_a_vanishing_strength_gives_the_gradients_of_joint_training(
    count: int, fusion: str
) -> None:
    of = case(AGM, count, 6, fusion, wrap=with_batch_norm, alpha=1e-30, clip_norm=None)
    plain = case(Joint, count, 6, fusion, wrap=with_batch_norm)
    batch = of.batch()
    assert_close(of.step(batch), plain.step(batch))


def test_a_modality_ahead_of_its_own_past_is_slowed_and_the_others_are_sped_up() -> None:
    of = case(AGM, 3, 0)
    method = of.method
    assert isinstance(method, AGM)
    y = torch.tensor([0, 1, 2, 0])
    right = 3.0 * nn.functional.one_hot(y, 3).double()
    level = torch.stack([right, right, right])
    assert method.coefficients(of.run, level, y).tolist() == pytest.approx([1, 1, 1])
    slowed = method.coefficients(of.run, torch.stack([2 * right, right, right]), y)
    assert slowed[0] < 1 < slowed[1]
    assert slowed[1] == slowed[2]


def test_the_cap_bounds_the_coefficient() -> None:
    of = case(AGM, 2, 0, alpha=0.5, cap=2.0)
    method = of.method
    assert isinstance(method, AGM)
    y = torch.tensor([0, 1, 2])
    right = 9.0 * nn.functional.one_hot(y, 3).double()
    method.coefficients(of.run, torch.stack([right, -right]), y)
    # The leader of the past is now far behind: tau - r is about exp(18).
    factors = method.coefficients(of.run, torch.stack([-right, right]), y)
    assert float(factors[0]) == pytest.approx(math.exp(0.5 * 2.0))
    assert float(factors[1]) < 1e-8


@pytest.mark.parametrize("clip_norm", [0.05, 3.0])
def test_the_gradient_is_clipped_only_where_an_entry_of_the_fusions_exceeds_one(
    clip_norm: float,
) -> None:
    clipped = []
    for scale in (1.0, 400.0):
        free, bound = (case(AGM, 2, 1, clip_norm=c) for c in (None, clip_norm))
        batch = free.batch()
        for of in (free, bound):
            with torch.no_grad():
                for m in of.run.modalities:
                    of.run.encoder_params(m)[2].mul_(scale)
        expected, got = free.step(batch), bound.step(batch)
        head = torch.cat(
            [g.flatten() for n, g in expected.items() if n.startswith("network.fusion")]
        )
        norm = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
        factor = 1.0
        if float(head.abs().max()) > 1:
            factor = min(1.0, clip_norm / norm)
        assert_close(got, {name: factor * g for name, g in expected.items()})
        clipped.append(factor < 1)
    assert clipped == [False, True]


def test_a_step_costs_two_forwards_for_any_number_of_modalities_and_one_after_the_window() -> None:
    for count in (2, 3):
        splits = make_splits(count)
        fitted = trainer(configured(AGM, {"last_epoch": 0}), splits, epochs=3).fit()
        steps = 4  # 60 rows in batches of 16
        counts = fitted.run.counts
        assert counts.forwards == steps * (2 + 1 + 1)
        assert counts.encoder_forwards == count * counts.forwards
        assert counts.backwards == counts.updates == 3 * steps


def test_before_the_window_scores_are_kept_and_gradients_are_plain() -> None:
    of = case(AGM, 2, 3, first_epoch=1, last_epoch=4)
    plain = case(Joint, 2, 3)
    batch = of.batch()
    assert_close(of.step(batch), plain.step(batch))
    scores = slow_scores(slow_parts(of.network(), batch), batch)
    assert of.method.get_buffer("mean_scores").tolist() == pytest.approx(list(scores.values()))


def test_padded_passes_leave_batch_norm_and_the_mode_alone() -> None:
    of = case(AGM, 2, 4, wrap=with_batch_norm)
    plain = case(Joint, 2, 4, wrap=with_batch_norm)
    batch = of.batch()
    of.step(batch)
    plain.step(batch)
    ours, theirs = dict(of.run.network.named_buffers()), dict(plain.run.network.named_buffers())
    assert ours
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(part.training for part in of.run.network.modules())


@pytest.mark.parametrize(
    ("option", "value"),
    [("alpha", -0.1), ("cap", 0), ("apply", "features"), ("clip_norm", 0), ("last_epoch", -1)],
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of agm"):
        configured(AGM, {option: value})


def test_a_hook_cannot_scale_updates() -> None:
    with pytest.raises(RequestError, match="scale_where=update needs apply=param"):
        configured(AGM, {"scale_where": "update"})


def test_a_scaled_update_is_the_plain_one_times_the_coefficient() -> None:
    of = case(AGM, 2, 2, apply="param", scale_where="update", clip_norm=None)
    plain = case(Joint, 2, 2)
    batch = of.batch()
    factors = slow_coefficients(slow_scores(slow_parts(of.network(), batch), batch), [], 1.0, 10.0)
    moved = []
    for one in (of, plain):
        before = {name: p.detach().clone() for name, p in one.run.network.named_parameters()}
        one.run.optimizer = torch.optim.AdamW(one.run.network.parameters(), lr=0.01)
        with patch.object(Network, "encode", encode_in_double):
            one.method.train_step(one.run, batch)
        after = dict(one.run.network.named_parameters())
        moved.append({name: (after[name] - old).detach() for name, old in before.items()})
    for name, step in moved[1].items():
        factor = factors[name.split(".")[1]] if name.startswith("encoders.") else 1.0
        torch.testing.assert_close(moved[0][name], factor * step, rtol=1e-6, atol=1e-12)


def test_an_optimiser_that_undoes_the_scaling_is_noted() -> None:
    for optimizer, noted in (("adamw", True), ("sgd", False)):
        made = trainer(configured(AGM), make_splits(2), optimizer=optimizer)
        made.method.setup(made.run)
        assert bool(made.run.notes) == noted


def test_a_single_modality_is_refused_before_training() -> None:
    with pytest.raises(RequestError, match="'agm' needs at least 2 modalities"):
        check_support(AGM, "concat", 1)
