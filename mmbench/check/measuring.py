"""From a baseline's settings to the values of its rows: trained now, or read from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbench.check.baseline import Settings
from mmbench.check.quantities import read
from mmbench.errors import RequestError
from mmbench.store.frame import StoredRun, load_runs

if TYPE_CHECKING:
    from mmbench.planning import Job
    from mmbench.train.trainer import Progress

Fingerprints = Mapping[int, Mapping[str, str]]


@dataclass(frozen=True)
class Problem:
    """Why something of a row cannot be told."""

    row: str
    what: str


@dataclass
class Measured:
    """Values of the rows, and what is missing."""

    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    """By row, quantity and seed; NaN where a value is not finite."""
    problems: list[Problem] = field(default_factory=list)
    fingerprints: dict[int, dict[str, str]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


def train(
    settings: Settings,
    rows: Sequence[str],
    results: Path,
    expected: Fingerprints | None = None,
    progress: Callable[[Job], Progress] | None = None,
) -> Measured:
    """Train the rows now, store the runs in ``results`` in place of what lies there, and return
    their values.

    ``expected`` are the fingerprints of the data by seed; a seed whose data are others is not
    trained. None takes the data as they are. Raises :class:`RequestError` where a setting is wrong.
    """
    from mmbench.running import execute

    measured = Measured()
    trained: list[tuple[str, Path]] = []
    for row, job in jobs(settings, rows):
        seed = job.config.seed
        if not _is_expected(measured, row, seed, job.splits.fingerprints(), expected):
            continue
        shown = progress(job) if progress else None
        outcome = execute(job, results, overwrite=True, progress=shown)
        if outcome.what == "failed":
            reason = outcome.record["reason"]
            measured.problems.append(Problem(row, f"seed {seed} failed: {reason}"))
        else:
            trained.append((row, outcome.path))
    stored = {run.path: run for run in load_runs(results)} if trained else {}
    for row, path in trained:
        _take(measured, settings, row, stored[path])
    return measured


def collect(
    settings: Settings, rows: Sequence[str], results: Path, expected: Fingerprints | None = None
) -> Measured:
    """Return the values of the rows from runs that ``results`` holds; nothing is trained.

    Raises :class:`StoreError` for a folder without runs.
    """
    from mmbench.store.record import RunFolder

    measured = Measured()
    stored = {run.path: run for run in load_runs(results)}
    for row, job in jobs(settings, rows):
        seed, path = job.config.seed, RunFolder(results, job.config).path
        run = stored.get(path)
        if run is None or run.record is None:
            why = "is not stored" if run is None else f"is {run.status}: {run.reason}"
            where = f" ({path})" if run is None else ""
            measured.problems.append(Problem(row, f"seed {seed} {why}{where}"))
        elif _is_expected(measured, row, seed, run.record.fingerprints, expected):
            _take(measured, settings, row, run)
    return measured


def jobs(settings: Settings, rows: Sequence[str]) -> Iterator[tuple[str, Job]]:
    """Yield the runs of each row, seed by seed. Raises :class:`RequestError` for a setting that
    does not exist, and for a row that stands for several runs of a seed."""
    from mmbench.planning import make_jobs, make_request

    for name in rows:
        row = settings.rows[name]
        shared = settings.model_dump(exclude={"rows", "quantities", "fail"})
        request = make_request(
            {
                **shared,
                "methods": [row.method],
                "method_options": row.options,
                "fusion": row.fusion,
            },
            f"row '{name}' of the baseline",
        )
        seen: set[int] = set()
        try:
            for job in make_jobs(request):
                if job.config.seed in seen:
                    raise RequestError(
                        f"{row.method} stands for several runs: say in 'options' which"
                    )
                seen.add(job.config.seed)
                yield name, job
        except RequestError as error:
            raise type(error)(f"row '{name}' of the baseline: {error}") from error


def _is_expected(
    measured: Measured,
    row: str,
    seed: int,
    found: Mapping[str, str],
    expected: Fingerprints | None,
) -> bool:
    """Say whether a run's data are those of the baseline; note it where they are not."""
    kinds = ("split", "data")
    measured.fingerprints.setdefault(seed, {kind: found[kind] for kind in kinds})
    others = [] if expected is None else [k for k in kinds if found[k] != expected[seed].get(k)]
    if others:
        what = f"seed {seed} is of other data ({', '.join(others)} fingerprint)"
        measured.problems.append(Problem(row, what))
    return not others


def _take(measured: Measured, settings: Settings, row: str, run: StoredRun) -> None:
    """Note the values of a finished run."""
    record = run.finished
    measured.environment = measured.environment or dict(record.environment)
    of_row = measured.values.setdefault(row, {})
    for name in settings.quantities_of(row):
        found = list(read(run, name))
        if not found:
            what = f"seed {record.seed} has no '{name}'"
            measured.problems.append(Problem(row, what))
        for quantity, value in found:
            of_row.setdefault(quantity.name, {})[record.seed] = value
