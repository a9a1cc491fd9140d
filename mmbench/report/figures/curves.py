"""What histories say of each epoch, over seeds and in the order of the stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes

from mmbench.report.comparison import Group
from mmbench.report.figures.style import Dashes
from mmbench.report.rows import Row
from mmbench.store.frame import StoredRun, learning_curves

History = dict[str, np.ndarray]
"""A column each, over the epochs that looked at validation."""


@dataclass(frozen=True)
class Segment:
    """What one stage saw of validation, arrays ``(seeds, epochs)``, NaN where there is nothing."""

    start: int
    """Epochs before it."""
    fused: np.ndarray
    """Accuracy of the fused prediction."""
    modalities: dict[str, np.ndarray]
    """Accuracy of each modality that the stage read."""
    confidence: dict[str, np.ndarray] = field(default_factory=dict)
    """Mean probability of the true class under each modality's part of the logits."""


@dataclass(frozen=True)
class Curves:
    """Learning curves of a row, a segment a stage."""

    segments: tuple[Segment, ...]
    own_heads: bool
    """Whether the modalities are read by their own heads, for want of a part of the logits."""

    @property
    def epochs(self) -> int:
        """Return the epochs of all stages that follow one another."""
        return max(segment.start + int(segment.fused.shape[1]) for segment in self.segments)


def group_curves(group: Group) -> list[tuple[Row, Curves]]:
    """Return the rows of which a stage looked at validation, with their curves."""
    found = ((row, row_curves(row, group.modalities)) for row in group.rows)
    return [(row, curves) for row, curves in found if curves is not None]


def row_curves(row: Row, modalities: Sequence[str]) -> Curves | None:
    """Return the learning curves of a row; None where no stage looked at validation.

    A stage goes on where an earlier one ended that trained any of its modalities; stages that share
    none, as those of an ensemble, all begin at epoch 1.
    """
    histories = [h for run in row.runs if (h := _looked(run)) is not None]
    if not histories:
        return None
    own = not any(_is_known(h, f"val_split_accuracy.{m}") for h in histories for m in modalities)
    kind = "val_own_head_accuracy" if own else "val_split_accuracy"
    ends: dict[str, int] = {}
    segments = []
    for stage in dict.fromkeys(name for h in histories for name in h["stage"]):
        parts = [_of_stage(h, stage) for h in histories]
        known = _known(parts, kind, modalities)
        fused = _stack(parts, "val_accuracy")
        start = max([ends.get(m, 0) for m in known or ends], default=0)
        ends |= dict.fromkeys(known or modalities, start + fused.shape[1])
        segments.append(Segment(start, fused, known, _known(parts, "val_confidence", modalities)))
    return Curves(tuple(segments), own and any(s.modalities for s in segments))


def _looked(run: StoredRun) -> History | None:
    """Return the epochs of a history that looked at validation; None where there are none."""
    frame = learning_curves(run)
    if "val_accuracy" not in frame:
        return None
    looked = frame["val_accuracy"].notna().to_numpy()
    history = {str(name): frame[name].to_numpy()[looked] for name in frame.columns}
    return history if looked.any() else None


def _is_known(history: History, name: str) -> bool:
    return name in history and not np.isnan(history[name].astype(float)).all()


def _of_stage(history: History, stage: str) -> History:
    of_stage = history["stage"] == stage
    return {name: column[of_stage] for name, column in history.items()}


def _known(parts: Sequence[History], kind: str, modalities: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the column of each modality that any of the histories has."""
    stacked = {m: _stack(parts, f"{kind}.{m}") for m in modalities}
    return {m: values for m, values in stacked.items() if not np.isnan(values).all()}


def _stack(histories: Sequence[History], name: str) -> np.ndarray:
    """Return a column of each history, filled with NaN to the longest."""
    stacked = np.full((len(histories), max(len(h["stage"]) for h in histories)), np.nan)
    for i, history in enumerate(histories):
        if name in history:
            stacked[i, : len(history[name])] = history[name].astype(float)
    return stacked


def draw_curve(
    axis: Axes,
    start: int,
    values: np.ndarray,
    colour: tuple[float, float, float],
    line: str | Dashes,
) -> None:
    """Draw the mean of ``(seeds, epochs)`` over seeds with a band of one standard deviation."""
    known = ~np.isnan(values).all(axis=0)
    if not known.any():
        return
    epochs = start + np.arange(1, values.shape[1] + 1)[known]
    chosen = values[:, known]
    mean = np.nanmean(chosen, axis=0)
    # A curve of a single epoch is a point.
    dot = "." if len(epochs) == 1 else None
    axis.plot(epochs, mean, color=colour, ls=line, lw=1.3, marker=dot)
    if len(values) > 1:
        # With n - 1, as in the tables; nothing where a single seed got so far.
        spread = np.nansum((chosen - mean) ** 2, axis=0)
        count = (~np.isnan(chosen)).sum(axis=0)
        deviation = np.where(count > 1, np.sqrt(spread / np.maximum(count - 1, 1)), np.nan)
        axis.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)
