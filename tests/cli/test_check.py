"""``mmbench check``: real runs against baselines, planted bugs, and noise that is no bug."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml

import mmbench.running
from mmbench.nets.network import NetworkSpec
from mmbench.train.method import Method
from tests.cli import planted_bugs
from tests.cli.command import Command, assert_one_line, snapshot

SETTINGS = {
    "dataset": "mfeat",
    "protocol": "few",
    "recipe": {"epochs": 1},
    "seeds": [0, 1, 2],
    "quantities": ["accuracy", "probe.zernike"],
    "rows": {"plain": {"method": "joint"}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small baseline, ``base.yaml``, and the runs that it was made from."""
    from mmbench.check.baseline import Baseline
    from mmbench.check.measuring import train
    from mmbench.check.updating import update

    folder = tmp_path_factory.mktemp("check")
    baseline = Baseline.model_validate({"schema": 1, "settings": SETTINGS})
    measured = train(baseline.settings, ["plain"], folder / "runs")
    update(baseline, measured, folder / "base.yaml", "made for a test")
    return folder


@pytest.fixture
def small(trained: Path, tmp_path: Path) -> Path:
    """The small baseline and its runs in the working folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "base.yaml"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = yaml.safe_load(file.read_text())
    change(values)
    file.write_text(yaml.safe_dump(values))


# -- the verdicts of one small baseline ------------------------------------------------------------


def test_runs_trained_now_are_those_stored_and_leave_nothing_behind(
    command: Command, small: Path
) -> None:
    before = snapshot(small.parent)
    said = command("check", "--against", small)
    assert said.code == 0, said
    assert said.out.startswith("ok: all 2 values are those stored")
    assert snapshot(small.parent) == before


def test_stored_runs_are_judged_without_training(
    command: Command, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmbench.running, "execute", None)
    said = command("check", "--against", small, "--results", "runs")
    assert said.code == 0, said


def test_a_regression_exits_with_1_and_is_named_in_every_format(
    command: Command, small: Path
) -> None:
    def raise_by_ten_points(values: dict[str, Any]) -> None:
        accuracies = values["stored"]["values"]["plain"]["accuracy"]
        accuracies[:] = [x + 0.1 for x in accuracies]

    edit(small, raise_by_ten_points)
    words = ("check", "--against", small, "--results", "runs")
    said = command(*words, "--github", "--junit", "out/check.xml")
    assert said.code == 1
    assert said.out.startswith("REGRESSION in 1 of 2 values: plain accuracy")
    (line,) = [line for line in said.out.splitlines() if line.startswith("::")]
    assert line.startswith("::error file=")
    assert "-10.00 points" in line
    (failure,) = ElementTree.parse("out/check.xml").getroot().iter("failure")
    assert "-10.00 points" in failure.attrib["message"]
    assert command(*words, "--fail", "accuracy:-10.5pp").code == 0
    assert command(*words, "--fail", "accuracy:-9.5pp").code == 1


def test_a_missing_run_cannot_be_told(command: Command, small: Path) -> None:
    (folder,) = small.parent.glob("runs/*/*/*/seed-2")
    shutil.rmtree(folder)
    said = command("check", "--against", small, "--results", "runs")
    assert said.code == 2
    assert "plain: seed 2 is not stored (" in said.out
    assert "needs 3 seeds, not 2" in said.out


def test_runs_of_other_settings_are_not_taken_for_those_of_the_baseline(
    command: Command, small: Path
) -> None:
    command.run("--method joint --seed 0-2 -t epochs=1 -t lr=0.02 --results others")
    said = command("check", "--against", small, "--results", "others")
    assert said.code == 2
    assert said.out.count("is not stored") == 3


def test_other_data_cannot_be_told_and_are_not_trained_on(
    command: Command, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(small, lambda values: values["stored"]["fingerprints"]["1"].update(data="others"))
    said = command("check", "--against", small, "--keep", "again")
    assert said.code == 2
    assert "plain: seed 1 is of other data (data fingerprint)" in said.out
    assert len([*Path("again").glob("*/*/*/seed-*")]) == 2


def test_a_failed_run_cannot_be_told(
    command: Command, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise FloatingPointError("planted")

    monkeypatch.setattr(Method, "loss", broken)
    said = command("check", "--against", small)
    assert said.code == 2, said
    assert "plain: seed 0 failed: " in said.out
    assert "planted" in said.out


def test_what_is_stored_in_a_folder_to_keep_is_trained_anew(command: Command, small: Path) -> None:
    (record,) = small.parent.glob("runs/*/*/*/seed-0/record.json")
    made = record.stat().st_mtime_ns
    assert command("check", "--against", small, "--keep", "runs").code == 0
    assert record.stat().st_mtime_ns > made


def test_an_update_rewrites_the_values_with_the_reason(command: Command, small: Path) -> None:
    before = yaml.safe_load(small.read_text())
    edit(small, lambda values: values["stored"]["values"]["plain"].update(accuracy=[0.99] * 3))
    said = command(
        "check", "--against", small, "--results", "runs", "--update", "--reason", "They were wrong"
    )
    assert said.code == 0, said
    after = yaml.safe_load(small.read_text())
    assert after["stored"] == before["stored"]
    assert after["settings"] == before["settings"]
    assert [change["reason"] for change in after["history"]] == [
        "made for a test",
        "They were wrong",
    ]
    assert "plain accuracy is worse: 99.00 %" in after["history"][1]["changed"][0]
    assert {"date", "version", "commit"} <= after["history"][1].keys()


def test_a_change_of_the_settings_asks_for_an_update(command: Command, small: Path) -> None:
    edit(small, lambda values: values["settings"]["recipe"].update(lr=0.02))
    assert_one_line(command("check", "--against", small), 2, str(small), "--update --reason")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--reason", "x"], "--reason has no effect without --update"),
        (["--update"], 'add --reason "..."'),
        (["--update", "--reason", " "], 'add --reason "..."'),
        (["--update", "--reason", "x", "--row", "plain"], "leave --row out"),
        (["--update", "--reason", "x", "--fail", "nll:1"], "leave --fail"),
        (["--results", "runs", "--keep", "runs"], "--keep has no effect"),
        (["--false-alarms", "2"], "between 0 and 0.5"),
        (["--row", "plane"], "did you mean plain"),
        (["--fail", "accuracy"], "write QUANTITY:AMOUNT"),
        (["--results", "nowhere"], "no such folder"),
        (["--results", "runs", "--fail", "nll:+1"], "unknown quantity of the baseline"),
    ],
)
def test_a_wrong_request_is_one_line(
    command: Command, small: Path, words: list[str], expected: str
) -> None:
    assert_one_line(command("check", "--against", small, *words), 2, expected)


def test_a_baseline_with_a_wrong_setting_names_the_row(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    for row, expected in (
        ({"method": "joinnt"}, "did you mean joint"),
        ({"method": "ogm_ge", "options": {"alfa": 1}}, "did you mean alpha"),
        ({"method": "unimodal"}, "several runs"),
    ):
        file.write_text(yaml.safe_dump({"schema": 1, "settings": {**SETTINGS, "rows": {"a": row}}}))
        said = command("check", "--against", file, "--update", "--reason", "first")
        assert said.code == 2
        assert "error: row 'a' of the baseline: " in said.err
        assert expected in said.err


# -- the project's own baseline --------------------------------------------------------------------


@pytest.fixture
def own(repository: Path) -> Path:
    return repository / "results" / "baselines" / "mfeat.yaml"


def test_the_projects_own_baseline_holds(command: Command, own: Path) -> None:
    said = command("check", "--against", own)
    assert said.code == 0, said.out


@pytest.mark.parametrize(
    ("bug", "row", "value"),
    [
        (planted_bugs.invert_ratio, "ogm_ge", "ogm_ge history.coefficient.zernike is moved"),
        (
            planted_bugs.align_the_anchor,
            "iibalance",
            "iibalance history.gradient_norm.zernike is moved",
        ),
        (planted_bugs.fit_the_gate_on_train, "iibalance", "iibalance nll is worse"),
        (
            planted_bugs.shuffle_labels_of_a_fold,
            "multiloss",
            "multiloss history.gradient_norm.fourier is moved",
        ),
        (planted_bugs.drop_a_modality, "joint", "joint probe.fourier is worse"),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_a_planted_bug_is_caught(
    command: Command,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    bug: Callable[[pytest.MonkeyPatch], None],
    row: str,
    value: str,
) -> None:
    bug(monkeypatch)
    said = command("check", "--against", own, "--row", row, "--github")
    assert said.code == 1, said
    assert said.out.startswith("REGRESSION in ")
    assert any(line.startswith("::error ") and value in line for line in said.out.splitlines())


def disturb(monkeypatch: pytest.MonkeyPatch, kind: str, repeat: int) -> None:
    """Make runs differ from the stored ones by what is no bug: rounding noise in the initial
    weights, or weights, batch orders and all else that training draws; the splits stay."""
    if kind == "other draws":

        def drawn(*settings: Any) -> NetworkSpec:
            spec = NetworkSpec(*settings)
            return replace(spec, seed=spec.seed + 1000 * (repeat + 1))

        monkeypatch.setattr(mmbench.running, "NetworkSpec", drawn)
        return
    correct = NetworkSpec.build

    def build(self: NetworkSpec, *options: Any) -> Any:
        network = correct(self, *options)
        noise = torch.Generator().manual_seed(repeat)
        with torch.no_grad():
            for parameter in network.parameters():
                relative = torch.randn(parameter.shape, generator=noise)
                parameter.mul_(1 + 1e-7 * relative)
        return network

    monkeypatch.setattr(NetworkSpec, "build", build)


def test_rounding_noise_is_no_regression(
    command: Command, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, "rounding", 0)
    said = command("check", "--against", own, "--row", "ogm_ge")
    assert said.code == 0, said.out
    assert "all 12 values are those stored" not in said.out, "there was no noise"


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(20))
def test_no_wolf_is_cried_over_20_unplanted_repeats(
    command: Command, own: Path, monkeypatch: pytest.MonkeyPatch, repeat: int
) -> None:
    disturb(monkeypatch, "other draws" if repeat % 2 else "rounding", repeat)
    row = ("joint", "multiloss", "ogm_ge", "iibalance")[repeat // 2 % 4]
    said = command("check", "--against", own, "--row", row)
    assert said.code == 0, said.out
    assert not said.out.startswith("ok: all "), "there was no noise"
