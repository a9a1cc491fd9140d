"""``mmbench run``: what it trains, what it prints and what it stores."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.special import log_softmax
from sklearn.metrics import f1_score

import mmbench
from mmbench.cli import progress
from mmbench.config import RunConfig
from mmbench.errors import RequestError
from tests.cli.command import (
    Command,
    assert_one_line,
    assert_same_predictions,
    only_run,
    predictions,
    records,
    snapshot,
)

METHOD = '''
"""Joint training whose loss is scaled."""

from mmbench.options import option
from mmbench.train.method import Method, MethodInfo, Options


class Scaled(Method):
    info = MethodInfo("Scaled", "control", "joint training", "always", "1 forward, 1 backward")

    class Config(Options):
        factor: float = option(1.0, "factor of the loss", gt=0)

    def loss(self, run, out, batch):
        return self.config.factor * super().loss(run, out, batch)
'''

DATASET = '''
"""Two views of three classes."""

import numpy as np
import torch

from mmbench.data.dataset import Dataset, DatasetInfo, Modality, Rows, Split, Splits


class Toy(Dataset):
    info = DatasetInfo("Toy", "three classes", "none", "none", {"a": "x", "b": "x"}, {"all": "all"})

    def load(self, protocol, seed):
        rng = np.random.default_rng(seed)

        def split(name, count):
            y = np.arange(count) % 3
            rows = {m: Rows(y[:, None] + rng.normal(size=(count, 4))) for m in "ab"}
            ids = np.array([f"{name}{i}" for i in range(count)])
            return Split(rows, torch.as_tensor(y), ids)

        views = {m: Modality("vector", (4,)) for m in "ab"}
        return Splits(split("n", 60), split("v", 30), split("t", 30), views, ("x", "y", "z"))
'''


def plans(text: str) -> list[dict[str, Any]]:
    """Return the configurations that ``--dry-run`` has printed."""
    return list(yaml.safe_load_all(text))


# -- what is asked for ---------------------------------------------------------------------------


def test_by_default_iibalance_is_trained_on_mfeat(command: Command) -> None:
    (plan,) = plans(command("run", "--dry-run").out)
    assert (plan["method"], plan["dataset"], plan["protocol"]) == ("iibalance", "mfeat", "few")
    assert (plan["seed"], plan["recipe"]["epochs"]) == (0, 60)


def test_every_method_is_trained_with_every_seed_on_the_seeds_own_split(command: Command) -> None:
    said = command.run("--method joint --method majority --seed 0-1 --seed 1,3 -t epochs=1")
    assert said.code == 0
    assert said.err == ""
    assert said.out.count("test accuracy") == 6
    stored = records()
    assert [(r["method"], r["seed"]) for r in stored] == [
        (method, seed) for method in ("joint", "majority") for seed in (0, 1, 3)
    ]
    splits = {
        seed: {r["fingerprints"]["split"] for r in stored if r["seed"] == seed}
        for seed in (0, 1, 3)
    }
    assert all(len(of_seed) == 1 for of_seed in splits.values())
    assert len(set.union(*splits.values())) == 3
    assert len({r["config_hash"] for r in stored if r["method"] == "joint"}) == 1


def test_unimodal_is_trained_on_each_modality(command: Command) -> None:
    assert command.run("--method unimodal -t epochs=1 -d views=fourier,karhunen").code == 0
    assert [r["changed"]["modality"] for r in records()] == ["fourier", "karhunen"]
    assert command.run("-m unimodal -o modality=zernike --dry-run").out.count("method:") == 1


def test_options_reach_method_dataset_recipe_and_encoders(command: Command) -> None:
    (plan,) = plans(
        command.run(
            "-m iibalance -o budget.folds=3 -o align.enabled=false -d views=[zernike,fourier] "
            "-t lr=2e-2 -t schedule=step -t step_epochs=4 --encoder fourier=mlp --fusion film "
            "--precision bf16 --threads 2 --protocol full --dry-run"
        ).out
    )
    assert plan["method_options"]["budget"]["folds"] == 3
    assert plan["method_options"]["align"]["enabled"] is False
    assert plan["dataset_options"]["views"] == ["zernike", "fourier"]
    assert (plan["recipe"]["lr"], plan["recipe"]["step_epochs"]) == (0.02, 4)
    assert list(plan["encoders"]) == ["zernike", "fourier"]
    assert [plan[name] for name in ("fusion", "precision", "threads", "protocol")] == [
        "film", "bf16", 2, "full",
    ]  # fmt: skip


def test_with_several_methods_an_option_names_its_method(command: Command) -> None:
    joint, ogm = plans(command.run("-m joint -m ogm -o ogm.alpha=0.3 --dry-run").out)
    assert joint["method_options"] == {}
    assert ogm["method_options"]["alpha"] == 0.3


def test_another_optimizer_leaves_the_datasets_momentum_behind(command: Command) -> None:
    (plan,) = plans(command.run("-m joint -t optimizer=adam --dry-run").out)
    assert plan["recipe"]["momentum"] is None
    command.run("-m joint -t optimizer=adam -t epochs=1")
    assert records()[0]["changed"] == {"recipe.optimizer": "adam", "recipe.epochs": 1}


def test_settings_come_from_a_file_and_the_command_line_goes_before_it(command: Command) -> None:
    Path("mine.yaml").write_text(
        "method: ogm\nmethod_options: {alpha: 0.2}\nrecipe: {epochs: 5, lr: 0.5}\nseeds: [4, 5]\n"
    )
    first, second = plans(command.run("--config mine.yaml -t epochs=1 --dry-run").out)
    assert (first["seed"], second["seed"]) == (4, 5)
    assert first["method_options"]["alpha"] == 0.2
    assert (first["recipe"]["epochs"], first["recipe"]["lr"]) == (1, 0.5)


def test_a_dry_run_prints_complete_configurations_and_leaves_nothing(command: Command) -> None:
    said = command.run("-m joint --seed 0-1 -t epochs=1 --dry-run")
    assert said.code == 0
    assert list(Path().iterdir()) == []
    for plan in plans(said.out):
        assert plan.keys() == RunConfig.model_fields.keys()
    one = command.run("-m joint -t epochs=1 --dry-run").out
    assert "(new)" in one
    Path("plan.yaml").write_text(one)
    assert command.run("--config plan.yaml").code == 0
    assert records()[0]["config_hash"] in one
    assert "(stored)" in command.run("-m joint -t epochs=1 --dry-run").out


# -- what is stored before -----------------------------------------------------------------------


def test_a_stored_run_is_trained_again_only_when_told(command: Command) -> None:
    command.run("-m joint -t epochs=1")
    before, place = snapshot(Path("results")), only_run().stat().st_ino
    said = command.run("-m joint -t epochs=1")
    assert said.out.startswith("stored before: joint")
    assert (snapshot(Path("results")), only_run().stat().st_ino) == (before, place)
    said = command.run("-m joint -t epochs=1 --overwrite")
    assert said.code == 0
    assert only_run().stat().st_ino != place
    assert snapshot(Path("results")).keys() == before.keys()
    assert {path.name for path in only_run().parent.iterdir()} == {"seed-0"}


def test_a_stored_configuration_repeats_the_run_bit_for_bit(command: Command) -> None:
    command.run("-m multiloss -t epochs=2 --seed 3")
    folder = only_run()
    before = snapshot(folder)
    said = command.run("--config", folder / "config.yaml")
    assert (said.code, said.err) == (0, "")
    assert "bit for bit" in said.out
    assert snapshot(folder) == before

    elsewhere = command.run("--results other --config", folder / "config.yaml")
    assert elsewhere.code == 0
    assert_same_predictions(folder, only_run(Path("other")))
    assert records(Path("other"))[0]["changed"] == records()[0]["changed"]


def test_a_repetition_that_differs_is_told_and_changes_nothing(command: Command) -> None:
    command.run("-m joint -t epochs=1")
    folder = only_run()
    arrays = predictions(folder)
    arrays["test_logits"][7, 2] = np.nextafter(arrays["test_logits"][7, 2], np.float32(9))
    np.savez(folder / "predictions.npz", **arrays)  # type: ignore[arg-type]
    before = snapshot(folder)
    said = command.run("--config", folder / "config.yaml")
    assert_one_line(said, 1, "DIFFER", str(folder))
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"PK" * 99]
)
def test_damaged_predictions_are_refused(command: Command, damage: Any) -> None:
    command.run("-m majority -t epochs=1")
    file = only_run() / "predictions.npz"
    file.write_bytes(damage(file.read_bytes()))
    said = command.run("--config", only_run() / "config.yaml")
    assert_one_line(said, 2, "predictions.npz is missing or damaged", "--overwrite")


# -- the record ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a method with own heads."""
    results = tmp_path_factory.mktemp("results")
    (outcome,) = mmbench.run("multiloss", recipe={"epochs": 3}, results=results)
    return outcome.path


