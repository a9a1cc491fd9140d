"""One thing that is wrong with a file. No torch here: processes that decode import this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that `mmbench data verify` found wrong."""

    path: str
    what: str
    mend: str = ""
