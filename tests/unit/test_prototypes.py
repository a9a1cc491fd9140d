"""Prototypes against a loop over classes."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmbench.nets.prototypes import Prototypes, log_posterior


def unit_rows(count: int, width: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, width, generator=random), dim=1)


def slow_update(
    rows: list[list[float]], seen: list[bool], v: Tensor, y: Tensor, momentum: float
) -> None:
    for c in range(len(rows)):
        members = [v[i].tolist() for i in range(len(y)) if int(y[i]) == c]
        if not members:
            continue
        mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
        if seen[c]:
            mean = [momentum * q + (1 - momentum) * a for q, a in zip(rows[c], mean, strict=True)]
        length = math.sqrt(sum(a * a for a in mean))
        rows[c] = [a / length for a in mean]
        seen[c] = True


@pytest.mark.parametrize("seed", range(4))
def test_updates_are_those_of_a_loop_over_classes(seed: int) -> None:
    prototypes = Prototypes(5, 4, 0.9)
    rows, seen = [[0.0] * 4 for _ in range(5)], [False] * 5
    random = torch.Generator().manual_seed(seed)
    for step in range(6):
        v = unit_rows(7, 4, 100 * seed + step)
        y = torch.randint(4, (7,), generator=random)  # class 4 never comes
        prototypes.update(v, y)
        slow_update(rows, seen, v, y, 0.9)
        torch.testing.assert_close(prototypes.rows, torch.tensor(rows), rtol=1e-5, atol=1e-6)
        assert prototypes.seen.tolist() == seen
        lengths = prototypes.rows.norm(dim=1)
        torch.testing.assert_close(lengths, prototypes.seen.float(), rtol=0, atol=1e-6)
    assert not prototypes.seen[4]


def test_an_absent_class_keeps_its_row_to_the_bit() -> None:
    prototypes = Prototypes(3, 4, 0.5)
    prototypes.update(unit_rows(6, 4, 0), torch.tensor([0, 1, 2, 0, 1, 2]))
    before = prototypes.rows.clone()
    prototypes.update(unit_rows(4, 4, 1), torch.tensor([0, 0, 2, 2]))
    assert torch.equal(prototypes.rows[1], before[1])
    assert not torch.equal(prototypes.rows[0], before[0])


def test_the_first_appearance_is_the_normalised_mean_whatever_the_momentum() -> None:
    v = unit_rows(3, 4, 2)
    for momentum in (0.0, 0.5, 0.99):
        prototypes = Prototypes(2, 4, momentum)
        prototypes.update(v, torch.tensor([1, 1, 1]))
        expected = functional.normalize(v.mean(dim=0), dim=0)
        torch.testing.assert_close(prototypes.rows[1], expected)
        assert not prototypes.rows[0].any()


def test_no_gradient_flows_into_the_rows() -> None:
    prototypes = Prototypes(2, 4, 0.9)
    v = unit_rows(4, 4, 3).requires_grad_()
    prototypes.update(v, torch.tensor([0, 1, 0, 1]))
    assert not prototypes.rows.requires_grad


def test_posterior_is_a_softmax_over_the_classes_seen() -> None:
    rows, v = unit_rows(4, 3, 4).double(), unit_rows(5, 3, 5).double()
    seen = torch.tensor([True, False, True, True])
    posterior = log_posterior(v, rows, seen, 0.2).exp()
    for i in range(5):
        terms = [math.exp(float(v[i] @ rows[c]) / 0.2) if seen[c] else 0.0 for c in range(4)]
        for c in range(4):
            assert float(posterior[i, c]) == pytest.approx(terms[c] / sum(terms), rel=1e-12)


def test_before_any_class_was_seen_the_posterior_and_its_gradient_are_finite() -> None:
    v = unit_rows(3, 4, 6).requires_grad_()
    posterior = log_posterior(v, torch.zeros(5, 4), torch.zeros(5, dtype=torch.bool), 0.1)
    posterior.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(posterior.exp(), torch.full((3, 5), 0.2))
    assert v.grad is not None
    assert v.grad.isfinite().all()
