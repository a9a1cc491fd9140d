"""`mmbench robustness`: what it prints and stores, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

import mmbench
from tests.cli.command import Command, Said, assert_one_line, snapshot


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("trained") / "runs"
    outcomes = mmbench.run(
        "joint",
        "majority",
        dataset="synthetic",
        dataset_options={"train": 200, "val": 40, "test": 200, "difficulty": [0, 0]},
        recipe={"epochs": 4, "lr": 0.02},
        seeds=(0, 1),
        results=results,
        threads=1,
        device="cpu",
    )
    assert all(outcome.what == "trained" for outcome in outcomes)
    return results


@pytest.fixture
def runs(trained: Path, command: Command) -> Path:
    """The runs, in ``results/runs`` of the test's own folder."""
    return Path(shutil.copytree(trained, "results/runs"))


@pytest.fixture
def joint(runs: Path) -> Path:
    return min(runs.glob("*/joint/*/seed-0"))


def table(said: Said) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(said.out)))


def test_all_runs_are_measured_once_and_every_format_says_the_same(
    command: Command, runs: Path
) -> None:
    first = command("robustness", "--device", "cpu")
    assert first.code == 0
    assert first.err.splitlines() == [
        "joint seed 0 on synthetic: 6 curves measured",
        "joint seed 1 on synthetic: 6 curves measured",
        "warning: left out: 'majority' reads no modality: there is none to corrupt",
    ]
    before = snapshot(runs)
    assert sum(name.endswith("robustness.csv") for name in before) == 2
    again = command("robustness", "--method", "joint")
    assert (again.code, again.out, again.err) == (0, first.out, "")
    assert snapshot(runs) == before

    rows = table(command("robustness", "--method", "joint", "--format", "csv"))
    noise = [row for row in rows if (row["modality"], row["corruption"]) == ("x1", "noise")]
    assert [row["level"] for row in noise] == ["", "10.0", "5.0", "0.0", "-5.0", "-10.0"]
    assert {row["seeds"] for row in noise} == {"0 1"}
    stored = [
        list(csv.DictReader((folder / "robustness.csv").open()))
        for folder in sorted(runs.glob("*/joint/*/seed-*"))
    ]
    for row in rows:
        mine = [
            float(found["accuracy"])
            for points in stored
            for found in points
            if all(found[name] == row[name] for name in ("modality", "corruption", "severity"))
        ]
        assert float(row["accuracy"]) == pytest.approx(sum(mine) / 2, abs=1e-12)
    numbers = [f"{100 * float(row['accuracy']):.1f}" for row in noise]
    numbers += [f"{100 * float(noise[0][name]):.1f}" for name in ("retained",)]
    numbers += [f"{100 * float(noise[0]['retained_above_chance']):.1f}"]
    (line,) = re.findall(r"x1, noise .*\n.*\n(joint .*)", first.out)
    assert line.split() == ["joint", "0,1", *numbers]
    markdown = command("robustness", "--method", "joint", "--format", "markdown").out
    assert f"| joint | 0,1 | {' | '.join(numbers)} |" in markdown


def test_runs_can_be_named_and_shown_one_by_one(command: Command, joint: Path) -> None:
    said = command(
        "robustness", joint, "joint/1", "--per-run", "--format", "csv", "--corruption", "absent"
    )
    rows = table(said)
    assert [(row["seeds"], row["severity"]) for row in rows if row["modality"] == "x2"] == [
        ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"),
    ]  # fmt: skip
    assert {row["corruption"] for row in rows} == {"absent"}


def test_a_curve_with_levels_of_one_s_own(command: Command, joint: Path) -> None:
    one = ("robustness", joint, "--modality", "x1", "--format", "csv")
    rows = table(command(*one, "--corruption", "noise=0,20"))
    assert [row["level"] for row in rows] == ["", "20.0", "0.0"]
    before = snapshot(joint)
    said = command(*one, "--corruption", "noise=3")
    assert_one_line(said, 2, "noise of 'x1' is stored with the levels 20, 0", "--overwrite")
    assert snapshot(joint) == before
    rows = table(command(*one, "--corruption", "noise=3", "--overwrite"))
    assert [row["level"] for row in rows] == ["", "3.0"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--corruption", "nois"], ["unknown corruption 'nois'", "did you mean noise"]),
        (["--corruption", "blur"], ["blur", "'x1' (vector)", "use noise, mean_feature, absent"]),
        (["--corruption", "noise=loud"], ["--corruption noise=loud", "LEVEL"]),
        (["--corruption", "noise=100"], ["level 100", "[-60, 60]"]),
        (["--corruption", "absent=1"], ["'absent' has no levels"]),
        (["--corruption", "noise", "--corruption", "noise=1"], ["given twice"]),
        (["--modality", "x3"], ["unknown modality", "'x3'"]),
        (["--format", "latex"], ["unknown --format 'latex'"]),
        (["--method", "joint"], ["--method goes without RUN"]),
    ],
)
def test_a_wrong_request_is_one_line(
    command: Command, joint: Path, words: list[str], told: list[str]
) -> None:
    before = snapshot(joint)
    assert_one_line(command("robustness", joint, *words), 2, *told)
    assert snapshot(joint) == before


def test_runs_that_cannot_be_measured_are_named(command: Command, runs: Path, joint: Path) -> None:
    weights = joint / "checkpoint" / "model.pt"
    weights.unlink()
    assert_one_line(command("robustness", joint), 2, "model.pt is missing", "run it again")
    others = command("robustness", "--corruption", "absent", "--device", "cpu")
    assert others.code == 0
    assert "joint seed 1 on synthetic: 2 curves measured" in others.err
    assert "left out" in others.err
    assert str(weights) in others.err
    assert_one_line(command("robustness", "--method", "majority"), 2, "reads no modality")

    record = json.loads((joint / "record.json").read_text())
    failed = {**record, "status": "failed", "reason": "the loss is not finite"}
    (joint / "record.json").write_text(json.dumps(failed))
    assert_one_line(command("robustness", joint), 1, "failed: the loss is not finite")
    both = command("robustness", joint.parent, "--corruption", "absent")
    assert both.code == 0
    assert f"left out: {joint}: failed: the loss is not finite" in both.err.replace(
        str(Path.cwd()) + "/", ""
    )
    assert_one_line(command("robustness", "--method", "ogm"), 2, "unknown stored method 'ogm'")
    assert_one_line(command("robustness", "--results", "nowhere"), 2, "nowhere")
    assert_one_line(command("robustness", "somewhere/else"), 2, "somewhere/else", "no such folder")
