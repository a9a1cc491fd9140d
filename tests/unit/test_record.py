"""A run's folder: complete or not there, one writer at a time."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmbench.config import RunConfig
from mmbench.errors import RequestError, StoreError
from mmbench.store.record import (
    RunFolder,
    RunRecord,
    finite,
    read_predictions,
    record_text,
    write_history,
)

CONFIG = RunConfig(method="joint", dataset="mfeat", protocol="few", fusion="concat", seed=4)


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(
        status="done",
        dataset="mfeat",
        protocol="few",
        method="joint",
        fusion="concat",
        seed=4,
        config_hash=CONFIG.config_hash(),
        changed={},
        modalities=["a"],
        classes=["x", "y"],
        fingerprints={"split": "s", "data": "d"},
        environment={},
        started="now",
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, CONFIG)


ARRAYS = {"test_logits": np.arange(6, dtype=np.float32).reshape(3, 2)}


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.parent.iterdir())


def test_a_folder_appears_when_it_is_complete(folder: RunFolder, record: RunRecord) -> None:
    assert folder.path.parts[-4:] == ("mfeat", "joint", CONFIG.config_hash(), "seed-4")
    assert folder.stored() is None
    folder.begin(record, resume=False, overwrite=False)
    assert names(folder) == [".seed-4.partial"]
    assert folder.stored() is None
    folder.finish(record, [{"epoch": 1}], ARRAYS)
    assert names(folder) == ["seed-4"]
    stored = folder.stored()
    assert stored is not None
    assert stored["status"] == "done"
    assert {path.name for path in folder.path.iterdir()} == {
        "config.yaml", "record.json", "history.csv", "predictions.npz",
    }  # fmt: skip
    np.testing.assert_array_equal(
        read_predictions(folder.path)["test_logits"], ARRAYS["test_logits"]
    )


def test_while_it_trains_a_run_is_recorded_as_interrupted(
    folder: RunFolder, record: RunRecord
) -> None:
    folder.begin(record, resume=False, overwrite=False)
    begun = json.loads((folder.partial / "record.json").read_text())
    assert (begun["status"], begun["fingerprints"]) == ("interrupted", record.fingerprints)
    assert folder.begun() is None, "there is no checkpoint to go on from"


def test_a_second_writer_is_refused_until_the_first_has_gone(
    folder: RunFolder, record: RunRecord, tmp_path: Path
) -> None:
    second = RunFolder(tmp_path, CONFIG)
    folder.begin(record, resume=False, overwrite=False)
    for resume, overwrite in [(False, False), (True, False), (False, True)]:
        with pytest.raises(RequestError, match="another process is training"):
            second.begin(record, resume, overwrite)
    folder.finish(record, [], ARRAYS)
    second.begin(record, resume=False, overwrite=True)
    second.finish(record, [], ARRAYS)


def checkpoint(folder: RunFolder) -> Path:
    folder.checkpoints.mkdir(exist_ok=True)
    path = folder.checkpoints / "last.pt"
    path.write_text("state")
    return path


def test_an_unfinished_run_is_kept_unless_told(folder: RunFolder, record: RunRecord) -> None:
    folder.begin(record, resume=False, overwrite=False)
    state = checkpoint(folder)
    folder.keep_partial(replace(record, status="interrupted", reason="stopped"))
    begun = folder.begun()
    assert begun is not None
    assert begun["reason"] == "stopped"
    with pytest.raises(RequestError, match="--resume to go on with it, or --overwrite"):
        folder.begin(record, resume=False, overwrite=False)
    folder.begin(record, resume=True, overwrite=False)
    assert state.exists()
    folder.release()
    folder.begin(record, resume=False, overwrite=True)
    assert not state.exists()


def test_what_an_earlier_attempt_left_is_not_stored(folder: RunFolder, record: RunRecord) -> None:
    folder.begin(record, resume=False, overwrite=False)
    (folder.partial / "predictions.npz").write_text("old")
    folder.release()
    folder.begin(record, resume=False, overwrite=False)
    folder.finish(replace(record, status="failed", reason="why"), [], {}, "Traceback ...")
    assert {path.name for path in folder.path.iterdir()} == {
        "config.yaml", "record.json", "history.csv", "traceback.txt",
    }  # fmt: skip


def test_abandoning_keeps_a_checkpoint_and_removes_the_rest(
    folder: RunFolder, record: RunRecord
) -> None:
    folder.begin(record, resume=False, overwrite=False)
    state = checkpoint(folder)
    folder.abandon()
    assert state.exists()
    folder.begin(record, resume=False, overwrite=True)
    folder.abandon()
    assert not folder.path.parent.exists()


def test_a_kill_between_the_last_renames_does_not_stop_later_runs(
    folder: RunFolder, record: RunRecord
) -> None:
    folder.begin(record, resume=False, overwrite=False)
    folder.finish(record, [], ARRAYS)
    left = folder.path.with_name(".seed-4.old")
    left.mkdir()
    (left / "record.json").write_text("{}")
    folder.begin(record, resume=False, overwrite=True)
    folder.finish(record, [], ARRAYS)
    assert names(folder) == ["seed-4"]


def test_a_rename_that_fails_gives_the_stored_run_its_name_back(
    folder: RunFolder, record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.begin(record, resume=False, overwrite=False)
    folder.finish(replace(record, started="first"), [], ARRAYS)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self == folder.partial:
            raise OSError("no")
        return rename(self, target)

    folder.begin(record, resume=False, overwrite=True)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StoreError, match="cannot write"):
        folder.finish(replace(record, started="second"), [], ARRAYS)
    stored = folder.stored()
    assert stored is not None
    assert stored["started"] == "first"


def test_numbers_that_json_does_not_know_become_null(record: RunRecord) -> None:
    record.report = {
        "x": math.nan,
        "y": [math.inf, np.float32(0.5)],
        "n": np.int64(3),
        "inner": {2: (1, -0.0)},
    }
    report = json.loads(record_text(record))["report"]
    assert report == {"x": None, "y": [None, 0.5], "n": 3, "inner": {"2": [1, 0.0]}}
    assert finite({"a": "text", "b": None, "c": True}) == {"a": "text", "b": None, "c": True}


def test_the_history_has_every_column_and_empty_cells(tmp_path: Path) -> None:
    write_history(tmp_path / "h.csv", [{"stage": "a", "x": 1.0}, {"stage": "b", "y": 0.1}])
    with (tmp_path / "h.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"stage": "a", "x": "1.0", "y": ""},
            {"stage": "b", "x": "", "y": "0.1"},
        ]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"text", b"\x93NUMPY"])
def test_predictions_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "predictions.npz").write_bytes(content)
    with pytest.raises(StoreError, match=r"predictions.npz is missing or damaged"):
        read_predictions(tmp_path)
