"""IIBalance (mmbench reconstruction): its loss against slow loops, its invariants, its switches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.data.dataset import Batch, Rows, Splits
from mmbench.errors import RequestError
from mmbench.methods.iibalance import (
    AlignOptions,
    BudgetOptions,
    IIBalance,
    RelativeAlignment,
    make_plan,
)
from mmbench.methods.unimodal import Unimodal
from mmbench.nets.network import Output
from mmbench.options import flat
from mmbench.testing.contract import CLASSES, make_splits
from mmbench.train.budgets import Budgets
from mmbench.train.method import Stage
from mmbench.train.run import Run
from mmbench.train.trainer import Fitted
from tests.methods.support import (
    begun,
    configured,
    logits_of_test,
    reordered,
    splits_of,
    synthetic,
    trainer,
)

GIVEN = {2: [0.5, 0.8], 3: [0.3, 0.8, 0.55]}
"""Budgets whose best modality is not the first."""


# -- the loss of stage 1 against loops over samples and classes ------------------------------------


@dataclass
class Case:
    """A batch in double precision with random weights, prototypes and features."""

    run: Run
    method: IIBalance
    features: dict[str, Tensor]
    batch: Batch

    @property
    def alignment(self) -> RelativeAlignment:
        assert self.method.alignment is not None
        return self.method.alignment

    def prototypes(self, m: str) -> tuple[Tensor, Tensor]:
        one = self.alignment.prototypes[m]
        return one.get_buffer("rows"), one.get_buffer("seen")

    def output(self) -> Output:
        fusion = self.run.network.fusion
        assert fusion is not None
        return Output(fusion(self.features), self.features, fusion)


def random_case(
    count: int, seed: int, fusion: str, options: dict[str, Any], epoch: int = 2, rows: int = 7
) -> Case:
    chosen = {
        "budget": {"estimator": "given", "given": GIVEN[count]},
        "gate": {"enabled": False},
    } | options
    chosen["align"] = {"width": 5, "temperature": 0.4, **options.get("align", {})}
    made = begun(IIBalance, make_splits(count), fusion, chosen)
    run, method = made.run, made.method
    assert isinstance(method, IIBalance)
    assert method.alignment is not None
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    method.double().train()
    run.network.double().train()
    with torch.no_grad():
        for parameter in [*method.parameters(), *run.network.parameters()]:
            parameter.copy_(0.3 * normal(*parameter.shape))
        method.alignment.own_losses.copy_(0.4 + 0.5 * normal(count).abs())
        for i, m in enumerate(run.modalities):
            one = method.alignment.prototypes[m]
            one.get_buffer("rows").copy_(functional.normalize(normal(CLASSES, 5), dim=1))
            # A class that no modality has seen, and one that only some have.
            one.get_buffer("seen").copy_(torch.tensor([True, False, True]))
            if seed % 2 and i != 1:
                one.get_buffer("seen")[2] = False
            elif seed % 2 == 0:
                one.get_buffer("seen")[1] = True
    features = {m: normal(rows, w).requires_grad_() for m, w in run.network.widths.items()}
    y = torch.randint(CLASSES, (rows,), generator=random)
    y[:CLASSES] = torch.arange(CLASSES)
    run.stage, run.epoch = Stage("train", 10), epoch
    return Case(run, method, features, Batch({}, y, torch.arange(rows)))


def slow_loss(case: Case) -> Tensor:
    """The equations of the method, sample by sample and class by class."""
    run, options = case.run, case.method.config
    names, rows = list(run.modalities), range(len(case.batch))
    classes, y = range(CLASSES), [int(c) for c in case.batch.y]
    budgets = dict(zip(names, options.budget.given, strict=True))
    anchor = max(names, key=lambda m: budgets[m])
    rho = {m: budgets[m] / budgets[anchor] for m in names}
    total_weight = sum(math.exp(b / options.budget.temperature) for b in budgets.values())
    prior = {m: math.exp(b / options.budget.temperature) / total_weight for m, b in budgets.items()}

    def nll(logits: list[Tensor], label: int) -> Tensor:
        return torch.log(sum_of(torch.exp(z) for z in logits)) - logits[label]

    def read(head: nn.Module, h: Tensor) -> list[Tensor]:
        assert isinstance(head, nn.Linear)
        return [(head.weight[c] * h).sum() + head.bias[c] for c in classes]

    fusion = run.network.fusion
    assert fusion is not None
    sums = run.spec.fusion == "sum"
    heads: Any = fusion.heads if sums else case.method.heads
    own = {m: [read(heads[m], case.features[m][i]) for i in rows] for m in names}
    loss = torch.zeros((), dtype=torch.float64)
    for i in rows:
        if sums:
            fused = [sum_of(len(names) * prior[m] * own[m][i][c] for m in names) for c in classes]
        else:
            head: Any = fusion.head
            fused = read(head, torch.cat([case.features[m][i] for m in names]))
        loss = loss + nll(fused, y[i]) / len(rows)
        for m in names:
            loss = loss + options.unimodal_weight * nll(own[m][i], y[i]) / len(rows)

    v = {m: slow_projection(case, m) for m in names}
    own_rows, own_seen = zip(*(case.prototypes(m) for m in names), strict=True)
    shown = dict(zip(names, own_rows, strict=True))
    seen = {m: [bool(flag) for flag in flags] for m, flags in zip(names, own_seen, strict=True)}

    def probability(x: Tensor, targets: list[Tensor], known: list[bool]) -> list[Tensor]:
        scale = options.align.temperature
        terms = [
            torch.exp((x * targets[c]).sum() / scale) if known[c] else torch.zeros(()).double()
            for c in classes
        ]
        return [term / sum_of(terms) for term in terms]

    c_anchor: list[float] = []
    for i in rows:
        likely = probability(v[anchor][i], list(shown[anchor]), seen[anchor])[y[i]]
        c_anchor.append(float(likely.detach()))
        if seen[anchor][y[i]]:
            loss = loss - options.align.prototype_weight * torch.log(likely) / len(rows)
    warm, full = 0.05 * run.stage.epochs, 0.3 * run.stage.epochs
    rise = min(max((run.epoch - warm) / (full - warm), 0.0), 1.0)
    if options.align.schedule == "constant":
        rise = 1.0
    for m in names:
        if m == anchor:
            continue
        targets, known = list(shown[anchor]), seen[anchor]
        if options.align.target == "interp":
            mixed = [rho[m] * a + (1 - rho[m]) * b for a, b in zip(targets, shown[m], strict=True)]
            targets = [q / torch.sqrt((q * q).sum()) for q in mixed]
            known = [a and b for a, b in zip(known, seen[m], strict=True)]
        likely_m = [probability(v[m][i], targets, known)[y[i]] for i in rows]
        for i in rows:
            if not (known[y[i]] and seen[anchor][y[i]] and c_anchor[i] >= 1 / CLASSES):
                continue
            match options.align.gate:
                case "sample":
                    level = float(likely_m[i].detach()) / (c_anchor[i] + 1e-8)
                case "batch":
                    mean = float(sum_of(likely_m).detach()) / len(rows)
                    level = mean / (sum(c_anchor) / len(rows) + 1e-8)
                case "info":
                    losses = dict(zip(names, map(float, case.alignment.own_losses), strict=True))
                    gained = {k: max(1 - loss / math.log(CLASSES), 0) for k, loss in losses.items()}
                    level = gained[m] / (gained[anchor] + 1e-8)
                case _:
                    level = -math.inf
            drift = 1.0 if level == -math.inf else max(rho[m] - level, 0.0) / rho[m]
            if options.align.level == "prototype":
                pull = -torch.log(likely_m[i])
            else:
                alike = [(v[m][i] * v[anchor][j].detach()).sum() for j in rows]
                scale = options.align.temperature
                pull = torch.log(sum_of(torch.exp(s / scale) for s in alike)) - alike[i] / scale
            omega = {"ratio": rho[m], "gap": 1 - rho[m], "none": 1.0}[options.align.gap_weight]
            weight = options.align.strength * rise * omega * drift
            loss = loss + weight * pull / len(rows)
    return loss


def slow_projection(case: Case, m: str) -> list[Tensor]:
    """Linear, batch norm, ReLU, linear, unit length."""
    modules: Any = case.alignment.projections[m]
    first, norm, _, last = modules
    hidden = [first.weight @ h + first.bias for h in case.features[m]]
    mean = sum_of(hidden) / len(hidden)
    variance = sum_of((h - mean) ** 2 for h in hidden) / len(hidden)
    rows = []
    for h in hidden:
        scaled = (h - mean) / torch.sqrt(variance + 1e-5) * norm.weight + norm.bias
        out = last.weight @ torch.clamp(scaled, min=0) + last.bias
        rows.append(out / torch.sqrt((out * out).sum()))
    return rows


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    first, *rest = terms
    for term in rest:
        first = first + term
    return first


def assert_equal_with_gradients(case: Case) -> None:
    parameters = [*case.method.parameters(), *case.run.network.parameters()]
    tensors = [t for t in [*parameters, *case.features.values()] if t.requires_grad]
    ours = case.method.loss(case.run, case.output(), case.batch)
    gradients = torch.autograd.grad(ours, tensors, allow_unused=True)
    expected = slow_loss(case)
    references = torch.autograd.grad(expected, tensors, allow_unused=True)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-12)
    # A parameter that the loss does not reach has no gradient, and counts as zero.
    zeros = [torch.zeros_like(t) for t in tensors]
    for got, wanted, zero in zip(gradients, references, zeros, strict=True):
        pair: list[Any] = [zero if g is None else g for g in (got, wanted)]
        torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("gate", ["sample", "batch", "info", "off"])
def test_loss_and_gradients_are_those_of_the_equations(gate: str, count: int) -> None:
    modes = product(["ratio", "gap", "none"], ["anchor", "interp"], ["prototype", "instance"])
    for seed, (gap_weight, target, level) in enumerate(modes):
        align = {"gate": gate, "gap_weight": gap_weight, "target": target, "level": level}
        assert_equal_with_gradients(random_case(count, seed, "sum", {"align": align}))


@pytest.mark.parametrize("fusion", ["sum", "concat"])
@pytest.mark.parametrize("epoch", [0, 1, 2, 9])
def test_loss_follows_its_weights_and_schedule(fusion: str, epoch: int) -> None:
    for seed, schedule in enumerate(["linear", "constant"]):
        options = {
            "align": {"schedule": schedule, "strength": 1.7, "prototype_weight": 0.4},
            "unimodal_weight": 0.6,
            "budget": {"estimator": "given", "given": GIVEN[2], "temperature": 0.5},
        }
        assert_equal_with_gradients(random_case(2, 3 + seed, fusion, options, epoch))


# -- invariants of alignment -----------------------------------------------------------------------


def test_what_is_at_its_potential_is_left_alone_and_only_the_rest_is_pulled() -> None:
    pulled = spared = 0
    for seed in range(6):
        case = random_case(3, seed, "sum", {"align": {"prototype_weight": 0.0}}, rows=40)
        plan, alignment = case.method.plan, case.alignment
        random = torch.Generator().manual_seed(seed)
        v = {
            m: functional.normalize(
                torch.randn(40, 5, generator=random, dtype=torch.float64), dim=1
            ).requires_grad_()
            for m in case.run.modalities
        }
        alignment(case.run, plan, 1.0, v, case.batch.y).backward()
        rows, seen = case.prototypes(plan.anchor)

        def true_class(x: Tensor) -> Tensor:
            terms = torch.exp(x @ rows.T / 0.4) * seen  # noqa: B023
            return (terms / terms.sum(dim=1, keepdim=True))[torch.arange(40), case.batch.y]  # noqa: B023

        c_anchor = true_class(v[plan.anchor])
        for m in plan.aligned:
            below = true_class(v[m]) < plan.ratio[m] * c_anchor
            teachable = (c_anchor >= 1 / CLASSES) & seen[case.batch.y]
            gradient = v[m].grad
            assert gradient is not None
            assert torch.equal(gradient.abs().sum(dim=1) > 0, below & teachable)
            pulled += int((below & teachable).sum())
            spared += int((~below).sum())
    assert pulled > 50
    assert spared > 50


@pytest.mark.parametrize("level", ["prototype", "instance"])
@pytest.mark.parametrize("target", ["anchor", "interp"])
def test_alignment_leaves_the_anchor_alone(level: str, target: str) -> None:
    for gate in ["sample", "batch", "info", "off"]:
        align = {"level": level, "target": target, "gate": gate, "prototype_weight": 0.0}
        made = begun(
            IIBalance,
            make_splits(3),
            "sum",
            {"budget": {"estimator": "given", "given": [0.77, 0.8, 0.79]}, "align": align},
        )
        run, method = made.run, made.method
        assert isinstance(method, IIBalance)
        assert method.alignment is not None
        batch = run.train.batch(torch.arange(30), run.modalities)
        out = run.net(batch)
        v = method.alignment.project(out)
        for m in run.modalities:  # prototypes that fit the anchor, and no other modality
            one, seen = method.alignment.prototypes[m].buffers()
            seen.fill_(True)
            rows = torch.randn(one.shape, generator=torch.Generator().manual_seed(0))
            if m == method.plan.anchor:
                rows = torch.stack([v[m].detach()[batch.y == c].mean(dim=0) for c in range(3)])
            one.copy_(functional.normalize(rows, dim=1))
        loss = method.alignment(run, method.plan, 1.0, v, batch.y)
        loss.backward()
        for m in run.modalities:
            parameters = [
                *run.encoder_params(m),
                *method.alignment.projections[m].parameters(),
            ]
            gradients = [p.grad for p in parameters]
            if m == method.plan.anchor:
                assert all(g is None or not g.any() for g in gradients)
            else:
                assert any(g is not None and g.any() for g in gradients), (m, gate)


def test_equal_budgets_give_a_uniform_prior_and_no_alignment() -> None:
    for count in (2, 3, 5):
        budgets = Budgets.certain(tuple("abcde"[:count]), [0.4] * count, 1.0)
        for prior in ("softmax", "power", "uniform"):
            plan = make_plan(budgets, BudgetOptions(prior=prior), AlignOptions(), 0)
            assert list(plan.prior.values()) == [1 / count] * count
            assert plan.aligned == ()


def test_prior_is_a_distribution_in_the_order_of_the_budgets() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        count = int(random.integers(2, 6))
        values = random.uniform(0, 1, count)
        budgets = Budgets.certain(tuple("abcde"[:count]), list(values), 1.0)
        for prior in ("softmax", "power"):
            plan = make_plan(budgets, BudgetOptions(prior=prior), AlignOptions(), 0)
            weights = np.array(list(plan.prior.values()))
            assert weights.sum() == pytest.approx(1)
            assert np.array_equal(np.argsort(weights), np.argsort(values))
            assert plan.anchor == "abcde"[int(values.argmax())]
            assert plan.anchor not in plan.aligned
            assert all(0 <= ratio <= 1 for ratio in plan.ratio.values())


def test_negligible_budgets_change_nothing() -> None:
    budgets = Budgets.certain(("a", "b"), [0.019, 0.0], 1.0)
    plan = make_plan(budgets, BudgetOptions(), AlignOptions(), 0)
    assert plan.prior == {"a": 0.5, "b": 0.5}
    assert plan.aligned == ()


# -- invariants of the fused prediction ------------------------------------------------------------


def test_with_a_uniform_prior_and_no_gate_the_logits_are_the_sum_of_the_parts() -> None:
    for count in (2, 3):
        splits = make_splits(count)
        options = {"budget": {"estimator": "uniform"}, "gate": {"enabled": False}}
        fitted = trainer(configured(IIBalance, options), splits).fit()
        batch = splits.test.batch(torch.arange(len(splits.test)), fitted.run.modalities)
        fusion = fitted.run.network.fusion
        assert fusion is not None
        with torch.no_grad():
            parts = fusion.parts(fitted.run.network.encode(batch.inputs))
        torch.testing.assert_close(logits_of_test(fitted, splits), sum_of(parts.values()))


@pytest.mark.parametrize("fusion", ["sum", "concat", "attention", "film", "gated"])
def test_a_gate_at_its_start_is_the_static_fusion(fusion: str) -> None:
    budget = {"estimator": "given", "given": GIVEN[2]}
    predictions = []
    for fitted_gate in (False, True):
        made = begun(IIBalance, make_splits(2), fusion, {"budget": budget})
        run, method = made.run, made.method
        assert isinstance(method, IIBalance)
        method.eval()
        method.gate_is_fitted = fitted_gate
        batch = run.train.batch(torch.arange(60), run.modalities)
        with torch.no_grad():
            predictions.append(method.predict(run, run.net(batch)))
    torch.testing.assert_close(*predictions)


@pytest.mark.parametrize("count", [2, 3])
def test_modalities_in_another_order_give_the_same_predictions(count: int) -> None:
    """Encoders, heads and projections start from weights keyed by the modality's name, and folds
    and batches from the seed alone, so nothing but the rounding of sums depends on the order."""
    splits = make_splits(count)
    names = list(splits.modalities)
    results = []
    for order in (names, names[::-1]):
        arranged = reordered(splits, order)
        fitted = trainer(configured(IIBalance, {"budget": {"folds": 3}}), arranged).fit()
        method = fitted.method
        assert isinstance(method, IIBalance)
        results.append((method, logits_of_test(fitted, arranged)))
    (one, logits), (other, swapped) = results
    assert one.plan.anchor == other.plan.anchor
    for m in names:
        assert one.plan.prior[m] == pytest.approx(other.plan.prior[m], abs=1e-5)
    torch.testing.assert_close(logits, swapped, rtol=1e-3, atol=1e-3)


# -- budgets on data whose information is known ----------------------------------------------------

BUDGETS_ONLY = {"align": {"enabled": False}, "gate": {"enabled": False}}


def estimated(splits: Splits, seed: int = 0, epochs: int = 15, **budget: Any) -> Budgets:
    options = BUDGETS_ONLY | {
        "budget": ({"folds": 3} if budget.get("estimator") != "uniform" else {}) | budget
    }
    made = trainer(
        configured(IIBalance, options), splits, seed=seed, epochs=epochs, batch_size=64, lr=0.05
    )
    fitted = made.fit()
    assert isinstance(fitted.method, IIBalance)
    return fitted.method.budgets


def plan_of(budgets: Budgets) -> dict[str, float]:
    return make_plan(budgets, BudgetOptions(), AlignOptions(), 0).prior


@pytest.mark.parametrize(
    ("accuracy", "difficulty"),
    [([0.9, 0.6], [1, 1]), ([0.6, 0.9], [0, 3]), ([0.65, 0.4, 0.9], [0, 0, 2])],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_budgets_rank_as_the_true_information(
    accuracy: list[float], difficulty: list[float], seed: int
) -> None:
    splits = synthetic(
        seed, modalities=len(accuracy), accuracy=accuracy, difficulty=difficulty, train=400
    )
    budgets = estimated(splits, seed)
    truth = [splits.truth[f"information.{m}"] for m in budgets.modalities]
    assert np.array_equal(np.argsort(budgets.values), np.argsort(truth))
    # A predictor extracts at most what is there; 3 standard errors of the mean of 400 rows.
    for gained, interval, known in zip(budgets.information, budgets.intervals, truth, strict=True):
        slack = 1.5 * (interval[1] - interval[0]) * budgets.entropy
        assert gained <= known + slack
    assert budgets.tied == (budgets.modalities[int(np.argmax(truth))],)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_better_modality_of_these_data_is_the_slower_to_learn(seed: int) -> None:
    """The premise of the ranking test: after one epoch the better modality has reached a smaller
    share of the accuracy that it ends with."""
    splits = synthetic(seed, accuracy=[0.6, 0.9], difficulty=[0, 3], train=400, test=1000)
    reached = {}
    for m in splits.modalities:
        gained = []
        for epochs in (1, 15):
            method = configured(Unimodal, {"modality": m})
            made = trainer(method, splits, seed=seed, epochs=epochs, batch_size=64, lr=0.05)
            logits = logits_of_test(made.fit(), splits)
            gained.append(float((logits.argmax(dim=1) == splits.test.y).double().mean()) - 0.25)
        reached[m] = gained[0] / gained[1]
    assert reached["x2"] < 0.95 * reached["x1"]


def test_pure_noise_gets_the_smallest_prior_and_an_interval_that_covers_zero() -> None:
    for seed in (0, 1):
        splits = synthetic(seed, modalities=3, accuracy=[0.25, 0.9, 0.65], train=400)
        budgets = estimated(splits, seed, epochs=8)
        assert budgets.intervals[0][0] == 0
        assert budgets.values[0] < 0.02
        prior = plan_of(budgets)
        assert min(prior, key=lambda m: prior[m]) == "x1"


def test_random_labels_leave_no_budget() -> None:
    random = np.random.default_rng(3)
    inputs = {m: random.normal(size=(300, 6)) for m in ("a", "b")}
    splits = splits_of(inputs, random.integers(3, size=300), 3)
    for estimator in ("vinfo", "acc", "linear"):
        budgets = estimated(splits, epochs=6, estimator=estimator)
        # An accuracy over 300 rows has a standard error of .027, .04 of the way from chance to 1.
        assert max(budgets.values) < (0.12 if estimator == "acc" else 0.02)
        assert all(low == 0 for low, _ in budgets.intervals)
        if estimator != "acc":
            assert budgets.are_negligible
            assert plan_of(budgets) == {"a": 0.5, "b": 0.5}


def test_a_duplicated_modality_ties() -> None:
    splits = synthetic(0, modalities=2, accuracy=[0.9, 0.5], train=300)
    for part in (splits.train, splits.val, splits.test):
        assert isinstance(part.inputs, dict)
        part.inputs["copy"] = part.inputs["x1"]
    assert isinstance(splits.modalities, dict)
    splits.modalities["copy"] = splits.modalities["x1"]
    budgets = estimated(splits, epochs=10)
    assert set(budgets.tied) == {"x1", "copy"}
    plan = make_plan(budgets, BudgetOptions(), AlignOptions(), 0)
    assert plan.aligned == ("x2",)
    assert plan.prior["x1"] == pytest.approx(plan.prior["copy"], rel=0.1)


def test_rows_that_were_fitted_promise_more_than_rows_that_were_not() -> None:
    splits = synthetic(0, accuracy=[0.8, 0.5], train=200)
    held_out = estimated(splits, epochs=25)
    in_sample = estimated(splits, epochs=25, estimator="in_sample")
    for inside, outside in zip(in_sample.values, held_out.values, strict=True):
        assert inside > outside + 0.2


def test_shapley_budgets_divide_what_all_modalities_tell_together() -> None:
    splits = synthetic(0, modalities=3, accuracy=[0.8, 0.6, 0.25], train=300)
    options = BUDGETS_ONLY | {"budget": {"folds": 3, "estimator": "shapley_vinfo"}}
    made = trainer(configured(IIBalance, options), splits, epochs=8, batch_size=64, lr=0.05)
    method = made.fit().method
    assert isinstance(method, IIBalance)
    assert method.estimator is not None
    whole = method.estimator.subsets.index(("x1", "x2", "x3"))
    gained = method.estimator.baseline - method.estimator.losses[whole]
    assert sum(method.budgets.information) == pytest.approx(float(gained.mean()), abs=1e-9)
    assert np.argmax(method.budgets.values) == 0


# -- switches --------------------------------------------------------------------------------------

FAST = {"budget": {"estimator": "given", "given": [0.9, 0.2]}}
"""Defaults but for stage 0, which costs most. The budgets are wrong, so that a gate has a gain."""

SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    # name of spec -> (what differs: weights, predictions, or the budgets; options)
    "uniform prior": ("weights", {"budget.prior": "uniform"}),
    "power prior": ("weights", {"budget.prior": "power"}),
    "prior temperature": ("weights", {"budget.temperature": 0.25}),
    "no alignment": ("weights", {"align.enabled": False}),
    "alignment strength": ("weights", {"align.strength": 0.0}),
    "forced alignment": ("weights", {"align.gate": "off"}),
    "batch gate": ("weights", {"align.gate": "batch"}),
    "info gate": ("weights", {"align.gate": "info"}),
    "gap weight none": ("weights", {"align.gap_weight": "none"}),
    "gap weight gap": ("weights", {"align.gap_weight": "gap"}),
    "interpolated target": ("weights", {"align.target": "interp"}),
    "lowest anchor": ("weights", {"align.anchor": "lowest"}),
    "constant schedule": ("weights", {"align.schedule": "constant"}),
    "later start": ("weights", {"align.start": 0.25}),
    "slower rise": ("weights", {"align.full": 0.9}),
    "instances": ("weights", {"align.level": "instance"}),
    "prototype weight": ("weights", {"align.prototype_weight": 0.0}),
    "momentum": ("weights", {"align.momentum": 0.5}),
    "temperature": ("weights", {"align.temperature": 0.2}),
    "width": ("weights", {"align.width": 16}),
    "unimodal weight": ("weights", {"unimodal_weight": 0.3}),
    "no gate": ("predictions", {"gate.enabled": False}),
    "no uncertainty": ("predictions", {"gate.uncertainty": False}),
    "no prior at inference": ("predictions", {"gate.prior": False}),
    "closed form": ("predictions", {"gate.net": False}),
    "no temperature": ("predictions", {"gate.calibration": False}),
    "fitted on training rows": ("predictions", {"gate.fit_on": "train"}),
    "pull": ("predictions", {"gate.pull": 5.0}),
    "gate epochs": ("predictions", {"gate.epochs": 1}),
    "held-out rows": ("weights", {"gate.fit_on": "holdout"}),
}


def fitted_with(options: dict[str, Any], splits: Splits, epochs: int = 4) -> Fitted:
    nested: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in FAST.items()}
    for name, value in options.items():
        group, _, leaf = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[leaf] = value
    made = trainer(configured(IIBalance, nested), splits, epochs=epochs, batch_size=20, lr=0.03)
    return made.fit()


@pytest.fixture(scope="module")
def data() -> Splits:
    return synthetic(2, accuracy=[0.6, 0.85], difficulty=[0, 0], train=240)


@pytest.fixture(scope="module")
def default_run(data: Splits) -> Fitted:
    return fitted_with({}, data)


@pytest.fixture(scope="module")
def without_gate(data: Splits) -> Fitted:
    return fitted_with({"gate.enabled": False}, data)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_changes_what_it_should(
    switch: str, data: Splits, default_run: Fitted, without_gate: Fitted
) -> None:
    what, options = SWITCHES[switch]
    of_training = not any(name.startswith("gate.") for name in options)
    # The gate's cross-fitting takes most of the time, and is not what these switches are about.
    fitted = fitted_with({"gate.enabled": False} | options if of_training else options, data)
    default = without_gate if of_training else default_run
    ours, theirs = fitted.run.network.state_dict(), default.run.network.state_dict()
    same = all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert same == (what == "predictions"), "only switches of training change the weights"
    assert not torch.equal(logits_of_test(fitted, data), logits_of_test(default, data))


def test_every_option_is_tested_as_a_switch() -> None:
    apart = {  # covered by the tests of budgets above, of random anchors and of shares below
        "budget.estimator",
        "budget.given",
        "budget.folds",
        "budget.by",
        "budget.exponent",
        "gate.share",
    }
    switched = {name for _, options in SWITCHES.values() for name in options}
    assert switched | apart == set(flat(IIBalance.Config()))


def test_the_exponent_sharpens_a_power_prior() -> None:
    budgets = Budgets.certain(("a", "b"), [0.8, 0.4], 1.0)
    for exponent in (0.5, 2.0):
        options = BudgetOptions(prior="power", exponent=exponent)
        prior = make_plan(budgets, options, AlignOptions(), 0).prior
        assert prior["a"] / prior["b"] == pytest.approx((0.801 / 0.401) ** exponent)


def test_a_random_anchor_is_drawn_by_the_seed() -> None:
    budgets = Budgets.certain(tuple("abc"), [0.8, 0.4, 0.2], 1.0)
    options = AlignOptions(anchor="random")
    anchors = [make_plan(budgets, BudgetOptions(), options, seed).anchor for seed in range(60)]
    assert set(anchors) == set("abc")
    assert anchors == [
        make_plan(budgets, BudgetOptions(), options, seed).anchor for seed in range(60)
    ]


def test_the_lowest_anchor_is_the_modality_of_least_budget() -> None:
    budgets = Budgets.certain(tuple("abc"), [0.8, 0.2, 0.4], 1.0)
    plan = make_plan(budgets, BudgetOptions(), AlignOptions(anchor="lowest"), 0)
    assert plan.anchor == "b"
    assert plan.ratio == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert plan.aligned == ("a", "c")


def test_held_out_share_is_kept_from_training(data: Splits) -> None:
    for share, rows in ((0.1, 24), (0.25, 60)):
        fitted = fitted_with({"gate.fit_on": "holdout", "gate.share": share}, data, epochs=1)
        method = fitted.method
        assert isinstance(method, IIBalance)
        ((kept, held),) = method.gate_folds
        assert len(held) == rows
        assert set(kept) | set(held) == set(range(240))
        assert not set(kept) & set(held)


def test_strength_zero_trains_as_no_alignment_but_for_the_prototype_term(data: Splits) -> None:
    options: dict[str, Any] = {"gate.enabled": False}
    off = fitted_with(options | {"align.enabled": False}, data, epochs=2)
    options |= {"align.strength": 0.0, "align.prototype_weight": 0.0}
    zero = fitted_with(options, data, epochs=2)
    ours = zero.run.network.state_dict()
    for name, value in off.run.network.state_dict().items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(
    "estimator", ["vinfo", "acc", "linear", "shapley_vinfo", "in_sample", "shuffled", "uniform"]
)
def test_every_estimator_runs_and_orders_informative_before_noise(estimator: str) -> None:
    splits = synthetic(1, accuracy=[0.25, 0.9], difficulty=[0, 0], train=200)
    # In-sample estimates promise everything of everything once trained; few epochs keep an order.
    budgets = estimated(splits, epochs=6, estimator=estimator)
    noise, informative = budgets.values
    assert 0 <= noise <= 1
    assert 0 <= informative <= 1
    match estimator:
        case "uniform":
            assert noise == informative
        case "shuffled":
            assert noise > informative
        case _:
            assert noise < informative


def test_a_gate_is_fitted_to_rows_its_networks_have_not_seen(data: Splits) -> None:
    """Every fold's network is trained without the fold, and the folds cover all rows once."""
    fitted = fitted_with({"gate.fit_on": "crossfit"}, data, epochs=1)
    method = fitted.method
    assert isinstance(method, IIBalance)
    held_of_stage = dict(
        zip(
            [f"crossfit/{k + 1}" for k in range(len(method.gate_folds))],
            [set(held) for _, held in method.gate_folds],
            strict=True,
        )
    )
    stages = {stage.name: stage for stage in method.stages(fitted.run)}
    for name, held_out in held_of_stage.items():
        rows = stages[name].rows
        assert rows is not None
        assert not held_out & set(rows)
        assert held_out | set(rows) == set(range(len(data.train)))
    everyone = [row for rows_of_fold in held_of_stage.values() for row in rows_of_fold]
    assert sorted(everyone) == list(range(len(data.train)))
    for part, (_, held) in zip(method.held_out, method.gate_folds, strict=True):
        assert torch.equal(part.get_buffer("y"), data.train.y[torch.as_tensor(held)])


