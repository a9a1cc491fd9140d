"""Which test rows models of one modality alone get right, from what they predicted when stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmbench.errors import RequestError, StoreError
from mmbench.evaluate.balance import unimodal_run
from mmbench.restoring import Restored
from mmbench.store.find import find_runs
from mmbench.store.frame import StoredRun, predictions


def experts(run: Restored, alone: Sequence[Path] = ()) -> dict[str, np.ndarray]:
    """Return for each modality of a run which test rows ``(N,)`` its unimodal model gets right.

    The models are the stored runs in the folders ``alone``, one a modality; where none is given,
    those of the run's own store that were trained alike. Raises :class:`RequestError` for a folder
    that will not do, and :class:`StoreError`, in words, where the store lacks one.
    """
    modalities = run.run.network.modalities
    if alone:
        found = _named(run, alone)
    else:
        beside = find_runs(str(run.path), run.path)
        found = {m: unimodal_run(beside.runs[0], m, beside.store) for m in modalities}
    return {m: _right(found[m], run) for m in modalities}


def only_right(right: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return for each modality which rows its model alone gets right: masks ``(N,)``."""
    count = sum(mask.astype(int) for mask in right.values())
    return {m: mask & (count == 1) for m, mask in right.items()}


def _named(run: Restored, folders: Sequence[Path]) -> dict[str, StoredRun]:
    found: dict[str, StoredRun] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RequestError(f"{folder}: no such folder; name that of a unimodal run")
        runs = find_runs(str(folder), folder).runs
        if len(runs) != 1:
            raise RequestError(f"{folder} holds {len(runs)} runs: name the folder of one, seed-N")
        (stored,) = runs
        if stored.status != "done":
            raise RequestError(f"{folder} is of a run that {stored.status}: run it again")
        m = (stored.changed or {}).get("modality")
        if stored.method != "unimodal" or m not in run.run.network.modalities:
            raise RequestError(
                f"{folder} is a run of {stored.method}, not of unimodal with one of "
                f"{', '.join(run.run.network.modalities)}"
            )
        if m in found:
            raise RequestError(f"{found[m].path} and {folder} are both of {m}: name one")
        for what, theirs in stored.finished.fingerprints.items():
            if what in ("split", "data") and theirs != run.record["fingerprints"][what]:
                raise RequestError(f"{folder} saw another {what} than {run.path}")
        found[m] = stored
    if absent := [m for m in run.run.network.modalities if m not in found]:
        raise RequestError(f"no --alone run is of {', '.join(absent)}: name one of each modality")
    return found


def _right(stored: StoredRun, run: Restored) -> np.ndarray:
    arrays = predictions(stored, ("test_ids", "test_labels", "test_logits"))
    if arrays["test_ids"].tolist() != run.splits.test.ids.tolist():
        raise StoreError(f"{stored.path}: its predictions are not those of the test rows")
    right: np.ndarray = arrays["test_logits"].argmax(axis=1) == arrays["test_labels"]
    return right
