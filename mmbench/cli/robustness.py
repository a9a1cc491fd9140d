"""`mmbench robustness`: how stored runs stand a modality that is corrupted or missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmbench.errors import MmbenchError, RequestError, RunFailed

if TYPE_CHECKING:
    from mmbench.evaluate.robustness import Choice
    from mmbench.store.frame import StoredRun


def robustness(
    run: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folder of a run or of a setting with all its seeds, or a stored METHOD or "
            "METHOD/SEED; none for all that --results holds."
        ),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder of stored runs.")] = Path("results/runs"),
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method; may be repeated.")
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="Only this modality; may be repeated.")
    ] = None,
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this one, with levels if others than the default ones are wanted: "
            "mean_feature, absent, noise=10,0,-10 (dB), blur=0.05, occlusion=0.2,0.5, drop=0.5; "
            "may be repeated."
        ),
    ] = None,
    per_run: Annotated[
        bool, typer.Option("--per-run", help="A line a run rather than the mean over seeds.")
    ] = False,
    format: Annotated[str, typer.Option(help="text, markdown or csv.")] = "text",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Measure again what is stored.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Predict the test rows of stored runs again with one modality missing or corrupted, at several
    severities, and show how much of the accuracy is retained.

    What is measured is stored beside each run (robustness.csv) and not measured again. See
    docs/robustness.md.
    """
    import shutil

    from mmbench.errors import unknown_name
    from mmbench.report.robustness import FORMATS, lines_of, rendered

    if format not in FORMATS:
        raise unknown_name("--format", format, FORMATS)
    if run and method:
        raise RequestError("--method goes without RUN: name one or the other")
    choice = _choice(modality, corruption)
    named = _named(run, results, dataset, protocol) if run else None
    runs = named if named is not None else _stored(results, dataset, protocol, method)
    measured = _measure(runs, choice, overwrite, device, is_strict=named is not None)
    lines = [
        line
        for line in lines_of(measured, per_run)
        if choice.modalities is None or line.modality in choice.modalities
        if choice.corruptions is None or line.corruption in choice.corruptions
    ]
    width = shutil.get_terminal_size((120, 24)).columns
    typer.echo(rendered(lines, format, width), nl=False)


def _choice(modalities: Sequence[str] | None, corruptions: Sequence[str] | None) -> Choice:
    """Return what the options ask for."""
    from mmbench.evaluate.robustness import Choice

    asked: dict[str, tuple[float, ...] | None] = {}
    for text in corruptions or ():
        name, equals, levels = text.partition("=")
        if name in asked:
            raise RequestError(f"--corruption {text}: '{name}' is given twice")
        try:
            asked[name] = tuple(float(level) for level in levels.split(",")) if equals else None
        except ValueError as error:
            raise RequestError(
                f"--corruption {text}: write {name}, or {name}=LEVEL,LEVEL with numbers"
            ) from error
    return Choice(tuple(modalities) if modalities else None, asked or None)


def _named(
    asked: Sequence[str], results: Path, dataset: str | None, protocol: str | None
) -> list[StoredRun]:
    from mmbench.store.find import find_runs

    found = (r for name in asked for r in find_runs(name, results, dataset, protocol).runs)
    return list({run.path: run for run in found}.values())


def _stored(
    results: Path, dataset: str | None, protocol: str | None, methods: Sequence[str] | None
) -> list[StoredRun]:
    from mmbench.errors import unknown_name
    from mmbench.store.frame import load_runs

    runs = load_runs(results)
    for kind, wanted in (
        ("dataset", [dataset] if dataset else None),
        ("protocol", [protocol] if protocol else None),
        ("method", methods),
    ):
        known = {name for run in runs if (name := getattr(run, kind)) is not None}
        for name in wanted or ():
            if name not in known:
                raise unknown_name(f"stored {kind}", name, known)
        runs = [run for run in runs if not wanted or getattr(run, kind) in wanted]
    return runs


def _measure(
    runs: Sequence[StoredRun], choice: Choice, overwrite: bool, device: str, is_strict: bool
) -> list[StoredRun]:
    """Measure and store what is not stored, and return the runs that could be measured; others are
    named on stderr. With ``is_strict``, for runs asked for by name, the first that did end and
    cannot be measured is an error; so it is when none could be."""
    from mmbench.evaluate.robustness import Assessor

    assessor = Assessor(choice, overwrite, device)
    measured: list[StoredRun] = []
    refused: list[MmbenchError] = []
    for run in runs:
        try:
            count = assessor(run)
        except MmbenchError as error:
            if is_strict and not isinstance(error, RunFailed):
                raise
            refused.append(error)
            continue
        measured.append(run)
        if count:
            typer.echo(f"{run.name} on {run.dataset}: {count} curves measured", err=True)
    if not measured:
        raise (
            refused[0]
            if refused
            else RequestError("no stored run is of that dataset, protocol and method together")
        )
    left_out = dict.fromkeys(f"left out: {error}" for error in refused)
    for warning in (*left_out, *assessor.remarks):
        typer.echo(f"warning: {warning}", err=True)
    return measured
