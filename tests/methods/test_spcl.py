"""SPCL: gradients against the equations written as loops, the pace, and what it promises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch, Splits
from mmbench.errors import RequestError
from mmbench.evaluate.readout import read_out
from mmbench.methods.joint import Joint
from mmbench.methods.spcl import SPCL
from mmbench.nets.network import Network
from mmbench.options import option
from mmbench.planning import check_support
from mmbench.testing import contract
from mmbench.testing.contract import make_splits
from tests.methods.double import (
    Case,
    assert_close,
    case,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import configured, trainer

DIALOGUES = [f"d{i}" for i in np.repeat(np.arange(12), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 3])]
"""Of the 60 training rows."""


def grouped_splits(count: int) -> Splits:
    splits = make_splits(count)
    splits.train.groups = np.array(DIALOGUES)
    return splits


@contextmanager
def with_dialogues(module: str) -> Iterator[None]:
    with patch(f"{module}.make_splits", grouped_splits):
        yield


def method_of(of: Case) -> SPCL:
    assert isinstance(of.method, SPCL)
    return of.method


# -- the equations as loops ----------------------------------------------------------------------

Memory = dict[int, list[float]]
"""By training row: the probability of its class under each modality."""


def slow_probabilities(network: Network, features: dict[str, Tensor], label: int) -> list[float]:
    """Return the true class's probability under each modality's part, for one sample."""
    fusion: Any = network.fusion
    names, begin, found = list(features), 0, []
    for m in names:
        h = features[m]
        if network.spec.fusion == "concat":
            weight = fusion.head.weight[:, begin : begin + len(h)]
            part = weight @ h + fusion.head.bias / len(names)
            begin += len(h)
        else:
            part = fusion.heads[m].weight @ h + fusion.heads[m].bias
            part = part / len(names) if network.spec.fusion == "late" else part
        terms = torch.exp(part)
        found.append(float((terms[label] / terms.sum()).detach()))
    return found


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def slow_disparity(of: Case, row: int, memory: Memory) -> float:
    options = of.method.config
    if options.group == "sample":
        return deviation(memory[row])
    of_dialogue = [r for r in range(60) if DIALOGUES[r] == DIALOGUES[row]]
    seen = [r for r in of_dialogue if r in memory]
    scores = []
    for k in range(len(memory[row])):
        score = sum(memory[r][k] for r in seen) / len(seen)
        scores.append(score * len(of_dialogue) if options.normalise == "sum" else score)
    return deviation(scores)


def slow_loss(
    of: Case, network: Network, batch: Batch, memory: Memory, threshold: float
) -> tuple[Tensor, list[float]]:
    """Return the loss and ``v``."""
    options = of.method.config
    features = encode_in_double(network, batch.inputs)
    assert network.fusion is not None
    logits = network.fusion(features)
    losses = []
    for i, label in enumerate(batch.y.tolist()):
        losses.append(torch.log(torch.exp(logits[i]).sum()) - logits[i][label])
        sample = {m: h[i] for m, h in features.items()}
        memory[int(batch.rows[i])] = slow_probabilities(network, sample, label)
    weights = []
    for i, row in enumerate(batch.rows.tolist()):
        loss, disparity = float(losses[i].detach()), slow_disparity(of, row, memory)
        rho = {
            "both": 2 * loss * disparity / (loss + disparity) if loss + disparity > 0 else 0.0,
            "loss": loss,
            "disparity": disparity,
        }[options.difficulty]
        weights.append(float(rho <= threshold))
        if options.mask == "soft":
            weights[-1] = max(0.0, 1 - rho / threshold)
    total = torch.zeros((), dtype=torch.float64)
    for weight, loss_of_row in zip(weights, losses, strict=True):
        total = total + weight * loss_of_row
    return total / (sum(weights) if options.reduce == "admitted" else len(losses)), weights


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "options"),
    [
        (0, "concat", {"start": 0.4}),
        (1, "sum", {"start": 0.25}),
        (2, "late", {"start": 0.1, "reduce": "all"}),
        (3, "concat", {"start": 1.1, "difficulty": "loss"}),
        (9, "sum", {"start": 0.25, "difficulty": "disparity"}),
        (5, "concat", {"start": 0.3, "mask": "soft"}),
        (6, "concat", {"start": 0.09, "group": "dialogue"}),
        (7, "sum", {"start": 0.7, "group": "dialogue", "normalise": "sum"}),
        (8, "concat", {"start": 0.3, "group": "dialogue", "mask": "soft", "reduce": "all"}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, fusion: str, options: dict[str, Any]
) -> None:
    with with_dialogues("tests.methods.double"):
        of = case(SPCL, count, seed, fusion, growth=1.5, **options)
    of.method.on_epoch_start(of.run)
    memory: Memory = {}
    seen: list[float] = []
    for _ in range(4):
        batch, network = of.batch(20), of.network()
        loss, weights = slow_loss(of, network, batch, memory, options["start"])
        expected = gradients_of(loss, named_parameters(network, of.method))
        got = of.step(batch)
        assert_close(got, expected)
        of.descend(got, rate=0.02)
        seen += weights
    assert 0 < sum(seen) < len(seen), "some are admitted and some are not"


def test_a_row_is_admitted_when_either_its_loss_or_its_disparity_is_small() -> None:
    of = case(SPCL, 2, 0, start=0.4, growth=1.0)
    method = method_of(of)
    disparities = {0.01: [0.5, 0.5 + 0.01 * 2**0.5], 0.6: [0.1, 0.1 + 0.6 * 2**0.5]}
    losses = torch.tensor([0.01, 0.01, 5.0, 5.0])
    truth = torch.tensor([disparities[s] for s in (0.01, 0.6, 0.01, 0.6)])
    found = method.difficulties(losses, truth, torch.arange(4))
    assert method.mask(of.run, found).tolist() == [1, 1, 1, 0]
    assert (found <= 2 * torch.minimum(losses, truth.std(dim=1)) + 1e-6).all()
    assert method.difficulties(torch.zeros(1), torch.zeros(1, 2), torch.arange(1)).tolist() == [0]


def test_the_random_control_admits_as_many_rows_and_others() -> None:
    random, hard = (
        case(SPCL, 2, 0, start=0.5, growth=1.0, mask=mask) for mask in ("random", "hard")
    )
    difficulties = torch.linspace(0, 1, 1000)
    of_random = method_of(random).mask(random.run, difficulties)
    of_hard = method_of(hard).mask(hard.run, difficulties)
    assert of_random.sum() == of_hard.sum() == 500
    # Of 500 admitted, a random half is expected among the 500 easiest; standard deviation 7.9.
    assert abs(int((of_random * of_hard).sum()) - 250) < 5 * 7.9


# -- the pace ------------------------------------------------------------------------------------


def thresholds(options: dict[str, Any], epochs: int) -> list[float]:
    fitted = trainer(configured(SPCL, options), make_splits(2), epochs=epochs).fit()
    return [float(row.get("threshold", math.inf)) for row in fitted.history]


def test_the_threshold_grows_every_epoch_up_to_its_ceiling() -> None:
    options = {"start": 0.3, "growth": 2.0, "ceiling": 2.0}
    assert thresholds(options, 5) == pytest.approx([0.3, 0.6, 1.2, 2.0, 2.0])
    later = {"start": 0.3, "growth": 1.0, "warmup_epochs": 2}
    assert thresholds(later, 4) == pytest.approx([math.inf, math.inf, 0.3, 0.3])


def test_start_and_pace_are_quantiles_of_the_difficulties_after_the_plain_epoch() -> None:
    splits = make_splits(3)
    plain = trainer(configured(Joint), splits, epochs=1).fit()
    read = read_out(plain.run, plain.method, splits.train)
    found = []
    for i, label in enumerate(read.y.tolist()):
        chances = [float(part[i].double().softmax(dim=0)[label]) for part in read.parts.values()]
        loss = -float(read.logits[i].double().log_softmax(dim=0)[label])
        found.append(2 / (1 / loss + 1 / deviation(chances)))
    options = {"quantile": 0.3, "reach": 0.5}
    fitted = trainer(configured(SPCL, options), splits, epochs=6).fit()
    report = fitted.method.report(fitted.run)
    assert report["start"] == pytest.approx(np.quantile(found, 0.3), rel=1e-4)
    # Plain until epoch 1 is over, and at the 99 % quantile at half of 6 epochs: two steps.
    last = report["start"] * report["growth"] ** 2
    assert last == pytest.approx(np.quantile(found, 0.99), rel=1e-4)
    assert fitted.history[0]["admitted"] == 1
    shares = [float(row["admitted"]) for row in fitted.history]
    assert shares[1] < 1


def test_a_calibrated_threshold_costs_one_forward_of_the_training_rows() -> None:
    splits = make_splits(2)
    given = trainer(configured(SPCL, {"start": 9.0, "growth": 1.0}), splits).fit().run.counts
    found = trainer(configured(SPCL), splits).fit().run.counts
    assert given.forwards == given.backwards == given.updates == 2 * 4  # 60 rows in fours of 16
    assert found.forwards == given.forwards + 1
    assert found.backwards == given.backwards


def test_threshold_and_pace_are_in_the_state_dict() -> None:
    fitted = trainer(configured(SPCL), make_splits(2), epochs=3).fit()
    other = trainer(configured(SPCL), make_splits(2), epochs=3)
    other.method.setup(other.run)
    other.method.load_state_dict(fitted.method.state_dict())
    assert other.method.report(other.run) == fitted.method.report(fitted.run)


@pytest.mark.parametrize("normalise", ["mean", "sum"])
def test_with_dialogues_a_run_resumes_exactly(normalise: str) -> None:
    class Dialogues(SPCL):
        class Config(SPCL.Config):
            group: str = option("dialogue", "")  # type: ignore[assignment]
            normalise: str = option("", "")  # type: ignore[assignment]

    Dialogues.Config.model_fields["normalise"].default = normalise
    Dialogues.Config.model_rebuild(force=True)
    with with_dialogues("mmbench.testing.contract"):
        contract.check_resumes(Dialogues, 3)
        contract.check_state_is_complete(Dialogues, 2)


# -- what is left out ----------------------------------------------------------------------------


@pytest.mark.parametrize(("reduction", "updates"), [("admitted", 0), ("all", 8)])
def test_nothing_is_updated_where_nothing_is_admitted(reduction: str, updates: int) -> None:
    options = {"start": 1e-9, "growth": 1.0, "reduce": reduction}
    made = trainer(configured(SPCL, options), make_splits(2))
    before = {name: p.clone() for name, p in made.main.state_dict().items()}
    fitted = made.fit()
    assert fitted.run.counts.updates == updates
    after = fitted.run.network.state_dict()
    # A step without a gradient decays the weights.
    assert all(torch.equal(after[name], p) for name, p in before.items()) == (updates == 0)
    assert [row["skipped"] for row in fitted.history] == [float(updates == 0)] * 2


def test_the_classes_of_what_is_admitted_are_logged() -> None:
    options = {"start": 0.05, "growth": 2.0}
    fitted = trainer(configured(SPCL, options), make_splits(2), batch_size=20).fit()
    for row in fitted.history:
        by_class = [float(row[f"admitted.class{c}"]) for c in range(contract.CLASSES)]
        assert sum(by_class) / 3 == pytest.approx(float(row["admitted"]), abs=1e-6)  # 20 rows each
    assert 0 < float(fitted.history[0]["admitted"]) < 1


def test_before_modalities_diverge_everything_is_admitted() -> None:
    of = case(SPCL, 2, 0, start=0.05, growth=1.0)
    with torch.no_grad():
        for p in of.run.network.parameters():
            p.mul_(1e-3)
    of.method.on_epoch_start(of.run)
    of.step(of.batch(30))
    assert of.run.take_logged()["admitted"] == 1


def test_epochs_that_are_all_plain_are_said_beside_the_results() -> None:
    fitted = trainer(configured(SPCL), make_splits(2), epochs=1).fit()
    assert [note for note in fitted.run.notes if "plain first epochs" in note]
    assert not trainer(configured(SPCL), make_splits(2), epochs=2).fit().run.notes


# -- bad requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0}, "option 'start' of spcl"),
        ({"growth": 0.9}, "option 'growth' of spcl"),
        ({"quantile": 0.99}, "option 'quantile' of spcl"),
        ({"mask": "none"}, "option 'mask' of spcl"),
        ({"normalise": "sum"}, "normalise is not used by group=sample"),
        ({"group": "dialogue", "difficulty": "loss"}, "group is not used by difficulty=loss"),
        ({"start": 0.5, "quantile": 0.2}, "quantile is not used beside a given start"),
        ({"growth": 1.5, "reach": 0.2}, "reach is not used beside a given growth"),
        ({"start": 61.0}, "start is not above ceiling"),
        ({"start": 0.5, "warmup_epochs": 0}, "warmup_epochs=0 needs a given start and growth"),
    ],
)
def test_an_option_out_of_range_or_without_use_is_named(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        configured(SPCL, options)


def test_dialogues_need_groups() -> None:
    made = trainer(configured(SPCL, {"group": "dialogue"}), make_splits(2))
    with pytest.raises(RequestError, match="names no groups: use -o group=sample"):
        made.fit()


def test_a_fusion_without_additive_logits_is_refused() -> None:
    with pytest.raises(RequestError, match="cannot use fusion 'film'"):
        check_support(SPCL, "film", 2)
