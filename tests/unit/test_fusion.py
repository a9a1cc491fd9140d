"""Fusions against loops written from their equations, and the network that joins them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmbench.data.dataset import Modality
from mmbench.errors import RequestError
from mmbench.nets.fusion import FUSIONS, add, own_heads
from mmbench.nets.network import NetworkSpec, Output, fusion_type, resolve_encoders

WIDTHS = {"a": 5, "b": 3, "c": 7, "d": 4}
CLASSES, BATCH = 3, 6
Arrays = dict[str, np.ndarray]
Divided = tuple[np.ndarray, Arrays]
"""Logits of one row, and its parts."""


def built(name: str, count: int) -> tuple[Any, dict[str, Tensor]]:
    """A fusion of the first ``count`` modalities with every weight and bias away from its start,
    and a batch of features."""
    generator = torch.Generator().manual_seed(count)
    widths = dict(list(WIDTHS.items())[:count])
    fusion = FUSIONS[name](widths, CLASSES, 0)
    for parameter in fusion.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    features = {m: torch.randn(BATCH, d, generator=generator) for m, d in widths.items()}
    return fusion, features


# -- the equations, one row and one class at a time ----------------------------------------------


def affine(layer: nn.Linear, x: np.ndarray, bias: bool = True) -> np.ndarray:
    weight = layer.weight.detach().numpy().astype(float)
    offset = layer.bias.detach().numpy().astype(float) if bias else np.zeros(len(weight))
    return np.array(
        [sum(weight[k, j] * x[j] for j in range(len(x))) + offset[k] for k in range(len(weight))]
    )


def concat(fusion: Any, h: Arrays) -> Divided:
    weight, bias = fusion.head.weight.detach().numpy(), fusion.head.bias.detach().numpy()
    parts, start = {}, 0
    for m, x in h.items():
        own = weight[:, start : start + len(x)]
        parts[m] = np.array([own[k] @ x + bias[k] / len(h) for k in range(CLASSES)])
        start += len(x)
    return affine(fusion.head, np.concatenate(list(h.values()))), parts


def own(fusion: Any, h: Arrays) -> Divided:
    parts = {m: affine(fusion.heads[m], x) for m, x in h.items()}
    return np.sum(list(parts.values()), axis=0), parts


def late(fusion: Any, h: Arrays) -> Divided:
    parts = {m: affine(fusion.heads[m], x) / len(h) for m, x in h.items()}
    return np.mean([affine(fusion.heads[m], x) for m, x in h.items()], axis=0), parts


def film(fusion: Any, h: Arrays) -> np.ndarray:
    first, *others = h
    z: np.ndarray = fusion.bias.detach().numpy().astype(float)
    for m in others:
        both = affine(fusion.conditions[m], h[first])
        gamma, beta = both[: len(h[m])], both[len(h[m]) :]
        z = z + affine(fusion.heads[m], gamma * h[m] + beta, bias=False)
    return z


def gated(fusion: Any, h: Arrays) -> np.ndarray:
    first, *others = h
    gate = 1 / (1 + np.exp(-affine(fusion.gates[first], h[first])))
    gated_by = np.sum([affine(fusion.gates[m], h[m]) for m in others], axis=0)
    return affine(fusion.head, gate * gated_by)


def attention(fusion: Any, h: Arrays) -> Divided:
    query = fusion.query.detach().numpy().astype(float)
    scores = {
        m: np.exp(query @ affine(fusion.keys[m], x) / np.sqrt(len(query))) for m, x in h.items()
    }
    share = {m: scores[m] / sum(scores.values()) for m in h}
    pooled = np.sum([share[m] * affine(fusion.values[m], x) for m, x in h.items()], axis=0)
    bias = fusion.head.bias.detach().numpy() / len(h)
    parts = {
        m: affine(fusion.head, share[m] * affine(fusion.values[m], x), bias=False) + bias
        for m, x in h.items()
    }
    return affine(fusion.head, pooled), parts


def ablated(reference: Callable[[Any, Arrays], np.ndarray]) -> Callable[[Any, Arrays], Divided]:
    """Part m of a fusion that is not additive: its equation with the other features zero."""

    def both(fusion: Any, h: Arrays) -> Divided:
        alone = {m: {k: x if k == m else 0 * x for k, x in h.items()} for m in h}
        return reference(fusion, h), {m: reference(fusion, only) for m, only in alone.items()}

    return both


EQUATIONS: dict[str, Callable[[Any, Arrays], Divided]] = {
    "concat": concat,
    "sum": own,
    "late": late,
    "film": ablated(film),
    "gated": ablated(gated),
    "attention": attention,
}


def test_every_fusion_has_its_equation_here() -> None:
    assert set(EQUATIONS) == set(FUSIONS)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("name", FUSIONS)
def test_logits_and_parts_follow_the_equations(name: str, count: int) -> None:
    fusion, features = built(name, count)
    logits, parts = fusion(features).detach(), fusion.parts(features)
    assert logits.shape == (BATCH, CLASSES)
    assert list(parts) == list(features)
    for i in range(BATCH):
        row = {m: h[i].numpy().astype(float) for m, h in features.items()}
        expected, expected_parts = EQUATIONS[name](fusion, row)
        np.testing.assert_allclose(logits[i], expected, atol=1e-5)
        for m in features:
            np.testing.assert_allclose(parts[m][i].detach(), expected_parts[m], atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("name", [n for n, f in FUSIONS.items() if f.parts_are_exact])
def test_exact_parts_sum_to_the_logits(name: str, count: int) -> None:
    fusion, features = built(name, count)
    torch.testing.assert_close(add(fusion.parts(features)), fusion(features), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n, f in FUSIONS.items() if not f.parts_are_exact])
def test_parts_that_are_not_exact_do_not_pretend_to_be(name: str) -> None:
    fusion, features = built(name, 3)
    assert float((add(fusion.parts(features)) - fusion(features)).detach().abs().max()) > 0.1


def test_concat_and_sum_are_equal_with_tied_weights() -> None:
    concat_fusion, features = built("concat", 3)
    sum_fusion, _ = built("sum", 3)
    columns = concat_fusion.head.weight.detach().split(list(WIDTHS.values())[:3], dim=1)
    for m, weight in zip(features, columns, strict=True):
        sum_fusion.heads[m].weight.data = weight
        sum_fusion.heads[m].bias.data = concat_fusion.head.bias.detach() / 3
    torch.testing.assert_close(sum_fusion(features), concat_fusion(features))
    for m, part in sum_fusion.parts(features).items():
        torch.testing.assert_close(part, concat_fusion.parts(features)[m])


def test_late_is_sum_divided_by_the_number_of_modalities() -> None:
    late_fusion, features = built("late", 4)
    sum_fusion, _ = built("sum", 4)
    sum_fusion.load_state_dict(late_fusion.state_dict())
    torch.testing.assert_close(4 * late_fusion(features), sum_fusion(features))


def test_attention_weights_are_positive_and_sum_to_one() -> None:
    fusion, features = built("attention", 4)
    weights = fusion.weights(features)
    assert weights.shape == (BATCH, 4)
    assert bool((weights > 0).all())
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(BATCH))


# -- networks --------------------------------------------------------------------------------------


def spec(fusion: str = "concat", names: str = "abc", seed: int = 4) -> NetworkSpec:
    modalities = {m: Modality("vector", (i + 2,)) for i, m in enumerate("abcd") if m in names}
    return NetworkSpec(modalities, dict.fromkeys(modalities, "mlp"), CLASSES, fusion, seed)


def inputs(network: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {m: network.spec.modalities[m].shape for m in network.modalities}
    return {m: torch.randn(BATCH, *shape, generator=generator) for m, shape in shapes.items()}


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("name", FUSIONS)
def test_the_fused_loss_reaches_every_weight_of_every_encoder(name: str, count: int) -> None:
    network: Any = spec(name, "abcd"[:count]).build()
    network(inputs(network)).logits.logsumexp(dim=1).sum().backward()
    for m in network.modalities:
        for parameter in network.encoders[m].parameters():
            assert parameter.grad is not None
            assert float(parameter.grad.abs().sum()) > 0


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", FUSIONS)
def test_encoders_start_the_same_in_every_network_of_a_seed(name: str) -> None:
    """Neither the fusion, the other modalities nor what was drawn before matters; the seed does."""
    reference: Any = spec("concat", "abc").build()
    torch.manual_seed(123)
    torch.randn(7)
    for names in ("abc", "bc", "abcd"):
        network: Any = spec(name, names).build()
        for m in set(names) & set("abc"):
            assert same(network.encoders[m], reference.encoders[m])
    other: Any = spec(name, "abc", seed=5).build()
    assert not any(same(other.encoders[m], reference.encoders[m]) for m in "abc")
    part: Any = spec(name, "abc").build(keep=["b", "c"])
    assert part.modalities == ("b", "c")
    assert same(part.encoders["c"], reference.encoders["c"])


@pytest.mark.parametrize("name", FUSIONS)
def test_equal_specs_give_equal_networks_without_touching_the_global_stream(name: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, other = spec(name).build(), spec(name).build()
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, other)


def test_own_heads_start_the_same_whatever_the_other_modalities() -> None:
    alone, together = own_heads({"b": 3}, CLASSES, 4), own_heads(WIDTHS, CLASSES, 4)
    assert same(alone["b"], together["b"])
    assert not same(own_heads({"b": 3}, CLASSES, 5)["b"], together["b"])

    summed: Any = spec("sum", "ab").build()
    averaged: Any = spec("late").build()
    assert same(summed.fusion.heads["b"], averaged.fusion.heads["b"])


def test_modalities_of_one_shape_start_from_different_weights() -> None:
    modalities = {m: Modality("vector", (4,)) for m in "ab"}
    network: Any = NetworkSpec(modalities, {"a": "mlp", "b": "mlp"}, CLASSES, "sum", 0).build()
    assert not same(network.encoders["a"], network.encoders["b"])
    assert not same(network.fusion.heads["a"], network.fusion.heads["b"])


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("keep", [("a",), ("c", "b"), ()])
def test_modalities_that_are_not_kept_have_zero_features(name: str, keep: tuple[str, ...]) -> None:
    network: Any = spec(name).build()
    x = inputs(network)
    out: Output = network(x, keep=keep)
    features = {
        m: network.encoders[m](x[m]) if m in keep else torch.zeros(BATCH, network.widths[m])
        for m in "abc"
    }
    assert list(out.features) == ["a", "b", "c"]
    for m in "abc":
        assert torch.equal(out.features[m], features[m])
    torch.testing.assert_close(out.logits, network.fusion(features))


def test_modalities_that_are_not_kept_are_not_encoded() -> None:
    network: Any = spec().build()
    network.encoders["b"].forward = None
    network(inputs(network), keep=["a", "c"])


def test_keeping_all_modalities_is_the_whole_pass_in_any_order() -> None:
    network: Any = spec().build()
    x = inputs(network)
    assert torch.equal(network(x, keep=["c", "a", "b"]).logits, network(x).logits)


def test_the_output_offers_the_fusions_parts() -> None:
    for name, kind in FUSIONS.items():
        network: Any = spec(name).build()
        out = network(inputs(network))
        assert out.parts_are_exact == kind.parts_are_exact
        for m, part in network.fusion.parts(out.features).items():
            assert torch.equal(out.parts[m], part)


@pytest.mark.parametrize("name", FUSIONS)
def test_low_precision_stays_within_the_encoders(name: str) -> None:
    network: Any = spec(name).build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(inputs(network))
    assert out.logits.dtype == torch.float32
    assert {h.dtype for h in out.features.values()} == {torch.float32}
    torch.testing.assert_close(out.logits, network.fusion(out.features), atol=1e-6, rtol=1e-6)


def test_a_network_without_modalities_says_nothing() -> None:
    network: Any = spec().build(keep=())
    out = network({"a": torch.randn(BATCH, 2)})
    assert torch.equal(out.logits, torch.zeros(BATCH, CLASSES))
    assert out.parts == out.features == {}
    assert out.parts_are_exact


@pytest.mark.parametrize("name", ["film", "gated"])
def test_a_fusion_that_needs_two_modalities_refuses_one(name: str) -> None:
    with pytest.raises(RequestError, match=f"fusion '{name}' needs 2 modalities, 1 given"):
        spec(name, "a").build()


def test_an_unknown_fusion_suggests_near_ones() -> None:
    with pytest.raises(RequestError, match="unknown fusion 'concatt': did you mean concat"):
        fusion_type("concatt")


def test_an_encoder_for_a_modality_that_is_not_there_is_refused() -> None:
    modalities = {"image": Modality("vector", (2,))}
    with pytest.raises(RequestError, match="unknown modality 'imgae': did you mean image"):
        resolve_encoders(modalities, {"imgae": "mlp"})
    assert resolve_encoders(modalities, {}) == {"image": "mlp"}


@pytest.mark.parametrize("name", ["video.rgb", "keys", "type", "training", ""])
def test_a_name_that_torch_cannot_hold_is_refused(name: str) -> None:
    modalities = {name: Modality("vector", (2,))}
    with pytest.raises(RequestError, match=f"cannot be called '{name}'"):
        NetworkSpec(modalities, {name: "mlp"}, CLASSES, "sum", 0).build()
