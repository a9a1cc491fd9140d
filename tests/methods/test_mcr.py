"""MCR: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.evaluate.readout import read_out
from mmbench.methods.mcr import MCR, jensen_shannon, label_contrast
from mmbench.methods.multiloss import MultiLoss
from mmbench.nets.network import Network
from mmbench.testing.contract import make_splits
from tests.methods.double import (
    Case,
    Gradients,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import configured, trainer


def method_of(of: Case) -> MCR:
    assert isinstance(of.method, MCR)
    return of.method


# -- the equations as loops ----------------------------------------------------------------------


def next_orders(of: Case, size: int) -> dict[str, list[list[int]]]:
    """Return the permutations of each modality that the next step will draw."""
    state = of.run.rng.get_state()
    drawn = method_of(of).orders(of.run, size).tolist()
    of.run.rng.set_state(state)
    return {
        m: [row[start : start + size] for start in range(0, len(row), size)]
        for m, row in zip(of.run.modalities, drawn, strict=True)
    }


def slow_divergence(
    fusion: Any,
    features: dict[str, Tensor],
    orders: dict[str, list[list[int]]],
    chosen: set[str],
    clean_is_constant: bool,
) -> Tensor:
    """Return ``J_S`` sample by sample."""
    size = len(next(iter(features.values())))
    count = len(next(iter(orders.values())))
    total = torch.zeros((), dtype=torch.float64)
    for k in range(count):
        for i in range(size):
            one = {
                m: h[orders[m][k][i] if m in chosen else i].unsqueeze(0)
                for m, h in features.items()
            }
            moved = torch.exp(fusion(one)[0])
            clean = torch.exp(fusion({m: h[i].unsqueeze(0) for m, h in features.items()})[0])
            p, q = moved / moved.sum(), clean / clean.sum()
            q = q.detach() if clean_is_constant else q
            middle = (p + q) / 2
            for c in range(len(p)):
                total = total + p[c] * torch.log(p[c] / middle[c]) / 2
                total = total + q[c] * torch.log(q[c] / middle[c]) / 2
    return total / (count * size)


def coalitions(names: tuple[str, ...]) -> list[set[str]]:
    """Return all sets of modalities but the empty and the full one."""
    return [
        {m for i, m in enumerate(names) if number >> i & 1}
        for number in range(1, 2 ** len(names) - 1)
    ]


def slow_game(
    of: Case, network: Network, features: dict[str, Tensor], orders: dict[str, list[list[int]]]
) -> Gradients:
    """Return the game's part of the gradients, player by player: the others are constants."""
    options, names = of.method.config, of.run.modalities
    fusion = copy.deepcopy(network.fusion)
    assert fusion is not None
    fusion.requires_grad_(False)
    total: Gradients = {
        name: torch.zeros_like(p) for name, p in named_parameters(network, of.method).items()
    }
    for player in names:
        seen = {m: h if m == player else h.detach() for m, h in features.items()}
        payoff = torch.zeros((), dtype=torch.float64)
        for chosen in coalitions(names):
            outside = {"greedy": 1.0, "ind": 0.0, "colab": -1.0}[options.game]
            sign = -1.0 if player in chosen else outside
            is_constant = options.clean == "constant"
            payoff = payoff + sign * slow_divergence(fusion, seen, orders, chosen, is_constant)
        for name, gradient in gradients_of(
            options.weight * payoff, named_parameters(network, of.method)
        ).items():
            total[name] = total[name] + gradient
    return total


