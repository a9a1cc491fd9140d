"""`mmbench report`: stored runs as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[Path, typer.Option(help="Folder of stored runs.")] = Path("results/runs"),
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Only this method, or this row by its label; may be repeated."),
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Method, or label of the row, that differences are to.")
    ] = "joint",
    metric: Annotated[
        str, typer.Option(help="What methods are judged by: accuracy, macro_f1, nll, ece ...")
    ] = "accuracy",
    reported: Annotated[
        bool, typer.Option("--reported", help="Add accuracies in print, with their sources.")
    ] = False,
) -> None:
    """Write a report: the verdict in words, tables, figures, settings, and how to repeat it.

    One HTML file that holds everything and needs no network.
    """
    from mmbench.report.comparison import compare
    from mmbench.report.page import unplaced, write_report
    from mmbench.report.reported import load_reported

    if output.is_dir():
        from mmbench.errors import RequestError

        raise RequestError(f"--output {output} is a folder: name a file, such as report.html")
    found = compare(results, dataset, protocol, method or None, reference, metric)
    elsewhere = unplaced(found, dataset, protocol)
    write_report(found, output, load_reported() if reported else (), elsewhere)
    for line in found.left_out:
        typer.echo(f"warning: left out: {line}", err=True)
    typer.echo(f"wrote {output}")
