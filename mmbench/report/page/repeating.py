"""How to get a number again: the command lines that repeat stored runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmbench.report.rows import Row
from mmbench.store.frame import StoredRun

USUAL_RESULTS = Path("results/runs")
"""Where `mmbench run` stores unless it is told otherwise."""

FLAGS = {"dataset.": "-d", "recipe.": "-t", "encoder.": "--encoder"}
"""Flags of settings by their prefix in a record; options of the method have none."""


def repeat_command(run: StoredRun, results: Path) -> str:
    """Return the command that trains a stored run again and says whether the predictions are the
    same, bit for bit."""
    words = ["mmbench", "run", "--config", str(run.path / "config.yaml")]
    return shlex.join([*words, *_results(results)])


def retry_command(run: StoredRun, results: Path) -> str | None:
    """Return the command that goes on with an interrupted run, or tries a failed one again; None
    where the run was stopped before it had written its configuration."""
    if not (run.path / "config.yaml").is_file():
        return None
    return repeat_command(run, results) + (" --resume" if run.status == "interrupted" else "")


def run_command(row: Row, config: Mapping[str, Any] | None) -> str:
    """Return the command that trains all seeds of a row, without the store: the method's and
    dataset's defaults and what differs from them.

    ``config`` is a stored configuration of the row; it names a method or dataset given by path.
    """
    record = row.runs[0].finished
    given = config or {}
    words = ["mmbench", "run", "--method", str(given.get("method", record.method))]
    words += ["--dataset", str(given.get("dataset", record.dataset))]
    words += ["--protocol", record.protocol]
    for name, value in record.changed.items():
        words += _assignment(name, value)
    devices = {run.finished.environment.get("device") for run in row.runs}
    if len(devices) == 1 and isinstance(device := devices.pop(), str):
        words += ["--device", device]
    return shlex.join([*words, "--seed", seed_ranges(row.seeds)])


def _assignment(name: str, value: Any) -> list[str]:
    if name in ("fusion", "precision"):
        return [f"--{name}", str(value)]
    prefix = next((prefix for prefix in FLAGS if name.startswith(prefix)), "")
    return [FLAGS.get(prefix, "-o"), f"{name.removeprefix(prefix)}={_yaml(value)}"]


def _yaml(value: Any) -> str:
    """Return a value on one line, as it is read back from ``key=value``."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.strip().removesuffix("...").strip()


def seed_ranges(seeds: Sequence[int]) -> str:
    """Return seeds as the command line takes them: ``0-4,7``."""
    runs: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if runs and runs[-1][-1] == seed - 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def _results(results: Path) -> list[str]:
    return [] if results == USUAL_RESULTS else ["--results", str(results)]