def slow_contrast(features: dict[str, Tensor], y: Tensor, temperature: float) -> Tensor:
    views = [(h[i], label) for h in features.values() for i, label in enumerate(y.tolist())]

    def score(a: Tensor, b: Tensor) -> Tensor:
        cosine = (a @ b) / (a.square().sum().sqrt() * b.square().sum().sqrt())
        return torch.exp(cosine / temperature)

    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for i, (a, label) in enumerate(views):
        negatives = torch.zeros((), dtype=torch.float64)
        for b, other in views:
            if other != label:
                negatives = negatives + score(a, b)
        for j, (b, other) in enumerate(views):
            if other == label and i != j:
                total = total - torch.log(score(a, b) / (score(a, b) + negatives))
                pairs += 1
    return total / pairs


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "options"),
    [
        (0, "concat", {"weight": 1.0}),
        (1, "sum", {"game": "ind", "weight": 2.0, "own_weight": 0.5}),
        (2, "late", {"game": "colab", "weight": 5.0, "own_weight": 0.0}),
        (3, "attention", {"weight": 3.0}),
        (4, "film", {"game": "ind", "weight": 1.0}),
        (5, "gated", {"game": "colab", "weight": 1.0, "clean": "live"}),
        (6, "concat", {"weight": 3.0, "clean": "live"}),
        (7, "attention", {"game": "ind", "weight": 3.0, "clean": "live"}),
        (8, "concat", {"weight": 0.0, "contrast_weight": 1.0}),
        (9, "sum", {"contrast_weight": 0.3, "temperature": 0.2, "own_weight": 0.0}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, fusion: str, options: dict[str, Any]
) -> None:
    plays = options.get("weight") != 0
    drawn: dict[str, Any] = {"permutations": 2} if plays else {}
    of = case(MCR, count, seed, fusion, **options, **drawn)
    batch: Batch = of.batch(7)
    network = of.network()
    features = encode_in_double(network, batch.inputs)
    assert network.fusion is not None
    loss = cross_entropy(network.fusion(features), batch.y)
    config = method_of(of).config
    if config.own_weight > 0:
        for m, h in features.items():
            own = torch.stack([method_of(of).heads[m](row) for row in h])
            loss = loss + config.own_weight * cross_entropy(own, batch.y)
    if config.contrast_weight > 0:
        contrast = slow_contrast(features, batch.y, config.temperature)
        loss = loss + config.contrast_weight * contrast
    expected = gradients_of(loss, named_parameters(network, of.method))
    if plays:
        game = slow_game(of, network, features, next_orders(of, len(batch)))
        assert any(bool(g.any()) for g in game.values())
        expected = {name: g + game[name] for name, g in expected.items()}
    assert_close(of.step(batch), expected)


def test_the_greedy_game_of_two_is_the_papers_four_terms() -> None:
    of = case(MCR, 2, 3, weight=1.0, own_weight=0.0, permutations=1, clean="live")
    batch, network = of.batch(8), of.network()
    orders = next_orders(of, 8)
    plain = encode_in_double(network, batch.inputs)
    assert network.fusion is not None
    loss = cross_entropy(network.fusion(plain), batch.y)
    constant = copy.deepcopy(network.fusion).requires_grad_(False)
    one, two = of.run.modalities

    def divergence(permuted: str, learning: str) -> Tensor:
        features = {m: h if m == learning else h.detach() for m, h in plain.items()}
        return slow_divergence(constant, features, orders, {permuted}, clean_is_constant=False)

    loss = loss - divergence(one, one) + divergence(one, two)
    loss = loss - divergence(two, two) + divergence(two, one)
    expected = gradients_of(loss, named_parameters(network, of.method))
    assert_close(of.step(batch), expected)


# -- properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("game", ["greedy", "ind", "colab"])
@pytest.mark.parametrize("fusion", ["concat", "sum", "gated"])
def test_the_fusion_and_the_own_heads_learn_as_without_the_game(game: str, fusion: str) -> None:
    of, plain = case(MCR, 2, 1, fusion, game=game), case(MultiLoss, 2, 1, fusion)
    batch = of.batch()
    got, expected = of.step(batch), plain.step(batch)
    for name in expected:
        same = torch.allclose(got[name], expected[name], rtol=1e-9, atol=1e-15)
        assert same == (".encoders." not in name), name
    assert all(p.requires_grad for p in of.run.network.parameters())


def test_following_the_collaborative_game_raises_every_influence() -> None:
    of = case(MCR, 2, 0, game="colab", weight=1.0, own_weight=0.0, clean="live")
    without = case(MCR, 2, 0, weight=0.0, own_weight=0.0)
    batch = of.batch(40)
    orders = method_of(of).orders(of.run, 40)
    of.method.orders = lambda run, size: orders  # type: ignore[assignment]
    history = []
    for _ in range(5):
        without.run.network.load_state_dict(of.run.network.state_dict())
        whole, joint = of.step(batch), without.step(batch)
        logged = of.run.take_logged()
        history.append(sum(logged[f"influence.{m}"] for m in of.run.modalities))
        of.descend({name: whole[name] - joint[name] for name in whole}, rate=0.1)
    assert all(later > earlier for earlier, later in pairwise(history))


def test_a_modality_that_the_fusion_does_not_read_has_no_influence() -> None:
    of = case(MCR, 2, 0, "sum")
    ignored, read = of.run.modalities
    with torch.no_grad():
        for p in of.run.own_head(ignored).parameters():
            p.zero_()
    of.step(of.batch())
    logged = of.run.take_logged()
    assert logged[f"influence.{ignored}"] == pytest.approx(0, abs=1e-12)
    assert logged[f"influence.{read}"] > 1e-3


def test_the_divergence_is_that_of_scipy() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = (3 * torch.randn(6, 4, generator=random, dtype=torch.float64) for _ in "ab")
    expected = [
        jensenshannon(a, b) ** 2
        for a, b in zip(first.softmax(dim=1).numpy(), second.softmax(dim=1).numpy(), strict=True)
    ]
    assert float(jensen_shannon(first, second)) == pytest.approx(sum(expected) / 6, rel=1e-9)
    assert float(jensen_shannon(first, first)) == pytest.approx(0, abs=1e-12)
    certain = torch.tensor([[500.0, 0.0]])
    assert float(jensen_shannon(certain, -certain)) == pytest.approx(0.6931472)


def test_permutations_are_drawn_anew_for_each_modality_and_step() -> None:
    of = case(MCR, 3, 0, permutations=4)
    first, second = (method_of(of).orders(of.run, 9) for _ in range(2))
    for rows in first.view(3 * 4, 9).tolist():
        assert sorted(rows) == list(range(9))
    assert len({tuple(rows) for rows in first.view(12, 9).tolist()}) == 12
    assert not torch.equal(first, second)


def test_a_batch_of_one_class_has_no_contrast_and_a_finite_gradient() -> None:
    features = {m: torch.randn(4, 3, requires_grad=True) for m in "ab"}
    loss = label_contrast(features, torch.zeros(4, dtype=torch.int64), 0.5)
    assert float(loss.detach()) == 0
    slopes = torch.autograd.grad(loss, [*features.values()])
    assert all(slope.isfinite().all() for slope in slopes)


def test_features_without_a_direction_have_a_finite_contrast() -> None:
    features = {"a": torch.zeros(4, 3, requires_grad=True), "b": torch.randn(4, 3)}
    loss = label_contrast(features, torch.tensor([0, 1, 0, 1]), 0.5)
    (slope,) = torch.autograd.grad(loss, [features["a"]])
    assert loss.isfinite()
    assert slope.isfinite().all()


def test_own_heads_are_read_out_where_they_learn() -> None:
    splits = make_splits(2)
    for weight, expected in ((1.0, set(splits.modalities)), (0.0, set())):
        fitted = trainer(configured(MCR, {"own_weight": weight}), splits).fit()
        assert set(read_out(fitted.run, fitted.method, splits.test).own) == expected


def test_cost_is_one_pass_forward_and_one_backward_a_step() -> None:
    counts = trainer(configured(MCR), make_splits(3)).fit().run.counts
    assert counts.forwards == counts.backwards == counts.updates == 2 * 4  # 60 rows in fours of 16


# -- bad requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1}, "option 'weight' of mcr"),
        ({"permutations": 0}, "option 'permutations' of mcr"),
        ({"game": "fair"}, "option 'game' of mcr"),
        ({"contrast_weight": 1, "temperature": 0}, "option 'temperature' of mcr"),
        ({"weight": 0, "game": "ind"}, "game is not used by weight=0"),
        ({"temperature": 0.1}, "temperature is not used by contrast_weight=0"),
    ],
)
def test_an_option_out_of_range_or_without_use_is_named(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        configured(MCR, options)


def test_the_contrast_refuses_features_of_different_widths() -> None:
    made = trainer(configured(MCR, {"contrast_weight": 1.0}), make_splits(2))
    made.run.network.widths["view2"] = 64
    with pytest.raises(RequestError, match="view1 128, view2 64: use -o contrast_weight=0"):
        made.method.setup(made.run)
