"""Finding the runs that a user means: by folder, or by method and seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmbench.errors import RequestError, StoreError, unknown_name
from mmbench.store.frame import StoredRun, load_runs

SHOWN = 4
"""Settings that an error names; the rest are counted."""


@dataclass(frozen=True)
class Found:
    """Runs of one setting over seeds, and the store that they are part of."""

    runs: tuple[StoredRun, ...]
    store: tuple[StoredRun, ...]


def find_runs(
    asked: str, results: Path, dataset: str | None = None, protocol: str | None = None
) -> Found:
    """Return the runs of one setting that ``asked`` names.

    ``asked`` is the folder of a run (``.../seed-0``) or of a setting with all its seeds, or a
    method with or without a seed (``joint``, ``joint/0``), which is looked for in ``results`` on
    the dataset and protocol. Raises :class:`RequestError` for a name that is not stored or means
    several settings, and :class:`StoreError` for a folder that holds no run.
    """
    if (folder := Path(asked)).is_dir():
        return _in_folder(folder.resolve())
    method, slash, seed = asked.partition("/")
    number = re.fullmatch(r"(?:seed-)?(\d+)", seed)
    if "/" in seed or (slash and number is None):
        raise StoreError(
            f"{asked}: no such folder; name a run's folder, or a stored METHOD or METHOD/SEED"
        )
    store = load_runs(results)
    runs = _chosen("method", method, store)
    for kind, value in (("dataset", dataset), ("protocol", protocol)):
        runs = _chosen(kind, value, runs)
    settings = list(dict.fromkeys(run.path.parent for run in runs))
    if len(settings) > 1:
        raise RequestError(
            f"{method} is stored with {len(settings)} settings on {runs[0].dataset} "
            f"{runs[0].protocol}: name the folder of one: {_described(settings, runs)}"
        )
    if number is not None:
        seeds = {str(run.seed) for run in runs}
        wanted = str(int(number[1]))
        if wanted not in seeds:
            raise unknown_name(f"stored seed of {method}", wanted, seeds)
        runs = [run for run in runs if str(run.seed) == wanted]
    return Found(tuple(runs), tuple(store))


def _in_folder(folder: Path) -> Found:
    of_one = re.fullmatch(r"seed-\d+", folder.name) is not None
    depth = 3 if of_one else 2
    if len(folder.parents) <= depth:
        raise StoreError(f"{folder}: not a run's folder")
    try:
        store = load_runs(folder.parents[depth])
    except StoreError:
        store = []
    runs = [run for run in store if folder in (run.path, run.path.parent)]
    if not runs:
        raise StoreError(
            f"{folder}: not the folder of a stored run, which is "
            "RESULTS/DATASET/METHOD/SETTING/seed-N, or of its setting"
        )
    return Found(tuple(runs), tuple(store))


def _chosen(kind: str, value: str | None, runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Return the runs with a value; without one all, if they agree."""
    known = {name for run in runs if (name := getattr(run, kind)) is not None}
    if value is None:
        if len(known) > 1:
            names = ", ".join(sorted(known))
            raise RequestError(
                f"{runs[0].method} is stored on more than one {kind}: add --{kind} ({names})"
            )
        return list(runs)
    if value not in known:
        raise unknown_name(f"stored {kind}", value, known)
    return [run for run in runs if getattr(run, kind) == value]


def _described(settings: Sequence[Path], runs: Sequence[StoredRun]) -> str:
    words = []
    for folder in settings[:SHOWN]:
        changed = next((r.changed for r in runs if r.path.parent == folder and r.changed), {})
        options = ", ".join(f"{name}={value}" for name, value in changed.items())
        words.append(f"{folder} ({options or 'defaults'})")
    more = len(settings) - SHOWN
    return " or ".join(words) + (f" or {more} more" if more > 0 else "")
