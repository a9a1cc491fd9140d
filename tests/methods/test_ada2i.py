"""Ada2I: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.evaluate.readout import read_out
from mmbench.methods.ada2i import Ada2I, AdaptiveFusion, FeatureWeighting
from mmbench.methods.joint import Joint
from mmbench.nets.fusion import Concat
from mmbench.nets.network import Network
from mmbench.planning import check_support
from mmbench.testing.contract import CLASSES, make_splits
from tests.methods.double import (
    Case,
    Gradients,
    assert_close,
    case,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import configured, trainer

Sample = dict[str, Tensor]
PLAIN: dict[str, Any] = {"afw": False, "head": "linear"}
CALM: dict[str, Any] = {"noise": "none", "dropout": 0.0}


def affine(layer: Any, x: Tensor) -> Tensor:
    result: Tensor = layer.weight @ x + layer.bias
    return result


def slow_weighting(layer: Any, f: Sample, options: Any) -> tuple[Sample, Tensor, int]:
    """Weigh the features of one sample; return also the sum of the estimates' errors, and how many
    numbers are in it. Interactions are whole matrices, multiplied in the modalities' order."""
    r, read, matrices = options.rank, {}, {}
    for m, h in f.items():
        centred = h - h.mean()
        spread = (centred**2).mean()
        read[m] = centred / (spread + 1e-5).sqrt() if options.normalise else h
        q1, q2, k1, k2 = (affine(layer.maps[m], read[m])[i * r : (i + 1) * r] for i in range(4))
        matrices[m] = torch.outer(q1, q2) * torch.outer(k1, k2)
    out: Sample = {}
    total, count = torch.zeros((), dtype=torch.float64), 0
    for m, h in f.items():
        product = matrices[m]
        for other, matrix in matrices.items():
            if other != m:
                product = product @ matrix
        w = affine(layer.weights[m], product.reshape(-1))
        out[m] = w * h + options.residual * h
        target = out[m] if options.variant == "released" else w.detach()
        total = total + (affine(layer.estimates[m], read[m]) - target).abs().sum()
        count += len(h)
    return out, total, count


def class_weights(fusion: Any, f: Sample, m: str) -> tuple[Tensor, Tensor]:
    """Return ``(C, width)`` and the modality's share of the bias."""
    linear: Any = fusion.linear if isinstance(fusion, AdaptiveFusion) else fusion
    if not isinstance(linear, Concat):
        return linear.heads[m].weight, linear.heads[m].bias
    names = list(f)
    begin = sum(len(f[other]) for other in names[: names.index(m)])
    return linear.head.weight[:, begin : begin + len(f[m])], linear.head.bias / len(f)


def slow_part(fusion: Any, f: Sample, m: str, options: Any) -> Tensor:
    weight, bias = class_weights(fusion, f, m)
    if options.head == "linear":
        return weight @ f[m] + bias
    logits = []
    for c in range(CLASSES):
        length = (weight[c] ** 2).sum().sqrt()
        if options.variant == "released":
            length = sum((weight[k] ** 2 for k in range(CLASSES)), torch.zeros(())).sqrt()
        cosine = (weight[c] / length * f[m]).sum() / (f[m] ** 2).sum().sqrt()
        logits.append(options.sigma * cosine + bias[c])
    return torch.stack(logits)


def log_probability(logits: Tensor, label: int) -> Tensor:
    below = logits - logits.max().detach()
    return below[label] - torch.log(torch.exp(below).sum())


