"""InfoReg: gradients against the equations written as loops, and what the method promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.data.dataset import Batch
from mmbench.errors import RequestError
from mmbench.methods.inforeg import InfoReg
from mmbench.methods.joint import Joint
from mmbench.nets.network import Network
from mmbench.planning import check_support
from mmbench.testing import contract
from mmbench.testing.contract import make_splits
from tests.methods.double import (
    Case,
    Gradients,
    assert_close,
    case,
    cross_entropy,
    encode_in_double,
    gradients_of,
)
from tests.methods.support import begun, configured, trainer


def method_of(of: Case) -> InfoReg:
    assert isinstance(of.method, InfoReg)
    return of.method


def slow_step(
    network: Network, batch: Batch, weight: float
) -> tuple[Gradients, dict[str, float], dict[str, float]]:
    """Return the gradients of the loss by ``network.`` and name, the sum over the batch of each
    modality's probability of the true class, and the Fisher trace of this step."""
    features = encode_in_double(network, batch.inputs)
    assert network.fusion is not None
    parts = network.fusion.parts(features)
    loss = cross_entropy(network.fusion(features), batch.y)
    scores: dict[str, float] = {}
    for m, z in parts.items():
        loss = loss + weight * cross_entropy(z, batch.y)
        scores[m] = 0.0
        for row, label in zip(z.detach(), batch.y.tolist(), strict=True):
            scores[m] += float(torch.exp(row[label]) / torch.exp(row).sum())
    named = {f"network.{name}": p for name, p in network.named_parameters()}
    gradients = gradients_of(loss, named)
    return gradients, scores, fisher(gradients, [*parts])


def fisher(gradients: Gradients, names: list[str]) -> dict[str, float]:
    """Return the mean squared gradient of each weight matrix, summed over those of an encoder."""
    traces = dict.fromkeys(names, 0.0)
    for m in names:
        for name, gradient in gradients.items():
            if name.startswith(f"network.encoders.{m}.") and name.endswith("weight"):
                values = gradient.flatten().tolist()
                traces[m] += sum(value * value for value in values) / len(values)
    return traces


def pulled(
    gradients: Gradients, factors: dict[str, float], now: Network, start: Network
) -> Gradients:
    """Return the gradients with each encoder's pull to where the epoch began."""
    before = dict(start.named_parameters())
    result = dict(gradients)
    for name, p in now.named_parameters():
        for m, factor in factors.items():
            if name.startswith(f"encoders.{m}."):
                result[f"network.{name}"] = gradients[f"network.{name}"] + factor * (
                    p.detach() - before[name].detach()
                )
    return result


def slow_factors(
    scores: dict[str, float], size: int, strengths: dict[str, float], variant: str
) -> dict[str, float]:
    """Return beta by modality."""
    if variant == "corrected":
        scores = {m: s / size for m, s in scores.items()}
    lead = max(scores, key=lambda m: scores[m])
    others = [s for m, s in scores.items() if m != lead]
    gap = scores[lead] - sum(others) / len(others)
    return {m: strengths[m] * math.exp(math.tanh(gap)) if m == lead else 0.0 for m in scores}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("seed", "fusion", "options"),
    [
        (0, "concat", {}),
        (1, "sum", {"unimodal_weight": 0.5, "strength": 0.3}),
        (2, "film", {}),
        (3, "attention", {"unimodal_weight": 0.0}),
        (4, "concat", {"variant": "released", "strengths": {"view1": 0.95, "view2": 0.1}}),
    ],
)
def test_gradients_are_those_of_the_equations(
    count: int, seed: int, fusion: str, options: dict[str, Any]
) -> None:
    of = case(InfoReg, count, seed, fusion, **options)
    of.method.on_epoch_start(of.run)
    start = of.network()
    strengths = {m: options.get("strength", 0.95) for m in of.run.modalities}
    strengths |= options.get("strengths", {})
    variant = options.get("variant", "corrected")
    traces = dict.fromkeys(of.run.modalities, 0.0)
    moved = False
    for _ in range(3):
        batch, network = of.batch(), of.network()
        plain, scores, trace = slow_step(network, batch, options.get("unimodal_weight", 1.0))
        factors = slow_factors(scores, len(batch), strengths, variant)
        expected = pulled(plain, factors, network, start)
        if variant == "released":
            trace = fisher(expected, [*traces])
        traces = {m: traces[m] + trace[m] for m in traces}
        got = of.step(batch)
        assert_close(got, expected)
        moved = moved or any(not torch.equal(plain[name], expected[name]) for name in plain)
        of.descend(got, rate=0.02)
    assert moved
    of.method.on_epoch_end(of.run)
    for m, trace_of in traces.items():
        assert method_of(of).traces[m] == pytest.approx([trace_of], rel=1e-6)


