"""``mmbench reproduce``: experiments are listed, planned, run and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.command import Command, assert_one_line, records

QUICK: dict[str, Any] = {
    "title": "a quick one",
    "source": "made for a test",
    "dataset": "mfeat",
    "protocol": "few",
    "recipe": {"epochs": 1},
    "seeds": [0, 1],
    "differences": ["it was made up"],
    "systems": [
        {"method": "majority", "reported": {"accuracy": 10.0}},
        {"method": "joint", "reported": {"accuracy": 50.0, "probe.fourier": 50.0}},
    ],
}


def write(name: str = "quick", **changes: Any) -> tuple[str, Path]:
    """Write an experiment into the working folder and return the words that find it."""
    folder = Path("mine")
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**QUICK, **changes}))
    return "--experiments", folder


def test_the_list_says_what_can_be_run_and_what_is_missing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "cache"))
    for words in ([], ["list"]):
        said = command("reproduce", *words)
        assert (said.code, said.err) == (0, "")
        lines = said.out.splitlines()
        (few,) = [line for line in lines if line.startswith("mfeat-few ")]
        assert few.split()[1] == "ready"
        (print_,) = [line for line in lines if line.startswith("reconboost-modelnet40 ")]
        assert "needs dataset" in print_
        assert "  needs dataset modelnet40, which this version does not have" in lines
        (clips,) = [line for line in lines if line.startswith("dgl-cremad ")]
        assert "needs data " in clips
        (digits,) = [line for line in lines if line.startswith("avdigits-image-1.5 ")]
        assert "needs data " in digits
        assert "mmbench data prepare avdigits" in " ".join(said.out.split())


def test_an_experiment_that_is_not_valid_hides_no_other_from_the_list(command: Command) -> None:
    where = write()
    write("other", recipe={"epoch": 3})
    said = command("reproduce", *where)
    assert said.code == 0
    assert [line.split()[:2] for line in said.out.splitlines() if line[0] != " "] == [
        ["quick", "ready"],
        ["other", "not"],
    ]
    assert "unknown option of the recipe 'epoch'" in said.out
    assert_one_line(command("reproduce", "other", *where), 2, "'other'", "epochs")


def test_an_experiment_is_run_once_and_judged(command: Command) -> None:
    """The majority class of ten equal classes is right in a tenth: 10 % is closed form."""
    said = command("reproduce", "quick/majority", *write())
    assert said.code == 0, said
    (row,) = [line for line in said.out.splitlines() if line.startswith("majority")]
    assert row.split() == [
        "majority", "accuracy", "10.00", "10.00", "10.0", "to", "10.0", "+0.0", "agrees",
    ]  # fmt: skip
    assert "made for a test" in said.out
    assert "- it was made up" in said.out
    assert len(records()) == 2
    before = {p: p.stat().st_mtime_ns for p in Path("results").rglob("record.json")}
    again = command("reproduce", "quick/majority", *write())
    assert (again.out, again.err) == (said.out, "")  # nothing is trained again
    assert before == {p: p.stat().st_mtime_ns for p in Path("results").rglob("record.json")}


def test_numbers_are_those_of_the_records(command: Command) -> None:
    said = command("reproduce", "quick/joint", *write())
    stored = [r for r in records() if r["method"] == "joint"]
    assert [r["seed"] for r in stored] == [0, 1]
    rows = [line.split() for line in said.out.splitlines() if line.startswith("joint")]
    assert [row[1] for row in rows] == ["accuracy", "probe.fourier"]
    accuracy = sum(r["metrics"]["test"]["accuracy"] for r in stored) / 2
    probe = sum(r["per_modality"]["fourier"]["probe"]["test"] for r in stored) / 2
    assert [row[3] for row in rows] == [f"{100 * accuracy:.2f}", f"{100 * probe:.2f}"]


def test_a_difference_is_exit_code_1_and_one_seed_2(command: Command) -> None:
    systems = [{"method": "majority", "reported": {"accuracy": 30.0}}]
    where = write(systems=systems)
    said = command("reproduce", "quick", *where)
    assert said.code == 1
    assert "differs" in said.out
    one = command("reproduce", "quick", "--seed", "0", *where)
    assert one.code == 2
    assert "cannot tell: one seed has no interval; add --seed" in one.out


def test_a_value_that_no_record_holds_cannot_be_told(command: Command) -> None:
    systems = [{"method": "majority", "reported": {"probe.audio": 30.0}}]
    said = command("reproduce", "quick", *write(systems=systems))
    assert said.code == 2
    assert "seed 0 holds no probe.audio" in said.out


def test_a_run_that_fails_cannot_be_told_and_names_the_reason(command: Command) -> None:
    systems = [{"method": "joint", "reported": {"accuracy": 80.0}, "recipe": {"lr": 1e30}}]
    said = command("reproduce", "quick", *write(systems=systems))
    assert said.code == 2
    (row,) = [line for line in said.out.splitlines() if line.startswith("joint")]
    assert "cannot tell: seed 0 failed: " in row
    assert {r["status"] for r in records()} == {"failed"}


def test_a_dry_run_names_the_folders_and_trains_nothing(command: Command) -> None:
    where = write()
    command("reproduce", "quick/majority", "--seed", "0", *where)
    said = command("reproduce", "quick/majority", "--dry-run", *where)
    assert (said.code, said.err) == (0, "")
    states = [line.split()[0] for line in said.out.splitlines()[1:]]
    assert states == ["stored", "new"]
    assert len(records()) == 1


def test_seeds_and_folder_of_results_can_be_chosen(command: Command, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    command("reproduce", "quick/majority", "--seed", "5-6", "--results", elsewhere, *write())
    assert [r["seed"] for r in records(elsewhere)] == [5, 6]
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mfeat-fwe"], ["unknown experiment", "mfeat-few"]),
        (["mfeat-few/jiont"], ["unknown system of mfeat-few", "joint"]),
        (["reconboost-modelnet40"], ["needs dataset modelnet40"]),
        (["mfeat-few", "--seed", "x"], ["--seed x"]),
        (["mfeat-few", "--experiments", "none"], ["none: no such folder"]),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(
    words: list[str], expected: list[str], command: Command
) -> None:
    assert_one_line(command("reproduce", *words), 2, *expected)
    assert not Path("results").exists()


def test_one_experiment_that_cannot_be_run_stops_before_anything_is_trained(
    command: Command,
) -> None:
    where = write()
    write("other", dataset="cremad", protocol=None)
    assert_one_line(command("reproduce", "quick", "other", *where), 2, "'other'", "cremad")
    assert not Path("results").exists()


def test_what_is_printed_is_what_was_stored_even_if_somebody_else_ran_it(
    command: Command,
) -> None:
    """A stored record is read, not repeated: its numbers are the ones judged."""
    where = write()
    command("reproduce", "quick/majority", *where)
    for path in Path("results").rglob("record.json"):
        record = json.loads(path.read_text())
        record["metrics"]["test"]["accuracy"] = 0.25
        path.write_text(json.dumps(record))
    said = command("reproduce", "quick/majority", *where)
    assert (said.code, "25.00" in said.out) == (1, True)
