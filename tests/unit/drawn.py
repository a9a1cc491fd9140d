"""Stored runs of many methods and modalities, and whether a figure drawn from them can be read."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mmbench.report.comparison import Group, compare
from tests.unit.records import write_run

LONG = {"align.gate": False, "temperature": 0.5, "recipe.weight_decay": 0.001}


def budgets(modalities: tuple[str, ...]) -> dict[str, object]:
    """A report of budgets that fall by 0.1 from each modality to the next."""
    values = [0.8 - 0.1 * i for i in range(len(modalities))]
    return {"budgets": {"modalities": list(modalities), "values": values}}


def fabricated(root: Path, methods: int, modalities: tuple[str, ...], seeds: int = 2) -> Group:
    """Store runs of each modality alone, of joint training and of other methods, one of them with
    many settings and budgets, and return them compared."""
    rng = np.random.default_rng(0)
    alone = {m: 0.76 - 0.04 * i for i, m in enumerate(modalities)}
    for m, level in alone.items():
        for s in range(seeds):
            write_run(
                root,
                "unimodal",
                s,
                level + 0.01 * s,
                modalities=[m],
                changed={"modality": m},
                probes={m: level},
            )
    names = ["joint", *(f"a_method_with_a_long_name_{i}" for i in range(methods - 1))]
    for i, name in enumerate(names):
        for s in range(seeds):
            write_run(
                root,
                name,
                s,
                0.85 + rng.normal(0, 0.01),
                modalities=modalities,
                changed=LONG if i == 1 else {},
                probes={m: level - 0.05 for m, level in alone.items()},
                shapley={m: (-0.1 if m == modalities[-1] else 0.4) for m in modalities},
                updates=300 * (1 + i % 3),
                record_changes={"report": budgets(modalities)} if i == 1 else None,
            )
    for s in range(seeds):
        write_run(root, "majority", s, 0.25, modalities=modalities, probes={}, updates=0)
    return compare(root).groups[0]


def texts_of(figure: Figure) -> list[Bbox]:
    """Draw the figure and return the boxes of all texts that were drawn."""
    drawn: list[Text] = []
    draw = Text.draw

    def recorded(text: Text, renderer: RendererBase) -> None:
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)

    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", recorded)
        figure.canvas.draw()
    return [text.get_window_extent() for text in dict.fromkeys(drawn)]


def assert_readable(figure: Figure) -> None:
    boxes = texts_of(figure)
    frame = figure.bbox.padded(2)
    for box in boxes:
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1
    # Half a pixel less on every side: boxes that only touch do not hide anything.
    shrunk = [box.padded(-0.5) for box in boxes]
    clashes = [(a, b) for a, b in itertools.combinations(shrunk, 2) if a.overlaps(b)]
    assert not clashes


def points_of(line: Line2D) -> list[tuple[float, float]]:
    """Return the points of a line, in the coordinates of the data."""
    x, y = np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)
    return list(zip(x.tolist(), y.tolist(), strict=True))
