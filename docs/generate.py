"""Write what the documentation says of the registered methods: one source, no copies by hand.

    python docs/generate.py            writes the pages
    python docs/generate.py --check    fails when a page is not what would be written

Written are the tables of methods and of datasets in README.md, docs/methods/README.md and, for each
method, the page docs/methods/NAME.md: citation, equations, departures and options from the method's
file, and how it did on data of known information, from results/tables/weak-modality.csv. What
stands in a page below the line "<!-- by hand -->" is kept.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mmbench.cli.show import citation, shown_value
from mmbench.info import DatasetInfo, MethodInfo
from mmbench.options import OptionRow, option_rows
from mmbench.registry import BUILT_IN, Entry, docstring, entries, load_method, summary

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "results/tables/weak-modality.csv"
MARKS = "<!-- {}: python docs/generate.py -->", "<!-- end of {} -->"
"""Around a generated table."""
BY_HAND = "<!-- by hand -->"


def main() -> None:
    """Write the pages, or check that they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    stale = [path for path, text in pages() if not path.exists() or path.read_text() != text]
    if asked.check and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"out of date: {names}; run python docs/generate.py")
    for path, text in pages():
        path.write_text(text)


def pages() -> Iterable[tuple[Path, str]]:
    """Yield each page that is written, and its text."""
    found = [(entry, _info(entry)) for entry in entries("method") if entry.origin == BUILT_IN]
    study = pd.read_csv(STUDY).set_index("method") if STUDY.exists() else pd.DataFrame()
    readme = ROOT / "README.md"
    tables = {"methods": _table(found, "docs/methods/"), "datasets": _datasets()}
    text = readme.read_text()
    for what, lines in tables.items():
        text = _between(text, what, "\n".join(lines))
    yield readme, text
    folder = ROOT / "docs/methods"
    yield folder / "README.md", "\n".join(_index(found, study)) + "\n"
    for entry, info in found:
        path = folder / f"{entry.name}.md"
        yield path, "\n".join(_page(entry, info, study)) + "\n" + kept(path)


def _info(entry: Entry) -> MethodInfo:
    info = summary(entry)
    assert isinstance(info, MethodInfo)
    return info


def _between(page: str, what: str, table: str) -> str:
    begin, end = (mark.format(what) for mark in MARKS)
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    assert found, f"no place for the table of {what}"
    return f"{before}{begin}\n{table}\n{end}{after}"


def kept(path: Path) -> str:
    """Return what somebody wrote below the generated part of a page."""
    if not path.exists():
        return ""
    _, line, text = path.read_text().partition(f"\n{BY_HAND}\n")
    return f"\n{BY_HAND}\n{text}" if line else ""


def _table(found: list[tuple[Entry, MethodInfo]], folder: str) -> Iterable[str]:
    yield "| method | | family | year | cost |"
    yield "|---|---|---|---|---|"
    for entry, info in found:
        cells = (info.title, info.family, str(info.year or ""), info.cost)
        yield f"| [`{entry.name}`]({folder}{entry.name}.md) | {' | '.join(map(_cell, cells))} |"


def _datasets() -> Iterable[str]:
    yield "| dataset | | modalities | protocols | files |"
    yield "|---|---|---|---|---|"
    for entry in entries("dataset"):
        if entry.origin != BUILT_IN:
            continue
        info = summary(entry)
        assert isinstance(info, DatasetInfo)
        page = next(iter(sorted((ROOT / "docs/datasets").glob(_page_name(entry.name)))), None)
        name = f"`{entry.name}`"
        linked = f"[{name}]({page.relative_to(ROOT)})" if page else name
        source = "yours" if info.files else "in the package, or generated"
        cells = (info.summary, ", ".join(info.modalities), ", ".join(info.protocols), source)
        yield f"| {linked} | {' | '.join(map(_cell, cells))} |"


