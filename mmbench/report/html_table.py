"""A comparison as a fragment of HTML, for a page that sorts and filters.

Only meaning is written, no style and no script. What a script needs stands in data attributes:

- ``table``: ``data-dataset``, ``data-protocol``, ``data-metric``;
- ``th`` of a column: ``data-column`` (its name), ``data-subject`` (``outcome``, ``modalities`` or
  ``cost``) and ``data-type`` (``number`` or ``text``);
- ``tr`` of a row: ``data-label``, ``data-method``, ``data-hash``, and ``data-control``,
  ``data-reference``, ``data-selected-on-test``, each ``true`` or ``false``;
- ``td``: ``data-column``, ``data-type``, ``data-value`` (full precision; absent where nothing is
  known) and, in a column of a metric, ``data-mark``: ``best``, ``tied`` (not distinguishable from
  the best) or ``apart`` (distinguishable); absent where no test could have told.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from mmbench.report.columns import Column, View, columns
from mmbench.report.comparison import Group
from mmbench.report.rows import CONTROLS, Row
from mmbench.report.tables import TIED, caption_of, remarks_of


def html(group: Group, view: View | None = None) -> str:
    """Return verdict, table and remarks as a section."""
    lines = [_tag("section", {"class": "comparison", "data-dataset": group.dataset})]
    lines.append(f"<h2>{escape(group.name)}</h2>")
    lines += _list("verdict", group.verdict)
    lines.append(table(group, view).rstrip("\n"))
    lines += _list("remarks", remarks_of(group, view))
    return "\n".join([*lines, "</section>"]) + "\n"


def table(group: Group, view: View | None = None) -> str:
    """Return the table alone, with its caption."""
    made = columns(group, view)
    about = {
        "class": "rows",
        "data-dataset": group.dataset,
        "data-protocol": group.protocol,
        "data-metric": group.metric.name,
    }
    lines = [_tag("table", about), f"<caption>{escape(caption_of(group, made))}</caption>"]
    lines += ["<thead>", f"<tr>{''.join(_head(column) for column in made)}</tr>", "</thead>"]
    lines.append("<tbody>")
    lines += [_row(row, i, made) for i, row in enumerate(group.rows)]
    return "\n".join([*lines, "</tbody>", "</table>"]) + "\n"


def _head(column: Column) -> str:
    about = {
        "scope": "col",
        "data-column": column.name,
        "data-subject": column.subject,
        "data-type": _kind(column),
    }
    return f"{_tag('th', about)}{escape(column.title)}</th>"


def _row(row: Row, i: int, made: list[Column]) -> str:
    about = {
        "data-label": row.label,
        "data-method": row.method,
        "data-hash": row.config_hash,
        "data-control": _truth(row.method in CONTROLS),
        "data-reference": _truth(row.is_reference),
        "data-selected-on-test": _truth(row.selected_on_test),
    }
    label, *rest = made
    head = f'<th scope="row" data-column="method">{escape(label.cells[i])}</th>'
    return f"{_tag('tr', about)}{head}{''.join(_cell(column, i) for column in rest)}</tr>"


def _cell(column: Column, i: int) -> str:
    value, mark, words = column.values[i], column.mark(i), escape(column.cells[i])
    about = {"data-column": column.name, "data-type": _kind(column)}
    if value is not None:
        about["data-value"] = str(value)
    if mark:
        about["data-mark"] = mark
    if mark == "best":
        words = f"<strong>{words}</strong>"
    elif mark == "tied":
        words += f' <abbr title="not distinguishable from the best">{TIED}</abbr>'
    return f"{_tag('td', about)}{words}</td>"


def _list(name: str, lines: tuple[str, ...] | list[str]) -> list[str]:
    if not lines:
        return []
    return [f'<ul class="{name}">', *(f"<li>{escape(line)}</li>" for line in lines), "</ul>"]


def _tag(name: str, attributes: Mapping[str, str]) -> str:
    return (
        f"<{name}{''.join(f' {k}={chr(34)}{escape(v)}{chr(34)}' for k, v in attributes.items())}>"
    )


def _kind(column: Column) -> str:
    return "number" if column.is_number else "text"


def _truth(value: bool) -> str:
    return "true" if value else "false"
