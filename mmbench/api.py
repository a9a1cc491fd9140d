"""The Python interface: what the commands call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmbench.planning import Job, Request, make_jobs, make_request
from mmbench.running import CHECKPOINT_SECONDS, Outcome, execute
from mmbench.train.trainer import Progress

RESULTS = Path("results/runs")


def run(
    *methods: str,
    dataset: str = "mfeat",
    results: Path | str = RESULTS,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    **settings: Any,
) -> list[Outcome]:
    """Train methods on a dataset, store the runs and return what became of each.

    ``settings`` are those of :class:`mmbench.planning.Request`: ``protocol``, ``fusion``,
    ``seeds=(0, 1, 2)``, ``method_options``, ``dataset_options``, ``recipe``, ``encoders``,
    ``device``, ``precision``, ``threads``. A run that is stored is not trained again. Raises
    :class:`mmbench.errors.RequestError` for a wrong request; a run that fails is an outcome.
    """
    given = {"methods": methods} if methods else {}
    request = make_request({**given, "dataset": dataset, **settings})
    return list(
        run_request(
            request,
            Path(results),
            resume=resume,
            overwrite=overwrite,
            checkpoint_seconds=checkpoint_seconds,
        )
    )


def run_request(
    request: Request,
    results: Path = RESULTS,
    *,
    resume: bool = False,
    overwrite: bool = False,
    repeat: bool = False,
    progress: Callable[[Job], Progress] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Iterator[Outcome]:
    """Yield the outcome of each run of a request as it ends."""
    for job in make_jobs(request):
        yield execute(
            job,
            results,
            resume=resume,
            overwrite=overwrite,
            repeat=repeat,
            progress=progress(job) if progress else None,
            checkpoint_seconds=checkpoint_seconds,
        )