def test_the_first_step_of_an_epoch_pulls_nothing() -> None:
    of, plain = case(InfoReg, 2, 0, unimodal_weight=0.0), case(Joint, 2, 0)
    of.method.on_epoch_start(of.run)
    batch = of.batch()
    assert_close(of.step(batch), plain.step(batch))


def test_only_the_encoder_in_the_lead_is_pulled() -> None:
    of = case(InfoReg, 3, 5)
    of.method.on_epoch_start(of.run)
    of.descend(of.step(of.batch()))
    batch, network = of.batch(), of.network()
    plain, scores, _ = slow_step(network, batch, 1.0)
    lead = max(scores, key=lambda m: scores[m])
    for name, gradient in of.step(batch).items():
        same = torch.allclose(gradient, plain[name], rtol=1e-9, atol=1e-13)
        assert same != name.startswith(f"network.encoders.{lead}.")


def coefficients_of(truth: list[list[float]], **options: Any) -> list[float]:
    of = case(InfoReg, len(truth), 0, **options)
    values: Tensor = method_of(of).coefficients(of.run, torch.tensor(truth))
    return [float(value) for value in values]


def test_the_pull_does_not_depend_on_the_size_of_the_batch() -> None:
    few, many = [[0.6, 0.8], [0.1, 0.3]], [[0.6, 0.8] * 32, [0.1, 0.3] * 32]
    assert coefficients_of(few) == pytest.approx(coefficients_of(many))
    assert coefficients_of(few) == pytest.approx([0.95 * math.exp(math.tanh(0.5)), 0])


def test_as_released_the_pull_saturates_with_the_batch() -> None:
    truth = [[0.1, 0.3] * 32, [0.6, 0.8] * 32]
    released = coefficients_of(truth, variant="released", strengths={"view2": 0.1})
    assert released == pytest.approx([0, 0.1 * math.e], rel=1e-6)


def test_three_modalities_compare_the_lead_with_the_mean_of_the_others() -> None:
    expected = 0.95 * math.exp(math.tanh(0.9 - 0.3))
    assert coefficients_of([[0.2], [0.9], [0.4]]) == pytest.approx([0, expected, 0])


def test_modalities_that_are_level_are_left_alone() -> None:
    assert coefficients_of([[0.5], [0.5]]) == [0, 0]


# -- the window ------------------------------------------------------------------------------------


def growth_after(traces: list[float], other: list[float], **options: Any) -> list[float]:
    """Return kappa of both modalities after epochs with these Fisher traces."""
    method = method_of(case(InfoReg, 2, 0, **options))
    method.traces = {"view1": traces, "view2": other}
    return [method.growth(m) for m in ("view1", "view2")]


def test_the_window_is_open_until_there_are_two_epochs_to_compare() -> None:
    assert growth_after([], []) == [1, 1]
    assert growth_after([2.0], [3.0]) == [1, 1]


def test_growth_compares_means_over_the_epochs_there_are() -> None:
    # (mean(1, 2) - 1) / mean(1, 2), and a trace that falls.
    assert growth_after([1.0, 2.0], [4.0, 2.0]) == pytest.approx([1 / 3, -1 / 3])
    assert growth_after([5.0] * 5, [0.0] * 5) == [0, 0]


def test_as_released_it_is_the_first_modalitys_over_ten_epochs_however_few_there_are() -> None:
    assert growth_after([3.0], [1.0], variant="released") == [1, 1]
    assert growth_after([3.0] * 4, [9.0, 1.0, 1.0, 1.0], variant="released") == pytest.approx(
        [0.25, 0.25]
    )
    assert growth_after([3.0] * 11, [1.0] * 11, variant="released") == [0, 0]


