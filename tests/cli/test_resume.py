"""Runs that are killed, stopped, or met by a second process, and how they go on."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmbench.cli.run import run as run_command
from mmbench.running import CHECKPOINT_SECONDS
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
"""A method that does something at one step of its training, once, if a file tells it to.

The file ``plan`` holds a stage, an epoch and what to do: wait until killed, or signal itself.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from mmbench.methods.{module} import {base}


class Stopped({base}):
    def train_step(self, run, batch):
        loss = super().train_step(run, batch)
        plan = Path("plan")
        if plan.exists():
            stage, epoch, act = plan.read_text().split()
            if (run.stage.name, run.epoch) == (stage, int(epoch)):
                if act == "wait":
                    Path("waiting").touch()
                    time.sleep(600)
                else:
                    plan.unlink()
                    os.kill(os.getpid(), int(act))
        return loss
'''
JOINT = "-m stopped.py -t epochs=4"
IIBALANCE = "-m stopped.py -t epochs=2 -o budget.folds=3 -o gate.epochs=2"


def write_method(module: str = "joint", base: str = "Joint") -> None:
    Path("stopped.py").write_text(METHOD.format(module=module, base=base))


def start(words: str) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own, and return when it waits in the middle of an epoch."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mmbench", "run", "--checkpoint-every", "0", *words.split()],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while not Path("waiting").exists():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < until, "the run never came to the step"
        time.sleep(0.02)
    return process


def stop(command: Command, number: int = signal.SIGTERM, words: str = JOINT) -> Path:
    """Let a run stop itself in its third epoch, and return its partial folder."""
    write_method()
    Path("plan").write_text(f"train 2 {int(number)}")
    assert command.run(f"{words} --checkpoint-every 0").code == 128 + number
    (partial,) = Path("results/runs").glob("*/*/*/.seed-0.partial")
    return partial


def test_a_run_killed_in_an_epoch_is_locked_named_and_resumed_bit_identical(
    command: Command,
) -> None:
    write_method()
    Path("plan").write_text("train 2 wait")
    process = start(JOINT)
    try:
        said = command.run(JOINT, "--resume")
        assert_one_line(said, 2, "another process is training this run", ".seed-0.partial")
        assert_one_line(command.run(JOINT, "--overwrite"), 2, "another process")
    finally:
        process.kill()
        process.wait()
    Path("plan").unlink()

    partial = next(Path("results/runs").glob("*/*/*/.seed-0.partial"))
    assert json.loads((partial / "record.json").read_text())["status"] == "interrupted"
    assert "(unfinished)" in command.run(JOINT, "--dry-run").out
    before = snapshot(partial)
    assert_one_line(command.run(JOINT), 2, str(partial), "--resume", "--overwrite")
    assert snapshot(partial) == before

    assert command.run(JOINT, "--resume").code == 0
    assert not partial.exists()
    assert command.run(JOINT, "--results", "whole").code == 0
    assert_same_predictions(only_run(), only_run(Path("whole")))
    (resumed,), (whole,) = records(), records(Path("whole"))
    assert resumed["cost"]["updates"] == whole["cost"]["updates"] == 4 * 5
    assert resumed["selected"] == whole["selected"]
    histories = [(p / "history.csv").read_text() for p in (only_run(), only_run(Path("whole")))]
    assert histories[0] == histories[1]
    assert snapshot(only_run()).keys() == snapshot(only_run(Path("whole"))).keys()


def test_iibalance_killed_in_a_stage_of_its_own_is_resumed_bit_identical(command: Command) -> None:
    write_method("iibalance", "IIBalance")
    Path("plan").write_text("crossfit/2 1 wait")
    process = start(IIBALANCE)
    process.kill()
    process.wait()
    Path("plan").unlink()
    assert command.run(IIBALANCE, "--resume").code == 0
    assert command.run(IIBALANCE, "--results", "whole").code == 0
    assert_same_predictions(only_run(), only_run(Path("whole")))
    (resumed,), (whole,) = records(), records(Path("whole"))
    assert resumed["report"] == whole["report"]
    counts = ("updates", "forwards", "encoder_forwards", "backwards")
    assert [resumed["cost"][c] for c in counts] == [whole["cost"][c] for c in counts]


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Tests that a shell runs in the background are started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_resume_needs(command: Command, number: signal.Signals) -> None:
    write_method()
    Path("plan").write_text(f"train 2 {int(number)}")
    before = signal.getsignal(signal.SIGTERM)
    said = command.run(f"{JOINT} --checkpoint-every 0")
    assert_one_line(said, 128 + number, "--resume")
    assert signal.getsignal(signal.SIGTERM) is before
    (partial,) = Path("results/runs").glob("*/*/*/.seed-0.partial")
    record = json.loads((partial / "record.json").read_text())
    assert (record["status"], record["reason"]) == ("interrupted", "stopped by a signal")
    assert command.run(JOINT, "--resume").code == 0
    assert command.run(JOINT, "--results", "whole").code == 0
    assert_same_predictions(only_run(), only_run(Path("whole")))


def test_overwrite_starts_an_unfinished_run_again(command: Command) -> None:
    partial = stop(command)
    state = (partial / "checkpoint" / "last.pt").read_bytes()
    Path("plan").write_text("train 0 15")
    assert command.run(JOINT, "--overwrite").code == 143
    assert not (partial / "checkpoint").exists(), "the old checkpoint is gone, none is due yet"
    assert state
    assert command.run(JOINT).code == 0, "without a checkpoint there is nothing to lose"
    assert command.run(JOINT, "--results", "whole").code == 0
    assert_same_predictions(only_run(), only_run(Path("whole")))


def test_a_stored_run_stays_until_the_one_that_replaces_it_is_complete(command: Command) -> None:
    write_method()
    assert command.run(JOINT).code == 0
    before = snapshot(only_run())
    Path("plan").write_text("train 2 15")
    assert command.run(JOINT, "--overwrite").code == 143
    assert snapshot(only_run()) == before
    assert command.run(JOINT).out.startswith("stored before")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def nothing(content: bytes) -> bytes:
    return b""


def noise(content: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(content))


def a_page(content: bytes) -> bytes:
    return b"<html><body>404 not found</body></html>"


@pytest.mark.parametrize("damage", [cut, nothing, noise, a_page])
def test_a_damaged_checkpoint_is_refused_in_one_line(command: Command, damage: object) -> None:
    partial = stop(command)
    file = partial / "checkpoint" / "last.pt"
    assert callable(damage)
    file.write_bytes(damage(file.read_bytes()))
    before = file.read_bytes()
    said = command.run(JOINT, "--resume")
    assert_one_line(said, 2, "last.pt is damaged", "--overwrite")
    assert file.read_bytes() == before
    assert list(Path("results/runs").glob("*/*/*/seed-0")) == [], "nothing is stored as failed"
    assert command.run(JOINT, "--overwrite").code == 0


def test_a_checkpoint_of_another_network_is_refused(command: Command) -> None:
    partial = stop(command)
    other = stop_elsewhere(command)
    (partial / "checkpoint" / "last.pt").write_bytes(other)
    said = command.run(JOINT, "--resume")
    assert_one_line(said, 2, "the checkpoint does not fit this run", "--overwrite")


def stop_elsewhere(command: Command) -> bytes:
    """Return the checkpoint of a run on fewer modalities."""
    Path("plan").write_text("train 2 15")
    words = f"{JOINT} -d views=zernike,fourier --results other --checkpoint-every 0"
    assert command.run(words).code == 143
    (file,) = Path("other").glob("*/*/*/.seed-0.partial/checkpoint/last.pt")
    return file.read_bytes()


def test_resuming_on_changed_data_is_refused(command: Command) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = {m: rng.normal(size=(90, 4)).astype("f4") for m in "ab"}
    np.savez("data.npz", y=y, a=x["a"], b=x["b"])
    Path("mine.yaml").write_text("file: data.npz\nmodalities: {a: a, b: b}\nlabel: y\n")
    words = f"{JOINT} --dataset mine.yaml"
    partial = stop(command, words=words)
    x["a"][0, 0] += 1
    np.savez("data.npz", y=y, a=x["a"], b=x["b"])
    before = snapshot(partial)
    said = command.run(words, "--resume")
    assert_one_line(said, 2, "run on other data", str(partial))
    assert snapshot(partial) == before


def test_resume_without_anything_to_resume_trains(command: Command) -> None:
    assert command.run("-m joint -t epochs=1 --resume").code == 0
    assert predictions(only_run())["test_logits"].shape == (1500, 10)


def test_the_commands_interval_is_the_librarys() -> None:
    default = inspect.signature(run_command).parameters["checkpoint_every"].default
    assert default == CHECKPOINT_SECONDS
