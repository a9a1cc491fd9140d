"""EBMC and its two parts: gradients against the equations written as loops, and their promises."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.ebmc import EBMC, contrast
from mmbench.methods.ebmc_emc import EBMCEnergy
from mmbench.methods.ebmc_imtd import EBMCTrust
from mmbench.nets.fusion import Sum
from mmbench.nets.network import Network
from mmbench.testing.contract import make_splits
from mmbench.train.energy import EnhanceThenBalance, energy_gap, trust, trusted_distillation
from mmbench.train.method import Method, Stage
from tests.methods.double import (
    Case,
    Gradients,
    assert_close,
    case,
    encode_in_double,
    gradients_of,
    named_parameters,
)
from tests.methods.support import configured, splits_of, trainer

SMALL: dict[str, Any] = {"width": 5}
CIRCLE = {"view1": "view3", "view2": "view1", "view3": "view2"}


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def log_softmax(logits: Tensor) -> Tensor:
    below = logits - logits.max().detach()
    return below - torch.log(torch.exp(below).sum())


def entropy(logits: Tensor) -> float:
    known: list[float] = log_softmax(logits).tolist()
    return -sum(math.exp(p) * p for p in known)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    lengths = (a**2).sum().sqrt() * (b**2).sum().sqrt()
    return (a * b).sum() / lengths


def affine(layer: Any, x: Tensor) -> Tensor:
    result: Tensor = layer.weight @ x + layer.bias
    return result


def layered(network: Any, x: Tensor) -> Tensor:
    """Linear, ReLU, linear, layer norm, of one sample."""
    y = affine(network[2], affine(network[0], x).clamp(min=0))
    centred = y - y.mean()
    normed = centred / ((centred**2).mean() + 1e-5).sqrt()
    result: Tensor = normed * network[3].weight + network[3].bias
    return result


def own_head(network: Network, heads: Any, m: str) -> Any:
    return network.fusion.heads[m] if isinstance(network.fusion, Sum) else heads[m]


class Slow:
    """The terms of a batch, sample by sample."""

    def __init__(self, of: Case, network: Network, batch: Batch) -> None:
        self.options: Any = of.method.config
        self.method: Any = of.method
        self.network = network
        self.names = list(of.run.modalities)
        self.pairs = [*combinations(self.names, 2)]
        self.rows = range(len(batch))
        self.y = batch.y.tolist()
        self.h = encode_in_double(network, batch.inputs)
        assert network.fusion is not None
        self.z = network.fusion(self.h)
        self.u = {
            m: [affine(own_head(network, self.method.heads, m), self.h[m][i]) for i in self.rows]
            for m in self.names
        }
        teacher = getattr(self.method, "teacher", None)
        if teacher is not None:
            features = encode_in_double(teacher.network, batch.inputs)
            self.t = {
                m: [
                    affine(own_head(teacher.network, teacher.heads, m), features[m][i]).detach()
                    for i in self.rows
                ]
                for m in self.names
            }

    def cross_entropy(self, logits: Any) -> Tensor:
        terms = [-log_softmax(logits[i])[self.y[i]] for i in self.rows]
        return torch.stack(terms).mean()

    def own_losses(self) -> Tensor:
        return torch.stack([self.cross_entropy(self.u[m]) for m in self.names]).sum()

    def disentanglement(self) -> Tensor:
        d, options = self.method.disentangled, self.options
        shared = {m: [layered(d.shared[m], self.h[m][i]) for i in self.rows] for m in self.names}
        own = {m: [layered(d.specific[m], self.h[m][i]) for i in self.rows] for m in self.names}
        alike, spread, overlap = zero(), zero(), zero()
        for i in self.rows:
            units = [shared[m][i] / (shared[m][i] ** 2).sum().sqrt() for m in self.names]
            centre = torch.stack(units).sum(dim=0) / len(units)
            for unit in units:
                alike = alike + cosine(unit, centre) / len(units) / len(self.rows)
            for j in self.rows:
                if i == j and options.negatives == "others":
                    continue
                s = torch.stack([cosine(shared[a][i], shared[b][j]) for a, b in self.pairs]).sum()
                if options.negatives == "others":
                    s = s / len(self.pairs)
                spread = spread + torch.exp(s / options.contrast_temperature) / len(self.rows)
            for a, b in self.pairs:
                share = 1 / len(self.pairs) / len(self.rows)
                overlap = overlap + share * cosine(own[a][i], own[b][i]) ** 2
        invariance: Tensor = torch.log(spread) - alike / options.contrast_temperature
        return invariance + overlap

    def complement(self) -> Tensor:
        d, c, total = self.method.disentangled, self.method.complement, zero()
        for m in self.names:
            head = own_head(self.network, self.method.heads, m)
            partner = self.method.partners[m]
            assert partner != m
            for i in self.rows:
                both = [
                    layered(d.shared[partner], self.h[partner][i]),
                    layered(d.specific[m], self.h[m][i]),
                ]
                estimate = affine(c.last[m], affine(c.hidden, torch.cat(both)).clamp(min=0))
                distance = ((estimate - self.h[m][i].detach()) ** 2).mean()
                disagreement = (self.u[m][i] - affine(head, estimate)).abs().mean()
                share = 1 / len(self.names) / len(self.rows)
                total = total + share * (distance + disagreement)
        return total

    def energy(self, uncertainty: float) -> Tensor:
        options, energies, total = self.options, {}, zero()
        for m in self.names:
            sizes = torch.stack([(self.h[m][i] ** 2).mean() for i in self.rows]).mean()
            energies[m] = options.feature_energy * sizes
            h = self.h[m].detach().requires_grad_()
            (slope,) = torch.autograd.grad(options.feature_energy * (h**2).mean(), h)
            # The slope is proportional to the features, so that it can be written in them.
            factor = float((slope * h.detach()).sum() / h.detach().square().sum())
            total = total + options.flatness * ((factor * self.h[m]) ** 2).mean()
            energies[m] = energies[m] + options.loss_energy * self.cross_entropy(self.u[m])
            if uncertainty:
                unsure = sum(entropy(self.t[m][i]) for i in self.rows) / len(self.rows)
                energies[m] = energies[m] + uncertainty * unsure
        for a, b in self.pairs:
            low, high = sorted((energies[a], energies[b]), key=lambda e: float(e.detach()))
            if options.gap == "pull_up":
                low = low.detach()
            total = total + (high - low) ** 2
        return total

    def distillation(self) -> Tensor:
        tau, total = self.options.temperature, zero()
        for i in self.rows:
            trusted = {}
            for m in self.names:
                unsure = entropy(self.t[m][i])
                trusted[m] = math.exp(-unsure) / (math.log(1 + unsure**2) + 0.1)
            for m in self.names:
                target, student = log_softmax(self.t[m][i] / tau), log_softmax(self.z[i] / tau)
                divergence = (torch.exp(target) * (target - student)).sum()
                weight = trusted[m] / sum(trusted.values())
                total = total + tau**2 * weight * divergence / len(self.names) / len(self.rows)
        return total

    def features_loss(self) -> Tensor:
        loss, options = zero(), self.options
        if options.msd_weight:
            loss = loss + options.msd_weight * self.disentanglement()
        if options.cce_weight:
            loss = loss + options.cce_weight * self.complement()
        return loss


def assert_gradients(of: Case, slow_loss: Any) -> None:
    """The gradients of a step are those of the loss, and none reaches the teacher."""
    batch = of.batch(6)
    network = of.network()
    loss = slow_loss(Slow(of, network, batch))
    parameters = named_parameters(network, of.method)
    learning = {name: p for name, p in parameters.items() if p.requires_grad}
    still: Gradients = {
        name: torch.zeros_like(p) for name, p in parameters.items() if not p.requires_grad
    }
    assert all(name.startswith("method.teacher.") for name in still)
    assert_close(of.step(batch), gradients_of(loss, learning) | still)


GRID: list[tuple[int, str, dict[str, Any]]] = [
    (0, "concat", {}),
    (1, "sum", {"negatives": "released", "contrast_temperature": 0.5}),
    (2, "late", {"gap": "symmetric", "temperature": 3.0, "feature_energy": 0.3}),
    (3, "film", {"cce_weight": 2.0, "msd_weight": 0.0, "flatness": 1e5}),
    (4, "concat", {"cce_weight": 0.0, "uncertainty_energy": 5.0, "imtd_weight": 0.0}),
    (5, "attention", {"emc_weight": 0.0, "imtd_weight": 3.0}),
]


def ebmc(count: int, seed: int, fusion: str, options: dict[str, Any]) -> Case:
    if count == 3 and options.get("cce_weight") != 0.0:
        options = options | {"partners": CIRCLE}
    return case(EBMC, count, seed, fusion, **SMALL, **options)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("seed", "fusion", "options"), GRID)
def test_gradients_of_the_first_stage_are_those_of_the_equations(
    count: int, seed: int, fusion: str, options: dict[str, Any]
) -> None:
    of = ebmc(count, seed, fusion, options)
    of.run.stage = Stage("enhance", 10)
    assert_gradients(of, lambda slow: slow.own_losses() + slow.features_loss())


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("seed", "fusion", "options"), GRID)
def test_gradients_of_the_second_stage_are_those_of_the_equations(
    count: int, seed: int, fusion: str, options: dict[str, Any]
) -> None:
    of = ebmc(count, seed, fusion, options)
    config: Any = of.method.config

    def expected(slow: Slow) -> Tensor:
        loss = slow.cross_entropy(slow.z) + slow.features_loss()
        if config.emc_weight:
            loss = loss + config.emc_weight * slow.energy(config.uncertainty_energy)
        if config.imtd_weight:
            loss = loss + config.imtd_weight * slow.distillation()
        return loss

    assert_gradients(of, expected)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("fusion", ["concat", "late"])
@pytest.mark.parametrize("gap", ["pull_up", "symmetric"])
def test_gradients_of_energy_alone_are_those_of_the_equations(
    count: int, fusion: str, gap: str
) -> None:
    of = case(EBMCEnergy, count, 0, fusion, gap=gap, unimodal_weight=0.3, emc_weight=2.0)
    assert_gradients(
        of, lambda s: s.cross_entropy(s.z) + 0.3 * s.own_losses() + 2.0 * s.energy(0.0)
    )


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("fusion", "tau"), [("concat", 1.0), ("sum", 2.0)])
def test_gradients_of_trust_alone_are_those_of_the_equations(
    count: int, fusion: str, tau: float
) -> None:
    of = case(EBMCTrust, count, 0, fusion, imtd_weight=2.0, temperature=tau)
    assert_gradients(of, lambda s: s.cross_entropy(s.z) + 2.0 * s.distillation())


# -- energies, trust, contrast ---------------------------------------------------------------------


def test_a_gap_moves_the_higher_energy_down_and_as_released_also_the_lower_one_up() -> None:
    energies = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
    for gap, expected in (("pull_up", [0.0, 6.0, 2.0]), ("symmetric", [-6.0, 6.0, 0.0])):
        value = energy_gap(energies, gap)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(value, energies)
        assert float(value.detach()) == 4 + 1 + 1
        assert gradient.tolist() == expected


def test_the_surer_teacher_is_trusted_more_and_equally_sure_ones_alike() -> None:
    sure, unsure = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    equal = trust(torch.stack([sure, sure.flip(1), sure.roll(1, 1)]))
    torch.testing.assert_close(equal, torch.full((3, 1), 1 / 3))
    weights = trust(torch.stack([unsure, sure]))
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights[1]) > 0.9


def test_a_prediction_that_says_what_all_teachers_say_has_nothing_to_learn() -> None:
    of = case(EBMCTrust, 2, 0)
    t = torch.randn(7, 3)
    both = torch.stack([t, t + 2])  # logits are the same up to a constant
    assert float(trusted_distillation(of.run, t - 1, both, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(trusted_distillation(of.run, -t, both, 2.0)) > 0.1


def test_shared_parts_that_agree_and_differ_from_those_of_others_are_best() -> None:
    apart = torch.eye(4)
    best = contrast([apart, apart], 0.5, "others")
    # Its parts: own cosine 1, and three others at 0 for each of four samples.
    assert float(best) == pytest.approx(math.log(3) - 1 / 0.5)
    assert float(contrast([apart, apart.roll(1, 0)], 0.5, "others")) > float(best)
    collapsed = torch.ones(4, 4)
    assert float(contrast([collapsed, collapsed], 0.5, "others")) > float(best)
    # As released a sample is also its own negative, and three pairs add up.
    released = contrast([apart] * 3, 0.5, "released")
    assert float(released) == pytest.approx(math.log(math.exp(3 / 0.5) + 3) - 1 / 0.5)


# -- stages and teacher ----------------------------------------------------------------------------


def states_after(
    kind: type[EnhanceThenBalance], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[dict[str, dict[str, Tensor]], Method]:
    """Train, and return the state of the network at the end of each stage."""
    states: dict[str, dict[str, Tensor]] = {}
    ends = kind.on_stage_end

    def spy(self: Any, run: Any) -> None:
        ends(self, run)
        states[run.stage.name] = deepcopy(run.network.state_dict())

    monkeypatch.setattr(kind, "on_stage_end", spy)
    made = trainer(configured(kind, options), make_splits(2), fusion="concat")
    states["start"] = deepcopy(made.main.state_dict())
    return states, made.fit().method


def test_the_first_stage_trains_encoders_without_the_fusion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states, _ = states_after(EBMC, monkeypatch, **SMALL)
    assert list(states) == ["start", "enhance", "train"]
    for name, before in states["start"].items():
        is_still = torch.equal(states["enhance"][name], before)
        assert is_still == name.startswith("fusion."), name
        assert not torch.equal(states["train"][name], states["enhance"][name])


@pytest.mark.parametrize("kind", [EBMC, EBMCTrust])
def test_the_teacher_is_the_end_of_the_first_stage_and_stays_it(
    kind: type[EnhanceThenBalance], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, method = states_after(kind, monkeypatch)
    assert isinstance(method, EnhanceThenBalance)
    assert method.teacher is not None
    for name, value in method.teacher.network.state_dict().items():
        assert torch.equal(value, states["enhance"][name])
    method.train()
    assert not any(part.training for part in method.teacher.modules())


def test_the_two_parts_are_settings_of_the_whole() -> None:
    off = {"msd_weight": 0.0, "cce_weight": 0.0}
    no_first = {"enhance_epochs": 0, "imtd_weight": 0.0, "uncertainty_energy": 0.0}
    for part, of_part, of_whole in (
        (EBMCTrust, {}, off | {"emc_weight": 0.0}),
        (EBMCEnergy, {"unimodal_weight": 0.0}, off | no_first),
    ):
        splits = make_splits(3)
        a = trainer(configured(part, of_part), splits, fusion="concat").fit()
        b = trainer(configured(EBMC, of_whole), splits, fusion="concat").fit()
        for name, value in a.run.main.state_dict().items():
            assert torch.equal(value, b.run.main.state_dict()[name])


def test_cost_is_counted_with_first_stage_and_teacher() -> None:
    steps = 2 * 4  # 60 rows in fours of 16
    for kind, forwards, backwards in (
        (EBMC, 3 * steps, 2 * steps),
        (EBMCTrust, 3 * steps, 2 * steps),
        (EBMCEnergy, steps, steps),
    ):
        counts = trainer(configured(kind), make_splits(2)).fit().run.counts
        assert (counts.forwards, counts.backwards) == (forwards, backwards)
        assert counts.encoder_forwards == 2 * forwards


def test_the_partner_is_the_strongest_other_modality_on_held_out_rows() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(150) % 3
    means = 2 * np.eye(3)[y]
    views = {
        m: share * means + rng.normal(size=means.shape)
        for m, share in (("bright", 2.0), ("noise", 0.0), ("weak", 0.7))
    }
    made = trainer(configured(EBMC, SMALL), splits_of(views, y, 3), fusion="concat", epochs=5)
    fitted = made.fit()
    partners = fitted.method.report(fitted.run)["partners"]
    assert partners == {"bright": "weak", "noise": "bright", "weak": "bright"}


def test_rows_that_choose_partners_are_held_out_of_the_first_stage_alone() -> None:
    made = trainer(configured(EBMC, {"holdout": 0.2}), make_splits(3))
    made.method.setup(made.run)
    first, second = made.method.stages(made.run)
    assert first.rows is not None
    assert len(first.rows) == 48
    assert second.rows is None
    two = trainer(configured(EBMC), make_splits(2))
    two.method.setup(two.run)
    assert all(stage.rows is None for stage in two.method.stages(two.run))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("msd_weight", -1),
        ("cce_weight", "much"),
        ("emc_weight", -0.1),
        ("imtd_weight", -0.1),
        ("temperature", 0),
        ("contrast_temperature", 0),
        ("gap", "both"),
        ("negatives", "none"),
        ("width", 0),
        ("holdout", 1),
        ("enhance_epochs", -1),
    ],
)
def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"option '{option}' of ebmc"):
        configured(EBMC, {option: value})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (EBMC, {"emc_weight": 0, "gap": "symmetric"}, "gap is not used with emc_weight=0"),
        (EBMC, {"imtd_weight": 0, "temperature": 2}, "temperature is not used with imtd_weight=0"),
        (EBMC, {"msd_weight": 0, "negatives": "released"}, "negatives is not used"),
        (EBMC, {"cce_weight": 0, "holdout": 0.2}, "holdout is not used unless"),
        (EBMC, {"enhance_epochs": 0}, "imtd_weight needs a teacher"),
        (EBMC, {"enhance_epochs": 0, "imtd_weight": 0}, "uncertainty_energy=0"),
        (EBMCTrust, {"enhance_epochs": 0}, "imtd_weight needs a teacher"),
        (EBMCEnergy, {"emc_weight": 0, "flatness": 1}, "flatness is not used with emc_weight=0"),
    ],
)
def test_a_setting_that_another_makes_useless_is_refused(
    kind: type[Method], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        configured(kind, options)


NO_TEACHER = {"enhance_epochs": 0, "imtd_weight": 0, "uncertainty_energy": 0}


@pytest.mark.parametrize(
    ("count", "options", "recipe", "message"),
    [
        (3, {"partners": {"view1": "other"}}, {}, "modality in partners"),
        (3, {"partners": {"view1": "view2"}}, {}, "no other modality for 'view2'"),
        (2, {"partners": {"view1": "view1", "view2": "view1"}}, {}, "no other modality"),
        (3, NO_TEACHER, {}, "strongest modality in its first stage, which is left out"),
        (3, {"holdout": 0.01}, {}, "ebmc: a holdout of 0.01 leaves"),
        (2, {}, {"batch_size": 1}, "a batch has one: use -t batch_size=2"),
    ],
)
def test_what_cannot_work_is_named_before_training(
    count: int, options: dict[str, Any], recipe: dict[str, Any], message: str
) -> None:
    made = trainer(configured(EBMC, options), make_splits(count), **recipe)
    with pytest.raises(RequestError, match=message):
        made.method.setup(made.run)