def _page_name(dataset: str) -> str:
    return f"{dataset.replace('_', '-')}.md"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _index(found: list[tuple[Entry, MethodInfo]], study: pd.DataFrame) -> Iterable[str]:
    yield "# Methods"
    yield ""
    yield from _table(found, "")
    if study.empty:
        return
    yield ""
    yield "## Who helps the weak modality?"
    yield ""
    yield (
        "`synthetic` data of known information: one modality tells most and is learned fast, the "
        "other (`weak`) tells less and is learned slowly, and joint training neglects it. Read is "
        "the encoder of `weak`, by a fresh linear probe on test rows, over "
        f"{int(study['seeds'].max())} paired seeds; differences in points are to `joint` with the "
        "same fusion, with their 95 % interval; p-values are of sign-flip tests, corrected by Holm "
        f"for {len(study)} methods. `python benchmarks/weak_modality.py` repeats it."
    )
    yield ""
    yield "| method | weak, probe (%) | difference | p | fused (%) | difference | p |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, row in study.sort_values("weak_difference", ascending=False).iterrows():
        cells = [f"`{name}`"]
        for key in ("weak", "fused"):
            cells += [f"{100 * row[key]:.1f}", _change(row, key), _p(float(row[f"{key}_p_holm"]))]
        yield f"| {' | '.join(cells)} |"


def _change(row: "pd.Series[float]", key: str) -> str:
    low, high = (100 * float(row[f"{key}_{end}"]) for end in ("low", "high"))
    return f"{100 * float(row[f'{key}_difference']):+.1f} [{low:+.1f}, {high:+.1f}]"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _page(entry: Entry, info: MethodInfo, study: pd.DataFrame) -> Iterable[str]:
    yield f"# {info.title} (`{entry.name}`)"
    yield ""
    yield info.summary[:1].upper() + info.summary[1:] + "."
    yield ""
    fusions = "all" if info.fusions is None else ", ".join(info.fusions)
    most = info.max_modalities
    facts = {
        "paper": citation(info),
        "family": info.family,
        "acts": info.acts,
        "cost": info.cost,
        "fusions": f"{fusions} (default {info.default_fusion})",
        "modalities": f"{info.min_modalities} {'or more' if most is None else f'to {most}'}",
    }
    for name, text in facts.items():
        if text:
            yield f"- **{name}**: {text}"
    yield ""
    yield "```"
    yield from docstring(entry).splitlines()
    yield "```"
    if entry.name in study.index:
        yield ""
        yield "## On data of known information"
        yield ""
        row = study.loc[entry.name]
        assert isinstance(row, pd.Series), f"{entry.name} has several rows in {STUDY.name}"
        yield _found(row)
    if info.departures:
        yield ""
        yield "## Departures from the official code or the paper"
        yield ""
        yield from (f"- {departure}" for departure in info.departures)
    rows: Iterable[OptionRow] = option_rows(load_method(entry.name).Config)
    if rows:
        yield ""
        yield "## Options"
        yield ""
        yield "| option | default | allowed | meaning | tuned over |"
        yield "|---|---|---|---|---|"
        for option in rows:
            allowed = f"{option.type}, {option.range}" if option.range else option.type
            search = ", ".join(map(shown_value, option.search or ()))
            default = shown_value(option.default)
            cells = (f"`{option.name}`", default, allowed, option.description, search)
            yield f"| {' | '.join(map(_cell, cells))} |"


def _found(row: "pd.Series[float]") -> str:
    """Say in words whether the method helped the weak modality."""
    did = {
        "better": "raises",
        "worse": "lowers",
        "not distinguishable": "does not distinguishably change",
    }
    weak, fused = (
        f"{did[str(row[f'{key}_verdict'])]} {what}: {_change(row, key)} points, "
        f"p {_words(float(row[f'{key}_p_holm']))}"
        for key, what in (
            ("weak", "what a linear probe reads from the encoder of the neglected modality"),
            ("fused", "the fused accuracy"),
        )
    )
    return (
        f"Against joint training with the same fusion, over {int(row['seeds'])} paired seeds, it "
        f"{weak}. It {fused}. The p-values are corrected for all methods that were tried; the "
        "setting, and all methods beside each other: [README.md](README.md)."
    )


def _words(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


if __name__ == "__main__":
    main()
