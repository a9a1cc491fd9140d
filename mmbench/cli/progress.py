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

    def line(self, text: str, is_bad: bool) -> None:
        """Show what became of a run."""
        ...


@contextmanager
def showing_progress() -> Iterator[Shown]:
    """Yield what shows progress: a bar where stderr is a terminal, else lines on stderr. What
    became of the runs goes to stdout, or to stderr where that is bad news."""
    if not sys.stderr.isatty():
        yield PlainLines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} epochs  {task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    # Lines for a terminal have to go through the bar, which would be drawn over them.
    console = Console(stderr=True)
    is_seen = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=is_seen) as bar:
        yield Bars(bar, is_seen)


class Bars:
    """One bar, for the stage that is trained."""

    def __init__(self, bar: Progress, is_stdout_seen: bool) -> None:
        self.bar = bar
        self.is_stdout_seen = is_stdout_seen
        self.task: TaskID | None = None

    def started(self, job: Job) -> trainer.Progress:
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(_name(job), total=0, detail="")
        return _BarOfRun(self.bar, self.task, _name(job))

    def line(self, text: str, is_bad: bool) -> None:
        if not (is_bad or self.is_stdout_seen):
            typer.echo(text)
            return
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
    """A line every half minute."""

    def started(self, job: Job) -> trainer.Progress:
        return _LinesOfRun(_name(job))

    def line(self, text: str, is_bad: bool) -> None:
        typer.echo(text, err=is_bad)


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
            typer.echo(f"{self.name}: {self.where.format(done)}, {_detail(row)}", err=True)


def _name(job: Job) -> str:
    return f"{job.method.name()} seed {job.config.seed}"


def _detail(row: Row) -> str:
    loss = f"loss {row['train_loss']:.3f}"
    if "val_accuracy" in row:
        return f"{loss}, validation {100 * float(row['val_accuracy']):.1f} %"
    return loss
