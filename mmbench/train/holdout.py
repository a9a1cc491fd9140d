"""Rows of train that a method keeps from learning to watch its modalities on."""

from __future__ import annotations

import numpy as np

from mmbench.errors import RequestError
from mmbench.options import option
from mmbench.train.run import Run


def holdout_option(default: float = 0.1) -> float:
    """Declare the option of every method that holds rows out."""
    share: float = option(
        default, "share of the training rows held out to measure each modality on", gt=0, lt=1
    )
    return share


def hold_out(run: Run, share: float, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the training rows as (kept, held out), other ones for each method.

    Raises :class:`RequestError` unless there is a row for every class, on average, on both sides.
    """
    kept, held = run.holdout(share, method)
    if min(len(kept), len(held)) < run.classes:
        raise RequestError(
            f"{method}: a holdout of {share:g} leaves {len(held)} training rows to measure on and "
            f"{len(kept)} to learn from, fewer than the {run.classes} classes: change -o holdout"
        )
    return kept, held
