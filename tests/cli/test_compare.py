"""`mmbench compare`, as a user meets it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmbench.cli.app import main
from tests.unit.records import write_run, write_setting


@pytest.fixture
def results(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    # Six seeds: a sign-flip test of one row can then fall below 0.05.
    write_setting(root, "joint", 2 * [0.80, 0.82, 0.81])
    write_setting(root, "ogm", 2 * [0.85, 0.87, 0.87])
    return root


def test_a_table_with_its_verdict_is_printed(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--results", str(results)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mfeat few\n")
    assert "1 of 1 rows is distinguishable from joint (test accuracy 81.0 %)." in out
    assert out.index("Better: ogm +5.3 points") < out.index("verdict\n")


def test_few_seeds_give_hints_and_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_setting(tmp_path, "joint", [0.80, 0.82, 0.81])
    write_setting(tmp_path, "ogm", [0.85, 0.87, 0.87])
    assert main(["compare", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    assert "0 of 1 rows are distinguishable from joint (test accuracy 81.0 %): with 3" in words
    assert "A verdict takes 6 seeds or more." in words
    assert out.index("Hints, not verdicts") < out.index("verdict\n")
    assert "too few paired seeds to test the other rows" in words


def test_every_dataset_gets_its_own_table(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(results, "joint", 0, dataset="avdigits", modalities=("audio", "image"))
    assert main(["compare", "--results", str(results), "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    assert "### avdigits few" in out
    assert "### mfeat few" in out
    assert main(["compare", "--results", str(results), "--dataset", "mfeat"]) == 0
    assert "avdigits" not in capsys.readouterr().out


def test_output_holds_tables_in_every_format_and_figures(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main(["compare", "--results", str(results), "--output", str(folder)]) == 0
    names = {file.name for file in folder.iterdir()}
    assert {"table.txt", "table.md", "table.csv", "table.tex", "table.html"} <= names
    assert {"accuracy.png", "accuracy.svg", "contributions.png", "learning_curves.svg"} <= names
    out = capsys.readouterr().out
    for file in folder.iterdir():
        assert f"wrote {file}" in out


def test_groups_are_written_to_folders_of_their_own(results: Path, tmp_path: Path) -> None:
    write_run(results, "joint", 0, changed={"dataset.noise": "a/b"})
    folder = tmp_path / "out"
    assert main(["compare", "--results", str(results), "--output", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["mfeat-few", "mfeat-few-noise=a-b"]


def test_columns_are_chosen_by_name(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--results", str(results), "--format", "markdown"]
    assert main([*words, "--columns", "updates, accuracy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if line.startswith("| "))
    assert head == "| method | updates | test accuracy (%) |"
    assert main([*words, "--columns", "help"]) == 0
    assert {"updates", "accuracy", "cost", "probe.zernike"} <= set(capsys.readouterr().out.split())


def test_accuracies_in_print_stand_beside_the_rows_with_their_sources(
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "reported"
    folder.mkdir()
    (folder / "paper.yaml").write_text(
        "{source: A paper, read: from table 1, protocol: best epoch on the test set, values: "
        "[{dataset: mfeat, method: ogm, metric: accuracy, value: 91.5, printed_as: OGM}]}"
    )
    monkeypatch.setattr("mmbench.report.reported.FOLDER", folder)
    assert main(["compare", "--results", str(results), "--reported"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "91.5 a≠" in out
    assert "a: A paper. Read: from table 1. Protocol: best epoch on the test set." in out
    assert "≠ not comparable" in out
    (folder / "paper.yaml").write_text("values: 3")
    assert main(["compare", "--results", str(results), "--reported"]) == 2
    assert str(folder / "paper.yaml") in capsys.readouterr().err


def test_csv_on_stdout_is_nothing_but_csv(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(results, "ogm", 7, status="failed", reason="the loss became nan")
    assert main(["compare", "--results", str(results), "--format", "csv"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 3
    assert len({line.count(",") for line in lines}) == 1
    assert "the loss became nan" in captured.err


def test_a_damaged_record_is_told_and_the_rest_compared(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(results, "joint", 9, 0.99)
    (folder / "record.json").write_text('{"schema": 99}')
    assert main(["compare", "--results", str(results)]) == 0
    captured = capsys.readouterr()
    assert "left out" in captured.err
    assert str(folder / "record.json") in captured.err
    assert "test accuracy 81.0 %" in captured.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "mfaet"], "did you mean mfeat"),
        (["--protocol", "fww"], "did you mean few"),
        (["--method", "jiont"], "did you mean joint"),
        (["--reference", "ogmm"], "did you mean ogm"),
        (["--metric", "accurcy"], "did you mean accuracy"),
        (["--format", "markdwon"], "did you mean markdown"),
        (["--readout", "prob"], "did you mean probe"),
        (["--readout", "zero_feature"], "no stored run has it"),
        (["--columns", "accurcy"], "did you mean accuracy"),
        (["--columns", "accurcy"], "Columns are accuracy, "),
        (["--columns", ","], "no column named"),
        (["--columns", "reported"], "add --reported"),
        (["--columns", "accuracy", "--shapley"], "--shapley has no effect beside --columns"),
        (["--columns", "p", "--readout", "split"], "--readout has no effect beside --columns"),
        (["--results", "nowhere"], "nowhere: no such folder; `mmbench run`"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    results: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["compare", "--results", str(results), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_an_unwritable_output_is_one_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert main(["compare", "--results", str(results), "--output", str(file / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "choose another --output" in error


def test_comparing_imports_no_torch(repository: Path) -> None:
    code = (
        "import sys, mmbench.report.files, mmbench.report.figures, mmbench.cli.compare;"
        "sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(repository)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