@pytest.fixture(scope="module")
def page(repository: Path) -> dict[str, str]:
    """Sections of the page on the format, by their titles."""
    text = (repository / "docs" / "results-format.md").read_text()
    return {
        section.partition("\n")[0].strip(): section.partition("\n")[2]
        for section in re.split(r"^#+ ", text, flags=re.MULTILINE)
    }


def named(text: str) -> set[str]:
    """Return what the first cells of a table name."""
    rows = re.findall(r"^\| (`[^|]+) \|", text, flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_the_record_has_the_fields_that_the_documentation_lists(
    stored: Path, page: dict[str, str]
) -> None:
    record = json.loads((stored / "record.json").read_text())
    section = next(text for title, text in page.items() if title.startswith("record.json"))
    fields, readouts = section.split("Readouts of a modality")
    assert named(fields) == record.keys()
    cells = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", fields, flags=re.MULTILINE))
    for split in ("val", "test"):
        assert record["metrics"][split].keys() == {
            name for name in re.findall(r"`(\w+)`", cells["metrics"]) if name != "val"
        }
    for name in re.findall(r"`(\w+)`", cells["cost"]):
        assert name in record["cost"]
    for m in record["modalities"]:
        assert record["per_modality"][m].keys() == named(readouts)
    assert {"split", "data"} <= record["fingerprints"].keys()


def test_predictions_hold_the_arrays_that_the_documentation_lists(
    stored: Path, page: dict[str, str]
) -> None:
    modalities = json.loads((stored / "record.json").read_text())["modalities"]
    wanted = {
        name.replace("<split>", split).replace("<m>", m)
        for name in re.findall(r"`(<split>_[^`]+)`", page["predictions.npz"])
        for split in ("val", "test")
        for m in modalities
    }
    arrays = predictions(stored)
    assert arrays.keys() == wanted
    for split, rows in (("val", 200), ("test", 1500)):
        assert arrays[f"{split}_ids"].dtype.kind == "U"
        assert arrays[f"{split}_labels"].dtype == np.int64
        assert len(set(arrays[f"{split}_ids"])) == rows
        logits = [a for name, a in arrays.items() if name.startswith(split) and a.ndim == 2]
        assert all(a.shape == (rows, 10) and a.dtype == np.float32 for a in logits)


def test_the_history_has_the_columns_that_the_documentation_lists(
    stored: Path, page: dict[str, str]
) -> None:
    modalities = json.loads((stored / "record.json").read_text())["modalities"]
    wanted = {
        name.replace("<m>", m)
        for name in re.findall(r"`([\w.<>]+)`", page["history.csv"])
        for m in modalities
    }
    with (stored / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == wanted
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]


def test_the_files_of_a_run_are_those_that_the_documentation_lists(
    stored: Path, page: dict[str, str]
) -> None:
    listed = re.findall(r"^    (\S+\.\w+)  ", page["The result store"], flags=re.MULTILINE)
    failed_only = "traceback.txt"
    assert snapshot(stored).keys() | {failed_only} == set(listed)


def test_metrics_agree_with_the_stored_predictions(stored: Path) -> None:
    record, arrays = json.loads((stored / "record.json").read_text()), predictions(stored)
    for split in ("val", "test"):
        y, logits = arrays[f"{split}_labels"], arrays[f"{split}_logits"].astype(np.float64)
        metrics, chosen = record["metrics"][split], logits.argmax(1)
        logs = log_softmax(logits, axis=1)
        onehot = np.eye(10)[y]
        assert metrics["accuracy"] == pytest.approx((chosen == y).mean())
        assert metrics["macro_f1"] == pytest.approx(f1_score(y, chosen, average="macro"))
        assert metrics["nll"] == pytest.approx(-(logs * onehot).sum(1).mean())
        assert metrics["brier"] == pytest.approx(((np.exp(logs) - onehot) ** 2).sum(1).mean())
        parts = {name: f"{split}_{name}" for name in ("own_head", "probe")} | {
            "split": f"{split}_parts"
        }
        for m in record["modalities"]:
            for readout, name in parts.items():
                right = arrays[f"{name}.{m}"].argmax(1) == y
                assert record["per_modality"][m][readout][split] == pytest.approx(right.mean())


def test_the_record_says_how_many_threads_were_used(command: Command) -> None:
    command.run("-m majority -t epochs=1 --threads 2")
    assert records()[0]["environment"]["threads"] == 2


# -- files of one's own --------------------------------------------------------------------------


def test_a_method_by_path_is_known_by_its_content(command: Command) -> None:
    Path("scaled.py").write_text(METHOD)
    assert command.run("-m scaled.py -t epochs=1").code == 0
    folder = only_run()
    assert folder.parent.parent.name == "scaled"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert len(config["files"]["method"]) == 64
    assert records()[0]["fingerprints"]["method"] == config["files"]["method"]

    again = command.run("-t epochs=1 -m", Path("scaled.py").resolve())
    assert again.out.startswith("stored before"), "a path written otherwise is the same method"

    Path("scaled.py").write_text(METHOD.replace("self.config.factor *", "2 * self.config.factor *"))
    before = snapshot(folder)
    refused = command.run("--config", folder / "config.yaml")
    assert_one_line(refused, 2, "scaled.py", "restore it")
    assert command.run("-m scaled.py -t epochs=1").code == 0
    assert len({r["config_hash"] for r in records()}) == 2
    assert snapshot(folder) == before


def test_a_dataset_by_path_of_a_python_file(command: Command) -> None:
    Path("toy.py").write_text(DATASET)
    assert command.run("-m joint -t epochs=1 --dataset toy.py").code == 0
    (record,) = records()
    assert (record["dataset"], record["protocol"], record["modalities"]) == (
        "toy",
        "all",
        ["a", "b"],
    )
    assert len(record["fingerprints"]["dataset"]) == 64
    assert "bit for bit" in command.run("--config", only_run() / "config.yaml").out


def test_a_dataset_by_path_of_a_description(command: Command) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = {m: (y[:, None] + rng.normal(size=(90, 4))).astype("f4") for m in "ab"}
    np.savez("data.npz", y=y, a=x["a"], b=x["b"])
    Path("mine.yaml").write_text("file: data.npz\nmodalities: {a: a, b: b}\nlabel: y\n")
    assert command.run("-m joint -t epochs=1 --dataset mine.yaml").code == 0
    assert "bit for bit" in command.run("--config", only_run() / "config.yaml").out

    x["a"][3, 1] += 1
    np.savez("data.npz", y=y, a=x["a"], b=x["b"])
    before = snapshot(Path("results"))
    said = command.run("-m joint -t epochs=1 --dataset mine.yaml")
    assert_one_line(said, 2, "run on other data", "--overwrite")
    assert snapshot(Path("results")) == before


# -- protocol ------------------------------------------------------------------------------------


def test_training_on_validation_too_leaves_nothing_to_validate_on(command: Command) -> None:
    assert command.run("-m joint -t train_on=train+val -t select=last -t epochs=2").code == 0
    (record,) = records()
    assert record["metrics"].keys() == {"test"}
    assert record["cost"]["updates"] == 2 * 8, "500 rows in batches of 64"
    assert not [name for name in predictions(only_run()) if name.startswith("val")]
    assert "val_accuracy" not in (only_run() / "history.csv").read_text()


@pytest.mark.parametrize("rule", ["last", "best-test"])
def test_the_rule_of_selection_is_recorded(command: Command, rule: str) -> None:
    command.run(f"-m joint -t epochs=4 -t select={rule}")
    (record,) = records()
    with (only_run() / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: (float(row["test_accuracy"]), -float(row["test_nll"]))) \
        if rule == "best-test" else rows[-1]  # fmt: skip
    assert record["selected"] == [{"stage": "train", "epoch": int(best["epoch"]), "rule": rule}]
    assert ("test_accuracy" in rows[0]) == (rule == "best-test")
    assert record["changed"]["recipe.select"] == rule


# -- progress ------------------------------------------------------------------------------------


def test_off_a_terminal_progress_is_lines_on_stderr(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    said = command.run("-m joint -t epochs=2")
    lines = said.err.splitlines()
    assert [re.search(r"epoch (\d)/2", line)[1] for line in lines] == ["1", "2"]  # type: ignore[index]
    assert all("loss" in line and "validation" in line for line in lines)
    assert said.out.count("\n") == 1


def test_on_a_terminal_progress_is_a_bar(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    said = command.run("-m joint -t epochs=2")
    assert said.code == 0
    assert "2/2 epochs" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.err)
    assert "test accuracy" in said.out, "stdout is no terminal here: results go there"


# -- Python --------------------------------------------------------------------------------------


def test_the_python_interface_stores_what_the_command_stores(command: Command) -> None:
    outcomes = mmbench.run("joint", "majority", seeds=range(2), recipe={"epochs": 1})
    assert [(o.record["method"], o.record["seed"], o.what) for o in outcomes] == [
        ("joint", 0, "trained"), ("majority", 0, "trained"),
        ("joint", 1, "trained"), ("majority", 1, "trained"),
    ]  # fmt: skip
    for outcome in outcomes:
        stored = json.loads((outcome.path / "record.json").read_text())
        assert stored["metrics"] == outcome.record["metrics"]
    said = command.run("-m joint -m majority --seed 0-1 -t epochs=1")
    assert said.out.count("stored before") == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": 0}, "'seeds'"),
        ({"seeds": []}, "'seeds'"),
        ({"epochs": 3}, "'epochs'"),
        ({"recipe": {"epochs": 0}}, "'epochs'"),
        ({"fusion": "conct"}, "concat"),
    ],
)
def test_the_python_interface_refuses_as_the_command_does(
    command: Command, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        mmbench.run("joint", **settings)
    assert not Path("results").exists()
