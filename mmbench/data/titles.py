"""Lists of pictures with their titles, as UPMC Food-101 has them: nearly CSV.

Rows are picture, title and class: ``apple_pie_0.jpg,"Apple pie, the best",apple_pie``. A row begins
where a line begins with the name of a picture, so that a quote which is never closed costs its own
row and not those that follow.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from mmbench.errors import DataError

ROW = re.compile(
    r'"?(?:[^",]*/)?(?P<name>[^\s",/]+)\.(?P<ending>jpe?g|png|txt)"?,', flags=re.IGNORECASE
)
"""How a row begins: with the name of a picture, perhaps after folders."""
NAME = re.compile(r"(?P<label>.+)_\d+")
HEADER = re.compile(r'"?[\w ]+"?(,"?[\w ]+"?){2}')
"""Three words: names of columns."""


@dataclass(frozen=True)
class Title:
    """A row of a list."""

    line: int
    """Where it begins, counted from 1."""
    name: str
    """Of the picture, without its ending: ``<class>_<number>``."""
    ending: str
    label: str
    """The class in the name, by which the folders go."""
    text: str
    """In one line; may be empty."""
    faults: tuple[str, ...] = ()
    """What is wrong with the row, and how it was read all the same."""


def read_titles(content: bytes, path: Path) -> list[Title]:
    """Return the rows of a list, which may have a header; errors name its ``path``.

    A row that no CSV can hold is read up to its first comma and from its last one; a row that names
    a ``.txt`` file stands for the ``.jpg`` of that name; the class is that of the name, whatever
    the row says. Raises :class:`DataError` for what is no text in UTF-8, a line that is neither a
    row nor a part of one, and a picture that is not named by class and number.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    rows: list[tuple[int, re.Match[str], list[str]]] = []
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if (begins := ROW.match(line)) is not None:
            rows.append((number, begins, [line]))
        elif rows:
            rows[-1][2].append(line)  # a title goes on, in quotes
        elif line.strip() and not (number == 1 and HEADER.fullmatch(line.strip())):
            raise DataError(
                f"{path}, line {number}: '{line[:80]}' does not begin with the name of a picture, "
                "such as apple_pie_0.jpg; correct it, or get the list again"
            )
    return [_title(path, number, begins, "\n".join(row)) for number, begins, row in rows]


def _title(path: Path, line: int, begins: re.Match[str], row: str) -> Title:
    name, ending, row = begins["name"], begins["ending"], row.rstrip()
    if (parts := NAME.fullmatch(name)) is None:
        raise DataError(
            f"{path}, line {line}: '{begins['name']}.{ending}' is not named by class and number, "
            "such as apple_pie_0.jpg; correct it, or get the list again"
        )
    label, faults = parts["label"], []
    if (fields := _fields(row)) is not None:
        _, text, said = fields
        if said.strip() != label:
            faults.append(f"calls {name} '{said.strip()[:40]}', where the name counts")
    else:
        text = _without_label(row[begins.end() :], label)
        broken = "has a quote without its other half" if row.count('"') % 2 else "is no CSV"
        faults.append(f"{broken} (of {name}): read from its first comma to its last")
    if ending.lower() == "txt":
        faults.append(f"names {name}.txt, taken for {name}.jpg")
        ending = "jpg"
    return Title(line, name, ending, label, " ".join(text.split()), tuple(faults))


def _fields(row: str) -> list[str] | None:
    """Return the three fields of a row, None where it is no CSV of three fields."""
    try:
        read = [*csv.reader(io.StringIO(row, newline=""), strict=True)]
    except csv.Error:
        return None
    return read[0] if len(read) == 1 and len(read[0]) == 3 else None


def _without_label(text: str, label: str) -> str:
    """Return the title in the rest of a broken row, where the class may stand twice: once more
    behind the quote that ends several rows."""
    while True:
        before, comma, last = text.rpartition(",")
        if not comma or last.strip().strip('"') != label:
            return text.strip().strip('"')
        text = before
