"""Loading stored runs: everything that is in the folder is told, and nothing wrong is believed."""

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbench.errors import StoreError
from mmbench.store.frame import learning_curves, load_runs, predictions, to_frame
from tests.unit.records import write_run


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "record.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def test_a_frame_has_a_row_a_run_with_the_numbers_of_the_record(tmp_path: Path) -> None:
    write_run(tmp_path, "joint", 1, 0.85)
    folder = write_run(tmp_path, "joint", 0, 0.8, probes={"fourier": 0.7, "zernike": 0.6})
    write_run(tmp_path, "joint", 2, status="failed", reason="the loss became nan")
    table = to_frame(load_runs(tmp_path))
    assert table["seed"].tolist() == [0, 1, 2]
    assert table["status"].tolist() == ["done", "done", "failed"]
    assert table["reason"][2] == "the loss became nan"
    assert table["test.accuracy"][:2].tolist() == [0.8, 0.85]
    assert table["test.probe.zernike"][0] == 0.6
    record = json.loads((folder / "record.json").read_text())
    assert table["test.nll"][0] == record["metrics"]["test"]["nll"]
    assert table["cost.encoder_forwards"][0] == record["cost"]["encoder_forwards"]
    shapley = record["contributions"]["shapley"]["test"]["values"]["fourier"]
    assert table["test.shapley.fourier"][0] == shapley
    assert np.isnan(table["test.accuracy"][2])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda r: r.update(schema=2), ["schema 2", "read here is 1", "mmbench 0.1.0"]),
        (lambda r: r.pop("schema"), ["schema None"]),
        (lambda r: r.pop("metrics"), ["'metrics'"]),
        (lambda r: r["metrics"].pop("test"), ["metrics.test"]),
        (lambda r: r["metrics"]["test"].pop("ece"), ["'metrics.test.ece'"]),
        (lambda r: r["metrics"]["test"].update(accuracy=85.0), ["'metrics.test.accuracy'"]),
        (lambda r: r["metrics"]["test"].update(nll=float("nan")), ["'metrics.test.nll'"]),
        (lambda r: r["metrics"]["test"].update(accuracy="0.8"), ["'metrics.test.accuracy'"]),
        (lambda r: r.update(status="finished"), ["status"]),
        (lambda r: r.update(seed=7), ["seed 7", "another run's folder"]),
        (lambda r: r.update(config_hash="abc"), ["abc", "another run's folder"]),
    ],
)
def test_a_record_that_cannot_be_trusted_is_left_out_with_one_line(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], words: list[str]
) -> None:
    write_run(tmp_path, "joint", 0)
    folder = write_run(tmp_path, "joint", 1)
    edit(folder, damage)
    good, bad = load_runs(tmp_path)
    assert good.status == "done"
    assert bad.status == "unreadable"
    assert bad.record is None
    assert bad.reason is not None
    assert "\n" not in bad.reason
    for word in (str(folder / "record.json"), *words):
        assert word in bad.reason
    assert any(mend in bad.reason for mend in ("run it again", "put it back"))


@pytest.mark.parametrize("content", [b"", b'{"schema": 1, "status"', b"[]", b"\xff\xfe\x00"])
def test_damaged_json_is_left_out(tmp_path: Path, content: bytes) -> None:
    folder = write_run(tmp_path, "joint", 0)
    (folder / "record.json").write_bytes(content)
    (run,) = load_runs(tmp_path)
    assert run.status == "unreadable"
    assert run.reason is not None
    assert str(folder / "record.json") in run.reason
    with pytest.raises(StoreError, match="unreadable"):
        _ = run.finished


def test_a_folder_without_a_record_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0)
    (folder / "record.json").unlink()
    (run,) = load_runs(tmp_path)
    assert run.status == "unreadable"


def test_a_killed_run_is_interrupted_unless_a_complete_one_lies_beside_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0)
    for seed in (0, 3):
        partial = folder.parent / f".seed-{seed}.partial"
        partial.mkdir()
        (partial / "config.yaml").write_text("protocol: few\n")
    done, killed = load_runs(tmp_path)
    assert (done.seed, done.status) == (0, "done")
    assert (killed.seed, killed.status, killed.protocol) == (3, "interrupted", "few")
    assert killed.reason is not None
    assert "--resume" in killed.reason


@pytest.mark.parametrize("exists", [True, False])
def test_no_runs_is_an_error_that_names_the_folder_and_the_command(
    tmp_path: Path, exists: bool
) -> None:
    root = tmp_path / "runs"
    if exists:
        root.mkdir()
    with pytest.raises(StoreError, match="mmbench run") as caught:
        load_runs(root)
    assert str(root) in str(caught.value)


def test_the_folder_above_the_runs_is_recognised(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "joint", 0)
    with pytest.raises(StoreError, match="runs: name that folder"):
        load_runs(tmp_path)


def test_two_thousand_records_load_in_seconds(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0)
    record = json.loads((folder / "record.json").read_text())
    for seed in range(1, 2000):
        other = folder.parent / f"seed-{seed}"
        other.mkdir()
        (other / "record.json").write_text(json.dumps(record | {"seed": seed}))
    began = time.perf_counter()
    table = to_frame(load_runs(tmp_path))
    assert len(table) == 2000
    assert table["seed"].tolist() == list(range(2000))
    assert time.perf_counter() - began < 5


def test_learning_curves_and_predictions_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0, 0.8, epochs=4)
    (run,) = load_runs(tmp_path)
    assert learning_curves(run)["epoch"].tolist() == [1, 2, 3, 4]
    arrays = predictions(run)
    right = arrays["test_logits"].argmax(axis=1) == arrays["test_labels"]
    assert right.mean() == 0.8
    (folder / "history.csv").write_text("")
    assert learning_curves(run).empty
    (folder / "history.csv").unlink()
    with pytest.raises(StoreError, match=r"history\.csv"):
        learning_curves(run)


def test_predictions_are_never_unpickled(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "joint", 0)
    (run,) = load_runs(tmp_path)
    file = folder / "predictions.npz"
    content = file.read_bytes()
    np.savez(file, evil=np.array([{"a": 1}], dtype=object))
    with pytest.raises(StoreError, match=r"predictions\.npz"):
        predictions(run)
    file.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(StoreError, match=r"predictions\.npz"):
        predictions(run)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"predictions\.npz"):
        predictions(run)
