"""Putting the page together: what is said of each group, rendered with the template."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmbench import __version__
from mmbench.errors import RequestError, StoreError
from mmbench.info import DatasetInfo, MethodInfo
from mmbench.registry import entries, summary
from mmbench.report.columns import View, known_columns
from mmbench.report.comparison import Comparison, Group
from mmbench.report.html_table import table
from mmbench.report.page import provenance
from mmbench.report.page.answer import Answer, answer
from mmbench.report.page.modalities import Modalities, credit, fused, modalities
from mmbench.report.page.pictures import Picture, pictures, ranking_picture
from mmbench.report.page.sheet import Cell, Head, Sheet
from mmbench.report.ranking import Ranking, rank
from mmbench.report.reported import Source
from mmbench.report.rows import DEFAULT_REFERENCE, METRICS, READOUTS, shown
from mmbench.report.tables import caption, footnotes
from mmbench.store.frame import StoredRun, load_runs

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE, STYLE, SCRIPT = "page.html.jinja", "page.css", "page.js"

CAPTION = re.compile("<caption>.*?</caption>", re.DOTALL)
"""What stands in a table of the comparison in place of a title; here it goes below the table."""

OUTCOME = ("difference", "p_holm", "verdict", "improvement", "seeds_needed")


@dataclass(frozen=True)
class Table:
    """A table made of the comparison's columns."""

    title: str
    html: Markup
    note: str
    """What a reader has to know, below the table."""


@dataclass(frozen=True)
class Section:
    """Everything that the page says of a group."""

    anchor: str
    group: Group
    compared: str
    """For a reader who has never heard of it: what was compared."""
    data: str | None
    """The same for the data, where they are registered."""
    answer: Answer
    methods: tuple[str, ...]
    """What each of the recommended methods does, in a sentence."""
    modalities: Modalities
    tables: tuple[Table, ...]
    footnotes: tuple[str, ...]
    """On numbers in print."""
    pictures: tuple[Picture, ...]
    picture_remarks: tuple[str, ...]
    common: Sheet | None
    differing: Sheet
    configs: tuple[provenance.StoredConfig, ...]
    fingerprints: tuple[Sheet, ...]
    environment: Sheet
    unfinished: Sheet | None
    commands: Sheet
    runs: Sheet
    compare_command: str


def report(
    comparison: Comparison,
    reported: Sequence[Source] = (),
    elsewhere: Sequence[StoredRun] = (),
) -> str:
    """Return the page: one HTML file with everything in it, that asks nothing of any network.

    ``reported`` are accuracies in print to stand beside our own, ``elsewhere`` unfinished runs that
    belong to no group (:func:`unplaced`). Raises :class:`StoreError` where a run's history cannot
    be read.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=PackageLoader("mmbench.report.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        _section(group, f"data-{i}", comparison, reported)
        for i, group in enumerate(comparison.groups, start=1)
    ]
    ranking, no_ranking = _ranking(comparison.groups)
    folder = Path(__file__).parent
    style = (folder / STYLE).read_text(encoding="utf-8")
    script = (folder / SCRIPT).read_text(encoding="utf-8")
    runs = [run for group in comparison.groups for row in group.rows for run in row.runs]
    return templates.get_template(TEMPLATE).render(
        title=_title(sections),
        sections=sections,
        index=_index(sections) if len(sections) > 1 else None,
        ranking=_ranking_sheet(ranking),
        ranking_picture=ranking_picture(ranking) if ranking else None,
        ranking_sentences=ranking.sentences if ranking else (no_ranking,) if no_ranking else (),
        elsewhere=provenance.unfinished(elsewhere, comparison.root),
        left_out=comparison.left_out,
        run_count=len(runs),
        when=provenance.when(runs),
        root=comparison.root,
        version=__version__,
        style=Markup(style),  # a file of this package: nothing of a user's is in it
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def write_report(
    comparison: Comparison,
    file: Path,
    reported: Sequence[Source] = (),
    elsewhere: Sequence[StoredRun] = (),
) -> None:
    """Write the page. Raises :class:`StoreError` where the file cannot be written."""
    content = report(comparison, reported, elsewhere)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StoreError(
            f"{file}: cannot be written ({error.strerror}); choose another --output"
        ) from error


def _hash(content: str) -> str:
    """Return what the page's content security policy allows: this text and no other."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _title(sections: Sequence[Section]) -> str:
    if len(sections) == 1:
        said = sections[0].answer.title
        # A label keeps its letters; a sentence goes on after the colon.
        is_label = any(said.startswith(row.label) for row in sections[0].answer.best)
        return f"{sections[0].group.name}: {said if is_label else said[0].lower() + said[1:]}"
    return f"Which method to use on each of {len(sections)} datasets"


# -- a group ---------------------------------------------------------------------------------------


def _section(
    group: Group, anchor: str, comparison: Comparison, reported: Sequence[Source]
) -> Section:
    found = answer(group)
    configs = tuple(provenance.stored_config(row) for row in group.rows)
    drawn, remarks = pictures(group)
    files = provenance.file_fingerprints(group)
    return Section(
        anchor,
        group,
        *_about(group),
        found,
        tuple(_on_methods([row.method for row in found.best])),
        modalities(group),
        tuple(_tables(group, reported)),
        tuple(footnotes(group, View(reported=tuple(reported)))),
        drawn,
        remarks,
        provenance.common_settings(configs),
        provenance.differing_settings(configs),
        configs,
        (provenance.fingerprints(group), *((files,) if files else ())),
        provenance.environment(group),
        provenance.unfinished(group.unfinished, comparison.root),
        provenance.commands(configs),
        provenance.each_run(group, comparison.root),
        _compare_command(group, comparison.root),
    )


