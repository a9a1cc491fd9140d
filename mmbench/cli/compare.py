"""`mmbench compare`: stored runs as tables, figures and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmbench.report.columns import View
    from mmbench.report.comparison import Group


def compare(
    results: Annotated[Path, typer.Option(help="Folder of stored runs.")] = Path("results/runs"),
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
        str,
        typer.Option(
            help="accuracy, macro_f1, nll, ece or brier; or a modality's accuracy by a readout, "
            "such as probe.audio."
        ),
    ] = "accuracy",
    format: Annotated[str, typer.Option(help="text, markdown, csv, latex or html.")] = "text",
    columns: Annotated[
        str | None,
        typer.Option(
            help="Only these columns, in this order, by name: accuracy,interval,difference,p_holm,"
            "verdict,probe.audio,updates ...; 'help' lists them."
        ),
    ] = None,
    readout: Annotated[
        str | None,
        typer.Option(
            help="What reads a modality: probe (the default), split, own_head or zero_feature."
        ),
    ] = None,
    shapley: Annotated[
        bool, typer.Option("--shapley", help="Add each modality's share of the Shapley values.")
    ] = False,
    reported: Annotated[
        bool,
        typer.Option("--reported", help="Add accuracies in print, with their sources."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write tables and figures to, in all formats.")
    ] = None,
) -> None:
    """Compare stored runs: means with intervals, paired differences, contributions and cost.

    Prints a table for each dataset and protocol, after a verdict in words. With --output, tables
    (txt, md, csv, tex, html) and figures (png, svg) are written too.
    """
    from mmbench.errors import unknown_name
    from mmbench.report import comparison as comparisons
    from mmbench.report import tables
    from mmbench.report.columns import check_columns, known_columns

    if format not in tables.FORMATS:
        raise unknown_name("--format", format, tables.FORMATS)
    view = _view(columns, readout, shapley, reported)
    found = comparisons.compare(results, dataset, protocol, method or None, reference, metric)
    if columns == "help":
        typer.echo("\n".join(known_columns(found.groups)))
        return
    check_columns(found.groups, view)
    tables.check_readout(found, view.readout)
    typer.echo(tables.rendered(found.groups, format, view), nl=False)
    if format in ("text", "markdown") and len(found.groups) > 1:
        typer.echo("\n" + _over_datasets(found.groups, format, view.width), nl=False)
    for line in found.left_out:
        typer.echo(f"warning: left out: {line}", err=True)
    if format == "csv":
        for group in found.groups:
            for line in tables.remarks_of(group, view):
                typer.echo(f"{group.name}: {line}", err=True)
    if output is not None:
        from mmbench.report.files import write_comparison

        written, remarks = write_comparison(found, output, view)
        for line in (*remarks, *(f"wrote {file}" for file in written)):
            typer.echo(line, err=format != "text")


def _over_datasets(groups: Sequence[Group], format: str, width: int) -> str:
    """Return what can be said of rows over all tables, or why nothing can."""
    from mmbench.errors import RequestError
    from mmbench.report.ranking import rank
    from mmbench.report.tables import over_datasets

    try:
        return over_datasets(rank(groups), format, width)
    except RequestError as error:
        return f"no ranks over datasets: {error}\n"


def _view(columns: str | None, readout: str | None, shapley: bool, reported: bool) -> View:
    """Return what the options ask to see; a wrong or unused one is an error."""
    import shutil

    from mmbench.errors import RequestError, unknown_name
    from mmbench.report.columns import View
    from mmbench.report.reported import load_reported
    from mmbench.report.rows import READOUTS

    if columns is not None and (readout is not None or shapley):
        name = "--readout" if readout is not None else "--shapley"
        example = f"{readout}" if readout is not None else "share"
        raise RequestError(f"{name} has no effect beside --columns: name '{example}' among them")
    chosen = next((name for name in READOUTS if name == (readout or "probe")), None)
    if chosen is None:
        raise unknown_name("--readout", str(readout), READOUTS)
    names = None if columns is None else [name.strip() for name in columns.split(",")]
    return View(
        readout=chosen,
        shapley=shapley,
        columns=None if names is None else tuple(name for name in names if name),
        reported=load_reported() if reported else (),
        width=shutil.get_terminal_size((120, 24)).columns,
    )
