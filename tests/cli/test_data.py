"""``mmbench data``: what it prints, and its exit codes."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mmbench.cli.app import main

COUNTING = '''
"""A dataset that copies lines."""

from pathlib import Path

from mmbench.data.dataset import Dataset, DatasetInfo, Problem, Progress, Verification
from mmbench.data.files import write_atomically
from mmbench.options import Options, option


class Lines(Dataset):
    info = DatasetInfo("Lines", "lines of text", "none", "none", {"text": "a line"}, {"all": "all"})

    class Config(Options):
        upper: bool = option(False, "write capitals")

    config: Config

    def prepare(self, source: Path, cache: Path, progress: Progress) -> str:
        lines = (source / "lines.txt").read_text().splitlines()
        for i in range(len(lines) + 1):
            progress(i, len(lines), "lines")
        text = "\\n".join(lines)
        with write_atomically(cache / "lines.txt") as path:
            path.write_text(text.upper() if self.config.upper else text)
        return f"{len(lines)} lines written to {cache}"

    def verify(self, source: Path) -> Verification:
        lines = (source / "lines.txt").read_text().splitlines()
        problems = [
            Problem("lines.txt", f"line {i} is bad", "correct it")
            for i, line in enumerate(lines, start=1)
            if line == "bad"
        ]
        return Verification({"lines": len(lines)}, tuple(problems), usable=len(problems) < 3)
'''

Outcome = tuple[int, str, str]


@pytest.fixture
def lines(tmp_path: Path) -> str:
    """The path of a dataset file."""
    path = tmp_path / "lines.py"
    path.write_text(COUNTING)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "downloads"
    path.mkdir()
    (path / "lines.txt").write_text("\n".join(["good"] * 100))
    return path


def mmbench(capfd: pytest.CaptureFixture[str], *words: object) -> Outcome:
    """Return exit code, stdout and stderr of a command."""
    code = main([str(word) for word in words])
    said = capfd.readouterr()
    return code, said.out, said.err


def test_prepare_writes_the_cache_and_says_so(
    capfd: pytest.CaptureFixture[str], lines: str, folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    outcome = mmbench(
        capfd, "data", "prepare", lines, "--source", folder, "--cache", cache, "-d", "upper=true"
    )
    assert outcome[:2] == (0, f"100 lines written to {cache}\n")
    assert (cache / "lines.txt").read_text() == "\n".join(["GOOD"] * 100)


def test_off_a_terminal_progress_is_a_line_per_tenth(
    capfd: pytest.CaptureFixture[str], lines: str, folder: Path, tmp_path: Path
) -> None:
    _, _, said = mmbench(
        capfd, "data", "prepare", lines, "--source", folder, "--cache", tmp_path / "cache"
    )
    assert said.splitlines() == [f"lines: {done} of 100" for done in range(0, 101, 10)]


def test_on_a_terminal_progress_is_a_bar(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
    folder: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    code, _, said = mmbench(
        capfd, "data", "prepare", lines, "--source", folder, "--cache", tmp_path / "cache"
    )
    assert code == 0
    assert "\x1b[" in said
    assert "100/100" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said)


def test_the_cache_has_a_folder_of_its_own_by_default(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
    folder: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "root"))
    assert mmbench(capfd, "data", "prepare", lines, "--source", folder)[0] == 0
    assert (tmp_path / "root" / "lines" / "lines.txt").is_file()


def test_verify_prints_counts(capfd: pytest.CaptureFixture[str], lines: str, folder: Path) -> None:
    code, out, _ = mmbench(capfd, "data", "verify", lines, "--source", folder)
    assert code == 0
    assert out.split() == ["lines", "100", *f"{folder}: 0 problems, can be used".split()]


def test_verify_prints_problems_with_their_mends_and_no_more_than_asked(
    capfd: pytest.CaptureFixture[str], lines: str, folder: Path
) -> None:
    (folder / "lines.txt").write_text("good\nbad\nbad\nbad\n")
    code, out, _ = mmbench(capfd, "data", "verify", lines, "--source", folder, "--show", "2")
    assert code == 1
    assert out.splitlines()[1:] == [
        "problem: lines.txt: line 2 is bad; correct it",
        "problem: lines.txt: line 3 is bad; correct it",
        "... and 1 more (--show 3 for all)",
        f"{folder}: 3 problems, cannot be used",
    ]


def test_a_problem_need_not_stop_the_use(
    capfd: pytest.CaptureFixture[str], lines: str, folder: Path
) -> None:
    (folder / "lines.txt").write_text("good\nbad\n")
    code, out, _ = mmbench(capfd, "data", "verify", lines, "--source", folder)
    assert code == 0
    assert out.endswith("1 problem, can be used\n")


def test_a_description_is_verified_by_its_path(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((40, 2)), y=np.arange(40) % 2)
    path = tmp_path / "my.yaml"
    path.write_text("file: d.npz\nmodalities: {x: x}\nlabel: y\n")
    code, out, _ = mmbench(capfd, "data", "verify", path)
    assert code == 0
    assert re.search(r"train split +28\n", out)
    assert mmbench(capfd, "data", "verify", "arrays", "--source", path)[:2] == (code, out)
    path.write_text("file: d.npz\nmodalities: {x: z}\nlabel: y\n")
    code, out, _ = mmbench(capfd, "data", "verify", path)
    assert code == 1
    assert f"problem: {tmp_path / 'd.npz'}: has no array 'z'; it has x, y" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "mfaet", "--source", "."], "unknown dataset 'mfaet': did you mean mfeat"),
        (["verify", "mfeat"], "where are the files of 'mfeat'? add --source FOLDER"),
        (["verify", "mfeat", "--source", "nowhere"], "--source nowhere does not exist"),
        (["verify", "synthetic", "--source", "."], "has no files to verify"),
        (["verify", "none.yaml"], "none.yaml: does not exist"),
        (["verify", "my.yaml", "--source", "."], "--source is not used for my.yaml"),
        (["verify", "mfeat", "--source", ".", "--show", "-1"], "--show"),
        (["prepare", "mfeat", "--source", "."], "needs no preparation"),
        (["prepare", "mfeat"], "--source"),
        (["prepare", "my.yaml", "--source", "."], "need no preparation"),
        (["prepare", "mfeat", "--source", ".", "-d", "viewz=[pixels]"], "did you mean views"),
        (["prepare", "mfeat", "--source", ".", "-d", "views"], "write -d name=value"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, said = mmbench(capfd, "data", *words)
    assert (code, out) == (2, "")
    assert message in said
    assert said.count("\n") == 1
