"""A stored run brought back: its network, its method and its data, as they were tested."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbench.data.dataset import Splits
from mmbench.errors import RequestError, StoreError
from mmbench.planning import make_jobs, make_request, request_from_file
from mmbench.running import build_trainer, check_same_data
from mmbench.store.record import read_record
from mmbench.train.checkpoint import load_state
from mmbench.train.method import Method
from mmbench.train.run import Run


@dataclass(frozen=True)
class Restored:
    """A trained method, ready to predict; it cannot be trained further."""

    path: Path
    record: dict[str, Any]
    """What is stored in record.json."""
    run: Run
    method: Method
    splits: Splits
    """On the run's device. With train_on=train+val the rows of val are part of train."""


def restore(folder: Path | str, device: str = "auto") -> Restored:
    """Return a finished run from its folder, with the data loaded anew.

    ``device`` is where it predicts; its predictions on the device it was trained on are those
    stored. Raises :class:`StoreError` for a folder without a finished run or with damaged weights,
    and :class:`RequestError` or :class:`DataError` where method or data are not what they were.
    """
    path = Path(folder)
    record = read_record(path)
    if record is None:
        raise StoreError(
            f"{path}: no stored run; name a folder such as "
            "results/runs/mfeat/joint/<config hash>/seed-0"
        )
    if record["status"] != "done":
        why = f"{record['status']} ({record['reason']})"
        raise StoreError(f"{path}: the run is {why}: run it again")
    values, is_stored = request_from_file(path / "config.yaml")
    if not is_stored:
        raise StoreError(f"{path / 'config.yaml'} is not a stored configuration: run it again")
    jobs = list(make_jobs(make_request({**values, "device": device, "threads": None})))
    if len(jobs) != 1:
        raise RequestError(f"{path / 'config.yaml'} stands for {len(jobs)} runs, not one")
    job = jobs[0]
    check_same_data(record, job, path)
    trainer = build_trainer(job)
    run, method = trainer.run, trainer.method
    method.setup(run)
    method.to(trainer.device)
    weights = path / "checkpoint" / "model.pt"
    if not weights.exists():
        raise StoreError(f"{weights} is missing: run it again with --overwrite")
    state = load_state(weights)
    try:
        run.network.load_state_dict(state["network"])
        method.load_state_dict(state["method"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{weights} does not fit the run that config.yaml describes, perhaps because another "
            "version of mmbench stored it: run it again with --overwrite"
        ) from error
    run.network.eval()
    method.eval()
    return Restored(path, record, run, method, trainer.splits)
