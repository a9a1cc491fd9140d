"""How runs stand corrupted and missing modalities, against closed forms and stored predictions."""

from __future__ import annotations

import math
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

import mmbench
from mmbench.config import Recipe
from mmbench.data.dataset import Modality, Rows, Split, Splits
from mmbench.errors import RequestError, StoreError
from mmbench.evaluate.corruptions import CORRUPTIONS, corrupted, measured_for
from mmbench.evaluate.robustness import MISSING, Assessor, Choice, Subject, assess
from mmbench.nets.network import NetworkSpec, resolve_encoders
from mmbench.registry import load_method
from mmbench.report.robustness import lines_of
from mmbench.restoring import Restored, restore
from mmbench.store.frame import StoredRun, load_runs
from mmbench.store.record import read_predictions
from mmbench.store.robustness import (
    COLUMNS,
    FILE,
    Point,
    read_robustness,
    robustness_frame,
    write_robustness,
)
from mmbench.train.trainer import Trainer
from tests.unit.records import write_run

SIZES = {"train": 300, "val": 40, "test": 500, "classes": 3, "dimension": 6}
METHODS = ("joint", "ogm_ge", "greedy", "unimodal")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small runs of the synthetic data; `greedy` has encoders that gate each other."""
    results = tmp_path_factory.mktemp("results")
    outcomes = mmbench.run(
        *METHODS,
        dataset="synthetic",
        dataset_options=SIZES | {"accuracy": [0.85, 0.8], "difficulty": [0, 0]},
        recipe={"epochs": 6, "lr": 0.02},
        results=results,
        threads=1,
        device="cpu",
    )
    assert all(outcome.what == "trained" for outcome in outcomes)
    return results


def folder(store: Path, method: str) -> Path:
    return min(store.glob(f"*/{method}/*/seed-0"))


@pytest.fixture(scope="module")
def points(store: Path) -> dict[str, list[Point]]:
    return {method: assess(restore(folder(store, method), "cpu")) for method in METHODS}


def curve(points: list[Point], m: str, corruption: str) -> list[Point]:
    return [point for point in points if point.curve == (m, corruption)]


# -- what is measured ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_severity_0_is_what_is_stored_bit_for_bit(
    store: Path, points: dict[str, list[Point]], method: str
) -> None:
    restored = restore(folder(store, method), "cpu")
    stored = restored.record["metrics"]["test"]
    clean = [point for point in points[method] if point.severity == 0]
    assert {(point.accuracy, point.nll) for point in clean} == {(stored["accuracy"], stored["nll"])}
    subject = Subject(restored)
    logits = read_predictions(restored.path)["test_logits"]
    np.testing.assert_array_equal(subject.clean.logits.numpy(), logits)
    for m in subject.modalities:  # the way that corrupted inputs take
        np.testing.assert_array_equal(subject.predict(subject.test, m).numpy(), logits)
    assert subject.remarks() == []


@pytest.mark.parametrize("method", METHODS)
def test_a_corrupted_prediction_is_that_of_the_whole_network_on_the_corrupted_rows(
    store: Path, method: str
) -> None:
    restored = restore(folder(store, method), "cpu")
    subject = Subject(restored)
    for m, modality in subject.modalities.items():
        noise, train = CORRUPTIONS["noise"], restored.run.train.inputs[m]
        measured = measured_for(noise, modality, train, torch.device("cpu"))
        split = corrupted(subject.test, m, modality, noise, 0, measured, 0)
        with torch.no_grad():
            out = restored.run.network(
                split.batch(torch.arange(len(split)), [*split.inputs]).inputs
            )
            expected = restored.method.predict(restored.run, out)
        found = subject.predict(split, m)
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, subject.clean.logits)


def test_missing_is_leave_one_out_or_a_pass_without_the_modality(
    store: Path, points: dict[str, list[Point]]
) -> None:
    for method in ("joint", "ogm_ge", "unimodal"):
        restored = restore(folder(store, method), "cpu")
        losses = restored.record["contributions"]["leave_one_out"]["test"]
        network, test = restored.run.network, restored.splits.test
        inputs = test.batch(torch.arange(len(test)), network.modalities).inputs
        for m in network.modalities:
            clean, missing = curve(points[method], m, "mean_feature")
            assert clean.accuracy - missing.accuracy == pytest.approx(losses[m], abs=1e-9)
            _, absent = curve(points[method], m, "absent")
            with torch.no_grad():
                features = network.encode(inputs)
                logits = network.fuse({**features, m: torch.zeros_like(features[m])}).logits
            right = (logits.argmax(dim=1) == test.y).double().mean()
            assert absent.accuracy == pytest.approx(float(right), abs=1e-9)


def test_chance_is_that_of_the_most_frequent_training_class(
    store: Path, points: dict[str, list[Point]]
) -> None:
    splits = restore(folder(store, "joint"), "cpu").splits
    most = pd.Series(splits.train.y).mode()[0]
    assert {point.chance for point in points["joint"]} == {(splits.test.y.numpy() == most).mean()}


def test_all_methods_meet_the_same_corrupted_inputs(store: Path) -> None:
    seen = {}
    for method in ("joint", "ogm_ge", "greedy"):
        restored = restore(folder(store, method), "cpu")
        given: list[bytes] = []

        def keep(_: object, inputs: tuple[torch.Tensor], out: object, to: list[bytes]) -> None:
            to.append(inputs[0].numpy().tobytes())

        encoder: Any = restored.run.network.encoders["x1"]
        encoder.layers[0].register_forward_hook(partial(keep, to=given))
        assess(restored, Choice(("x1",), {"noise": None}))
        # Encoders that gate each other read their inputs more than once.
        seen[method] = list(dict.fromkeys(given))
    assert len(seen["joint"]) == 6, "the clean rows and five severities"
    assert seen["joint"] == seen["ogm_ge"] == seen["greedy"]


def test_a_modality_that_the_model_ignores_changes_nothing(store: Path) -> None:
    restored = restore(folder(store, "joint"), "cpu")
    network: Any = restored.run.network
    with torch.no_grad():
        network.fusion.head.weight[:, : network.widths["x1"]] = 0
    found = assess(restored)
    for corruption in (*MISSING, "noise"):
        clean, *worse = curve(found, "x1", corruption)
        assert {point.accuracy for point in worse} == {clean.accuracy}
        assert [point.nll for point in worse] == pytest.approx([clean.nll] * len(worse), abs=1e-9)
    clean, *worse = curve(found, "x2", "noise")
    assert worse[-1].accuracy < clean.accuracy - 0.1


def test_accuracy_falls_with_severity_on_generated_data(points: dict[str, list[Point]]) -> None:
    for method in METHODS:
        for m, corruption in {point.curve for point in points[method]}:
            found = curve(points[method], m, corruption)
            accuracies = [point.accuracy for point in found]
            # Of 500 rows the draws may hide a fall of 2 points.
            assert all(worse <= milder + 0.02 for milder, worse in pairwise(accuracies))
            assert accuracies[-1] < accuracies[0]
            if corruption == "noise":
                assert [point.level for point in found[1:]] == [10, 5, 0, -5, -10]


# -- a model whose accuracy is known ---------------------------------------------------------------


def sign_reader(rows: int, distance: float) -> Restored:
    """Return a model that answers by the sign of ``x``, on two classes of unit variance whose means
    lie at plus and minus ``distance``; a second modality is all noise and has no weight."""
    specs = {m: Modality("vector", (1,)) for m in ("told", "noise")}
    rng = np.random.default_rng(3)

    def split(name: str) -> Split:
        y = np.arange(rows) % 2
        told = rng.normal((2 * y - 1) * distance)
        inputs = {"told": Rows(told[:, None]), "noise": Rows(rng.normal(size=(rows, 1)))}
        return Split(inputs, torch.from_numpy(y), np.array([f"{name}{i}" for i in range(rows)]))

    splits = Splits(split("train"), split("val"), split("test"), specs, ("minus", "plus"))
    joint = load_method("joint")
    spec = NetworkSpec(specs, resolve_encoders(specs, {}), 2, "concat", seed=0)
    trainer = Trainer(joint(joint.Config()), splits, spec, Recipe(), torch.device("cpu"))
    trainer.method.setup(trainer.run)
    network: Any = trainer.run.network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        first, second = network.encoders["told"].layers[0], network.encoders["told"].layers[2]
        first.weight[:2] = torch.tensor([[1.0], [-1.0]])
        second.weight[:2, :2] = torch.eye(2)
        head = network.fusion.head
        head.weight[:, :2] = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    return Restored(Path("nowhere"), {}, trainer.run, trainer.method, splits)


def test_accuracy_under_noise_is_that_of_the_closed_form() -> None:
    distance, rows = 1.5, 4000
    levels = (10.0, 0.0, -10.0)
    restored = sign_reader(rows, distance)
    found = assess(restored, Choice(corruptions={"noise": levels, "absent": None}))
    for point in curve(found, "told", "noise"):
        power = 0.0 if point.severity == 0 else (1 + distance**2) / 10 ** (point.level / 10)
        expected = norm.cdf(distance / math.sqrt(1 + power))
        deviation = math.sqrt(expected * (1 - expected) / rows)
        assert point.accuracy == pytest.approx(expected, abs=4 * deviation)
    assert len({point.accuracy for point in curve(found, "noise", "noise")}) == 1
    assert curve(found, "told", "absent")[1].accuracy == 0.5


# -- the store -------------------------------------------------------------------------------------


@pytest.fixture
def copied(store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(store, tmp_path / "runs")


def run_of(results: Path, method: str) -> StoredRun:
    return next(run for run in load_runs(results) if run.method == method)


def test_what_is_measured_is_stored_and_not_measured_again(
    copied: Path, points: dict[str, list[Point]]
) -> None:
    run = run_of(copied, "joint")
    assessor = Assessor(Choice(("x2",), {"noise": (0.0,)}), device="cpu")
    assert (assessor(run), assessor(run)) == (1, 0)
    (clean, noisy) = read_robustness(run.path)
    assert (noisy.modality, noisy.corruption, noisy.severity, noisy.level) == ("x2", "noise", 1, 0)
    everything = Assessor(device="cpu")
    assert everything(run) == 5, "two modalities, three ways, of which one is stored"
    assert everything(run) == 0
    assert curve(read_robustness(run.path), "x2", "noise") == pytest.approx([clean, noisy])
    with pytest.raises(RequestError, match="stored with the levels 0: add --overwrite"):
        Assessor(Choice(("x2",), {"noise": (0.0, 5.0)}), device="cpu")(run)
    assert Assessor(overwrite=True, device="cpu")(run) == 6
    again = read_robustness(run.path)
    assert pd.DataFrame(again).equals(pd.DataFrame(points["joint"]))


def test_another_machine_s_predictions_are_told_of(copied: Path) -> None:
    path = folder(copied, "joint")
    arrays = read_predictions(path)
    arrays["test_logits"][:9] *= -1
    np.savez(path / "predictions.npz", **arrays)  # type: ignore[arg-type]
    assessor = Assessor(Choice(corruptions={"absent": None}), device="cpu")
    assessor(run_of(copied, "joint"))
    (remark,) = assessor.remarks
    assert "another device or version" in remark


def example(*accuracies: float, m: str = "a", corruption: str = "noise") -> list[Point]:
    return [
        Point(m, corruption, i, 10.0 - i if i else math.nan, accuracy, 0.5, 0.25)
        for i, accuracy in enumerate(accuracies)
    ]


def test_the_file_is_as_documented_and_reads_with_pandas(tmp_path: Path, repository: Path) -> None:
    points = [*example(0.75, 0.5, 0.25), Point("b", "absent", 0, math.nan, 0.75, math.inf, 0.25)]
    points.append(Point("b", "absent", 1, math.nan, 1 / 3, 0.5, 0.25))
    write_robustness(tmp_path, points)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert str(read_robustness(tmp_path)) == str(points)
    frame = pd.read_csv(tmp_path / FILE)
    assert frame["accuracy"].tolist() == [0.75, 0.5, 0.25, 0.75, 1 / 3]
    page = (repository / "docs" / "results-format.md").read_text()
    section = page.partition("## robustness.csv")[2]
    assert list(frame.columns) == list(COLUMNS)
    assert all(f"`{column}`" in section for column in COLUMNS)
    assert read_robustness(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "its columns are not"),
        ("a,b\n1,2\n", "its columns are not"),
        (",".join(COLUMNS) + "\na,noise,0,,0.5\n", "line 2"),
        (",".join(COLUMNS) + "\na,noise,0,,1.5,1,0.1\n", "line 2: accuracy"),
        (",".join(COLUMNS) + "\na,noise,0,,nan,1,0.1\n", "line 2: accuracy"),
        (",".join(COLUMNS) + "\na,noise,0,,0.5,1,0.1\n", r"severities of a noise are \[0\]"),
        (",".join(COLUMNS) + "\na,noise,0,,0.5,1,0.1\na,noise,2,5,0.5,1,0.1\n", "severities"),
        (b"\xff\xfe", "damaged"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    path = tmp_path / FILE
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StoreError, match=words) as caught:
        read_robustness(tmp_path)
    assert "delete it and run" in str(caught.value)


def test_a_full_disk_leaves_what_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_robustness(tmp_path, example(0.5, 0.4))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="No space left"):
        write_robustness(tmp_path, example(0.5, 0.3))
    monkeypatch.undo()
    assert read_robustness(tmp_path)[1].accuracy == 0.4


# -- numbers ---------------------------------------------------------------------------------------


def test_the_frame_and_the_lines_hold_the_ratios_of_the_definition(tmp_path: Path) -> None:
    for seed, curve_ in enumerate([(0.75, 0.5, 0.25), (0.5, 0.5, 0.0)]):
        write_robustness(write_run(tmp_path, "joint", seed), example(*curve_))
    write_robustness(write_run(tmp_path, "ogm", 0), example(0.25, 0.3, 0.2))
    write_run(tmp_path, "multiloss", 0)
    runs = load_runs(tmp_path)
    frame, left_out = robustness_frame(runs)
    assert (len(frame), left_out) == (9, [])
    joint = frame[frame["method"] == "joint"].groupby("severity")
    assert joint["relative"].agg(list).tolist() == [[1, 1], [2 / 3, 1], [1 / 3, 0]]
    assert joint["relative_above_chance"].agg(list).tolist() == [[1, 1], [0.5, 1], [0, -1]]

    done = [run for run in runs if run.method != "multiloss"]
    mean, alone = lines_of(done)
    assert (mean.label, mean.seeds, mean.accuracy) == ("joint", (0, 1), (0.625, 0.5, 0.125))
    assert mean.retained == pytest.approx(0.5)  # (2/3 + 1/3) / 2 = 1/2, (1 + 0) / 2 = 1/2
    assert mean.retained_above_chance == pytest.approx(0.125)  # (0.5 + 0) / 2, (1 - 1) / 2
    assert alone.retained == pytest.approx(1.0)
    assert math.isnan(alone.retained_above_chance), "not above chance on clean rows"
    first, second, _ = lines_of(done, per_run=True)
    assert [line.seeds for line in (first, second)] == [(0,), (1,)]

    (runs[0].path / FILE).write_text("rubbish")
    frame, (line,) = robustness_frame(runs)
    assert len(frame) == 6
    assert str(runs[0].path) in line
