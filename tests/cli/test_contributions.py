"""`mmbench contributions`, as a user meets it."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Command, assert_one_line
from tests.unit.records import write_run

STORE = Path("results/runs")


@pytest.fixture
def folders(command: Command) -> list[Path]:
    """Three seeds of joint training with a unimodal run each of one modality."""
    for seed in range(3):
        changed = {"modality": "fourier"}
        write_run(STORE, "unimodal", seed, 0.8, changed=changed, probes={"fourier": 0.8})
    shares = {"fourier": 0.75, "zernike": 0.25}
    return [write_run(STORE, "joint", s, 0.8 + s / 100, shapley=shares) for s in range(3)]


def test_a_run_is_named_by_folder_or_by_method_and_seed(
    command: Command, folders: list[Path]
) -> None:
    said = command("contributions", folders[1])
    assert said.code == 0
    assert said.out.startswith("joint on mfeat few, seed 1\n")
    assert "test: imbalance 0.500; fused accuracy 81.0 % with all modalities, 25.0 %" in said.out
    assert "no unimodal run of zernike with seed 1 is stored" in " ".join(said.out.split())
    for name in ("joint/1", "joint/seed-1"):
        by_name = command("contributions", name, "--dataset", "mfeat", "--protocol", "few")
        assert by_name.out == said.out


def test_seeds_are_averaged(command: Command, folders: list[Path]) -> None:
    said = command("contributions", "joint")
    assert said.out.startswith("joint on mfeat few, seeds 0, 1, 2\n")
    assert "fused accuracy 81.0 (1.0) % with all modalities" in said.out
    assert command("contributions", folders[0].parent).out == said.out


def test_every_format_holds_the_same_numbers(command: Command, folders: list[Path]) -> None:
    record = json.loads((folders[0] / "record.json").read_text())
    phi = record["contributions"]["shapley"]["test"]["values"]["fourier"]
    words = ("contributions", folders[0], "--format")
    found = json.loads(command(*words, "json").out)[0]
    shapley = next(q for q in found["quantities"] if (q["name"], q["split"]) == ("shapley", "test"))
    assert shapley["values"]["fourier"] == phi
    assert found["imbalance"]["test"] == pytest.approx(0.5)
    rows = list(csv.DictReader(io.StringIO(command(*words, "csv").out)))
    (value,) = [
        row["value"]
        for row in rows
        if (row["quantity"], row["split"], row["modality"]) == ("shapley", "test", "fourier")
    ]
    assert float(value) == phi
    for format in ("text", "markdown"):
        out = command(*words, format).out
        (line,) = [x for x in out.splitlines() if "Shapley value  " in x or "| Shapley value" in x]
        assert f"{100 * phi:.1f}" in line


def test_metrics_and_classes_are_added_when_asked_for(
    command: Command, folders: list[Path]
) -> None:
    plain = command("contributions", folders[0]).out
    said = command("contributions", folders[0], "--metrics", "--classes", "--readout", "split")
    assert "adaptive_ece by split" not in plain
    assert "adaptive_ece by split" in said.out
    assert "F1 of class ant (100 rows)" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jiont"], "did you mean joint"),
        (["joint/7"], "unknown stored seed of joint '7'"),
        (["joint/first"], "no such folder"),
        (["nowhere/mfeat/joint/abc/seed-0"], "no such folder"),
        (["joint", "--dataset", "mfaet"], "did you mean mfeat"),
        (["joint", "--format", "markdwon"], "did you mean markdown"),
        (["joint", "--readout", "prob"], "did you mean probe"),
        (["joint", "--results", "nowhere"], "nowhere: no such folder; `mmbench run`"),
        (["results/runs/mfeat"], "not the folder of a stored run"),
    ],
)
def test_a_wrong_request_is_one_line(
    command: Command, folders: list[Path], arguments: list[str], words: str
) -> None:
    assert_one_line(command("contributions", *arguments), 2, words)


def test_a_name_that_means_several_runs_is_refused(command: Command, folders: list[Path]) -> None:
    write_run(STORE, "joint", 0, dataset="avdigits")
    said = command("contributions", "joint")
    assert_one_line(said, 2, "more than one dataset: add --dataset (avdigits, mfeat)")
    other = write_run(STORE, "joint", 0, changed={"fusion": "film"})
    said = command("contributions", "joint", "--dataset", "mfeat")
    assert_one_line(said, 2, "2 settings", str(other.parent), "fusion=film", "defaults")


def test_a_failed_run_is_exit_code_1_and_among_good_ones_a_warning(
    command: Command, folders: list[Path]
) -> None:
    failed = write_run(STORE, "joint", 7, status="failed", reason="the loss became nan")
    assert_one_line(command("contributions", failed), 1, "joint seed 7 failed", "became nan")
    said = command("contributions", "joint")
    assert said.code == 0
    assert "left out: joint seed 7 failed: the loss became nan" in said.err


def test_looking_at_contributions_imports_no_torch(repository: Path, folders: list[Path]) -> None:
    code = (
        "import sys; from mmbench.cli.app import main;"
        f"main(['contributions', {str(folders[0])!r}, '--metrics', '--classes']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib')))"
    )
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
