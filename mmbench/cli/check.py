"""``mmbench check``: runs against a baseline, for continuous integration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmbench.check.baseline import Baseline
    from mmbench.check.checking import Check
    from mmbench.check.measuring import Fingerprints, Measured


def check(
    against: Annotated[
        Path, typer.Option(help="The baseline, such as results/baselines/mfeat.yaml.")
    ],
    results: Annotated[
        Path | None, typer.Option(help="Judge the runs stored here; train nothing.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder to keep the runs trained now in.")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Only this row of the baseline; repeat.")
    ] = None,
    fail: Annotated[
        list[str] | None,
        typer.Option(
            help="Largest worsening that passes, in place of the derived one: accuracy:-1.5pp "
            "(points), accuracy:-2% (of the stored mean), nll:+0.05; repeat."
        ),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            help="Chance that derived tolerances report a regression where there is none. "
            "[default: 0.01]"
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print GitHub annotations as well.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Make the values the new baseline.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why, for the baseline's history.")] = None,
) -> None:
    """Compare runs with a baseline's values, seed by seed.

    Trains the baseline's settings now, unless --results names stored runs. Exit code 0 if nothing
    is worse than allowed, 1 for a regression, 2 if it cannot be told: other data, too few seeds, a
    run that failed or is missing.
    """
    from mmbench.check.baseline import load_baseline, values_of
    from mmbench.check.checking import check as judge
    from mmbench.check.checking import parse_limits

    baseline = load_baseline(against)
    _refuse_unused(results, keep, row, fail, false_alarms, update, reason)
    if update:
        _update(baseline, against, results, keep, str(reason))
        return
    limits = parse_limits(fail or [])
    stored = values_of(baseline, against)
    rows = _chosen(row, baseline)
    measured = _measured(baseline, rows, results, keep, stored.fingerprints)
    chance = {} if false_alarms is None else {"false_alarms": false_alarms}
    found = judge(baseline.settings, stored, measured, rows, limits, **chance)
    _show(found, against, junit, github)
    raise typer.Exit(found.exit_code)


def _refuse_unused(
    results: Path | None,
    keep: Path | None,
    row: list[str] | None,
    fail: list[str] | None,
    false_alarms: float | None,
    update: bool,
    reason: str | None,
) -> None:
    from mmbench.errors import RequestError

    if results is not None and keep is not None:
        raise RequestError("--keep has no effect beside --results, which trains nothing: leave one")
    if false_alarms is not None and not 0 < false_alarms < 0.5:
        raise RequestError(f"--false-alarms {false_alarms}: a chance between 0 and 0.5")
    if reason is not None and not update:
        raise RequestError("--reason has no effect without --update: leave it out")
    if not update:
        return
    if not (reason or "").strip():
        raise RequestError('--update needs a reason for the history: add --reason "..."')
    if row:
        raise RequestError("--update writes all rows of the baseline: leave --row out")
    if fail or false_alarms is not None:
        raise RequestError("--update judges nothing: leave --fail and --false-alarms out")


def _chosen(row: list[str] | None, baseline: Baseline) -> list[str]:
    from mmbench.errors import unknown_name

    known = list(baseline.settings.rows)
    for name in row or []:
        if name not in known:
            raise unknown_name("row of the baseline", name, known)
    return list(dict.fromkeys(row)) if row else known


def _measured(
    baseline: Baseline,
    rows: Sequence[str],
    results: Path | None,
    keep: Path | None,
    expected: Fingerprints | None,
) -> Measured:
    from mmbench.check.measuring import collect, train

    if results is not None:
        return collect(baseline.settings, rows, results, expected)
    from mmbench.cli.progress import showing_progress

    with _folder(keep) as folder, showing_progress() as show:
        return train(baseline.settings, rows, folder, expected, show.started)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    import tempfile

    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="mmbench-check-") as name:
        yield Path(name)


def _update(
    baseline: Baseline, against: Path, results: Path | None, keep: Path | None, reason: str
) -> None:
    from mmbench.check.checking import REGRESSIONS
    from mmbench.check.checking import check as judge
    from mmbench.check.updating import update

    settings = baseline.settings
    rows = list(settings.rows)
    measured = _measured(baseline, rows, results, keep, None)
    changed: list[str] = []
    before = baseline.stored
    if before is not None and before.settings == settings.fingerprint():
        found = judge(settings, before, measured, rows)
        changed = [f.sentence for f in found.findings if f.verdict in (*REGRESSIONS, "better")]
    written = update(baseline, measured, against, reason, changed)
    count = sum(len(values) for values in written.stored.values.values()) if written.stored else 0
    typer.echo(f"wrote {count} values of {len(rows)} rows to {against}: {reason}")
    for line in changed:
        typer.echo(f"  {line}")


def _show(found: Check, against: Path, junit: Path | None, github: bool) -> None:
    from mmbench.check import annotations
    from mmbench.check.text import rendered
    from mmbench.errors import StoreError

    typer.echo(rendered(found), nl=False)
    if github:
        for line in annotations.github(found, against):
            typer.echo(line)
    if junit is not None:
        try:
            junit.parent.mkdir(parents=True, exist_ok=True)
            junit.write_text(annotations.junit(found, f"mmbench.{against.stem}"), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{junit} cannot be written: {error.strerror}") from error
