"""Running an experiment, or reading what is stored of it, and setting both side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbench.errors import RequestError
from mmbench.reproduce.agreement import Agreement, Finding
from mmbench.reproduce.experiment import Experiment, System
from mmbench.reproduce.readiness import readiness, request

if TYPE_CHECKING:
    from mmbench.planning import Job
    from mmbench.running import Outcome
    from mmbench.train.trainer import Progress


def reproduce(
    experiment: Experiment,
    results: Path,
    *,
    seeds: tuple[int, ...] | None = None,
    device: str = "auto",
    resume: bool = False,
    progress: Callable[[Job], Progress] | None = None,
    ended: Callable[[Outcome], None] | None = None,
) -> Iterator[list[Finding]]:
    """Yield the findings of an experiment, system by system; what is stored is not trained again.

    ``ended`` is called with the outcome of every run. Raises :class:`RequestError` for an
    experiment that cannot be run; :func:`refuse_unready` says so with what it needs.
    """
    from mmbench.api import run_request

    for system in experiment.systems:
        asked = request(experiment, system, seeds, device)
        outcomes = []
        for outcome in run_request(asked, results, resume=resume, progress=progress):
            outcomes.append(outcome)
            if ended is not None:
                ended(outcome)
        yield findings(experiment, system, outcomes)


def refuse_unready(experiment: Experiment) -> None:
    """Raise :class:`RequestError` for an experiment that cannot be run here, with the mend."""
    found = readiness(experiment)
    if found.status != "ready":
        raise RequestError(f"experiment '{experiment.name}' cannot be run: {found.reason}")


def findings(experiment: Experiment, system: System, outcomes: list[Outcome]) -> list[Finding]:
    """Return a finding for each value in print of a system."""
    failed = [
        f"seed {o.record['seed']} failed: {o.record['reason']}"
        for o in outcomes
        if o.what == "failed"
    ]
    done = [o.record for o in outcomes if o.what != "failed"]
    made = []
    for metric, value in system.reported.items():
        found = {record["seed"]: measured(record, metric) for record in done}
        missing = [f"seed {seed} holds no {metric}" for seed, x in found.items() if x is None]
        obtained = tuple(100 * x for x in found.values() if x is not None)
        agreement = Agreement(value, obtained, experiment.runs, experiment.tolerance)
        made.append(Finding(system.name, metric, agreement, (*failed, *missing)))
    return made


def measured(record: Mapping[str, Any], metric: str) -> float | None:
    """Return a metric of a record on the test set: ``accuracy``, or ``probe.audio`` for a
    modality's accuracy by a readout. None where the record has none."""
    readout, dot, modality = metric.partition(".")
    if dot:
        value = record["per_modality"].get(modality, {}).get(readout, {}).get("test")
    else:
        value = record["metrics"]["test"].get(metric)
    return None if value is None else float(value)
