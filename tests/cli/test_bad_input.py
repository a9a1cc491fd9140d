"""Whatever is wrong with a request gives one line and an exit code, and stored runs stay as they
are."""

from __future__ import annotations

import errno
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbench.cli.app import main
from mmbench.store import record as store
from tests.cli.command import Command, assert_one_line, only_run, records, snapshot

REFUSED = {
    # names
    "-m jiont": ["unknown method 'jiont'", "did you mean joint"],
    "-m joint --dataset mfaet": ["unknown dataset 'mfaet'", "did you mean mfeat"],
    "-m joint --fusion conct": ["unknown fusion 'conct'", "did you mean concat"],
    "-m joint --protocol fwe": ["unknown protocol of mfeat 'fwe'", "did you mean few"],
    "-m joint -o weight=1": ["unknown option of joint 'weight'", "known: none"],
    "-m ogm -o alfa=1": ["unknown option of ogm 'alfa'", "did you mean alpha"],
    "-m iibalance -o budget.flods=3": ["'budget.flods'", "did you mean budget.folds"],
    "-m joint -d view=x": ["unknown option of mfeat 'view'", "did you mean views"],
    "-m joint -t epoch=1": ["'epoch'", "did you mean epochs"],
    "-m unimodal -o modality=audio": ["unknown modality 'audio'", "known: fourier"],
    "-m joint -d views=[fourrier]": ["'fourrier'", "did you mean fourier"],
    "-m joint --encoder fourrier=mlp": ["unknown modality 'fourrier'", "did you mean fourier"],
    "-m joint --encoder fourier=mpl": ["unknown encoder 'mpl'", "did you mean mlp"],
    "-m joint --encoder fourier=": ["unknown encoder ''"],
    "-m joint --encoder fourier=resnet18": ["resnet18", "'fourier' of kind 'vector'", "use mlp"],
    "-m joint --device cuad": ["unknown device 'cuad'", "cpu, cuda"],
    "-m joint --device cuda:99": ["device 'cuda:99' is not there", "--device cpu"],
    "-m joint --precision fp16": ["'precision'", "'fp32', 'tf32' or 'bf16'"],
    "-m joint --nosuch": ["No such option: --nosuch", "mmbench run --help"],
    # types and ranges
    "-m ogm -o alpha=-1": ["'alpha' of ogm", "greater than or equal to 0", "not -1"],
    "-m ogm -o alpha=high": ["'alpha' of ogm", "number", "'high'"],
    "-m ogm -o alpha=true": ["'alpha' of ogm", "number", "True"],
    "-m iibalance -o budget=3": ["'budget' of iibalance is a group"],
    "-m joint -t lr=fast": ["'lr'", "number", "'fast'"],
    "-m joint -t lr=0": ["'lr'", "greater than 0"],
    "-m joint -t lr=.inf": ["'lr'", "finite"],
    "-m joint -t epochs=0": ["'epochs'", "greater than or equal to 1", "not 0"],
    "-m joint -t epochs=1.5": ["'epochs'", "integer"],
    "-m joint -t lr": ["-t lr", "name=value"],
    "-m joint -t lr=1 -t lr=2": ["'lr' is given twice"],
    "-m joint -t 'lr=['": ["not valid YAML"],
    "-m joint --seed 4-2": ["--seed 4-2", "empty"],
    "-m joint --seed -1": ["--seed -1"],
    "-m joint --seed 1.5": ["--seed 1.5"],
    "-m joint --threads 0": ["--threads"],
    "-m joint --checkpoint-every -1": ["--checkpoint-every"],
    # combinations
    "-m joint -t optimizer=adam -t momentum=0.9": ["momentum is not used by optimizer=adam"],
    "-m joint -t step_epochs=3": ["step_epochs is not used by schedule=constant"],
    "-m joint -t schedule=cosine -t step_factor=0.5": ["step_factor is not used"],
    "-m joint -t train_on=train+val": ["train_on=train+val", "select=last"],
    "-m joint --precision tf32 --device cpu": ["precision=tf32 is not used by device=cpu"],
    "-m ogm -d views=[fourier]": ["'ogm' needs at least 2 modalities", "has 1"],
    "-m joint --fusion film -d views=[fourier]": ["fusion 'film' needs 2 modalities"],
    "-m unimodal --fusion film": ["'unimodal' cannot use fusion 'film'", "use sum"],
    "-m joint -m ogm -o alpha=0.1": ["say whose option", "-o joint.alpha"],
    # files
    "-m ./none.py": ["./none.py does not exist"],
    "-m joint --dataset ./none.py": ["./none.py does not exist"],
    "-m joint --dataset none.yaml": ["none.yaml: does not exist"],
    "-m joint --dataset arrays": ["needs a YAML file", "-d file="],
    "-m joint -d source=/nonexistent": ["/nonexistent/mfeat-fou: does not exist"],
    "--config none.yaml": ["none.yaml does not exist"],
    "--config .": [". cannot be read"],
}
"""What is asked for, and words of the answer."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a run in it."""
    results = tmp_path_factory.mktemp("stored")
    assert main(["run", "-m", "majority", "-t", "epochs=1", "--results", str(results)]) == 0
    return results