def test_budget_folds_never_measure_what_they_fitted_or_calibrated(data: Splits) -> None:
    for count in (1, 3, 5):
        made = begun(IIBalance, data, "sum", {"budget": {"folds": count}})
        method = made.method
        assert isinstance(method, IIBalance)
        assert method.estimator is not None
        measured: list[int] = []
        for fold in method.estimator.folds:
            parts = [set(fold.fit), set(fold.calibrate), set(fold.measure)]
            assert sum(map(len, parts)) == len(set().union(*parts)) == len(data.train)
            measured += fold.measure.tolist()
        assert len(measured) == len(set(measured))
        assert len(measured) == (24 if count == 1 else 240)


def test_gate_statistics_are_reported(default_run: Fitted) -> None:
    report = default_run.method.report(default_run.run)
    assert report["gate"]["a"] >= 0
    assert report["gate"]["beta"] >= 0
    assert 0.25 <= report["gate"]["temperature"] <= 8
    assert report["gate"]["gain_nats"] > 0
    assert report["gate"]["fitted_on"] == "crossfit"
    assert report["anchor"] == "x1"
    assert sum(report["prior"].values()) == pytest.approx(1)


# -- wrong requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": {"estimator": "given"}}, "belong together"),
        ({"budget": {"given": [0.1, 0.2]}}, "belong together"),
        ({"budget": {"estimator": "given", "given": [0.1, 1.2]}}, "between 0 and 1"),
        ({"budget": {"folds": 2}}, "at least 3"),
        ({"budget": {"folds": 0}}, "budget.folds"),
        ({"budget": {"estimator": "vinf"}}, "budget.estimator"),
        ({"budget": {"temperature": 0}}, "budget.temperature"),
        ({"align": {"gate": "open"}}, "align.gate"),
        ({"align": {"momentum": 1.0}}, "align.momentum"),
        ({"gate": {"share": 1.0}}, "gate.share"),
        ({"gate": {"fit_on": "test"}}, "gate.fit_on"),
        ({"alignment": {"gate": "off"}}, "alignment"),
        ({"unimodal_weight": -1}, "unimodal_weight"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(IIBalance, options)
    assert "\n" not in str(caught.value)


def test_budgets_of_another_number_of_modalities_are_refused() -> None:
    with pytest.raises(RequestError, match="3 budgets for 2 modalities"):
        begun(
            IIBalance,
            make_splits(2),
            "sum",
            {"budget": {"estimator": "given", "given": [0.1, 0.2, 0.3]}},
        )


def test_fewer_than_ten_groups_can_be_divided_once() -> None:
    splits = make_splits(2)
    splits.train.groups = np.array([f"speaker {i % 6}" for i in range(60)])
    made = begun(IIBalance, splits, "sum", {"budget": {"folds": 1}})
    assert isinstance(made.method, IIBalance)
    assert made.method.estimator is not None
    (fold,) = made.method.estimator.folds
    owners = [set(splits.train.groups[rows]) for rows in (fold.fit, fold.calibrate, fold.measure)]
    assert [len(names) for names in owners] == [4, 1, 1]
    assert len(set().union(*owners)) == 6


@pytest.mark.parametrize("folds", [1, 5])
def test_folds_by_row_divide_groups_and_are_those_of_rows_without_groups(folds: int) -> None:
    splits = make_splits(2)
    plain = begun(IIBalance, splits, "sum", {"budget": {"folds": folds}}).method
    splits.train.groups = np.array(["left", "right"])[np.arange(60) % 2]
    by_row = begun(IIBalance, splits, "sum", {"budget": {"folds": folds, "by": "row"}}).method
    assert isinstance(plain, IIBalance)
    assert isinstance(by_row, IIBalance)
    assert plain.estimator is not None
    assert by_row.estimator is not None
    for ours, theirs in zip(by_row.estimator.folds, plain.estimator.folds, strict=True):
        np.testing.assert_array_equal(ours.measure, theirs.measure)
        np.testing.assert_array_equal(ours.fit, theirs.fit)
        assert len(set(splits.train.groups[ours.measure])) == 2
    for (_, held), (_, expected) in zip(by_row.gate_folds, plain.gate_folds, strict=True):
        np.testing.assert_array_equal(held, expected)


@pytest.mark.parametrize("folds", [1, 5])
def test_two_groups_cannot_be_cross_fitted(folds: int) -> None:
    splits = make_splits(2)
    splits.train.groups = np.array(["left", "right"])[np.arange(60) % 2]
    with pytest.raises(RequestError, match="needs 3 groups") as caught:
        begun(IIBalance, splits, "sum", {"budget": {"folds": folds}})
    assert "\n" not in str(caught.value)


def test_folds_keep_groups_whole() -> None:
    splits = make_splits(2)
    splits.train.groups = np.array([f"speaker {i % 4}" for i in range(60)])
    made = begun(IIBalance, splits, "sum", {})
    method = made.method
    assert isinstance(method, IIBalance)
    assert method.estimator is not None
    assert len(method.gate_folds) == len(method.estimator.folds) == 4
    for kept, held in method.gate_folds:
        assert not set(splits.train.groups[kept]) & set(splits.train.groups[held])


def test_inputs_stay_as_they_were(data: Splits) -> None:
    """Rows are read, never written: the same splits serve every run."""
    sources = {m: data.train.inputs[m] for m in data.modalities}
    before = {m: s.tensor.clone() for m, s in sources.items() if isinstance(s, Rows)}
    fitted_with({}, data, epochs=1)
    for m, source in sources.items():
        assert isinstance(source, Rows)
        assert torch.equal(source.tensor, before[m])
