"""What is stored of a run's robustness: ``robustness.csv`` beside its record.

Format: docs/results-format.md. Nothing here imports torch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mmbench.errors import StoreError
from mmbench.store.frame import StoredRun
from mmbench.store.record import unwritable, write_text

if TYPE_CHECKING:
    import pandas as pd

FILE = "robustness.csv"

UNITS = {
    "mean_feature": "missing, its feature vector replaced by the mean over training rows",
    "absent": "missing, left out of the forward pass",
    "noise": "signal-to-noise ratio, dB",
    "blur": "deviation of the Gaussian, share of the shorter side",
    "occlusion": "share of the area",
    "drop": "share of the steps",
}
"""What the level of each corruption is; the first two have none."""


@dataclass(frozen=True)
class Point:
    """A row of the file: the test split with one modality corrupted."""

    modality: str
    corruption: str
    severity: int
    """0 is clean, 1 the mildest."""
    level: float
    """In the corruption's unit; NaN where clean or missing."""
    accuracy: float
    nll: float
    """Nats."""
    chance: float
    """Accuracy of always saying the most frequent class of the training rows."""

    @property
    def curve(self) -> tuple[str, str]:
        return self.modality, self.corruption


COLUMNS = tuple(field.name for field in fields(Point))


def levels_of(points: Iterable[Point]) -> dict[tuple[str, str], tuple[float, ...]]:
    """Return the levels of each curve, ``{(modality, corruption): levels}``, mildest first."""
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    for point in points:
        known = found.setdefault(point.curve, ())
        if math.isfinite(point.level):
            found[point.curve] = (*known, point.level)
    return found


def write_robustness(folder: Path, points: Sequence[Point]) -> None:
    """Write the file of a run, whole or not at all. Raises :class:`StoreError`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(
        ["" if isinstance(v, float) and math.isnan(v) else v for v in astuple(point)]
        for point in points
    )
    try:
        write_text(folder / FILE, stream.getvalue())
    except OSError as error:
        raise unwritable(folder / FILE, error) from error


def read_robustness(folder: Path) -> list[Point]:
    """Return the points of a run's file in its order, none without a file. Raises
    :class:`StoreError` for a file that is damaged."""
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or tuple(rows[0]) != COLUMNS:
        raise _damaged(path, f"its columns are not {', '.join(COLUMNS)}")
    points = [_point(path, i, row) for i, row in enumerate(rows[1:], start=2)]
    severities: dict[tuple[str, str], list[int]] = {}
    for point in points:
        severities.setdefault(point.curve, []).append(point.severity)
    for (modality, corruption), found in severities.items():
        if len(found) < 2 or found != list(range(len(found))):
            raise _damaged(path, f"severities of {modality} {corruption} are {found}")
    return points


def _point(path: Path, line: int, row: Sequence[str]) -> Point:
    try:
        modality, corruption, severity, level, accuracy, nll, chance = row
        point = Point(
            modality,
            corruption,
            int(severity),
            float(level or math.nan),
            float(accuracy),
            float(nll),
            float(chance),
        )
    except ValueError as error:
        raise _damaged(path, f"line {line}: {error}") from error
    if not (0 <= point.accuracy <= 1 and 0 <= point.chance <= 1) or math.isnan(point.nll):
        raise _damaged(path, f"line {line}: accuracy, nll or chance is out of range")
    return point


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(
        f"{path} is damaged ({why}): delete it and run `mmbench robustness {path.parent}`"
    )


def robustness_frame(runs: Iterable[StoredRun]) -> tuple[pd.DataFrame, list[str]]:
    """Return the stored points of finished runs, and a line for each file that cannot be read.

    Columns: ``path, dataset, protocol, method, config_hash, seed``, those of the file, then
    ``relative``, the accuracy over that of severity 0, and ``relative_above_chance``, the same of
    accuracy less chance; NaN where the clean accuracy is zero, or not above chance. A run whose
    robustness was not measured has no rows.
    """
    import pandas as pd

    rows, left_out = [], []
    for run in runs:
        if run.record is None:
            continue
        identity = (
            str(run.path), run.dataset, run.record.protocol, run.method, run.config_hash, run.seed
        )  # fmt: skip
        try:
            points = read_robustness(run.path)
        except StoreError as error:
            left_out.append(str(error))
            continue
        clean = {point.curve: point for point in points if point.severity == 0}
        for point in points:
            rows.append((*identity, *astuple(point), *relative(point, clean[point.curve])))
    columns = ("path", "dataset", "protocol", "method", "config_hash", "seed", *COLUMNS)
    return pd.DataFrame(rows, columns=[*columns, "relative", "relative_above_chance"]), left_out


def relative(point: Point, clean: Point) -> tuple[float, float]:
    """Return accuracy over clean accuracy, and the same of what is above chance; NaN where the
    denominator is not positive."""
    above = clean.accuracy - clean.chance
    return (
        point.accuracy / clean.accuracy if clean.accuracy > 0 else math.nan,
        (point.accuracy - point.chance) / above if above > 0 else math.nan,
    )
