"""A plain table of the page, beside those that come from the comparison's columns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """The head of a column."""

    title: str
    is_number: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: what is read, and what it is sorted by where that is a number."""

    text: str
    value: float | None = None
    is_code: bool = False
    link: str | None = None
    """Name of the part of the page that it leads to."""


@dataclass(frozen=True)
class Sheet:
    """A table; the first cell of a row is its head."""

    caption: str
    """A title."""
    heads: tuple[Head, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    """What a reader has to know, below the table."""
