"""`mmbench diagnose`: questions asked of trained runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmbench.evaluate.alignment import Change, Diagnosis

app = typer.Typer(no_args_is_help=True, help="Ask questions of trained runs.")


@app.callback()
def _diagnose() -> None:
    """Ask questions of trained runs."""


@app.command()
def alignment(
    run: Annotated[Path, typer.Option(help="Folder of the run under test.")],
    ref: Annotated[
        Path, typer.Option(help="Folder of a run without alignment, of the same data and seed.")
    ],
    format: Annotated[str, typer.Option(help="text or json.")] = "text",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Does aligning modalities cost them what each alone knows?

    Probes read each encoder, in the run and in the reference, for what only its modality knows and,
    as a control, for the class. See docs/alignment.md.
    """
    import json

    from mmbench.errors import unknown_name
    from mmbench.evaluate.alignment import diagnose
    from mmbench.restoring import restore

    if format not in ("text", "json"):
        raise unknown_name("--format", format, ("text", "json"))
    found = diagnose(restore(run, device), restore(ref, device))
    if format == "json":
        typer.echo(json.dumps(as_json(found), indent=2))
        return
    for line in as_text(found):
        typer.echo(line)


def as_text(found: Diagnosis) -> list[str]:
    """Return the diagnosis as lines: verdicts first, then the numbers behind them."""
    lines = [f"{m}: {d.verdict}" for m, d in found.modalities.items()]
    lines += ["", f"{'decoded from the features':34}{'reference':>10}{'run':>8}   loss"]
    for m, d in found.modalities.items():
        for what, changes in (("own residual, R2", d.own), ("class, above chance", d.label)):
            for kind, change in changes.items():
                lines.append(f"{f'{m} {what}, {kind}':40}{_numbers(change)}")
        before, after = d.rank
        lines.append(f"{f'{m} effective rank':40}{before:8.1f}{after:8.1f}")
    lines += ["", f"{'alike':40}{'reference':>8}{'run':>7}"]
    for (first, second), pair in found.pairs.items():
        for name, values in (
            ("linear CKA", pair.cka),
            ("R2 of the second from the first", pair.decoded),
            ("paired cosine", pair.cosine),
            ("retrieval at 1", pair.retrieval),
            ("modality gap", pair.gap),
        ):
            if values is not None:
                label = f"{first}-{second} {name}"
                lines.append(f"{label:40}{values[0]:8.3f}{values[1]:8.3f}")
    lines += [
        "",
        f"Losses with their 95 % interval over {found.test_rows} test rows or their groups. "
        '"Modality-specific loss" is said only where a linear probe and one with a hidden layer '
        "both lose, the class is told as well as before, and the features have not collapsed.",
    ]
    return lines


def _numbers(change: Change) -> str:
    return (
        f"{change.reference:8.3f}{change.run:8.3f}   {change.loss:+.3f} "
        f"[{change.low:+.3f}, {change.high:+.3f}]"
    )


def as_json(found: Diagnosis) -> dict[str, object]:
    """Return the diagnosis as plain values."""

    def plain(change: Change) -> dict[str, float]:
        return {**vars(change), "loss": change.loss, "retention": change.retention}

    return {
        "test_rows": found.test_rows,
        "modalities": {
            m: {
                "verdict": d.verdict,
                "own": {kind: plain(change) for kind, change in d.own.items()},
                "label": {kind: plain(change) for kind, change in d.label.items()},
                "effective_rank": d.rank,
            }
            for m, d in found.modalities.items()
        },
        "pairs": [
            {"first": first, "second": second, **vars(pair)}
            for (first, second), pair in found.pairs.items()
        ],
    }
