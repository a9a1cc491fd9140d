"""What is read of a stored run's modalities: numbers recomputed by hand, and a sentence for each
number that cannot be had."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbench.errors import DataError
from mmbench.evaluate.balance import (
    Balance,
    balance_of,
    by_modality,
    confidence_ratios,
    discrepancy,
    imbalance,
)
from mmbench.evaluate.breakdown import f1_by_class, metrics_by_modality
from mmbench.evaluate.stored import per_modality, with_metric
from mmbench.store.frame import load_runs, predictions
from tests.unit.records import MODALITIES, metrics, write_run

every_case = settings(max_examples=60, deadline=None)
contributions = st.lists(st.floats(-1, 1).filter(lambda x: abs(x) > 1e-6), min_size=2, max_size=6)


def named(values: list[float]) -> dict[str, float]:
    return {f"m{i}": value for i, value in enumerate(values)}


# -- one number for imbalance --------------------------------------------------------------------


@every_case
@given(contributions, st.randoms(use_true_random=False))
def test_imbalance_is_bounded_and_knows_no_order_and_no_scale(
    values: list[float], random: Any
) -> None:
    index = imbalance(named(values))
    assert 0 <= index <= 1
    shuffled = values.copy()
    random.shuffle(shuffled)
    assert imbalance(named(shuffled)) == pytest.approx(index, abs=1e-12)
    assert imbalance(named([value / 8 for value in values])) == pytest.approx(index, abs=1e-12)


@every_case
@given(st.floats(-1, 1).filter(lambda x: abs(x) > 1e-6), st.integers(2, 6))
def test_equal_contributions_are_balanced(value: float, count: int) -> None:
    assert imbalance(named([value] * count)) == 0


@every_case
@given(st.floats(0.01, 1), st.integers(2, 6))
def test_a_modality_that_does_everything_is_imbalance_1(value: float, count: int) -> None:
    assert imbalance(named([value] + [0.0] * (count - 1))) == 1


@every_case
@given(st.floats(0.5, 1))
def test_of_two_modalities_it_is_the_difference_of_their_shares(share: float) -> None:
    assert imbalance({"a": share, "b": 1 - share}) == pytest.approx(2 * share - 1, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.3, 0.1], 0.5), ([0.3, -0.1], 1.0), ([-0.3, -0.1], 0.5), ([0.1, 0.1, 0.0], 0.5)],
)
def test_imbalance_of_known_contributions(values: list[float], expected: float) -> None:
    assert imbalance(named(values)) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [0.4], [0.0, 0.0]])
def test_imbalance_without_meaning_is_nan(values: list[float]) -> None:
    assert math.isnan(imbalance(named(values)))


# -- confidence over training --------------------------------------------------------------------


def test_two_modalities_have_a_ratio_and_its_inverse() -> None:
    found = confidence_ratios({"a": np.array([0.2, 0.8]), "b": np.array([0.4, 0.2])})
    np.testing.assert_allclose(found["a"], [0.5, 4.0])
    np.testing.assert_allclose(found["b"], [2.0, 0.25])
    assert discrepancy(found) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_more_modalities_are_compared_with_the_mean_of_the_others() -> None:
    c = {m: np.random.default_rng(i).uniform(0.1, 0.9, 7) for i, m in enumerate("abc")}
    found = confidence_ratios(c)
    np.testing.assert_allclose(found["b"], c["b"] / np.mean([c["a"], c["c"]], axis=0))
    even = confidence_ratios(dict.fromkeys("abcd", np.array([0.3, 0.9])))
    assert discrepancy(even) == pytest.approx(0)


# -- a stored run --------------------------------------------------------------------------------


def write_history(folder: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def balance(root: Path, method: str = "joint", seed: int = 0) -> Balance:
    store = load_runs(root)
    (run,) = [r for r in store if (r.method, r.seed) == (method, seed)]
    return balance_of(run, store)


def values(found: Balance, name: str, split: str = "") -> dict[str, float]:
    quantity = found.find(name, split)
    assert quantity is not None, name
    return quantity.values


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_contributions_are_those_of_the_record(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0, shapley={"fourier": 0.75, "zernike": 0.25})
    record = json.loads((folder / "record.json").read_text())
    found = balance(tmp_path)
    stored = record["contributions"]
    assert values(found, "shapley", "test") == stored["shapley"]["test"]["values"]
    assert values(found, "leave_one_out", "test") == stored["leave_one_out"]["test"]
    assert values(found, "permutation", "test") == stored["permutation"]["test"]
    assert found.imbalance["test"] == pytest.approx(0.5)
    assert values(found, "probe", "val") == {
        m: record["per_modality"][m]["probe"]["val"] for m in MODALITIES
    }


def test_the_gap_is_to_the_unimodal_run_of_the_same_seed_split_and_training(
    tmp_path: Path,
) -> None:
    def alone(m: str, seed: int, probe: float, **changes: Any) -> None:
        changed = {"modality": m, **changes.pop("changed", {})}
        write_run(tmp_path, "unimodal", seed, changed=changed, probes={m: probe}, **changes)

    write_run(tmp_path, "joint", 0, probes={"fourier": 0.6, "zernike": 0.7})
    alone("fourier", 0, 0.75)
    alone("fourier", 1, 0.9)
    alone("fourier", 0, 0.8, changed={"recipe.epochs": 5})
    alone("zernike", 0, 0.65, protocol="full")
    found = balance(tmp_path)
    assert values(found, "gap", "test") == pytest.approx({"fourier": 0.15})
    assert values(found, "unimodal_probe", "val") == pytest.approx({"fourier": 0.75})
    (line,) = [line for line in found.missing if "gap" in line]
    assert "no unimodal run of zernike with seed 0 is stored" in line
    assert "mmbench run --method unimodal --dataset mfeat --protocol few --seed 0" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fingerprint": "other"}, "saw the same split and data"),
        ({"status": "failed", "reason": "nan"}, "is finished: it failed"),
        ({"changed": {"recipe.epochs": 5}}, "trained alike: it differs in recipe.epochs"),
    ],
)
def test_a_unimodal_run_that_does_not_fit_is_not_used(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    write_run(tmp_path, "joint", 0, modalities=("fourier",))
    changed = {"modality": "fourier"} | options.pop("changed", {})
    write_run(tmp_path, "unimodal", 0, changed=changed, modalities=("fourier",), **options)
    found = balance(tmp_path)
    assert found.find("gap", "test") is None
    assert any(words in line for line in found.missing), found.missing


def test_training_is_read_from_the_stage_that_was_kept(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0)
    write_history(
        folder,
        [
            {"stage": "warm", "epoch": 1, "val_confidence.fourier": 0.9,
             "val_confidence.zernike": 0.1, "gradient_norm.fourier": 90,
             "gradient_norm.zernike": 90, "share.fourier": 9, "share.zernike": 9},
            {"stage": "train", "epoch": 1, "val_confidence.fourier": 0.4,
             "val_confidence.zernike": 0.2, "gradient_norm.fourier": 3,
             "gradient_norm.zernike": 1, "share.fourier": 0.5, "share.zernike": 0.5},
            {"stage": "train", "epoch": 2, "val_confidence.fourier": 0.8,
             "val_confidence.zernike": 0.2, "gradient_norm.zernike": 2,
             "share.fourier": 0.7, "share.zernike": 0.3},
        ],
    )  # fmt: skip
    found = balance(tmp_path)
    assert values(found, "confidence_ratio.first", "val") == pytest.approx(
        {"fourier": 2, "zernike": 0.5}
    )
    assert values(found, "confidence_ratio.last", "val")["fourier"] == pytest.approx(4)
    assert values(found, "confidence_ratio.mean", "val")["fourier"] == pytest.approx(math.sqrt(8))
    assert found.discrepancy == pytest.approx(math.log(8) / 2)
    assert values(found, "gradient_norm.first") == {"fourier": 3, "zernike": 1}
    assert values(found, "gradient_norm.last") == {"fourier": 3, "zernike": 2}
    assert values(found, "gradient_norm.mean") == {"fourier": 3, "zernike": 1.5}
    assert values(found, "share.mean") == pytest.approx({"fourier": 0.6, "zernike": 0.4})
    assert values(found, "share.last") == pytest.approx({"fourier": 0.7, "zernike": 0.3})


def test_weights_are_found_in_a_report_at_any_depth() -> None:
    report = {
        "gate": {"mean_weight": {"a": 0.7, "b": 0.3}, "beta": 0.1},
        "weights": {"a": 1, "b": 2, "fused": 3},
        "anchor": {"a": True, "b": False},
        "partial": {"a": 0.5},
        "text": "a",
        "bad": {"a": None, "b": 0.1},
    }
    assert dict(by_modality(report, ("a", "b"))) == {
        "gate.mean_weight": {"a": 0.7, "b": 0.3},
        "weights": {"a": 1.0, "b": 2.0},
    }


def test_reported_weights_are_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0)
    edit(folder, report={"gate": {"weight": {"fourier": 0.9, "zernike": 0.1}}})
    found = balance(tmp_path)
    assert values(found, "report.gate.weight") == {"fourier": 0.9, "zernike": 0.1}
    assert not any("weights" in line for line in found.missing)


def test_a_run_at_chance_has_no_imbalance(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0, 0.26)
    found = balance(tmp_path)
    assert found.imbalance == {}
    assert any("not distinguishable from that without any modality" in s for s in found.missing)
    (folder / "predictions.npz").unlink()
    found = balance(tmp_path)
    assert any("whether contributions exceed noise is not checked" in s for s in found.missing)


def test_what_an_older_run_lacks_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0)
    record = json.loads((folder / "record.json").read_text())
    del record["contributions"]["leave_one_out"]
    edit(folder, contributions=record["contributions"])
    found = balance(tmp_path)
    assert found.find("leave_one_out", "test") is None
    for words in ("leave-one-out: ", "gradient norms: ", "weights: "):
        assert any(line.startswith(words) for line in found.missing), words
    write_history(folder, [{"stage": "train", "epoch": 1, "train_loss": 0.5}])
    assert any(line.startswith("confidence ratio: no epoch") for line in balance(tmp_path).missing)
    (folder / "history.csv").unlink()
    assert any("history.csv" in line for line in balance(tmp_path).missing)


def test_a_method_without_modalities_has_one_sentence(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        "majority",
        0,
        probes={},
        record_changes={"contributions": {"shapley": {}, "permutation": {}}, "per_modality": {}},
    )
    found = balance(tmp_path, "majority")
    assert found.quantities == []
    assert found.missing == ["majority uses no modality: there is nothing to divide"]


# -- metrics from predictions --------------------------------------------------------------------


def test_metrics_that_an_older_record_lacks_come_from_its_predictions(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0)
    record = json.loads((folder / "record.json").read_text())
    expected = record["metrics"]["test"].copy()
    for scores in record["metrics"].values():
        for name in ("weighted_f1", "auroc", "mean_average_precision", "adaptive_ece"):
            del scores[name]
    edit(folder, metrics=record["metrics"])
    (run,) = load_runs(tmp_path)
    assert run.finished.metrics["test"].auroc is None
    completed = with_metric(run, "auroc").finished.metrics["test"]
    for name, value in expected.items():
        assert getattr(completed, name) == pytest.approx(value, abs=1e-6), name
    assert with_metric(run, "accuracy") is run
    scores = record["metrics"]["test"] | {"accuracy": 0.123}
    edit(folder, metrics=record["metrics"] | {"test": scores})
    (run,) = load_runs(tmp_path)
    assert with_metric(run, "auroc") is run
    (folder / "predictions.npz").unlink()
    assert with_metric(run, "auroc") is run


def test_metrics_of_each_modality_are_those_of_its_logits(tmp_path: Path) -> None:
    write_run(tmp_path, "joint", 0)
    (run,) = load_runs(tmp_path)
    arrays = predictions(run)
    found = per_modality(arrays, "test", "own_head")
    for m in MODALITIES:
        expected = metrics(arrays["test_labels"], arrays[f"test_own_head.{m}"])
        assert found[m] == pytest.approx(expected, abs=1e-6)
    quantity = {(q.name, q.split): q for q in metrics_by_modality(run, "own_head")}
    assert quantity["nll.own_head", "test"].values["fourier"] == found["fourier"]["nll"]
    assert quantity["nll.own_head", "val"].fused == run.finished.metrics["val"].nll
    with pytest.raises(DataError, match="no split 'train'"):
        per_modality(arrays, "train")


def test_f1_of_each_class_is_scikit_learns(tmp_path: Path) -> None:
    from sklearn.metrics import f1_score

    write_run(tmp_path, "joint", 0)
    (run,) = load_runs(tmp_path)
    arrays = predictions(run)
    found = {(q.name, q.split): q for q in f1_by_class(run, "probe")}
    labels = arrays["test_labels"]
    for number, name in enumerate(run.finished.classes):
        quantity = found[f"f1.{name}", "test"]
        for m in MODALITIES:
            chosen = arrays[f"test_probe.{m}"].argmax(axis=1)
            expected = f1_score(labels, chosen, average=None)[number]
            assert quantity.values[m] == pytest.approx(expected)
        fused = f1_score(labels, arrays["test_logits"].argmax(axis=1), average=None)[number]
        assert quantity.fused == pytest.approx(fused)


def test_predictions_of_another_run_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0, 0.8)
    other = write_run(tmp_path, "joint", 1, 0.6)
    (other / "predictions.npz").rename(folder / "predictions.npz")
    run, _ = load_runs(tmp_path)
    with pytest.raises(DataError, match="not of this record"):
        f1_by_class(run, "probe")
