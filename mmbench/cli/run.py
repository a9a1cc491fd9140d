"""``mmbench run``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmbench.errors import RequestError

if TYPE_CHECKING:
    from mmbench.planning import Request
    from mmbench.running import Outcome


def run(
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="Name, or path of a .py file; repeat for several."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name, or path of a .py or .yaml file. [default: mfeat]")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="How the data are split; see `mmbench show DATASET`.")
    ] = None,
    fusion: Annotated[
        str | None, typer.Option(help="concat, sum, late, film, gated or attention.")
    ] = None,
    seed: Annotated[
        list[str] | None,
        typer.Option("--seed", "-s", help="A seed, or a range such as 0-4; repeat."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="Option of the method, key=value; repeat."),
    ] = None,
    data_option: Annotated[
        list[str] | None,
        typer.Option("--data-option", "-d", help="Option of the dataset, key=value; repeat."),
    ] = None,
    train_option: Annotated[
        list[str] | None,
        typer.Option(
            "--train-option", "-t", help="Training setting, such as epochs=20 or lr=0.01; repeat."
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="Encoder of a modality, such as audio=resnet18; repeat."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML with settings; a stored config.yaml repeats that run."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, tf32 or bf16.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    results: Annotated[Path, typer.Option(help="Folder of the stored runs.")] = Path(
        "results/runs"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train again, in place of what is stored.")
    ] = False,
    checkpoint_every: Annotated[
        float,
        typer.Option(help="Seconds between checkpoints, for --resume; 0: every epoch.", min=0),
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the complete configuration; train nothing.")
    ] = False,
) -> None:
    """Train methods on a dataset and store the runs."""
    from mmbench.options import parse_assignments

    given: dict[str, Any] = {
        "methods": method,
        "dataset": dataset,
        "protocol": protocol,
        "fusion": fusion,
        "seeds": parse_seeds(seed) if seed else None,
        "method_options": parse_assignments(option or [], "-o"),
        "dataset_options": parse_assignments(data_option or [], "-d"),
        "recipe": parse_assignments(train_option or [], "-t"),
        "encoders": parse_assignments(encoder or [], "--encoder"),
        "device": device,
        "precision": precision,
        "threads": threads,
    }
    given = {name: value for name, value in given.items() if value}
    request, repeats = _request(given, config)
    if dry_run:
        _print_plan(request, results)
        return
    _train(request, results, resume, overwrite, repeats, checkpoint_every)


def _request(given: dict[str, Any], config: Path | None) -> tuple[Request, bool]:
    """Return the request, and whether it asks for a stored run as it is."""
    from mmbench.planning import make_request, request_from_file

    if config is None:
        return make_request(given), False
    values, is_stored = request_from_file(config)
    for name in ("method_options", "dataset_options", "recipe", "encoders"):
        if name in given:
            given[name] = _merged(values.get(name) or {}, given[name])
    return make_request({**values, **given}), is_stored and not given


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings with those of ``over`` in place."""
    result = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = _merged(result[name], value) if both else value
    return result


def parse_seeds(texts: list[str]) -> list[int]:
    """Return the seeds of texts such as ``3``, ``0-4`` and ``0,2,7``, each once.

    Raises :class:`RequestError` for anything else.
    """
    seeds: list[int] = []
    for text in texts:
        for piece in text.split(","):
            first, dash, last = piece.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                raise RequestError(f"--seed {text}: write a number or a range such as 0-4")
            between = range(int(first), int(last if dash else first) + 1)
            if not between:
                raise RequestError(f"--seed {text}: the range is empty; write it as 0-4")
            seeds += between
    return list(dict.fromkeys(seeds))


def _print_plan(request: Request, results: Path) -> None:
    from mmbench.planning import make_jobs
    from mmbench.store.record import RunFolder, config_text

    for i, job in enumerate(make_jobs(request)):
        folder = RunFolder(results, job.config)
        state = "stored" if folder.stored() else "unfinished" if folder.is_unfinished() else "new"
        separator = "---\n" if i else ""
        typer.echo(f"{separator}# {folder.path} ({state})\n{config_text(job.config)}", nl=False)


def _train(
    request: Request,
    results: Path,
    resume: bool,
    overwrite: bool,
    repeats: bool,
    checkpoint_every: float,
) -> None:
    from mmbench.api import run_request
    from mmbench.cli.progress import showing_progress

    failed = 0
    with stopping_on_signals(), showing_progress() as show:
        outcomes = run_request(
            request,
            results,
            resume=resume,
            overwrite=overwrite,
            repeat=repeats,
            progress=show.started,
            checkpoint_seconds=checkpoint_every,
        )
        for outcome in outcomes:
            is_bad = outcome.what == "failed" or outcome.is_identical is False
            failed += is_bad
            show.line(sentence(outcome), is_bad)
    if failed:
        raise typer.Exit(1)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send some time before they kill."""


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Make SIGTERM stop runs as Ctrl-C does, and say so in one line. The exit code is 128 and the
    signal's number, as shells have it: 130 for SIGINT, 143 for SIGTERM."""

    def stop(number: int, frame: object) -> None:
        raise _Terminated

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo("stopped; --resume goes on from the last checkpoint", err=True)
        number = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
        raise typer.Exit(128 + number) from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def sentence(outcome: Outcome) -> str:
    record = outcome.record
    settings = ", ".join(f"{name}={value}" for name, value in record["changed"].items())
    method = f"{record['method']} ({settings})" if settings else record["method"]
    name = f"{method} on {record['dataset']}/{record['protocol']}, seed {record['seed']}"
    if outcome.what == "failed":
        return f"FAILED {name}: {record['reason']} ({outcome.path})"
    if outcome.what == "repeated":
        verdict = (
            "the predictions are those stored, bit for bit"
            if outcome.is_identical
            else "the predictions DIFFER from those stored"
        )
        return f"repeated {name}: {verdict} ({outcome.path})"
    accuracy = f"test accuracy {100 * record['metrics']['test']['accuracy']:.1f} %"
    if outcome.what == "stored before":
        return f"stored before: {name}: {accuracy} (--overwrite to train again; {outcome.path})"
    return f"{name}: {accuracy}, {record['cost']['train_seconds']:.1f} s ({outcome.path})"