@pytest.mark.parametrize("window", [1, 3, 10])
def test_traces_of_an_epoch_older_than_the_window_are_forgotten(window: int) -> None:
    method = configured(InfoReg, {"window": window})
    fitted = trainer(method, make_splits(2), fusion="concat", epochs=window + 3).fit()
    assert isinstance(fitted.method, InfoReg)
    for m, kept in fitted.method.traces.items():
        expected = [row[f"fisher_trace.{m}"] for row in fitted.history][-window - 1 :]
        assert kept == pytest.approx(expected)
        rows = [float(row[f"fisher_trace.{m}"]) for row in fitted.history[:-1]]
        newest, before = rows[-window:], rows[-window - 1 : -1]
        kappa = 1 - (sum(before) / len(before)) / (sum(newest) / len(newest))
        assert fitted.history[-1][f"fisher_growth.{m}"] == pytest.approx(kappa, rel=1e-5)


def test_outside_its_window_a_modality_is_not_pulled() -> None:
    of = case(InfoReg, 2, 0, threshold=0.2)
    method = method_of(of)
    method.traces = {"view1": [1.0, 1.3], "view2": [1.0, 2.0]}  # kappa 0.13 and 0.33
    method.on_epoch_start(of.run)
    assert method.anchors.keys() == {"view2"}
    assert method.report(of.run) == {"epochs_in_window": {"view1": 0, "view2": 1}}
    method.traces = {"view1": [1.0, 0.5], "view2": [2.0, 1.0]}
    method.on_epoch_start(of.run)
    of.descend(of.step(of.batch()))
    batch, network = of.batch(), of.network()
    assert_close(of.step(batch), slow_step(network, batch, 1.0)[0])


def test_a_modality_of_strength_zero_is_never_pulled() -> None:
    of = case(InfoReg, 2, 0, strength=0.0, strengths={"view2": 0.4})
    of.method.on_epoch_start(of.run)
    assert method_of(of).anchors.keys() == {"view2"}


def test_it_slows_the_encoder_that_leads() -> None:
    """The first view is the better separated one. The stronger the pull, the less it moves."""
    distances = []
    for strength in (0.0, 5.0):
        method = configured(InfoReg, {"strength": strength, "window": 1})
        made = trainer(method, make_splits(2), fusion="concat", epochs=3, lr=0.02)
        before = [p.detach().clone() for p in made.run.network.encoders["view1"].parameters()]
        made.fit()
        after = [p.detach() for p in made.run.network.encoders["view1"].parameters()]
        pairs = zip(after, before, strict=True)
        distances.append(math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs)))
    assert distances[1] < 0.9 * distances[0]


def test_it_resumes_inside_and_after_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "EPOCHS", 4)
    contract.check_resumes(InfoReg, 2)


def test_cost_is_that_of_joint_training() -> None:
    fitted = trainer(configured(InfoReg), make_splits(3), fusion="concat", epochs=2).fit()
    counts = fitted.run.counts
    assert counts.forwards == counts.backwards == counts.updates == 8


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "code"}, "option 'variant' of inforeg"),
        ({"strength": -1}, "option 'strength' of inforeg"),
        ({"strengths": {"view1": -0.1}}, "strengths are 0 or more"),
        ({"unimodal_weight": -1}, "option 'unimodal_weight' of inforeg"),
        ({"threshold": 1.0}, "option 'threshold' of inforeg"),
        ({"window": 0}, "option 'window' of inforeg"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(InfoReg, options)
    assert "\n" not in str(caught.value)


def test_a_strength_of_no_modality_is_named_before_training() -> None:
    with pytest.raises(RequestError, match=r"modality in strengths 'view3'.*view"):
        begun(InfoReg, make_splits(2), "concat", {"strengths": {"view3": 0.5}})


def test_a_single_modality_is_refused_before_training() -> None:
    with pytest.raises(RequestError, match="'inforeg' needs at least 2 modalities"):
        check_support(InfoReg, "concat", 1)
