"""``mmbench data``: check the files that a dataset needs, and prepare them once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmbench.errors import RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from mmbench.data.dataset import Dataset, Progress, Verification

app = typer.Typer(no_args_is_help=True, help="Check and prepare the files of datasets.")

Name = Annotated[
    str, typer.Argument(help="Dataset: a name, a Python file, or the YAML file of your own arrays.")
]
DatasetOptions = Annotated[
    list[str] | None,
    typer.Option("--dataset-option", "-d", help="Option of the dataset: key=value."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that decode files; one for each core by default."),
]
DESCRIPTIONS = (".yaml", ".yml")


@app.command()
def prepare(
    name: Name,
    source: Annotated[Path, typer.Option(help="Folder with the files as you downloaded them.")],
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; by default one in $MMBENCH_CACHE or your cache folder."
        ),
    ] = None,
    option: DatasetOptions = None,
    workers: Workers = None,
) -> None:
    """Turn a dataset's files into a cache, once.

    Datasets of clips and pictures go on from where an interrupted call ended."""
    from mmbench.data.dataset import DecodedDataset
    from mmbench.data.files import cache_root

    if name.endswith(DESCRIPTIONS):
        raise RequestError(f"{name}: arrays are read as they are and need no preparation")
    dataset = _dataset(name, option or [])
    _require_source(source)
    folder = cache or cache_root() / dataset.name()
    with _progress() as progress:
        if isinstance(dataset, DecodedDataset):
            done = dataset.prepare(source, folder, progress, workers)
        else:
            _refuse_workers(dataset, workers)
            done = dataset.prepare(source, folder, progress)
    typer.echo(done)


@app.command()
def verify(
    name: Name,
    source: Annotated[
        Path | None,
        typer.Option(help="Folder with the files as you downloaded them, or a YAML file."),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="How many problems to print.")] = 20,
    option: DatasetOptions = None,
    workers: Workers = None,
) -> None:
    """Say exactly what is missing from or damaged in a dataset's files.

    The exit code is 1 when they cannot be used."""
    from mmbench.data.dataset import DecodedDataset

    if name.endswith(DESCRIPTIONS):
        if source is not None:
            raise RequestError(f"--source is not used for {name}, which names its files")
        name, source = "arrays", Path(name)
    elif source is None:
        raise RequestError(f"where are the files of '{name}'? add --source FOLDER")
    else:
        _require_source(source)
    dataset = _dataset(name, option or [])
    if isinstance(dataset, DecodedDataset):
        with _progress() as progress:
            found = dataset.verify(source, progress, workers)
    else:
        _refuse_workers(dataset, workers)
        found = dataset.verify(source)
    for line in _report(source, found, show):
        typer.echo(line)
    if not found.usable:
        raise typer.Exit(1)


def _dataset(name: str, assignments: list[str]) -> Dataset:
    from mmbench.options import parse_assignments, validated
    from mmbench.registry import load_dataset

    loaded = load_dataset(name)
    options = parse_assignments(assignments, "-d")
    return loaded(validated(loaded.Config, options, f"dataset '{loaded.name()}'"))


def _refuse_workers(dataset: Dataset, workers: int | None) -> None:
    if workers is not None:
        raise RequestError(
            f"--workers is not used for '{dataset.name()}', which has nothing to decode"
        )


def _require_source(source: Path) -> None:
    if not source.exists():
        raise RequestError(f"--source {source} does not exist; check the path")


def _report(source: Path, found: Verification, show: int) -> Iterator[str]:
    width = max(map(len, found.counts), default=0)
    for what, count in found.counts.items():
        yield f"  {what:<{width}}  {count:>8}"
    for problem in found.problems[:show]:
        mend = f"; {problem.mend}" if problem.mend else ""
        yield f"problem: {problem.path}: {problem.what}{mend}"
    total = len(found.problems)
    if total > show:
        yield f"... and {total - show} more (--show {total} for all)"
    problems = "1 problem" if total == 1 else f"{total} problems"
    yield f"{source}: {problems}, {'can be used' if found.usable else 'cannot be used'}"


@contextmanager
def _progress() -> Iterator[Progress]:
    """Yield a function that shows progress: a bar on a terminal, elsewhere a line when a step
    starts, at each tenth of it, and when it is done. All goes to stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console) as progress:
            yield progress
    else:
        yield _lines()


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    from rich import progress as rich_progress

    tasks: dict[str, rich_progress.TaskID] = {}
    columns = (*rich_progress.Progress.get_default_columns(), rich_progress.MofNCompleteColumn())
    with rich_progress.Progress(*columns, console=console) as bar:

        def progress(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield progress


def _lines() -> Progress:
    shown: dict[str, int] = {}

    def progress(done: int, total: int, what: str) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > shown.get(what, -1):
            shown[what] = tenth
            typer.echo(f"{what}: {done} of {total}", err=True)

    return progress
