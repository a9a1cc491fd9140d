"""``mmbench list``: what is registered, read without importing any of it."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from mmbench.errors import RequestError
from mmbench.info import DatasetInfo, MethodInfo
from mmbench.registry import BUILT_IN, FOLDERS, Entry, entries, summary

WIDEST = 100
"""Lines longer than this many characters are hard to read, however wide the terminal."""


def list_registered(
    what: Annotated[Literal["methods", "datasets"], typer.Argument(help="What to list.")],
    output_format: Annotated[
        Literal["text", "json"], typer.Option("--format", help="How to print it.")
    ] = "text",
) -> None:
    """List the methods or the datasets that can be asked for by name."""
    kind = next(kind for kind, folder in FOLDERS.items() if folder == what)
    found = entries(kind)
    if output_format == "json":
        typer.echo(json.dumps([_as_json(entry) for entry in found], indent=2))
        return
    if not found:
        typer.echo(f"no {what} are registered")
    width = max((len(entry.name) for entry in found), default=0)
    for entry in found:
        typer.echo("\n".join(_as_text(entry, width)))


def describe(entry: Entry) -> MethodInfo | DatasetInfo | str:
    """Return what an entry says of itself, or why that cannot be read: one bad file of a third
    party must not hide the others."""
    try:
        return summary(entry)
    except RequestError as error:
        return str(error)


def _as_json(entry: Entry) -> dict[str, object]:
    shown: dict[str, object] = {"name": entry.name, "origin": entry.origin}
    info = describe(entry)
    return shown | ({"error": info} if isinstance(info, str) else asdict(info))


def _as_text(entry: Entry, width: int) -> list[str]:
    """Return a heading, ``name  facts  title``, and below it indented what else there is to say."""
    info = describe(entry)
    match info:
        case MethodInfo():
            facts = f"{info.family:<8}  {info.year or '':<4}  {info.title}"
            below = [info.summary, f"cost: {info.cost}"]
        case DatasetInfo():
            facts = info.title
            below = [
                info.summary,
                f"modalities: {', '.join(info.modalities)}",
                f"protocols: {', '.join(info.protocols)}",
                f"files: {info.files or 'none needed'}",
            ]
        case str():
            facts = "cannot be described"
            below = [info]
    if entry.origin != BUILT_IN:
        below.append(f"from: {entry.origin}")
    indent = " " * (width + 2)
    lines = wrap(f"{entry.name:<{width}}  {facts}", subsequent_indent=indent)
    for text in below:
        lines += wrap(text, initial_indent=indent, subsequent_indent=f"{indent}  ")
    return lines


def wrap(text: str, initial_indent: str = "", subsequent_indent: str = "") -> list[str]:
    """Return the text in lines that fit the terminal; words longer than a line stay whole."""
    return textwrap.wrap(
        text,
        min(shutil.get_terminal_size().columns, WIDEST),
        initial_indent=initial_indent,
        subsequent_indent=subsequent_indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
