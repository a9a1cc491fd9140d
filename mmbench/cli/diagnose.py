"""`mmbench diagnose`: questions asked of trained runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmbench.evaluate.alignment import Answer, Change, Diagnosis

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
    alone: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a unimodal run; once for each modality. Without it, those are taken "
            "that are stored beside the run and were trained alike."
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="text or json.")] = "text",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Does aligning modalities cost them what each alone knows?

    Probes read each encoder, in the run and in the reference, for what only its modality knows
    (its own labels in the data, a residual of its input, the class of rows that it alone gets
    right), for whose a row is, and, as a control, for the class. See docs/alignment.md.
    """
    import json

    from mmbench.errors import unknown_name
    from mmbench.evaluate.alignment import diagnose
    from mmbench.restoring import restore

    if format not in ("text", "json"):
        raise unknown_name("--format", format, ("text", "json"))
    found = diagnose(restore(run, device), restore(ref, device), alone or ())
    if format == "json":
        typer.echo(json.dumps(as_json(found), indent=2))
        return
    for line in as_text(found):
        typer.echo(line)


def as_text(found: Diagnosis) -> list[str]:
    """Return the diagnosis as lines: verdicts first, then the numbers behind them."""
    lines = []
    for m, diagnosis in found.modalities.items():
        own = diagnosis.decided_by
        by = f"by {own.target}, n = {own.rows}" if own else "nothing of its own can be asked for"
        lines.append(f"{m}: {diagnosis.verdict} ({by})")
    lines += ["", *_table(found)]
    if found.missing:
        lines += ["", "not asked for:", *(f"  {sentence}" for sentence in found.missing)]
    lines += [
        "",
        "n: test rows. Losses with their 95 % interval over these rows, or over their groups where "
        'there are any. "Modality-specific loss" is said only where a linear probe and one with a '
        "hidden layer both lose, the class is told as well as before, and the features have not "
        "collapsed. That the group is told less can be wanted.",
    ]
    return lines


def _table(found: Diagnosis) -> list[str]:
    """Return a line for each number, under a header."""
    rows = []
    for m, diagnosis in found.modalities.items():
        for answer in diagnosis.answers:
            what = f"{m} {answer.target}, {'above chance' if answer.of_classes else 'R2'}"
            for kind, change in answer.probes.items():
                rows.append((f"{what}, {kind}", answer.rows, _numbers(change)))
        before, after = diagnosis.rank
        rows.append((f"{m} effective rank", found.test_rows, f"{before:11.1f}{after:8.1f}"))
    for (first, second), pair in found.pairs.items():
        for name, values in (
            ("linear CKA", pair.cka),
            (f"R2 of {second} from {first}", pair.decoded),
            ("paired cosine", pair.cosine),
            ("retrieval at 1", pair.retrieval),
            ("modality gap", pair.gap),
        ):
            if values is not None:
                numbers = f"{values[0]:11.3f}{values[1]:8.3f}"
                rows.append((f"{first}-{second} {name}", found.test_rows, numbers))
    width = max(len(label) for label, _, _ in rows)
    header = f"{'decoded from the features':{width}}      n  reference     run   loss"
    return [header, *(f"{label:{width}}{count:7}{numbers}" for label, count, numbers in rows)]


def _numbers(change: Change) -> str:
    within = "(too few groups for an interval)"
    if change.low is not None and change.high is not None:
        within = f"[{change.low:+.3f}, {change.high:+.3f}]"
    return f"{change.reference:11.3f}{change.run:8.3f}   {change.loss:+.3f} {within}"


def as_json(found: Diagnosis) -> dict[str, object]:
    """Return the diagnosis as plain values."""

    def answered(answer: Answer) -> dict[str, object]:
        probes = {
            kind: {**vars(change), "loss": change.loss, "retention": change.retention}
            for kind, change in answer.probes.items()
        }
        score = "accuracy above chance" if answer.of_classes else "R2"
        plain = {name: value for name, value in vars(answer).items() if name != "of_classes"}
        return {**plain, "score": score, "probes": probes}

    return {
        "test_rows": found.test_rows,
        "modalities": {
            m: {
                "verdict": diagnosis.verdict,
                "decided_by": own.target if (own := diagnosis.decided_by) else None,
                "targets": [answered(answer) for answer in diagnosis.answers],
                "effective_rank": diagnosis.rank,
            }
            for m, diagnosis in found.modalities.items()
        },
        "pairs": [
            {"first": first, "second": second, **vars(pair)}
            for (first, second), pair in found.pairs.items()
        ],
        "missing": found.missing,
    }
