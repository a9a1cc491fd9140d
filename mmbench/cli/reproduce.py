"""``mmbench reproduce``: experiments in print, repeated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmbench.reproduce.experiment import Experiment


def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Experiments, or NAME/SYSTEM for one system; none, or `list`, lists them all.",
        ),
    ] = None,
    seed: Annotated[
        list[str] | None,
        typer.Option(
            "--seed", "-s", help="A seed, or a range such as 0-4; repeat. [default: the file's]"
        ),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder of the stored runs.")] = Path(
        "results/runs"
    ),
    experiments: Annotated[
        Path | None, typer.Option(help="Folder of other experiments than mmbench's own.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with unfinished runs.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which runs it takes; train nothing.")
    ] = False,
) -> None:
    """Repeat experiments in print, and set what was reported beside what is obtained.

    Runs what is not stored. Exit code 0 if all values agree, 1 if one differs, 2 if it cannot be
    told or run.
    """
    from mmbench.cli.run import parse_seeds
    from mmbench.reproduce.experiment import FOLDER, LIST, choose, load_experiments
    from mmbench.reproduce.reproduction import refuse_unready

    known = load_experiments(experiments or FOLDER)
    if not names or names == [LIST]:
        _list(list(known.values()))
        return
    chosen = choose(names, known)
    for experiment in chosen:
        refuse_unready(experiment)
    seeds = tuple(parse_seeds(seed)) if seed else None
    if dry_run:
        for experiment in chosen:
            _plan(experiment, results, seeds, device)
        return
    code = 0
    for experiment in chosen:
        code = _worst(code, _reproduce(experiment, results, seeds, device, resume))
    raise typer.Exit(code)


def _worst(one: int, other: int) -> int:
    """Return the exit code of two experiments: that something differs outweighs the rest."""
    return 1 if 1 in (one, other) else max(one, other)


def _list(experiments: Sequence[Experiment]) -> None:
    from mmbench.cli.listing import wrap
    from mmbench.reproduce.readiness import readiness_of_all
    from mmbench.reproduce.text import listed

    for heading, *below in listed(readiness_of_all(experiments)):
        typer.echo(heading)
        for text in below:
            typer.echo("\n".join(wrap(text, "  ", "    ")))


def _plan(
    experiment: Experiment, results: Path, seeds: tuple[int, ...] | None, device: str
) -> None:
    from mmbench.planning import make_jobs
    from mmbench.reproduce.readiness import request
    from mmbench.store.record import RunFolder

    typer.echo(f"{experiment.name}: {experiment.title}")
    for system in experiment.systems:
        for job in make_jobs(request(experiment, system, seeds, device)):
            folder = RunFolder(results, job.config)
            is_done = (folder.stored() or {}).get("status") == "done"
            state = "stored" if is_done else "unfinished" if folder.is_unfinished() else "new"
            typer.echo(f"  {state:<10}  {system.name}, seed {job.config.seed}  {folder.path}")


def _reproduce(
    experiment: Experiment,
    results: Path,
    seeds: tuple[int, ...] | None,
    device: str,
    resume: bool,
) -> int:
    """Print what comes of an experiment and return the exit code it stands for."""
    from mmbench.cli.listing import wrap
    from mmbench.cli.progress import showing_progress
    from mmbench.cli.run import sentence, stopping_on_signals
    from mmbench.reproduce.agreement import exit_code
    from mmbench.reproduce.reproduction import reproduce as findings_of
    from mmbench.reproduce.text import reasons, table, verdict
    from mmbench.running import Outcome

    found = []
    with stopping_on_signals(), showing_progress() as show:

        def ended(outcome: Outcome) -> None:
            if outcome.what != "stored before":
                show.line(sentence(outcome), is_bad=True)  # to stderr: stdout is the table's

        for made in findings_of(
            experiment,
            results,
            seeds=seeds,
            device=device,
            resume=resume,
            progress=show.started,
            ended=ended,
        ):
            found += made
    typer.echo("\n".join(wrap(f"{experiment.name}: {experiment.title}")))
    typer.echo("\n".join(wrap(f"source: {experiment.source}", "  ", "  ")))
    typer.echo()
    typer.echo("\n".join(table(found)))
    typer.echo()
    typer.echo("\n".join(wrap(verdict(experiment, found))))
    typer.echo("Why they may differ:")
    for reason in reasons(experiment):
        typer.echo("\n".join(wrap(reason, "- ", "  ")))
    return exit_code(found)
