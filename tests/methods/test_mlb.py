"""MLB: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.mlb import MLB
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


def slow_own(of: Case, network: Network, batch: Batch) -> dict[str, Tensor]:
    """Return the logits ``(B, C)`` of each own head, one sample and class at a time."""
    method: Any = of.method
    own = {}
    for m, features in encode_in_double(network, batch.inputs).items():
        weight, bias = method.heads[m].weight, method.heads[m].bias
        rows = [
            torch.stack([(weight[c] * h).sum() + bias[c] for c in range(len(bias))])
            for h in features
        ]
        own[m] = torch.stack(rows)
    return own


def slow_coefficients(
    own: dict[str, Tensor], y: Tensor, alpha: float, beta_max: float
) -> dict[str, float]:
    score = {}
    for m, logits in own.items():
        score[m] = 0.0
        for row, label in zip(logits.tolist(), y.tolist(), strict=True):
            score[m] += math.exp(row[label]) / sum(math.exp(u) for u in row)
    coefficients = {}
    for m in score:
        others = [s for other, s in score.items() if other != m]
        ratio = (sum(others) / len(others)) / score[m]
        beta = beta_max if ratio > 1 else 2.0
        coefficients[m] = 1 + (beta - 1) * math.tanh(alpha * (ratio - 1))
    return coefficients


def slow_gradients(
    of: Case, batch: Batch, weight: float, alpha: float, beta_max: float
) -> tuple[Gradients, dict[str, float]]:
    network = of.network()
    own = slow_own(of, network, batch)
    assert network.fusion is not None
    total = cross_entropy(network.fusion(encode_in_double(network, batch.inputs)), batch.y)
    for logits in own.values():
        total = total + weight * cross_entropy(logits, batch.y)
    result = gradients_of(total, named_parameters(network, of.method))
    factors = slow_coefficients(own, batch.y, alpha, beta_max)
    for name in result:
        for m, factor in factors.items():
            if name.startswith(f"network.encoders.{m}."):
                result[name] = factor * result[name]
    return result, factors


def apart(of: Case) -> Case:
    """Make the first modality's head surer than the others, so that scores are apart."""
    method: Any = of.method
    with torch.no_grad():
        method.heads[of.run.modalities[0]].weight.mul_(3.0)
    return of


@pytest.mark.parametrize("fusion", ["concat", "late", "gated"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_the_equations(seed: int, count: int, fusion: str) -> None:
    weight, alpha, beta_max = 0.7, 1.2, 3.5
    of = apart(case(MLB, count, seed, fusion, weight=weight, alpha=alpha, beta_max=beta_max))
    batch = of.batch()
    expected, factors = slow_gradients(of, batch, weight, alpha, beta_max)
    assert min(factors.values()) < 0.99
    assert max(factors.values()) > 1.01
    assert_close(of.step(batch), expected)


def test_one_modality_is_sped_up_and_the_other_slowed_down() -> None:
    """At the released defaults the factors lie in (0, 2), on either side of 1."""
    of = apart(case(MLB, 2, 0))
    batch = of.batch()
    before, after = apart(case(MLB, 2, 0, alpha=0.0)).step(batch), of.step(batch)
    found = {}
    for m in of.run.modalities:
        names = [name for name in after if name.startswith(f"network.encoders.{m}.")]
        ratios = [float(after[name].norm() / before[name].norm()) for name in names]
        assert max(ratios) - min(ratios) < 1e-9, "weights and biases alike"
        found[m] = ratios[0]
    assert sorted(found.values())[0] < 1 < sorted(found.values())[1] < 2
    assert sorted(found.values())[0] > 0
    for name in after:
        if ".encoders." not in name:
            assert torch.equal(before[name], after[name]), f"{name} is left alone"


@given(
    st.lists(st.floats(0.01, 100.0), min_size=2, max_size=4),
    st.floats(0.01, 5.0),
    st.floats(1.0, 6.0),
)
def test_coefficients_stay_in_their_bounds(
    ratios: list[float], alpha: float, beta_max: float
) -> None:
    method = configured(MLB, {"alpha": alpha, "beta_max": beta_max})
    assert isinstance(method, MLB)
    found = method.coefficients(torch.tensor(ratios, dtype=torch.float64)).tolist()
    for ratio, factor in zip(ratios, found, strict=True):
        assert 1 - math.tanh(alpha) - 1e-12 <= factor <= beta_max + 1e-12
        if ratio < 1:
            assert factor <= 1
        else:
            assert factor >= 1


def test_coefficients_at_the_ends() -> None:
    """Equal scores leave the gradient as it is; a head that knows nothing gets ``beta_max``."""
    method = configured(MLB, {"beta_max": 3.0})
    assert isinstance(method, MLB)
    ends = method.coefficients(torch.tensor([1.0, math.inf, 0.0]))
    assert ends.tolist() == pytest.approx([1.0, 3.0, 1 - math.tanh(1.5)])


@pytest.mark.parametrize("count", [2, 3])
def test_without_strength_it_is_multiloss_bit_for_bit(count: int) -> None:
    splits = make_splits(count)
    options = ((MLB, {"alpha": 0.0, "weight": 0.5}), (MultiLoss, {"weight": 0.5}))
    fitted = [
        trainer(configured(kind, chosen), splits, fusion="concat").fit() for kind, chosen in options
    ]
    states = [f.run.main.state_dict() for f in fitted]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_history_has_the_coefficient_of_each_modality() -> None:
    fitted = trainer(configured(MLB), make_splits(3), fusion="concat").fit()
    for row in fitted.history:
        factors = [float(row[f"coefficient.view{i}"]) for i in (1, 2, 3)]
        assert all(0 < factor < 2 for factor in factors)
        assert max(factors) > min(factors)


def test_scaling_updates_under_adam_differs_from_scaling_gradients_and_needs_no_note() -> None:
    splits = make_splits(2)
    notes, ends = {}, {}
    for where in ("gradient", "update"):
        made = trainer(configured(MLB, {"scale_where": where}), splits, optimizer="adam")
        fitted = made.fit()
        notes[where] = fitted.run.notes
        ends[where] = fitted.run.main.state_dict()
    assert "scale_where=update" in notes["gradient"][0]
    assert not notes["update"]
    assert any(not torch.equal(ends["gradient"][k], ends["update"][k]) for k in ends["update"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": -1}, "alpha"),
        ({"weight": -0.1}, "weight"),
        ({"beta_max": 0.5}, "beta_max"),
        ({"scale_where": "loss"}, "scale_where"),
        ({"alpha": 0, "beta_max": 3.0}, "beta_max is not used by alpha=0"),
        ({"alpha": 0, "scale_where": "update"}, "scale_where is not used by alpha=0"),
        ({"weight": 0}, "add alpha=0"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(MLB, options)
    assert "\n" not in str(caught.value)
