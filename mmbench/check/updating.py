"""Writing new values into a baseline, with the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from mmbench.check.baseline import Baseline, Change, Stored, save_baseline
from mmbench.check.checking import ENVIRONMENT
from mmbench.check.measuring import Measured
from mmbench.errors import RequestError


def update(
    baseline: Baseline, measured: Measured, file: Path, reason: str, changed: Sequence[str] = ()
) -> Baseline:
    """Write the measured values into the baseline's file, and a line of history: date, reason,
    version, commit, and what had ``changed`` beyond what was allowed. Returns what was written.

    Raises :class:`RequestError` where a run or a value is missing; the file stays as it is.
    """
    settings = baseline.settings
    if measured.problems:
        first = measured.problems[0]
        raise RequestError(
            f"{file} is left as it is: row '{first.row}': {first.what}; a baseline needs every run"
        )
    values: dict[str, dict[str, list[float]]] = {}
    for row, quantities in measured.values.items():
        for name, by_seed in quantities.items():
            lost = [s for s in settings.seeds if not math.isfinite(by_seed.get(s, math.nan))]
            if lost:
                raise RequestError(
                    f"{file} is left as it is: row '{row}' has no finite '{name}' in seed "
                    f"{', '.join(map(str, lost))}"
                )
            values.setdefault(row, {})[name] = [_kept(by_seed[s]) for s in settings.seeds]
    environment = measured.environment
    change = Change(
        date=datetime.now(UTC).date(),
        reason=reason,
        version=str(environment["mmbench"]),
        commit=environment.get("git_commit"),
        changed=list(changed),
    )
    stored = Stored(
        settings=settings.fingerprint(),
        fingerprints=measured.fingerprints,
        environment={name: environment.get(name) for name in ENVIRONMENT},
        values=values,
    )
    now = baseline.model_copy(update={"stored": stored, "history": [*baseline.history, change]})
    save_baseline(now, file)
    return now


def _kept(value: float) -> float:
    """Return a value with twelve significant digits: as many as mean something."""
    return float(f"{value:.12g}")
