"""The controls: majority, unimodal, ensemble, joint and multi-loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmbench.data.dataset import Modality, Rows, Source, Split, Splits
from mmbench.errors import RequestError
from mmbench.evaluate.readout import read_out
from mmbench.methods.ensemble import Ensemble
from mmbench.methods.iibalance import IIBalance
from mmbench.methods.joint import Joint
from mmbench.methods.majority import Majority
from mmbench.methods.multiloss import MultiLoss
from mmbench.methods.ogm_ge import OGMGE
from mmbench.methods.unimodal import Unimodal
from mmbench.testing.contract import CLASSES, EPOCHS, make_splits, make_trainer
from mmbench.train.method import Method
from mmbench.train.run import Counts
from tests.methods.support import batch_counts, begun, configured, trainer


def unimodal_logits(splits: Splits, count: int, m: str, select: str) -> tuple[Tensor, int | str]:
    made = make_trainer(Unimodal, count, "sum", {"modality": m}, select=select, splits=splits)
    fitted = made.fit()
    return read_out(fitted.run, fitted.method, splits.test).logits, fitted.selected[0]["epoch"]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("select", ["best-val", "last"])
def test_the_ensembles_models_are_the_unimodal_ones_bit_for_bit(count: int, select: str) -> None:
    splits = make_splits(count)
    fitted = make_trainer(Ensemble, count, "sum", select=select, splits=splits).fit()
    out = read_out(fitted.run, fitted.method, splits.test)
    chosen = {str(row["stage"]): row["epoch"] for row in fitted.selected}
    logits = {}
    for m in splits.modalities:
        logits[m], epoch = unimodal_logits(splits, count, m, select)
        assert torch.equal(out.parts[m], logits[m])
        assert torch.equal(out.own[m], logits[m])
        assert chosen[f"unimodal/{m}"] == epoch
    product = sum(z.double().log_softmax(dim=1) for z in logits.values())
    assert isinstance(product, Tensor)
    torch.testing.assert_close(out.logits.double(), product, rtol=1e-5, atol=1e-5)


def test_the_mean_ensemble_averages_probabilities() -> None:
    splits = make_splits(3)
    fitted = make_trainer(Ensemble, 3, "sum", {"combine": "mean"}, splits=splits).fit()
    out = read_out(fitted.run, fitted.method, splits.test)
    mean = torch.stack([z.double().softmax(dim=1) for z in out.parts.values()]).mean(dim=0)
    torch.testing.assert_close(out.logits.double().softmax(dim=1), mean, rtol=1e-5, atol=1e-6)


def test_majority_predicts_add_one_class_frequencies() -> None:
    splits = make_splits(2)
    splits.train.y = torch.tensor([0] * 40 + [1] * 20 + [2] * 0)
    fitted = trainer(configured(Majority), splits, fusion="concat").fit()
    out = read_out(fitted.run, fitted.method, splits.test)
    expected = torch.tensor([41 / 63, 21 / 63, 1 / 63]).expand(len(splits.test), 3)
    torch.testing.assert_close(out.logits.softmax(dim=1), expected)
    torch.testing.assert_close(out.logits.exp().sum(dim=1), torch.ones(len(splits.test)))
    labels = splits.test.y.tolist()
    loss = -sum(math.log([41 / 63, 21 / 63, 1 / 63][c]) for c in labels) / len(labels)
    assert out.nll() == pytest.approx(loss, rel=1e-6)


def gradients_of(method: Method, run: Any, loss: Tensor) -> dict[str, Tensor]:
    named = dict(run.network.named_parameters()) | dict(method.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros(()) if g is None else g for n, g in zip(named, found, strict=True)}


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("fusion", ["concat", "film"])
def test_multiloss_gradients_are_the_sum_of_those_of_its_terms(weight: float, fusion: str) -> None:
    made = begun(MultiLoss, make_splits(3), fusion, {"weight": weight})
    run, method = made.run, made.method
    batch = run.train.batch(torch.arange(20), run.modalities)
    out = run.net(batch)
    total = gradients_of(method, run, method.loss(run, out, batch))
    terms = [gradients_of(method, run, functional.cross_entropy(out.logits, batch.y))]
    for own in method.own_logits(run, out).values():
        terms.append(gradients_of(method, run, weight * functional.cross_entropy(own, batch.y)))
    assert len(terms) == 4
    for name, gradient in total.items():
        expected = sum(term[name] for term in terms)
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_an_own_head_touches_its_own_encoder_only() -> None:
    made = begun(MultiLoss, make_splits(2), "concat", {})
    run, method = made.run, made.method
    batch = run.train.batch(torch.arange(20), run.modalities)
    own = method.own_logits(run, run.net(batch))
    found = gradients_of(method, run, functional.cross_entropy(own["view1"], batch.y))
    touched = {name for name, gradient in found.items() if gradient.any()}
    assert all("view1" in name for name in touched)
    assert any(name.startswith("encoders.view1") for name in touched)


def test_unimodal_names_an_unknown_modality_and_near_ones() -> None:
    options = Unimodal.Config(modality="view9")
    with pytest.raises(RequestError, match=r"unknown modality 'view9'.*view1") as caught:
        Unimodal.variants(options, ("view1", "view2"))
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="-o modality=NAME"):
        Unimodal(Unimodal.Config()).modalities(("view1", "view2"))


def test_unimodal_without_a_modality_runs_each_in_turn() -> None:
    variants = Unimodal.variants(Unimodal.Config(), ("a", "b", "c"))
    assert [v.model_dump() for v in variants] == [{"modality": m} for m in "abc"]


# -- what training costs ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rows", [60, 65])  # 65 = 4 * 16 + 1: the last row joins a batch
def test_counts_follow_from_epochs_and_batches(count: int, rows: int) -> None:
    splits = make_splits(count, rows)
    steps = EPOCHS * batch_counts(rows, 16)
    expected = {
        Majority: Counts(0, 0, 0, 0),
        Unimodal: Counts(steps, steps, steps, steps),
        Ensemble: Counts(*[count * steps] * 4),
        Joint: Counts(steps, count * steps, steps, steps),
        MultiLoss: Counts(steps, count * steps, steps, steps),
        OGMGE: Counts(steps, count * steps, steps, steps),
    }
    for kind, counts in expected.items():
        fusion = kind.info.default_fusion
        fitted = make_trainer(kind, count, fusion, splits=splits).fit()
        assert fitted.run.counts == counts, kind


@pytest.mark.parametrize("count", [2, 3])
def test_counts_of_iibalance_include_budgets_and_cross_fitting(count: int) -> None:
    """60 rows in 5 folds of 12: predictors see 36 rows, cross-fitted networks 48."""
    splits = make_splits(count)
    fitted = make_trainer(IIBalance, count, "sum", splits=splits).fit()
    predictors = 5 * count
    budget = predictors * EPOCHS * batch_counts(36, 16)
    crossfit = 5 * EPOCHS * batch_counts(48, 16)
    main = EPOCHS * batch_counts(60, 16)
    looks = predictors * 2, 5  # at calibration and measured rows; at held-out rows
    updates = budget + crossfit + main
    assert fitted.run.counts == Counts(
        forwards=updates + sum(looks),
        encoder_forwards=budget + looks[0] + count * (crossfit + main + looks[1]),
        backwards=updates,
        updates=updates,
    )


def test_classes_and_rows_of_the_contract_data_are_as_assumed() -> None:
    splits = make_splits(2)
    assert (len(splits.train), CLASSES, EPOCHS) == (60, 3, 2)


# -- encoders with dropout -------------------------------------------------------------------------


def sequence_splits() -> Splits:
    random = np.random.default_rng(0)
    y = np.arange(40) % 3

    def split(name: str) -> Split:
        inputs: dict[str, Source] = {
            m: Rows(random.normal(size=(40, 4, 3)) + y[:, None, None]) for m in ("one", "two")
        }
        return Split(inputs, torch.as_tensor(y), np.array([f"{name}{i}" for i in range(40)]))

    specs = {m: Modality("sequence", (4, 3)) for m in ("one", "two")}
    return Splits(split("train"), split("val"), split("test"), specs, tuple("abc"))


def test_the_ensemble_has_the_unimodal_models_also_where_encoders_have_dropout() -> None:
    splits = sequence_splits()
    ensemble = trainer(configured(Ensemble), splits, encoder="transformer").fit()
    parts = read_out(ensemble.run, ensemble.method, splits.test).parts
    for m in splits.modalities:
        alone = trainer(configured(Unimodal, {"modality": m}), splits, encoder="transformer").fit()
        logits = read_out(alone.run, alone.method, splits.test).logits
        assert torch.equal(parts[m], logits), m
