"""What the numbers of a group were made from: settings, data, machines, and each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmbench.report.comparison import Group
from mmbench.report.page.repeating import repeat_command, retry_command, run_command, seed_ranges
from mmbench.report.page.sheet import Cell, Head, Sheet
from mmbench.report.rows import Row, shown
from mmbench.store.frame import StoredRun

OF_ONE_RUN = ("schema_version", "method", "seed", "device", "threads")
"""Settings that are not compared between rows: the row's name, the seed, and the machine."""

SPLIT_AND_DATA = ("split", "data")


@dataclass(frozen=True)
class StoredConfig:
    """The configuration of a row, as its first run stored it."""

    row: Row
    text: str
    values: dict[str, Any]
    """Empty where the file is missing or damaged."""
    fault: str | None = None


def stored_config(row: Row) -> StoredConfig:
    """Return what ``config.yaml`` of a row's first run holds, or what is wrong with it."""
    file = row.runs[0].path / "config.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = file.read_text(encoding="utf-8")
        values = yaml.load(text, loader)
    except FileNotFoundError:
        return StoredConfig(row, "", {}, "config.yaml is missing beside the record")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return StoredConfig(row, "", {}, f"config.yaml: {' '.join(str(error).split())}")
    if not isinstance(values, dict):
        return StoredConfig(row, text, {}, "config.yaml holds no settings")
    return StoredConfig(row, text, values)


# -- settings --------------------------------------------------------------------------------------


def common_settings(configs: Sequence[StoredConfig]) -> Sheet | None:
    """Return the settings that all rows which train share; None where none is known."""
    common = _common([_comparable(c.values) for c in _voting(configs)])
    if not common:
        return None
    return Sheet(
        "Settings that all trained rows share",
        (Head("setting"), Head("value")),
        tuple((Cell(name), Cell(shown(value))) for name, value in common.items()),
    )


def differing_settings(configs: Sequence[StoredConfig]) -> Sheet:
    """Return what tells the rows apart: options of their methods, and settings that differ."""
    common = _common([_comparable(c.values) for c in _voting(configs)])
    rows = []
    for config in configs:
        own = config.values.get("method_options")
        options = _flat(own) if isinstance(own, dict) else {}
        rest = {k: v for k, v in _comparable(config.values).items() if common.get(k, _NONE) != v}
        changed = ", ".join(f"{k}={shown(v)}" for k, v in config.row.settings.items())
        rows.append(
            (
                Cell(config.row.label),
                Cell(config.fault or _pairs(options) or "none"),
                Cell(_pairs(rest) if config.row.trains else "trains nothing"),
                Cell(changed or "none"),
                Cell(config.row.config_hash, is_code=True),
            )
        )
    titles = ("method", "all its options", "other settings", "differs from the defaults", "hash")
    note = "The hash names the setting in the results folder."
    return Sheet("What tells the rows apart", tuple(map(Head, titles)), tuple(rows), note)


_NONE = object()


def _voting(configs: Sequence[StoredConfig]) -> list[StoredConfig]:
    known = [config for config in configs if config.values]
    return [config for config in known if config.row.trains] or known


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in _flat(values).items()
        if name.partition(".")[0] not in (*OF_ONE_RUN, "method_options", "files")
    }


