"""Whether predictions are right as often as they are confident."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmbench.errors import MmbenchError
from mmbench.evaluate.metrics import ECE_BINS, accuracy
from mmbench.report.comparison import Group
from mmbench.report.figures.labels import marked
from mmbench.report.figures.panels import Frame, panel_grid
from mmbench.report.figures.style import METHOD, style
from mmbench.report.rows import METRICS, Row
from mmbench.store.frame import StoredRun, predictions


@dataclass(frozen=True)
class Bins:
    """Test rows by confidence, in 15 bins of equal width; arrays ``(seeds, 15)``."""

    count: np.ndarray
    right: np.ndarray
    """Rows that are predicted rightly."""
    confidence: np.ndarray
    """Sum of the largest probability."""

    @property
    def share(self) -> np.ndarray:
        """Return the share of all rows that lie in each bin ``(15,)``."""
        return np.asarray(self.count.sum(axis=0) / self.count.sum())

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean confidence and accuracy of each bin over all seeds ``(15,)``, NaN where it is
        empty."""
        count = self.count.sum(axis=0)
        return _ratio(self.confidence.sum(axis=0), count), _ratio(self.right.sum(axis=0), count)

    @property
    def by_seed(self) -> np.ndarray:
        """Return the accuracy of each bin by seed, NaN where it is empty."""
        return _ratio(self.right, self.count)

    @property
    def ece(self) -> float:
        """Return the expected calibration error, mean over seeds."""
        gaps = np.abs(self.right - self.confidence).sum(axis=1)
        return float((gaps / self.count.sum(axis=1)).mean())


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio


def row_bins(row: Row) -> Bins | None:
    """Return the binned test predictions of a row; None where those of a run are missing, damaged
    or not those of its record (their accuracies differ)."""
    found = [_binned(run) for run in row.runs]
    known = [bins for bins in found if bins is not None]
    if len(known) < len(found):
        return None
    stacked = np.array(known)  # (seeds, 3, 15)
    return Bins(stacked[:, 0], stacked[:, 1], stacked[:, 2])


def _binned(run: StoredRun) -> np.ndarray | None:
    """Return rows, right predictions and summed confidence of each bin, ``(3, 15)``."""
    try:
        arrays = predictions(run, ("test_labels", "test_logits"))
        labels, logits = arrays["test_labels"], arrays["test_logits"].astype(np.float64)
        if not math.isclose(
            accuracy(labels, logits), run.finished.metrics["test"].accuracy, abs_tol=1e-9
        ):
            return None
    except (MmbenchError, KeyError):
        return None
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = 1 / exponent.sum(axis=1)  # the largest has exponent 1
    right = logits.argmax(axis=1) == labels
    # Bin b holds confidences in ((b - 1) / 15, b / 15], as in metrics.ece.
    bins = np.digitize(confidence, np.arange(1, ECE_BINS) / ECE_BINS, right=True)
    return np.stack(
        [
            np.bincount(bins, weights, ECE_BINS)
            for weights in (np.ones(len(bins)), right, confidence)
        ]
    )


def reliability_figure(group: Group) -> Figure | None:
    """Return reliability diagrams of the fused test predictions: a panel a row, accuracy against
    confidence in 15 bins over all seeds, bars from the lowest to the highest seed, and the share of
    rows in each bin. None where no row's predictions are stored.

    Rows whose predictions cannot be used are named in the heading.
    """
    binned = [(row, row_bins(row)) for row in group.rows]
    found = [(row, bins) for row, bins in binned if bins is not None]
    if not found:
        return None
    missing = [row.label for row, bins in binned if bins is None]
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=METHOD, marker="o", markersize=3.5, lw=1.2, label="accuracy in a bin"),
        Line2D([], [], color="0.4", lw=0.8, ls="--", label="as right as confident"),
        Patch(color="0.8", label="share of the rows"),
    ]
    if any(len(bins.count) > 1 for _, bins in found):
        label = "lowest to highest seed"
        handles.insert(1, Line2D([], [], color=METHOD, lw=0.8, alpha=0.6, label=label))
    frame = Frame(
        _heading(group, missing), "confidence", "accuracy", (0.0, 1.02), (0.0, 1.02), height=1.45
    )
    with style():
        titles = [_title(row, bins) for row, bins in found]
        figure, axes = panel_grid(frame, titles, handles)
        for axis, (_, bins) in zip(axes, found, strict=True):
            _diagram(axis, bins)
    return figure


def _diagram(axis: Axes, bins: Bins) -> None:
    axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    edges = np.arange(ECE_BINS + 1) / ECE_BINS
    axis.stairs(bins.share, edges, fill=True, color="0.8")
    axis.plot([0, 1], [0, 1], color="0.4", lw=0.8, ls="--")
    confidence, right = bins.points
    held = ~np.isnan(confidence)
    by_seed = bins.by_seed[:, held]
    low, high = np.nanmin(by_seed, axis=0), np.nanmax(by_seed, axis=0)
    axis.vlines(confidence[held], low, high, color=METHOD, lw=0.8, alpha=0.6)
    axis.plot(confidence[held], right[held], color=METHOD, marker="o", markersize=3, lw=1.2)


def _title(row: Row, bins: Bins) -> str:
    return f"{marked(row)}\nECE {METRICS['ece'].with_unit(bins.ece)}"


def _heading(group: Group, missing: Sequence[str]) -> str:
    heading = f"{group.name}: reliability of the fused test predictions, all seeds"
    if not missing:
        return heading
    names = textwrap.shorten(", ".join(missing), 200, placeholder=", ...")
    return f"{heading}. Left out, as their predictions are not stored: {names}"
