"""Calling the command in this process, and what files it has left."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbench.cli.app import main


@dataclass(frozen=True)
class Said:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


class Command:
    """``mmbench``; the working folder is the test's own, so results lie in ``results/runs``."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture

    def __call__(self, *words: object) -> Said:
        self.capture.readouterr()
        code = main([str(word) for word in words])
        said = self.capture.readouterr()
        return Said(code, said.out, said.err)

    def run(self, words: str, *more: object) -> Said:
        """Call ``mmbench run``: the words of a text, then more that may hold spaces."""
        return self("run", *words.split(), *more)


def assert_one_line(said: Said, code: int, *words: str) -> None:
    """A refusal: one line on stderr that holds these words, nothing on stdout, this exit code."""
    assert (said.code, said.out, said.err.count("\n")) == (code, "", 1), said
    assert "Traceback" not in said.err
    assert "a bug" not in said.err
    for word in words:
        assert word in said.err


def records(results: Path = Path("results/runs")) -> list[dict[str, Any]]:
    """Return the stored records, by method, setting and seed."""
    found = [json.loads(path.read_text()) for path in results.glob("*/*/*/seed-*/record.json")]
    return sorted(found, key=lambda r: (r["method"], str(r["changed"]), r["seed"]))


def only_run(results: Path = Path("results/runs")) -> Path:
    """Return the folder of the one run that is stored."""
    (folder,) = results.glob("*/*/*/seed-*")
    return folder


def predictions(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def assert_same_predictions(ours: Path, theirs: Path) -> None:
    """Two stored runs predict the same, bit for bit."""
    left, right = predictions(ours), predictions(theirs)
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


def snapshot(folder: Path) -> dict[str, str]:
    """Return the hash of every file under a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
