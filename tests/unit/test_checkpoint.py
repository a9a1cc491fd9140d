"""Checkpoints: whole or as before, and read without running code."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mmbench.errors import StoreError
from mmbench.train.checkpoint import Checkpointer, load_state, save_state

STATE: dict[str, Any] = {
    "weights": torch.arange(6.0).reshape(2, 3),
    "best": {"epoch": 3, "score": (0.5, -1.25)},
    "history": [{"stage": "train", "loss": 0.1 + 0.2}],
    "none": None,
}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    keeper = Checkpointer(tmp_path / "new" / "folder", seconds=0)
    assert keeper.load() is None
    keeper.save(STATE)
    state = keeper.load()
    assert state is not None
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {name: value for name, value in STATE.items() if name != "weights"}
    assert [path.name for path in keeper.path.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("writer\nfailed")])
def test_a_write_that_fails_leaves_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "last.pt"
    save_state(path, STATE)

    def failing(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(StoreError, match="cannot write") as refused:
        save_state(path, {"weights": torch.zeros(1)})
    assert "\n" not in str(refused.value)
    assert torch.equal(load_state(path)["weights"], STATE["weights"])
    assert os.listdir(tmp_path) == ["last.pt"]  # noqa: PTH208


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Harmful()}, "last.pt")
    with pytest.raises(StoreError, match="damaged"):
        load_state(Path("last.pt"))
    Path("last.pt").write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(StoreError, match="damaged"):
        load_state(Path("last.pt"))
    assert not Path("harm").exists()


def test_every_way_to_cut_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_state(path, STATE)
    whole = path.read_bytes()
    for length in range(0, len(whole), max(len(whole) // 40, 1)):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match=r"last\.pt"):
            load_state(path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save([1, 2], path)
    with pytest.raises(StoreError, match="holds no state"):
        load_state(path)
