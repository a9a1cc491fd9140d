"""``mmbench list``, ``mmbench show``, and what every command does with errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmbench.cli.app import main
from mmbench.registry import Kind, entries, load_method

METHOD = '''"""Half of the loss.

    L = w CE(z, y)
"""
from typing import Literal

from mmbench.options import Options, option
from mmbench.train.method import Method, MethodInfo


class Half(Method):
    info = MethodInfo(
        title="Half of the loss",
        family="loss",
        summary="halves the loss",
        acts="in the loss, at every step",
        cost="1 forward, 1 backward",
        authors="A. Author, B. Author",
        venue="A Conference",
        year=2021,
        arxiv="2101.00001",
        departures=("the paper averages over time", "no warm-up"),
        default_fusion="sum",
        fusions=("sum", "late"),
        max_modalities=3,
        neutral={"weight": 1.0, "where": None},
    )

    class Config(Options):
        weight: float = option(0.5, "weight w of the loss", gt=0, le=1, search=[0.25, 0.5])
        where: Literal["all", "last"] | None = option(None, "which layers")
'''


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def methods_as_json(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    rows = json.loads(shown(["list", "methods", "--format", "json"], capsys))
    return {row["name"]: row for row in rows}


# -- list ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["method", "dataset"])
def test_list_fits_80_columns_and_names_everything(
    kind: Kind, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(["list", f"{kind}s"], capsys).splitlines()
    assert max(map(len, lines)) <= 80
    headings = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert headings == [entry.name for entry in entries(kind)]


def test_list_as_json_holds_what_the_methods_say(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        row["name"]: row for row in json.loads(shown(["list", "methods", "--format=json"], capsys))
    }
    info = load_method("multiloss").info
    row = rows["multiloss"]
    assert row["origin"] == "built-in"
    for field in ("title", "family", "year", "cost", "summary"):
        assert row[field] == getattr(info, field)


def test_a_broken_file_of_another_package_does_not_hide_the_rest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("def f(:")
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmbench.methods]\nbroken = broken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = {
        row["name"]: row for row in json.loads(shown(["list", "methods", "--format=json"], capsys))
    }
    assert rows["broken"]["origin"] == "plugin 1.0"
    assert "broken.py:1: invalid syntax" in str(rows["broken"]["error"])
    assert "joint" in rows
    assert "plugin 1.0" in shown(["list", "methods"], capsys)


# -- show ----------------------------------------------------------------------------------------


def test_show_tells_all_there_is_to_know_of_a_method(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = tmp_path / "half.py"
    path.write_text(METHOD)
    text = shown(["show", str(path)], capsys)
    for expected in (
        "half: Half of the loss",
        "A. Author, B. Author, A Conference 2021, arXiv:2101.00001",
        "in the loss, at every step",
        "1 forward, 1 backward",
        "sum, late (default sum)",
        "2 to 3",
        "-o weight=1.0 -o where=null",
        "L = w CE(z, y)",
        "- the paper averages over time",
        "- no warm-up",
        "weight = 0.5  (float, > 0, <= 1)",
        "weight w of the loss",
        "tuned over: 0.25, 0.5",
        "where = null  (all | last | none)",
    ):
        assert expected in text


@pytest.mark.parametrize("kind", ["method", "dataset"])
def test_everything_registered_can_be_shown(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    for entry in entries(kind):
        assert shown(["show", entry.name], capsys).startswith(f"{entry.name}: ")


def test_show_lists_what_a_dataset_offers(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(["show", "mfeat"], capsys)
    for expected in ("fourier", "zernike", "morphological", "few", "full", "licence", "CC BY 4.0"):
        assert expected in text


# -- errors, for every command -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "jiont"], "error: unknown method or dataset 'jiont': did you mean joint?"),
        (["show", "ggdm"], "error: ggdm is not available: a baseline of the IIBalance paper"),
        (["show", "no/such.py"], "error: method file no/such.py does not exist"),
        (["list", "metods"], "'metods' is not one of 'methods', 'datasets'"),
        (["list", "methods", "--colour"], "No such option: --colour"),
        (["lst"], "No such command 'lst'"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--debug", "show", "nix"], ["show", "nix", "--debug"]])
def test_debug_adds_the_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_ends_with_130_and_a_bug_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, code in ((KeyboardInterrupt(), 130), (ZeroDivisionError("x"), 1)):

        def fail(kind: str, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("mmbench.cli.listing.entries", fail)
        assert main(["list", "methods"]) == code
    assert "ZeroDivisionError: x (a bug" in capsys.readouterr().err


def test_a_reader_that_stops_reading_is_no_error() -> None:
    code = "import sys; from mmbench.cli.app import main; sys.exit(main(['list', 'methods']))"
    started = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    assert started.stderr.read() == b""
    assert started.wait() == 1
    started.stderr.close()


def test_version_and_help_start_without_heavy_imports() -> None:
    code = """if True:
        import sys
        from mmbench.cli.app import main
        for arguments in (["--version"], ["--help"], ["list", "methods"], ["list", "datasets"]):
            assert main(arguments) == 0
        heavy = {"torch", "numpy", "pandas", "scipy", "matplotlib", "click"}
        print("imported:", *sorted(heavy & set(sys.modules)))
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[0].startswith("mmbench 0.")
    assert ran.stdout.splitlines()[-1] == "imported:"
