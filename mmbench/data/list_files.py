"""Lists of clips as people have them: text with any line ends, perhaps a byte-order mark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmbench.data.files import require_sound
from mmbench.errors import DataError


def read_list(path: Path) -> bytes:
    """Return a list as plain UTF-8, a line feed after every line, without empty lines.

    Raises :class:`DataError` for what :func:`mmbench.data.files.inspect` refuses and for anything
    but UTF-8 text.
    """
    require_sound(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip()).encode()


def numbered(content: bytes) -> Iterator[tuple[int, str]]:
    """Yield the lines of what :func:`read_list` returns, counted from 1."""
    yield from enumerate(content.decode().splitlines(), start=1)