def slow_step(of: Case, network: Network, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Return the loss, sample by sample, and the scores ``s_m``."""
    options, fusion, names = of.method.config, network.fusion, of.run.modalities
    features = encode_in_double(network, batch.inputs)
    cross_entropy = torch.zeros((), dtype=torch.float64)
    error = torch.zeros((), dtype=torch.float64)
    scores = dict.fromkeys(names, 0.0)
    for i, label in enumerate(batch.y.tolist()):
        f = {m: h[i] for m, h in features.items()}
        for layer in fusion.layers if isinstance(fusion, AdaptiveFusion) else []:
            f, total, count = slow_weighting(layer, f, options)
            error = error + total / count
        z = torch.stack([slow_part(fusion, f, m, options) for m in names]).sum(dim=0)
        cross_entropy = cross_entropy - log_probability(z, label)
        for m in names:
            weight, bias = class_weights(fusion, f, m)
            scores[m] += math.exp(float(log_probability(weight @ f[m] + bias, label).detach()))
    return (cross_entropy + error) / len(batch), scores


def expected_coefficients(scores: dict[str, float], alpha: float) -> dict[str, float]:
    least = min(scores.values())
    return {m: 1.0 if s == least else 1 - math.tanh(alpha * s / least) for m, s in scores.items()}


def edited(of: Case, gradients: Gradients, coefficients: dict[str, float]) -> Gradients:
    """Scale the encoders' gradients and add the noise that the method will draw."""
    random = torch.Generator()
    random.set_state(of.run.rng.get_state())
    noise, out = of.method.config.noise, dict(gradients)
    for m, k in coefficients.items():
        for name, g in gradients.items():
            if not name.startswith(f"network.encoders.{m}."):
                continue
            out[name] = k * g
            if noise != "none":
                measured = g if noise == "before_scale" else k * g
                mean = measured.mean()
                spread = ((measured - mean) ** 2).sum() / (measured.numel() - 1)
                draws = torch.randn(g.shape, generator=random, dtype=torch.float64)
                out[name] = out[name] + draws * (spread.sqrt() + 1e-8)
    return out


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "options"),
    [
        (0, "concat", CALM),
        (1, "sum", CALM | {"rank": 3, "residual": 0.0, "sigma": 1.0}),
        (2, "concat", {"dropout": 0.0}),
        (3, "sum", {"dropout": 0.0, "noise": "before_scale", "alpha": 0.1}),
        (4, "concat", CALM | {"variant": "released", "normalise": False, "sigma": 1.0}),
        (5, "sum", CALM | {"variant": "released"}),
        (6, "concat", PLAIN | {"noise": "none", "alpha": 0.3}),
        (7, "concat", {"afw": False, "noise": "none"}),
        (8, "sum", {"head": "linear", "modulation": False, "dropout": 0.0}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, fusion: str, options: dict[str, Any]
) -> None:
    of = case(Ada2I, count, seed, fusion, **options)
    batch = of.batch(6)
    network = of.network()
    loss, scores = slow_step(of, network, batch)
    gradients = gradients_of(loss, named_parameters(network, of.method))
    assert len(set(scores.values())) == count
    coefficients = dict.fromkeys(scores, 1.0)
    if of.method.config.modulation:
        coefficients = expected_coefficients(scores, of.method.config.alpha)
    expected = edited(of, gradients, coefficients)
    assert_close(of.step(batch), expected)


def method_of(of: Case) -> Ada2I:
    assert isinstance(of.method, Ada2I)
    return of.method


def fusion_of(of: Case) -> AdaptiveFusion:
    assert isinstance(of.run.network.fusion, AdaptiveFusion)
    return of.run.network.fusion


# -- modulation ------------------------------------------------------------------------------------


def test_the_weakest_modality_is_never_slowed_and_every_other_one_is() -> None:
    for seed in range(5):
        of = case(Ada2I, 3, seed, "sum", alpha=0.3, **PLAIN)
        features = encode_in_double(of.run.network, of.batch(20).inputs)
        y = torch.arange(20) % CLASSES
        with torch.no_grad():
            found = sorted(float(k) for k in method_of(of).coefficients(features, y).values())
        assert found[-1] == 1.0
        assert all(k < 1 - math.tanh(0.3) for k in found[:-1])


def test_modalities_that_are_equally_sure_are_left_alone() -> None:
    of = case(Ada2I, 3, 0, "sum", **PLAIN)
    features = {m: torch.zeros_like(h) for m, h in features_of(of).items()}
    fusion: Any = of.run.network.fusion
    with torch.no_grad():
        for m in features:
            fusion.heads[m].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
        coefficients = method_of(of).coefficients(features, torch.arange(9) % CLASSES)
    assert [float(k) for k in coefficients.values()] == [1.0, 1.0, 1.0]


def features_of(of: Case) -> dict[str, Tensor]:
    return encode_in_double(of.run.network, of.batch().inputs)


def test_nothing_is_edited_in_the_warm_up() -> None:
    warm = case(Ada2I, 2, 0, epoch=1, warmup_epochs=2, dropout=0.0)
    plain = case(Ada2I, 2, 0, epoch=1, modulation=False, **CALM)
    batch = warm.batch()
    got, expected = warm.step(batch), plain.step(batch)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    warm.run.begin_epoch(2)
    edited_now = warm.step(batch)
    assert not torch.equal(
        edited_now["network.encoders.view1.layers.0.weight"],
        expected["network.encoders.view1.layers.0.weight"],
    )


def test_the_warm_up_is_three_of_fifty_epochs() -> None:
    of = case(Ada2I, 2, 0, epochs=50)
    assert method_of(of).warmup_epochs(of.run) == 3


def test_coefficients_may_multiply_the_update_in_place_of_the_gradient() -> None:
    of = case(Ada2I, 2, 0, scale_where="update", noise="none", **PLAIN)
    plain = case(Joint, 2, 0)
    batch = of.batch()
    of.run.optimizer = torch.optim.SGD(of.run.network.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in of.run.network.named_parameters()}
    expected = plain.step(batch)
    with patch.object(Network, "encode", encode_in_double):
        of.method.train_step(of.run, batch)
    factors = of.run.take_logged()
    assert min(factors.values()) < 1 == max(factors.values())
    for name, p in of.run.network.named_parameters():
        m = name.split(".")[1]
        factor = factors.get(f"coefficient.{m}", 1.0)
        torch.testing.assert_close(p.detach(), before[name] - factor * expected[f"network.{name}"])


def test_with_adam_the_scaling_of_gradients_is_remarked_on() -> None:
    for optimizer, where, expected in (
        ("adam", "gradient", 1),
        ("adam", "update", 0),
        ("sgd", "gradient", 0),
    ):
        method = configured(Ada2I, {"scale_where": where})
        made = trainer(method, make_splits(2), fusion="concat", optimizer=optimizer)
        made.method.setup(made.run)
        assert len(made.run.notes) == expected


# -- feature weighting -----------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "moves_weights"), [("corrected", False), ("released", True)])
def test_the_estimates_learn_the_weights_and_as_released_also_the_other_way(
    variant: Any, moves_weights: bool
) -> None:
    layer = FeatureWeighting({"a": 4, "b": 5}, 3, 0.5, 0.0, True, 0)
    features = {"a": torch.randn(6, 4), "b": torch.randn(6, 5)}
    _, error = layer(features, variant)
    error.backward()
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    for m in features:
        assert (gradients[f"weights.{m}.weight"] is not None) == moves_weights
        assert gradients[f"estimates.{m}.weight"] is not None


def test_a_modality_without_features_adds_only_its_share_of_the_bias() -> None:
    of = case(Ada2I, 3, 0)
    of.run.network.eval()
    features = features_of(of)
    features["view2"] = torch.zeros_like(features["view2"])
    part = fusion_of(of).parts(features)["view2"]
    linear = fusion_of(of).linear
    assert isinstance(linear, Concat)
    torch.testing.assert_close(part, (linear.head.bias / 3).expand_as(part))


def test_parts_sum_to_the_logits_and_cosines_are_bounded_by_sigma() -> None:
    of = case(Ada2I, 3, 1, sigma=4.0)
    of.run.network.eval()
    features = {m: 1000 * h for m, h in features_of(of).items()}
    parts = fusion_of(of).parts(features)
    torch.testing.assert_close(
        torch.stack(list(parts.values())).sum(dim=0), fusion_of(of)(features)
    )
    linear = fusion_of(of).linear
    assert isinstance(linear, Concat)
    share = linear.head.bias / 3
    assert all(float((part - share).detach().abs().max()) <= 4.0 + 1e-9 for part in parts.values())


def test_the_interaction_does_not_depend_on_the_size_of_layer_normalised_features() -> None:
    features = {"a": torch.randn(6, 40), "b": torch.randn(6, 50)}
    layer = FeatureWeighting({"a": 40, "b": 50}, 6, 0.5, 0.0, True, 0)
    larger, _ = layer({m: 100 * f for m, f in features.items()}, None)
    for m, f in layer(features, None)[0].items():
        torch.testing.assert_close(larger[m], 100 * f, rtol=1e-3, atol=1e-3)


def test_features_are_dropped_in_training_only() -> None:
    features = {"a": torch.ones(50, 40), "b": torch.ones(50, 40)}
    layer = FeatureWeighting({"a": 40, "b": 40}, 6, 0.5, 0.25, False, 0)
    kept, _ = layer.eval()(features, None)
    dropped, _ = layer.train()(features, None)
    assert all(bool(f.all()) for f in kept.values())
    is_dropped = dropped["a"] == 0
    # 2000 numbers, each dropped with chance 1/4: 500, standard deviation 19.4
    assert abs(int(is_dropped.sum()) - 500) < 5 * 19.4
    torch.testing.assert_close(dropped["a"][~is_dropped], kept["a"][~is_dropped] / 0.75)


def test_the_network_starts_from_the_weights_that_joint_training_starts_from() -> None:
    made = trainer(configured(Ada2I), make_splits(2), fusion="concat")
    before = {name: p.clone() for name, p in made.main.named_parameters()}
    made.method.setup(made.run)
    after = dict(made.main.named_parameters())
    for name, p in before.items():
        assert torch.equal(after[name.replace("fusion.", "fusion.linear.")], p)


def test_evaluation_reads_the_weighted_features_and_predicts_by_them() -> None:
    splits = make_splits(2)
    fitted = trainer(configured(Ada2I), splits, fusion="sum").fit()
    read = read_out(fitted.run, fitted.method, splits.test)
    fusion = fitted.run.main.fusion
    assert isinstance(fusion, AdaptiveFusion)
    torch.testing.assert_close(torch.stack([*read.parts.values()]).sum(dim=0), read.logits)
    torch.testing.assert_close(fusion(read.features), read.logits)


def test_cost_is_one_pass_forward_and_one_backward_a_step() -> None:
    counts = trainer(configured(Ada2I), make_splits(3), fusion="concat").fit().run.counts
    assert counts.forwards == counts.backwards == counts.updates == 2 * 4  # 60 rows in fours of 16


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rank", 0),
        ("residual", -1),
        ("dropout", 1),
        ("head", "film"),
        ("sigma", 0),
        ("alpha", -0.1),
        ("noise", "loud"),
        ("warmup_epochs", -1),
    ],
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of ada2i"):
        configured(Ada2I, {option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"afw": False, "rank": 3}, "rank is not used with afw=false"),
        ({"head": "linear", "sigma": 2.0}, "sigma is not used by head=linear"),
        (PLAIN | {"variant": "released"}, "variant is not used with afw=false and head=linear"),
        ({"modulation": False, "alpha": 0.1}, "alpha is not used with modulation=false"),
        (
            {"modulation": False, "noise": "none", "warmup_epochs": 2},
            "warmup_epochs is not used with modulation=false and noise=none",
        ),
        ({"noise": "before_scale", "scale_where": "update"}, "the same as after_scale"),
    ],
)
def test_a_setting_that_another_makes_useless_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        configured(Ada2I, options)


@pytest.mark.parametrize("fusion", ["film", "gated", "attention", "late"])
def test_a_fusion_without_weights_for_each_modality_is_refused_before_training(fusion: str) -> None:
    with pytest.raises(RequestError, match=f"cannot use fusion '{fusion}': use concat, sum"):
        check_support(Ada2I, fusion, 2)
