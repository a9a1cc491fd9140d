"""MBSD: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.joint import Joint
from mmbench.methods.mbsd import MBSD
from mmbench.nets.network import Network
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


def slow_part(network: Network, sample: dict[str, Tensor], m: str) -> Tensor:
    """Return a modality's part of one sample's logits ``(C,)``."""
    fusion: Any = network.fusion
    name, names, h = network.spec.fusion, list(sample), sample[m]
    if name == "concat":
        begin = sum(len(sample[other]) for other in names[: names.index(m)])
        weight = fusion.head.weight[:, begin : begin + len(h)]
        part: Tensor = weight @ h + fusion.head.bias / len(names)
    elif name == "sum":
        part = fusion.heads[m].weight @ h + fusion.heads[m].bias
    else:
        alone = {k: (v if k == m else torch.zeros_like(v)) for k, v in sample.items()}
        part = fusion({k: v.unsqueeze(0) for k, v in alone.items()})[0]
    return part


def probabilities(logits: Tensor) -> Tensor:
    return torch.exp(logits) / torch.exp(logits).sum()


def slow_loss(of: Case, network: Network, batch: Batch) -> tuple[Tensor, Counter[str]]:
    """Return the loss, sample by sample and class by class, and what pairs there were."""
    options, names = of.method.config, list(of.run.modalities)
    features = encode_in_double(network, batch.inputs)
    assert network.fusion is not None
    fused = network.fusion(features)
    loss = torch.zeros((), dtype=torch.float64)
    kinds: Counter[str] = Counter()
    pairs = [(a, b) for a in names for b in names if a < b]
    for i, label in enumerate(batch.y.tolist()):
        sample = {m: h[i] for m, h in features.items()}
        z = {m: slow_part(network, sample, m) for m in names}
        p = {m: probabilities(logits) for m, logits in z.items()}
        loss = loss - torch.log(probabilities(fused[i])[label])
        for m in names:
            loss = loss - options.unimodal_weight * torch.log(p[m][label])
        known = {m: p[m].tolist() for m in names}
        for a, b in pairs:
            right = [m for m in (a, b) if known[m].index(max(known[m])) == label]
            kinds[f"{len(right)} right"] += 1
            if not right:
                continue
            strong, weak = (a, b) if known[a][label] > known[b][label] else (b, a)
            kinds[f"{strong} leads"] += 1
            weight = known[strong][label] - known[weak][label]
            for c in range(CLASSES):
                x = z if options.distance == "logits" else p
                similarity = (x[a][c] - x[b][c]) ** 2 / CLASSES
                teacher = known[strong][c]
                divergence = teacher * (
                    torch.log(torch.tensor(teacher, dtype=torch.float64)) - torch.log(p[weak][c])
                )
                terms = (
                    options.similarity_weight * similarity
                    + options.distillation_weight * divergence
                )
                loss = loss + weight * terms / len(pairs)
    return loss / len(batch), kinds


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "options"),
    [
        (0, "concat", {}),
        (1, "sum", {"unimodal_weight": 0.0, "distillation_weight": 3.0}),
        (2, "film", {}),
        (3, "concat", {"distance": "probabilities", "similarity_weight": 3.0}),
        (4, "concat", {"similarity_weight": 0.0}),
        (5, "sum", {"unimodal_weight": 0.3, "distillation_weight": 0.0}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, fusion: str, options: dict[str, Any]
) -> None:
    of = case(MBSD, count, seed, fusion, **options)
    batch = of.batch(20)
    network = of.network()
    loss, kinds = slow_loss(of, network, batch)
    expected = gradients_of(loss, named_parameters(network, of.method))
    assert_close(of.step(batch), expected)
    assert kinds["0 right"] > 0 < kinds["1 right"]
    assert kinds["view1 leads"] > 0 < kinds["view2 leads"]


def method() -> MBSD:
    made = configured(MBSD)
    assert isinstance(made, MBSD)
    return made


def random_parts(count: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    random = torch.Generator().manual_seed(seed)
    parts = [torch.randn(30, CLASSES, generator=random, dtype=torch.float64) for _ in range(count)]
    return [part.requires_grad_() for part in parts], torch.arange(30) % CLASSES


def test_the_stronger_modality_of_a_sample_is_a_teacher_and_does_not_learn_from_the_weaker() -> (
    None
):
    parts, y = random_parts(2)
    *_, distillation = method().terms(torch.stack(parts), y)
    gradients = torch.autograd.grad(distillation, parts)
    truth = [part.softmax(dim=1)[range(30), y] for part in parts]
    is_right = (parts[0].argmax(dim=1) == y) | (parts[1].argmax(dim=1) == y)
    first_leads = truth[0] > truth[1]
    assert torch.equal(gradients[0].any(dim=1), is_right & ~first_leads)
    assert torch.equal(gradients[1].any(dim=1), is_right & first_leads)


def test_the_weights_are_constants() -> None:
    # Then RS draws each sample's logits straight to each other's, by equal and opposite steps.
    parts, y = random_parts(2)
    _, similarity, _ = method().terms(torch.stack(parts), y)
    gradients = torch.autograd.grad(similarity, parts)
    for gradient, other in zip(gradients, gradients[::-1], strict=True):
        torch.testing.assert_close(gradient, -other)
    parallel = (gradients[0] * (parts[0] - parts[1]).detach()).sum(dim=1)
    lengths = gradients[0].norm(dim=1) * (parts[0] - parts[1]).detach().norm(dim=1)
    torch.testing.assert_close(parallel, lengths)


def test_modalities_that_agree_pay_nothing() -> None:
    (part,), y = random_parts(1)
    for count in (2, 3):
        _, *terms = method().terms(torch.stack([part] * count), y)
        assert [float(term.detach()) for term in terms] == [0.0, 0.0]


def test_a_sample_that_neither_modality_gets_right_pays_nothing() -> None:
    wrong = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[0.5, 4.0, 0.0]])
    y = torch.tensor([0])
    _, *terms = method().terms(torch.stack([*wrong]), y)
    assert [float(term) for term in terms] == [0.0, 0.0]
    _, *terms = method().terms(torch.stack([*wrong]), torch.tensor([1]))
    assert all(float(term) > 0 for term in terms)


def test_pairs_are_averaged_and_the_order_of_modalities_does_not_matter() -> None:
    parts, y = random_parts(3)
    known = torch.stack(method().terms(torch.stack(parts), y))
    for order in permutations(parts):
        torch.testing.assert_close(torch.stack(method().terms(torch.stack([*order]), y)), known)
    first, second, _ = parts
    twice = torch.stack(method().terms(torch.stack([first, second, second]), y)[1:])
    once = torch.stack(method().terms(torch.stack([first, second]), y)[1:])
    torch.testing.assert_close(twice, 2 / 3 * once)


def test_without_its_three_terms_it_is_joint_training() -> None:
    off: dict[str, Any] = {"unimodal_weight": 0, "similarity_weight": 0, "distillation_weight": 0}
    of, plain = case(MBSD, 3, 1, **off), case(Joint, 3, 1)
    batch = of.batch()
    got, expected = of.step(batch), plain.step(batch)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_cost_is_one_pass_forward_and_one_backward_a_step() -> None:
    counts = trainer(configured(MBSD), make_splits(3)).fit().run.counts
    assert counts.forwards == counts.backwards == counts.updates == 2 * 4  # 60 rows in fours of 16


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("unimodal_weight", -1),
        ("similarity_weight", -0.1),
        ("distillation_weight", "much"),
        ("distance", "features"),
    ],
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of mbsd"):
        configured(MBSD, {option: value})