@pytest.mark.parametrize("words", REFUSED)
def test_a_wrong_request_is_one_line_and_trains_nothing(
    command: Command, stored: Path, words: str
) -> None:
    before = snapshot(stored)
    said = command("run", *shlex.split(words), "--results", stored)
    assert_one_line(said, 2, *REFUSED[words])
    assert snapshot(stored) == before
    assert {path.name for path in stored.iterdir()} == {"mfeat"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["holds no settings"]),
        ("- joint\n", ["holds no settings"]),
        ("method: [\n", ["not valid YAML"]),
        ("metod: joint\n", ["unknown setting in mine.yaml 'metod'", "did you mean method"]),
        ("3: 4\n", ["unknown setting in mine.yaml '3'"]),
        ("methods: joint\n", ["'methods' of mine.yaml", "list", "'joint'"]),
        ("method: joint\nmethods: [ogm]\n", ["both 'method' and 'methods'"]),
        ("seeds: 3\n", ["'seeds' of mine.yaml", "list"]),
        ("seeds: []\n", ["'seeds' of mine.yaml"]),
        ("seed: x\n", ["'seeds' of mine.yaml", "integer", "'x'"]),
        ("seed: -1\n", ["'seed'", "greater than or equal to 0"]),
        ("recipe: 3\n", ["'recipe' of mine.yaml"]),
        ("threads: two\n", ["'threads' of mine.yaml", "integer"]),
        ("encoders: {fourier: 3}\n", ["'encoders' of mine.yaml"]),
        ("dataset: 3\n", ["'dataset' of mine.yaml"]),
        ("schema_version: 9\n", ["mine.yaml was stored by another version"]),
    ],
)
def test_a_wrong_file_of_settings_is_one_line(
    command: Command, text: str, words: list[str]
) -> None:
    Path("mine.yaml").write_text(text)
    assert_one_line(command.run("--config mine.yaml"), 2, *words)
    assert not Path("results").exists()


def test_a_file_of_settings_that_is_no_text_is_one_line(command: Command) -> None:
    Path("mine.yaml").write_bytes(b"\xff\xfe\x00")
    assert_one_line(command.run("--config mine.yaml"), 2, "mine.yaml cannot be read")


# -- data ----------------------------------------------------------------------------------------


