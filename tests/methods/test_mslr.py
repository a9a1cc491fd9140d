"""MSLR: its gradients against slow loops, its rates against the formula, its bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmbench.errors import RequestError
from mmbench.methods.mslr import CANDIDATES, MSLR
from mmbench.testing.contract import make_splits
from mmbench.train.method import Stage
from mmbench.train.run import Run
from tests.methods.slow import (
    assert_gradients,
    copies,
    features,
    in_double,
    mean_loss,
    reaching_optimizer,
    read,
)
from tests.methods.support import begun, configured, trainer


@pytest.mark.parametrize("fusion", ["sum", "late"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_are_those_of_the_equations(
    seed: int, count: int, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = make_splits(count)
    names = list(splits.modalities)
    factors = dict(zip(names, [0.9, 1.4, 0.7], strict=False))
    made = begun(MSLR, splits, fusion, {"factors": factors})
    method = made.method
    assert isinstance(method, MSLR)
    made.run.stage = method.stages(made.run)[-1]
    batch = in_double(made, monkeypatch, seed)
    method.ratios = dict(zip(names, [1.25, 0.8, 1.1], strict=False))

    weights = copies(made)
    share = len(names) if fusion == "late" else 1

    def fused(i: int) -> torch.Tensor:
        logits = torch.zeros(3, dtype=torch.float64)
        for m in names:
            h = features(weights, m, batch.inputs[m][i])
            logits = logits + read(weights, f"fusion.heads.{m}", h) / share
        return logits

    mean_loss(batch, fused).backward()  # type: ignore[no-untyped-call]
    expected: dict[str, torch.Tensor | None] = {}
    for name, weight in weights.items():
        (m,) = [m for m in names if f".{m}." in name]
        assert weight.grad is not None
        expected[name] = factors[m] * method.ratios[m] * weight.grad
    assert_gradients(reaching_optimizer(made, batch, monkeypatch), expected, weights)


class Watched(MSLR):
    """Notes each modality's accuracy on the held-out rows, counted row by row."""

    seen: dict[str, list[float]]

    def on_epoch_end(self, run: Run) -> None:
        run.network.eval()
        for m in run.modalities:
            right = 0
            for row in self.held:
                inputs = run.train.batch(torch.tensor([row]), run.modalities)
                logits = run.own_head(m)(run.network.encode(inputs.inputs)[m])
                right += int(logits.argmax()) == int(inputs.y)
            self.seen.setdefault(m, []).append(right / len(self.held))
        run.network.train()
        super().on_epoch_end(run)


@pytest.mark.parametrize("memory", [2, 5])
def test_dynamic_rates_follow_the_formula(memory: int) -> None:
    method = configured(Watched, {"memory": memory, "factors": {"view2": 1.3}, "holdout": 0.3})
    assert isinstance(method, Watched)
    method.seen = {}
    fitted = trainer(method, make_splits(3), epochs=9, lr=0.003).fit()
    moved = 0
    for m, factor in {"view1": 1.0, "view2": 1.3, "view3": 1.0}.items():
        accuracy = method.seen[m]
        for e, row in enumerate(fitted.history):
            ratio = 1.0
            if e >= memory + 1:
                earlier = [accuracy[e - 2 - k] for k in range(memory)]
                ratio = accuracy[e - 1] / (sum(earlier) / memory)
            assert row[f"rate.{m}"] == pytest.approx(factor * ratio, rel=1e-6)
            moved += ratio != 1
    assert moved > 0


def test_a_modality_that_was_never_right_keeps_its_rate() -> None:
    made = begun(MSLR, make_splits(2), "sum", {"memory": 1})
    method = made.method
    assert isinstance(method, MSLR)
    method.accuracies = {"view1": [0.0], "view2": [0.0]}
    method.on_epoch_end(made.run)
    assert method.ratios == {"view1": 1.0, "view2": 1.0}


def test_keep_takes_the_factor_with_which_each_modality_does_best_alone() -> None:
    fitted = trainer(configured(MSLR, {"strategy": "keep"}), make_splits(2), epochs=3).fit()
    method = fitted.method
    assert isinstance(method, MSLR)
    for m in ("view1", "view2"):
        for factor in CANDIDATES:
            rows = [r for r in fitted.history if r["stage"] == f"alone/{m}/{factor}"]
            assert len(rows) == 3
            assert rows[0]["lr"] == pytest.approx(0.01 * factor)
        assert method.factors[m] == method.scores[m][2]
        assert method.factors[m] in CANDIDATES
    held = set(method.held)
    stages = method.stages(fitted.run)
    for stage in stages[:-1]:
        assert stage.rows is not None
        assert not held & set(stage.rows)
    assert stages[-1].rows is None, "nothing is measured any more: all rows are learned from"


def test_keep_prefers_accuracy_then_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    made = begun(MSLR, make_splits(2), "sum", {"strategy": "keep"})
    method, run = made.method, made.run
    assert isinstance(method, MSLR)
    method.stages(run)
    y = run.train.y[torch.as_tensor(method.held)]
    sure = 4.0 * torch.nn.functional.one_hot(y, 3)
    wrong = sure.roll(1, dims=1)
    for factor, logits in ((0.5, wrong), (0.7, sure), (0.9, 2 * sure), (1.1, sure)):
        run.stage = Stage(f"alone/view1/{factor}", 1)
        given = {"view1": logits}
        monkeypatch.setattr(run, "logits", lambda rows, given=given: given)
        method.on_stage_end(run)
    assert method.factors == {"view1": 0.9, "view2": 1.0}


def test_rates_are_learned_on_rows_that_are_not_trained_on() -> None:
    made = begun(MSLR, make_splits(2), "sum", {"holdout": 0.2})
    method = made.method
    assert isinstance(method, MSLR)
    (stage,) = method.stages(made.run)
    assert stage.rows is not None
    assert len(method.held) == 12
    assert sorted([*stage.rows, *method.held]) == list(range(60))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"factors": {"view1": 0}}, "above 0"),
        ({"factors": {"view1": "fast"}}, "factors"),
        ({"strategy": "smooth"}, "strategy"),
        ({"memory": 0}, "memory"),
        ({"holdout": 1.0}, "holdout"),
        ({"strategy": "keep", "memory": 3}, "memory is not used"),
        ({"strategy": "keep", "factors": {}, "holdout": 0.2}, "holdout is not used"),
        ({"scale_where": "loss"}, "scale_where"),
    ],
)
def test_wrong_options_give_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        configured(MSLR, options)
    assert "\n" not in str(caught.value)


def test_a_factor_of_no_modality_is_named_before_training() -> None:
    with pytest.raises(RequestError, match=r"modality in factors 'view3'.*view"):
        begun(MSLR, make_splits(2), "sum", {"factors": {"view3": 0.5}})


def test_too_few_rows_to_hold_out_are_named_before_training() -> None:
    with pytest.raises(RequestError, match=r"holdout of 0\.02 leaves 1 training rows.*3 classes"):
        begun(MSLR, make_splits(2), "sum", {"holdout": 0.02})
