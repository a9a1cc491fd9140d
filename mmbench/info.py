"""What a method says of itself. No torch here: the registry reads it without importing any."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Family = Literal[
    "control", "gradient", "loss", "data", "forward", "optimisation", "teacher", "fusion", "budget"
]
"""What a method changes: nothing (a control), gradients, the loss, the data it is shown, the
forward pass, the order or state of training (alternation, re-initialisation), a teacher's guidance,
the fusion at inference, or contributions by a budget."""


@dataclass(frozen=True)
class MethodInfo:
    """Shown by `mmbench list methods` and `mmbench show`. Every field is a literal, so that it can
    be read without importing the file."""

    title: str
    family: Family
    summary: str
    """One sentence: what it does."""
    acts: str
    """When it acts."""
    cost: str
    """Forwards and backwards per step, and what is trained beforehand."""
    authors: str = ""
    venue: str = ""
    year: int | None = None
    arxiv: str = ""
    departures: tuple[str, ...] = ()
    """Where it departs from the official code or the paper, and why."""
    default_fusion: str = "concat"
    fusions: tuple[str, ...] | None = None
    """Fusions it can use; None for all of them."""
    min_modalities: int = 2
    max_modalities: int | None = None
    note: str = ""
    """What every table with its results has to say; empty for nothing."""
    neutral: dict[str, object] | None = field(default=None)
    """Options that switch the method off: with them it equals `joint` bit for bit. None where
    that has no meaning (controls)."""


@dataclass(frozen=True)
class DatasetInfo:
    """What `mmbench list datasets` and `mmbench show` print. Every field is a literal, so that
    it can be read without importing the file."""

    title: str
    summary: str
    licence: str
    citation: str
    modalities: dict[str, str]
    """Name of each default modality and what it holds."""
    protocols: dict[str, str]
    """Name of each protocol and how it splits; the first is the default."""
    files: str = ""
    """What the user has to supply; empty when the data are in the package or generated."""
