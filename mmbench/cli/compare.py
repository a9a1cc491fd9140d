"""`mmbench compare`: stored runs as tables, figures and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    format: Annotated[str, typer.Option(help="text, markdown, csv or latex.")] = "text",
    readout: Annotated[
        str,
        typer.Option(help="What reads a modality: probe, split, own_head or zero_feature."),
    ] = "probe",
    shapley: Annotated[
        bool, typer.Option("--shapley", help="Add each modality's share of the Shapley values.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write tables and figures to, in all formats.")
    ] = None,
) -> None:
    """Compare stored runs: means with intervals, paired differences, contributions and cost.

    Prints a table for each dataset and protocol, after a verdict in words. With --output, tables
    (txt, md, csv, tex) and figures (png, svg) are written too.
    """
    import shutil

    from mmbench.errors import unknown_name
    from mmbench.report import comparison as comparisons
    from mmbench.report import tables
    from mmbench.report.rows import READOUTS

    if format not in tables.FORMATS:
        raise unknown_name("--format", format, tables.FORMATS)
    chosen_readout = next((name for name in READOUTS if name == readout), None)
    if chosen_readout is None:
        raise unknown_name("--readout", readout, READOUTS)
    found = comparisons.compare(results, dataset, protocol, method or None, reference, metric)
    tables.check_readout(found, chosen_readout)
    width = shutil.get_terminal_size((120, 24)).columns
    typer.echo(tables.rendered(found.groups, format, chosen_readout, shapley, width), nl=False)
    for line in found.left_out:
        typer.echo(f"warning: left out: {line}", err=True)
    if format == "csv":
        for group in found.groups:
            for line in tables.remarks_of(group):
                typer.echo(f"{group.name}: {line}", err=True)
    if output is not None:
        from mmbench.report.files import write_comparison

        written, remarks = write_comparison(found, output, chosen_readout, shapley)
        for line in (*remarks, *(f"wrote {file}" for file in written)):
            typer.echo(line, err=format != "text")
