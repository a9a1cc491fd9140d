"""`mmbench contributions`: what each modality of a stored run gave, and what training did to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def contributions(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's folder, the folder of a setting with all its seeds, or a stored METHOD "
            "or METHOD/SEED."
        ),
    ],
    results: Annotated[Path, typer.Option(help="Folder of stored runs.")] = Path("results/runs"),
    dataset: Annotated[str | None, typer.Option(help="Dataset of the METHOD.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Protocol of the METHOD.")] = None,
    format: Annotated[str, typer.Option(help="text, markdown, csv or json.")] = "text",
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Add every metric of each modality.")
    ] = False,
    classes: Annotated[
        bool, typer.Option("--classes", help="Add F1 of each class, fused and by modality.")
    ] = False,
    readout: Annotated[
        str, typer.Option(help="What reads a modality there: probe, split or own_head.")
    ] = "probe",
) -> None:
    """Show what each modality of stored runs contributes: Shapley values, leave-one-out,
    permutation, the gap to unimodal training, confidence and gradients over training, and one
    number of imbalance.

    What a run does not have is said. Several seeds are shown as mean and standard deviation.
    """
    import shutil

    from mmbench.errors import RunFailed, unknown_name
    from mmbench.evaluate.balance import balance_of
    from mmbench.evaluate.breakdown import f1_by_class, metrics_by_modality
    from mmbench.evaluate.stored import READOUT_ARRAYS
    from mmbench.report.balance_table import FORMATS, rendered, sentences
    from mmbench.store.find import find_runs

    if format not in FORMATS:
        raise unknown_name("--format", format, FORMATS)
    if readout not in READOUT_ARRAYS:
        raise unknown_name("--readout", readout, READOUT_ARRAYS)
    found = find_runs(run, results, dataset, protocol)
    done = [stored for stored in found.runs if stored.status == "done"]
    if not done:
        first = found.runs[0]
        raise RunFailed(f"{first.name} {first.status}, so nothing is known of it: {first.reason}")
    balances = [balance_of(stored, found.store) for stored in done]
    for balance in balances:
        if metrics and balance.modalities:
            balance.quantities += metrics_by_modality(balance.run, readout)
        if classes and balance.modalities:
            balance.quantities += f1_by_class(balance.run, readout)
    width = shutil.get_terminal_size((120, 24)).columns
    typer.echo(rendered(balances, format, width), nl=False)
    if format == "csv":
        for line in sentences(balances):
            typer.echo(f"not told: {line}", err=True)
    for stored in found.runs:
        if stored.status != "done":
            typer.echo(
                f"warning: left out: {stored.name} {stored.status}: {stored.reason}", err=True
            )