def _common(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not found:
        return {}
    first, *others = found
    return {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())


# -- data and machines -----------------------------------------------------------------------------


def fingerprints(group: Group) -> Sheet:
    """Return the hashes of split and data by seed: a line a seed where all rows agree, else one
    for every version that there is."""
    found: dict[tuple[int, str, str], list[str]] = {}
    for row in group.rows:
        for run in row.runs:
            split, data = (run.finished.fingerprints.get(n, "unknown") for n in SPLIT_AND_DATA)
            found.setdefault((run.seed, split, data), []).append(row.label)
    versions = Counter(seed for seed, _, _ in found)
    rows = [
        (
            Cell(str(seed), seed),
            Cell(split, is_code=True),
            Cell(data, is_code=True),
            Cell(f"{len(labels)} rows" if versions[seed] == 1 else ", ".join(labels)),
        )
        for (seed, split, data), labels in sorted(found.items())
    ]
    return Sheet(
        "Fingerprints of the data",
        (Head("seed", True), Head("split"), Head("data"), Head("used by")),
        tuple(rows),
        "Hashes of the ids and labels of each split, and of the features as they were loaded. Runs "
        "of a seed are paired where both agree.",
    )


def file_fingerprints(group: Group) -> Sheet | None:
    """Return the hashes of methods' and datasets' files that were given by path, if any was."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for row in group.rows:
        for run in row.runs:
            for name, value in run.finished.fingerprints.items():
                if name not in SPLIT_AND_DATA:
                    found.setdefault((row.label, name, value), []).append(run.seed)
    if not found:
        return None
    return Sheet(
        "Files given by path",
        (Head("method"), Head("file of"), Head("hash"), Head("seeds")),
        tuple(
            (Cell(label), Cell(name), Cell(value, is_code=True), Cell(seed_ranges(seeds)))
            for (label, name, value), seeds in found.items()
        ),
    )


def environment(group: Group) -> Sheet:
    """Return what the runs were made with: every value of every entry, and in how many runs."""
    runs = [run for row in group.rows for run in row.runs]
    found: dict[str, Counter[str]] = {}
    for run in runs:
        for name, value in run.finished.environment.items():
            found.setdefault(name, Counter())[shown(value)] += 1
    return Sheet(
        f"Versions and machines of {len(runs)} runs",
        (Head("what"), Head("value"), Head("runs", True)),
        tuple(
            (Cell(name), Cell(value), Cell(str(count), count))
            for name, values in sorted(found.items())
            for value, count in values.most_common()
        ),
    )


def when(runs: Sequence[StoredRun]) -> str | None:
    """Return the day or days on which runs were started, in UTC; None where none says."""
    started = [(run.finished.model_extra or {}).get("started") for run in runs]
    days = sorted(text[:10] for text in started if isinstance(text, str))
    if not days:
        return None
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


# -- runs ------------------------------------------------------------------------------------------


def commands(configs: Sequence[StoredConfig]) -> Sheet:
    """Return the command that trains all seeds of each row from nothing."""
    return Sheet(
        "Commands that train all seeds of a row",
        (Head("method"), Head("command")),
        tuple(
            (Cell(c.row.label), Cell(run_command(c.row, c.values), is_code=True)) for c in configs
        ),
    )


def each_run(group: Group, results: Path) -> Sheet:
    """Return every run with its numbers and the command that repeats it from its configuration."""
    metric = group.metric
    unit = f" ({metric.unit})" if metric.unit else ""
    rows = []
    for row in group.rows:
        for run in row.runs:
            test, val = metric.read(run.finished), metric.read(run.finished, "val")
            rows.append(
                (
                    Cell(row.label),
                    Cell(str(run.seed), run.seed),
                    Cell("" if test is None else metric.value(test), test),
                    Cell("" if val is None else metric.value(val), val),
                    Cell(repeat_command(run, results), is_code=True),
                )
            )
    return Sheet(
        "Every run",
        (
            Head("method"),
            Head("seed", True),
            Head(f"test {metric.title}{unit}", True),
            Head(f"validation {metric.title}{unit}", True),
            Head("command"),
        ),
        tuple(rows),
        "Run where the results folder is, a command trains the run again and compares the "
        "predictions with those stored, bit for bit.",
    )


def unfinished(runs: Sequence[StoredRun], results: Path) -> Sheet | None:
    """Return the runs that failed or were interrupted, with the reasons; None of none."""
    if not runs:
        return None
    rows = []
    for run in runs:
        command = retry_command(run, results)
        rows.append(
            (
                Cell(run.method),
                Cell(str(run.seed), run.seed),
                Cell(run.status),
                Cell(run.reason or "no reason was stored"),
                Cell(_pairs(run.changed or {}) or "none"),
                Cell(run.dataset + (f" {run.protocol}" if run.protocol else "")),
                Cell(command or "no configuration was stored yet", is_code=command is not None),
            )
        )
    return Sheet(
        "Runs without a result",
        (
            Head("method"),
            Head("seed", True),
            Head("status"),
            Head("reason"),
            Head("differs from the defaults"),
            Head("data"),
            Head("to go on or try again"),
        ),
        tuple(rows),
        "They count in no number of this page.",
    )
