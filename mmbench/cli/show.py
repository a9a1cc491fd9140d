"""``mmbench show``: all there is to know of one method or dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from mmbench.cli.listing import wrap
from mmbench.errors import RequestError
from mmbench.info import DatasetInfo, MethodInfo
from mmbench.registry import (
    FOLDERS,
    Entry,
    at_path,
    docstring,
    entries,
    registered_name,
    summary,
    unknown_entry,
)


def show(
    name: Annotated[str, typer.Argument(help="A method, a dataset, or a path ending in .py.")],
) -> None:
    """Show a method or dataset: its source, equations, needs and options."""
    for entry in _named(name):
        info = summary(entry)
        sections = _method(entry, info) if isinstance(info, MethodInfo) else _dataset(entry, info)
        typer.echo("\n".join([*sections, *_options(entry)]))


def _named(name: str) -> list[Entry]:
    """Return the entries of a name: one, or two where a method and a dataset share it."""
    if name.endswith(".py"):
        return [_by_path(name)]
    known = [entry for kind in FOLDERS for entry in entries(kind)]
    found = [entry for entry in known if registered_name(entry.kind, name) == entry.name]
    if not found:
        raise unknown_entry("method or dataset", name, {entry.name for entry in known})
    return found


def _by_path(path: str) -> Entry:
    for kind in FOLDERS:
        entry = at_path(kind, path)
        try:
            summary(entry)
        except RequestError as error:
            fault = error
        else:
            return entry
    raise fault


def _method(entry: Entry, info: MethodInfo) -> Iterable[str]:
    yield from _heading(f"{entry.name}: {info.title}", info.summary)
    fusions = "all" if info.fusions is None else ", ".join(info.fusions)
    most = info.max_modalities
    yield from _facts(
        {
            "family": info.family,
            "paper": citation(info),
            "acts": info.acts,
            "cost": info.cost,
            "fusions": f"{fusions} (default {info.default_fusion})",
            "modalities": f"{info.min_modalities} {'or more' if most is None else f'to {most}'}",
            "switched off by": _assignments(info.neutral),
            "from": _origin(entry),
        }
    )
    yield from _verbatim("Equations", docstring(entry))
    if info.departures:
        yield from _title("Departures from the official code or the paper")
        for departure in info.departures:
            yield from wrap(f"- {departure}", "  ", "    ")


def _dataset(entry: Entry, info: DatasetInfo) -> Iterable[str]:
    yield from _heading(f"{entry.name}: {info.title}", info.summary)
    yield from _facts(
        {
            "licence": info.licence,
            "citation": info.citation,
            "files": info.files or "none needed",
            "from": _origin(entry),
        }
    )
    for title, items in (("Modalities", info.modalities), ("Protocols", info.protocols)):
        yield from _title(title)
        yield from _facts(items)
    yield from _verbatim("Description", docstring(entry))


def _options(entry: Entry) -> Iterable[str]:
    """Yield a paragraph per option. Only this part imports the file, and with it torch."""
    from mmbench.options import option_rows
    from mmbench.registry import load_dataset, load_method

    path_or_name = entry.name if entry.target else str(entry.source)
    load = load_method if entry.kind == "method" else load_dataset
    rows = option_rows(load(path_or_name).Config)
    flag = "-o" if entry.kind == "method" else "-d"
    yield from _title(f"Options ({flag} name=value)" if rows else "Options: none")
    for row in rows:
        allowed = f"{row.type}, {row.range}" if row.range else row.type
        yield from wrap(f"{row.name} = {shown_value(row.default)}  ({allowed})", "  ", "      ")
        yield from wrap(row.description, "      ", "      ")
        if row.search:
            values = ", ".join(map(shown_value, row.search))
            yield from wrap(f"tuned over: {values}", "      ", "      ")


def citation(info: MethodInfo) -> str:
    where = " ".join(str(part) for part in (info.venue, info.year) if part)
    arxiv = f"arXiv:{info.arxiv}" if info.arxiv else ""
    return ", ".join(part for part in (info.authors, where, arxiv) if part)


def _origin(entry: Entry) -> str:
    return entry.origin if entry.source is None else f"{entry.source} ({entry.origin})"


def _assignments(values: dict[str, object] | None) -> str:
    """Return option values as a user types them; empty when there are none."""
    return " ".join(f"-o {name}={shown_value(value)}" for name, value in (values or {}).items())


def shown_value(value: object) -> str:
    """Return an option's value as YAML spells it, which is how options are read."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _heading(title: str, summary: str) -> Iterable[str]:
    yield from wrap(title)
    yield from wrap(summary)
    yield ""


def _title(title: str) -> Iterable[str]:
    yield ""
    yield title


def _facts(facts: dict[str, str]) -> Iterable[str]:
    """Yield ``name  value`` lines with the values in one column; empty values are left out."""
    shown = {name: value for name, value in facts.items() if value}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        yield from wrap(f"  {name:<{width}}  {value}", "", " " * (width + 4))


def _verbatim(title: str, text: str) -> Iterable[str]:
    """Yield a text as it stands: its line breaks carry the equations."""
    if text:
        yield from _title(title)
        yield from (f"  {line}".rstrip() for line in text.splitlines())
