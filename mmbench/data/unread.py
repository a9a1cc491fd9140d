"""Options that are for loading and mean nothing to `mmbench data prepare` and `verify`."""

from __future__ import annotations

from collections.abc import Iterable

from mmbench.errors import RequestError
from mmbench.options import Options, refuse_unused

REASON = "by `mmbench data`, only by `mmbench run`"
ELSEWHERE = "by `mmbench data`, where --cache FOLDER says where to write"


def refuse_unread(options: Options, read: Iterable[str]) -> None:
    """Raise :class:`RequestError` when an option is changed that is not among those ``read`` when
    files are verified and prepared."""
    others = type(options).model_fields.keys() - {*read, "cache"}
    try:
        refuse_unused(options, ["cache"], ELSEWHERE)
        refuse_unused(options, sorted(others), REASON)
    except ValueError as error:
        raise RequestError(f"option {error}") from error
