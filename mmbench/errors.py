"""The errors a user meets. Each message is one line: the thing, the place, the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmbenchError(Exception):
    """Base of every error that is shown as one line, without a traceback."""

    exit_code = 2


class RequestError(MmbenchError):
    """What was asked for cannot be done: a wrong name, option, combination or file."""


class DataError(RequestError):
    """The data cannot be used as they are: missing, damaged, or not finite."""


class StoreError(RequestError):
    """The results folder or a record in it cannot be read or written."""


class RunFailed(MmbenchError):
    """Training started and could not go on, for instance after a loss that is not finite."""

    exit_code = 1


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """Return the error for an unknown name, with near names first, else all known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return RequestError(f"unknown {kind} '{name}': {hint}")