def _about(group: Group) -> tuple[str, str | None]:
    """Say in a sentence what was compared, and in another what the data are, for a reader who knows
    neither; None of a dataset that is given by path."""
    counts = sorted({row.value.count for row in group.rows})
    times = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    compared = (
        f"Compared: {len(group.rows)} ways of training a model on several kinds of input at once "
        f"(modalities: {', '.join(group.modalities)}), each run {times} time"
        f"{'' if counts == [1] else 's'} from different random starts, and tested on samples that "
        "were not used in training."
    )
    info = _dataset_info(group.dataset)
    if info is None:
        return compared, None
    protocol = info.protocols.get(group.protocol)
    split = f" Split “{group.protocol}”: {_sentence(protocol)}" if protocol else ""
    return compared, f"The data: {info.title}. {_sentence(info.summary)}{split}"


def _sentence(words: str) -> str:
    words = words.strip()
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"


def _dataset_info(name: str) -> DatasetInfo | None:
    """Return what a registered dataset says of itself; None for one given by path."""
    entry = next((entry for entry in entries("dataset") if entry.name == name), None)
    info = None if entry is None else summary(entry)
    return info if isinstance(info, DatasetInfo) else None


def _on_methods(names: Sequence[str]) -> Iterable[str]:
    known = {entry.name: entry for entry in entries("method")}
    for name in dict.fromkeys(names):
        if name in known:
            info = summary(known[name])
            assert isinstance(info, MethodInfo)
            yield f"{name} is: {info.title}. {_sentence(info.summary)}"


def _tables(group: Group, reported: Sequence[Source]) -> Iterable[Table]:
    from markupsafe import Markup

    known = set(known_columns([group]))
    others = tuple(name for name in METRICS if name != group.metric.name)
    chosen = {
        "Outcome": ("seeds", group.metric.name, "interval", *OUTCOME),
        "Modalities": _those(known, "probe", "share"),
        "Other read-outs of modalities": _those(known, "shapley", *READOUTS[1:]),
        "Other metrics": ("seeds", *others),
        "Cost": ("cost",),
    }
    for title, names in chosen.items():
        if names:
            sources = tuple(reported) if title == "Outcome" else ()
            view = View(columns=names, reported=sources)
            html = CAPTION.sub(f"<caption>{title}</caption>", table(group, view), count=1)
            # Escaped where it is made.
            yield Table(title, Markup(html), caption(group, view))


def _those(known: Container[str], *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in known)


def _compare_command(group: Group, root: Path) -> str:
    words = ["mmbench", "compare", "--results", str(root), "--dataset", group.dataset]
    words += ["--protocol", group.protocol]
    if group.reference not in (None, DEFAULT_REFERENCE):
        words += ["--reference", str(group.reference)]
    if group.metric.name != "accuracy":
        words += ["--metric", group.metric.name]
    return shlex.join(words)


# -- several groups --------------------------------------------------------------------------------


def _index(sections: Sequence[Section]) -> Sheet:
    metric = sections[0].group.metric
    unit = f" ({metric.unit})" if metric.unit else ""
    rows = []
    for section in sections:
        best = section.answer.best
        mean = best[0].value.mean if best else math.nan
        rows.append(
            (
                Cell(section.group.name, link=section.anchor),
                Cell(" or ".join(row.label for row in best) or "none"),
                Cell(section.answer.certain),
                Cell(metric.value(mean), mean) if best else Cell(""),
                Cell(credit(section.group, focus) if (focus := fused(section.group)) else ""),
                Cell(" ".join(section.answer.grounds[:1])),
            )
        )
    heads = (
        Head("data"),
        Head("best so far"),
        Head("certain?"),
        Head(f"its test {metric.title}{unit}", True),
        Head("credit in the best that uses all modalities"),
        Head("why"),
    )
    return Sheet("The verdict on each dataset", heads, tuple(rows))


def _ranking(groups: Sequence[Group]) -> tuple[Ranking | None, str | None]:
    """Return the average ranks over several groups, or why there are none."""
    if len(groups) < 2:
        return None, None
    try:
        return rank(groups), None
    except RequestError as error:
        return None, f"No average ranks: {error}."


def _ranking_sheet(ranking: Ranking | None) -> Sheet | None:
    if ranking is None:
        return None
    heads = (
        Head("method"),
        Head("average rank", True),
        *(Head(f"rank on {name}", True) for name in ranking.datasets),
    )
    note = "Ranks by the mean on each dataset, 1 for the best, of the rows that all have."
    if ranking.critical_difference is not None:
        note += (
            f" Average ranks that differ by less than {ranking.critical_difference:.2f} are not "
            "distinguishable (Nemenyi)."
        )
    return Sheet(
        "Average ranks",
        heads,
        tuple(
            (
                Cell(row.label),
                Cell(f"{row.average_rank:.2f}", row.average_rank),
                *(Cell(shown(rank), rank) for rank in row.ranks),
            )
            for row in ranking.rows
        ),
        note,
    )


def unplaced(
    comparison: Comparison, dataset: str | None = None, protocol: str | None = None
) -> tuple[StoredRun, ...]:
    """Return the failed and interrupted runs of a dataset and protocol, or of all, that belong to
    no group, as nothing of their data ended."""
    told = {run.path for group in comparison.groups for run in group.unfinished}
    return tuple(
        run
        for run in load_runs(comparison.root)
        if run.status in ("failed", "interrupted")
        and run.path not in told
        and dataset in (None, run.dataset)
        and protocol in (None, run.protocol)
    )
