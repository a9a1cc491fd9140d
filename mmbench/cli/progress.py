"""Progress of runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mmbench.planning import Job
from mmbench.train import trainer

PLAIN_SECONDS = 30.0
"""Seconds between plain progress lines of one run."""

Row = Mapping[str, float | int | str]


class Shown(Protocol):
    """Somewhere to show runs as they go."""

    def started(self, job: Job) -> trainer.Progress: ...

    def line(self, text: str) -> None: ...


@contextmanager
def showing_progress() -> Iterator[Shown]:
    """Yield what shows progress: on stderr where that is a terminal, else as lines of text."""
    if not sys.stderr.isatty():
        yield PlainLines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} epochs  {task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Bars(bar)


class Bars:
    """One bar, for the stage that is trained."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task: TaskID | None = None

    def started(self, job: Job) -> trainer.Progress:
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(_name(job), total=0, detail="")
        return _BarOfRun(self.bar, self.task, _name(job))

    def line(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _BarOfRun:
    def __init__(self, bar: Progress, task: TaskID, name: str) -> None:
        self.bar = bar
        self.task = task
        self.name = name

    def stage(self, name: str, number: int, stages: int, epochs: int) -> None:
        title = f"{self.name}  {name} ({number}/{stages})"
        self.bar.update(self.task, description=title, total=epochs, completed=0, detail="")

    def epoch(self, done: int, row: Row) -> None:
        self.bar.update(self.task, completed=done, detail=_detail(row))


class PlainLines:
    """A line when a run starts, and one every half minute."""

    def started(self, job: Job) -> trainer.Progress:
        return _LinesOfRun(_name(job))

    def line(self, text: str) -> None:
        typer.echo(text)


class _LinesOfRun:
    def __init__(self, name: str) -> None:
        self.name = name
        self.where = ""
        self.shown = time.monotonic()

    def stage(self, name: str, number: int, stages: int, epochs: int) -> None:
        self.where = f"stage {name} ({number}/{stages}), epoch {{}}/{epochs}"

    def epoch(self, done: int, row: Row) -> None:
        if time.monotonic() - self.shown >= PLAIN_SECONDS:
            self.shown = time.monotonic()
            typer.echo(f"{self.name}: {self.where.format(done)}, {_detail(row)}")


def _name(job: Job) -> str:
    return f"{job.method.name()} seed {job.config.seed}"


def _detail(row: Row) -> str:
    loss = f"loss {row['train_loss']:.3f}"
    if "val_accuracy" in row:
        return f"{loss}, validation {100 * float(row['val_accuracy']):.1f} %"
    return loss