def describe(**arrays: np.ndarray) -> None:
    """Write 60 rows of three classes and two modalities as a description and its file."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    content = {"a": rng.normal(size=(60, 3)), "b": rng.normal(size=(60, 2)), "y": y, **arrays}
    np.savez("data.npz", **content)  # type: ignore[arg-type]
    split = "split: split\n" if "split" in arrays else ""
    Path("d.yaml").write_text(f"file: data.npz\nmodalities: {{a: a, b: b}}\nlabel: y\n{split}")


def not_finite(value: float) -> np.ndarray:
    a = np.zeros((60, 3))
    a[5, 1] = value
    return a


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_named(command: Command, value: float) -> None:
    describe(a=not_finite(value))
    said = command.run("-m joint --dataset d.yaml")
    assert_one_line(said, 2, "'a'", "NaN or infinite")


def test_a_class_without_training_rows_is_named(command: Command) -> None:
    split = np.array(["train", "val", "test"])[np.arange(60) // 20]
    y = np.where(split == "train", np.arange(60) % 2, np.arange(60) % 3)
    describe(y=y, split=split)
    said = command.run("-m joint --dataset d.yaml")
    assert_one_line(said, 2, "no training rows for class 2")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>not found</html>"]
)
def test_a_damaged_data_file_is_named(command: Command, damage: Callable[[bytes], bytes]) -> None:
    describe()
    file = Path("data.npz")
    file.write_bytes(damage(file.read_bytes()))
    assert_one_line(command.run("-m joint --dataset d.yaml"), 2, "data.npz")
    file.unlink()
    assert_one_line(command.run("-m joint --dataset d.yaml"), 2, "data.npz")


DATASET = '''
"""A dataset that cannot be loaded."""

from mmbench.data.dataset import Dataset, DatasetInfo


class Broken(Dataset):
    info = DatasetInfo("Broken", "fails", "none", "none", {"a": "x"}, {"all": "all"})

    def load(self, protocol, seed):
        return {BODY}
'''


@pytest.mark.parametrize(
    ("body", "words"), [("{}['rows']", "KeyError: 'rows' (broken.py:11)"), ("None", "NoneType")]
)
def test_a_dataset_file_that_raises_is_named(command: Command, body: str, words: str) -> None:
    Path("broken.py").write_text(DATASET.replace("{BODY}", body))
    said = command.run("-m joint --dataset broken.py")
    assert_one_line(said, 2, "dataset 'broken' cannot be loaded", words)


# -- the store -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["file", "file/inner"])
def test_a_file_in_place_of_the_results_folder_is_one_line(command: Command, inside: str) -> None:
    Path("file").write_text("mine")
    said = command.run("-m majority -t epochs=1 --results", inside)
    assert_one_line(said, 2, "cannot write file", "--results")
    assert Path("file").read_text() == "mine"


def full_disk(*arguments: Any, **settings: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


WRITERS: dict[str, tuple[Any, str]] = {
    "the folder": (Path, "mkdir"),
    "settings and record": (store, "write_text"),
    "history": (store, "write_history"),
    "predictions": (np, "savez_compressed"),
    "weights": (torch, "save"),
    "the last name": (Path, "rename"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_the_stored_run_stays(
    command: Command, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    assert command.run("-m joint -t epochs=1").code == 0
    before = snapshot(only_run())
    with monkeypatch.context() as patch:
        patch.setattr(*WRITERS[writer], full_disk)
        said = command.run("-m joint -t epochs=1 --overwrite")
        assert_one_line(said, 2, "cannot write", "No space left", "free space")
    assert snapshot(only_run()) == before
    assert command.run("-m joint -t epochs=1 --overwrite").code == 0
    assert [path.name for path in only_run().parent.iterdir()] == ["seed-0"]


def test_a_disk_that_fills_up_while_the_last_record_is_written(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.run("-m joint -t epochs=1").code == 0
    before = snapshot(only_run())
    written = store.write_text

    def full_at_the_end(path: Path, text: str) -> None:
        if path.name == "record.json" and json.loads(text)["status"] == "done":
            full_disk()
        written(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_text", full_at_the_end)
        said = command.run("-m joint -t epochs=1 --overwrite --checkpoint-every 0")
        assert_one_line(said, 2, "cannot write", "No space left")
    assert snapshot(only_run()) == before
    (partial,) = only_run().parent.glob(".seed-0.partial")
    assert (partial / "checkpoint" / "last.pt").exists(), "what was trained is not lost"
    assert command.run("-m joint -t epochs=1 --overwrite --resume").code == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema": 99}', ["has schema 99, this mmbench reads 1"]),
        ('{"schema": 1, "status": "done"}', ["lacks", "metrics"]),
        ("{}", ["is damaged"]),
        ("[1]", ["is damaged"]),
        ("", ["is damaged"]),
        ('{"schema": 1, "stat', ["is damaged"]),
    ],
)
def test_a_stored_run_that_cannot_be_trusted_stays_and_is_named(
    command: Command, content: str, words: list[str]
) -> None:
    command.run("-m majority -t epochs=1")
    (only_run() / "record.json").write_text(content)
    before = snapshot(Path("results"))
    for more in ([], ["--overwrite"], ["--resume"], ["--dry-run"]):
        said = command.run("-m majority -t epochs=1", *more)
        assert_one_line(said, 2, "record.json", *words)
    assert snapshot(Path("results")) == before


# -- methods that do not work --------------------------------------------------------------------

METHOD = '''
"""A method that may fail."""

import torch

from mmbench.train.method import Method, MethodInfo


class Failing(Method):
    info = MethodInfo("Failing", "control", "fails", "always", "1 forward, 1 backward")

    def {hook}
        {body}
'''
LOSS = "loss(self, run, out, batch):"


def write_method(hook: str, body: str) -> None:
    Path("failing.py").write_text(METHOD.format(hook=hook, body=body))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("class Broken(:\n", ["broken.py:1", "SyntaxError"]),
        ("import nonexistent_module\n", ["broken.py:1", "nonexistent_module"]),
        ("raise ValueError('two\\nlines')\n", ["broken.py:1", "ValueError: two lines"]),
        ("x = 1\n", ["broken.py must define exactly one subclass of Method", "none"]),
        ("", ["must define exactly one"]),
    ],
)
def test_a_method_file_that_cannot_be_used_is_named(
    command: Command, content: str, words: list[str]
) -> None:
    Path("broken.py").write_text(content)
    assert_one_line(command.run("-m broken.py"), 2, *words)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("hook", "body", "reason"),
    [
        (LOSS, 'raise RuntimeError("in\\nthe loss")', "RuntimeError: in the loss (failing.py:13)"),
        (LOSS, "return torch.zeros(3) @ torch.zeros(4)", "(failing.py:13)"),
        (LOSS, "return out.logits", "only for scalar outputs"),
        ("setup(self, run):", "self.x = run.val", "'val' (failing.py:13)"),
        ("predict(self, run, out):", "return out.logits.nonsense", "(failing.py:13)"),
        ("predict(self, run, out):", "return out.logits * float('nan')", "logits are not finite"),
        ("report(self, run):", "return {'x': torch.zeros(2)}", "report is not plain"),
        ("report(self, run):", "return {}['x']", "KeyError: 'x' (failing.py:13)"),
    ],
)
def test_a_method_that_raises_is_a_failed_run_and_the_others_go_on(
    command: Command, hook: str, body: str, reason: str
) -> None:
    write_method(hook, body)
    said = command.run("-m failing.py -m majority -t epochs=1 --seed 0-1")
    assert said.code == 1
    assert said.out.count("test accuracy") == said.out.count("\n") == 2
    assert said.err.count("FAILED failing") == said.err.count("\n") == 2
    assert "Traceback" not in said.err
    failed = [r for r in records() if r["method"] == "failing"]
    assert [(r["status"], r["seed"]) for r in failed] == [("failed", 0), ("failed", 1)]
    for record in failed:
        assert reason in record["reason"]
        assert record["reason"] in said.err
        assert record["metrics"] == {}
    (folder,) = Path("results/runs").glob("*/failing/*/seed-0")
    assert snapshot(folder).keys() == {"config.yaml", "record.json", "history.csv", "traceback.txt"}
    assert (folder / "traceback.txt").read_text().startswith("Traceback (most recent call last)")


def test_a_failed_run_is_replaced_when_it_is_run_again(command: Command) -> None:
    write_method(
        LOSS, "from pathlib import Path; assert not Path('bad').exists(), 'no'; "
        "return super().loss(run, out, batch)"
    )  # fmt: skip
    Path("bad").touch()
    assert command.run("-m failing.py -t epochs=1").code == 1
    assert records()[0]["status"] == "failed"
    Path("bad").unlink()
    assert command.run("-m failing.py -t epochs=1").code == 0
    assert records()[0]["status"] == "done"
    assert "traceback.txt" not in snapshot(only_run())

    before = snapshot(only_run())
    Path("bad").touch()
    said = command.run("-m failing.py -t epochs=1 --overwrite")
    assert_one_line(said, 1, "FAILED", "AssertionError: no")
    assert snapshot(only_run()) == before, "a failure does not take the place of a result"
    assert [path.name for path in only_run().parent.iterdir()] == ["seed-0"]


def test_training_that_blows_up_stops_the_run_with_its_place(command: Command) -> None:
    said = command.run("-m joint -t lr=1e9 -t epochs=3")
    assert_one_line(said, 1, "FAILED joint", "the gradient of the encoder", "epoch 1, step")
    assert records()[0]["status"] == "failed"


def test_the_step_of_a_loss_that_is_not_finite_is_exact(command: Command) -> None:
    write_method(
        LOSS,
        "self.step = getattr(self, 'step', 0) + 1; "
        "return super().loss(run, out, batch) * (float('inf') if self.step == 5 + 3 else 1)",
    )
    said = command.run("-m failing.py -t epochs=4")
    assert_one_line(said, 1, "the loss became inf in stage 'train', epoch 2, step 3 (last finite")


def test_a_bug_is_one_line_and_debug_adds_the_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmbench.planning.open_dataset", io.StringIO.getvalue)
    said = command.run("-m joint")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "report it" in said.err
    said = command.run("-m joint --debug")
    assert "Traceback" in said.err
