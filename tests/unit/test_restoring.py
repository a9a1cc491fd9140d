"""A stored run can be brought back, with any method."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmbench
from mmbench.errors import RequestError, StoreError
from mmbench.evaluate.readout import read_out
from mmbench.restoring import restore
from mmbench.store.record import read_predictions

SMALL: dict[str, Any] = {
    "dataset": "synthetic",
    "dataset_options": {"train": 120, "val": 30, "test": 40, "classes": 3},
    "recipe": {"epochs": 2},
}


def stored(method: str, folder: Path) -> Path:
    (outcome, *_) = mmbench.run(method, results=folder, threads=1, device="cpu", **SMALL)
    assert outcome.what == "trained", outcome.record["reason"]
    return outcome.path


def test_a_restored_run_predicts_what_it_predicted(any_method: str, tmp_path: Path) -> None:
    path = stored(any_method, tmp_path)
    restored = restore(path, "cpu")
    before = read_predictions(path)
    for name in ("val", "test"):
        readout = read_out(restored.run, restored.method, getattr(restored.splits, name))
        np.testing.assert_array_equal(readout.logits.numpy(), before[f"{name}_logits"])
        for m, logits in readout.parts.items():
            np.testing.assert_array_equal(logits.numpy(), before[f"{name}_parts.{m}"])


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    path = stored("joint", tmp_path)
    with pytest.raises(StoreError, match="no stored run; name a folder"):
        restore(tmp_path / "nowhere")

    weights = path / "checkpoint" / "model.pt"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"model\.pt is damaged"):
        restore(path)
    other = stored("umt", tmp_path) / "checkpoint" / "model.pt"
    shutil.copy(other, weights)
    with pytest.raises(StoreError, match="does not fit the run"):
        restore(path)
    weights.unlink()
    with pytest.raises(StoreError, match=r"model\.pt is missing"):
        restore(path)

    config = path / "config.yaml"
    config.write_text(config.read_text().replace("generator_seed: null", "generator_seed: 5"))
    with pytest.raises(RequestError, match="was run on other data"):
        restore(path)
