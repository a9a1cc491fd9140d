"""MMCosine: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.evaluate.readout import read_out
from mmbench.methods.mmcosine import MMCosine
from mmbench.nets.cosine import CosineFusion
from mmbench.nets.fusion import Concat
from mmbench.nets.network import Network
from mmbench.planning import check_support
from mmbench.testing.contract import CLASSES, make_splits
from tests.methods.double import (
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import configured, trainer


def slow_logits(network: Network, batch: Batch, scale: float) -> Tensor:
    """The cosines, one sample, modality and class at a time."""
    fusion: Any = network.fusion
    rows = []
    features = encode_in_double(network, batch.inputs)
    for i in range(len(batch)):
        logits = []
        for c in range(CLASSES):
            total = torch.zeros((), dtype=torch.float64)
            begin = 0
            for m, h in features.items():
                width = h.shape[1]
                if network.spec.fusion == "concat":
                    weight = fusion.linear.head.weight[c, begin : begin + width]
                else:
                    weight = fusion.linear.heads[m].weight[c]
                lengths = (h[i] ** 2).sum().sqrt() * (weight**2).sum().sqrt()
                total = total + scale * (h[i] * weight).sum() / lengths
                begin += width
            logits.append(total)
        rows.append(torch.stack(logits))
    return torch.stack(rows)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize(("seed", "scale"), [(0, 10.0), (1, 2.0), (2, 30.0)])
def test_gradients_are_those_of_the_equations(
    count: int, fusion: str, seed: int, scale: float
) -> None:
    of = case(MMCosine, count, seed, fusion, scale=scale)
    batch = of.batch()
    network = of.network()
    loss = cross_entropy(slow_logits(network, batch, scale), batch.y)
    expected = gradients_of(loss, named_parameters(network, of.method))
    assert_close(of.step(batch), expected)


def fused(count: int, seed: int) -> tuple[CosineFusion, dict[str, Tensor]]:
    widths = {f"view{i}": 4 + i for i in range(count)}
    random = torch.Generator().manual_seed(seed)
    features = {m: torch.randn(6, width, generator=random) for m, width in widths.items()}
    return CosineFusion(Concat(widths, CLASSES, seed), widths, 10.0), features


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_size_of_features_and_weights_does_not_matter(count: int, seed: int) -> None:
    fusion, features = fused(count, seed)
    assert isinstance(fusion.linear, Concat)
    before = fusion(features)
    sizes = torch.tensor([[0.01], [1.0], [3.0], [7.0], [100.0], [0.5]])
    torch.testing.assert_close(fusion(features | {"view0": sizes * features["view0"]}), before)
    with torch.no_grad():
        fusion.linear.head.weight[1, :4] *= 50.0
        fusion.linear.head.bias.add_(3.0)
    torch.testing.assert_close(fusion(features), before)


def test_parts_sum_to_the_logits_and_are_bounded_by_the_scale() -> None:
    fusion, features = fused(3, 0)
    parts = fusion.parts({m: 1000 * h for m, h in features.items()})
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(dim=0), fusion(features))
    assert all(float(part.detach().abs().max()) <= 10.0 + 1e-4 for part in parts.values())


def test_an_absent_modality_says_nothing() -> None:
    fusion, features = fused(2, 0)
    absent = features | {"view1": torch.zeros_like(features["view1"])}
    torch.testing.assert_close(fusion(absent), fusion.parts(features)["view0"])
    assert float(fusion.parts(absent)["view1"].detach().abs().max()) == 0


def test_inference_is_by_cosines_or_by_the_linear_fusion_as_released() -> None:
    splits = make_splits(2)
    trained = {
        infer: trainer(configured(MMCosine, {"infer": infer}), splits, fusion="concat").fit()
        for infer in ("cosine", "linear")
    }
    networks = [fitted.run.main.state_dict() for fitted in trained.values()]
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    for infer, fitted in trained.items():
        read = read_out(fitted.run, fitted.method, splits.test)
        fusion = fitted.run.main.fusion
        assert isinstance(fusion, CosineFusion)
        assert isinstance(fusion.linear, Concat)
        head = fusion.linear.head
        if infer == "cosine":
            expected = torch.stack(list(read.parts.values())).sum(dim=0)
        else:
            joined = torch.cat(list(read.features.values()), dim=1)
            expected = (joined @ head.weight.T + head.bias).detach()
        torch.testing.assert_close(read.logits, expected)


def test_the_network_starts_from_the_weights_that_joint_training_starts_from() -> None:
    made = trainer(configured(MMCosine), make_splits(2), fusion="concat")
    before = {name: p.clone() for name, p in made.main.named_parameters()}
    made.method.setup(made.run)
    after = dict(made.main.named_parameters())
    for name, p in before.items():
        assert torch.equal(after[name.replace("fusion.", "fusion.linear.")], p)


@pytest.mark.parametrize(("option", "value"), [("scale", 0), ("infer", "both")])
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of mmcosine"):
        configured(MMCosine, {option: value})


@pytest.mark.parametrize("fusion", ["film", "gated", "attention", "late"])
def test_a_fusion_without_weights_for_each_modality_is_refused_before_training(fusion: str) -> None:
    with pytest.raises(RequestError, match=f"cannot use fusion '{fusion}': use concat, sum"):
        check_support(MMCosine, fusion, 2)
