"""Figures: what is drawn is what is stored, and it can be read."""

import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mmbench.errors import StoreError
from mmbench.report.comparison import Group, compare
from mmbench.report.figures import (
    contribution_figure,
    learning_curve_figure,
    outcome_figure,
    row_curves,
    write_figures,
)
from tests.unit.records import write_run, write_setting

LONG = {"align.gate": False, "temperature": 0.5, "recipe.weight_decay": 0.001}


def fabricated(root: Path, methods: int, modalities: tuple[str, ...], seeds: int = 2) -> Group:
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
    names = ["joint", *(f"method_{i}" for i in range(methods - 1))]
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
            )
    for s in range(seeds):
        write_run(root, "majority", s, 0.25, modalities=modalities, probes={}, updates=0)
    return compare(root).groups[0]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    return fabricated(tmp_path_factory.mktemp("runs"), 3, ("fourier", "zernike"))


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


@pytest.mark.parametrize(
    ("methods", "modalities"),
    [
        (1, ("x",)),
        (4, ("fourier", "zernike", "a_modality_with_a_long_name")),
        pytest.param(24, tuple("abcdef"), marks=pytest.mark.slow),
    ],
)
def test_no_text_is_cut_or_hidden(
    tmp_path: Path, methods: int, modalities: tuple[str, ...]
) -> None:
    group = fabricated(tmp_path, methods, modalities, seeds=1 if methods > 10 else 2)
    for draw in (outcome_figure, contribution_figure, learning_curve_figure):
        figure = draw(group)
        assert figure is not None
        assert_readable(figure)


def test_outcomes_stand_at_their_means_in_the_order_of_the_table(group: Group) -> None:
    figure = outcome_figure(group)
    (axis,) = figure.axes
    names = [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()]
    assert names == [row.label for row in group.rows]
    places = axis.get_yticks()
    assert (np.diff(places) > 0).all()
    assert axis.yaxis_inverted()
    points = {y: x for c in axis.containers for x, y in [c.lines[0].get_xydata()[0]]}  # type: ignore[attr-defined]
    for row, place in zip(group.rows, places, strict=True):
        if row.method != "majority":
            assert points[place] == pytest.approx(100 * row.value.mean)
    # The majority class would squeeze all others into a corner: its value is written instead.
    assert any("25.0" in text.get_text() for text in axis.texts)
    lines = [float(line.get_xdata()[0]) for line in axis.lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type, index]
    joint = next(row for row in group.rows if row.label == "joint")
    assert 100 * joint.value.mean in lines
    assert group.best_unimodal is not None
    assert 100 * group.best_unimodal.value.mean in lines


def test_contributions_show_each_modality_beside_its_training_alone(group: Group) -> None:
    figure = contribution_figure(group)
    assert figure is not None
    fourier, zernike, shapley = figure.axes
    for axis, m, alone in ((fourier, "fourier", 0.76), (zernike, "zernike", 0.72)):
        assert axis.get_title() == m
        dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert [line.get_xdata()[0] for line in dashed] == [pytest.approx(100 * alone)]  # type: ignore[index]
        dots = sorted(
            float(line.get_xdata()[0])  # type: ignore[arg-type, index]
            for line in axis.lines
            if line.get_marker() != "None"
        )
        assert dots == pytest.approx([100 * (alone - 0.05)] * 3 + [100 * alone])
    assert fourier.get_xlim() == zernike.get_xlim()
    joint = next(i for i, r in enumerate(r for r in group.rows if r.trains) if r.label == "joint")
    bars = [container[joint] for container in shapley.containers]
    row = next(r for r in group.rows if r.label == "joint")
    values = [row.shapley(m) or 0.0 for m in group.modalities]
    assert [bar.get_width() for bar in bars] == pytest.approx([100 * v for v in values])
    # A negative value lies to the left of zero, not on top of the positive ones.
    assert bars[1].get_x() + bars[1].get_width() == pytest.approx(100 * values[1])


def test_curves_are_means_over_seeds(group: Group) -> None:
    row = next(r for r in group.rows if r.label == "joint")
    curves = row_curves(row, group.modalities)
    assert curves is not None
    columns = []
    for run in row.runs:
        lines = (run.path / "history.csv").read_text().splitlines()
        head = lines[0].split(",")
        columns.append([float(line.split(",")[head.index("val_accuracy")]) for line in lines[1:]])
    (segment,) = curves.segments
    assert segment.fused.tolist() == columns
    assert set(segment.modalities) == set(group.modalities)
    figure = learning_curve_figure(group)
    assert figure is not None
    axis = next(a for a in figure.axes if a.get_title() == "joint")
    assert axis.lines[0].get_ydata() == pytest.approx(100 * np.mean(columns, axis=0))


def test_stages_follow_one_another_and_own_heads_stand_in(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "staged", 0)
    (folder / "history.csv").write_text(
        "stage,epoch,train_loss,val_accuracy,val_own_head_accuracy.fourier\n"
        "probe,1,1.0,,\n"
        "first,1,1.0,0.5,0.4\n"
        "first,2,1.0,0.6,0.5\n"
        "second,1,1.0,0.7,\n"
    )
    row = compare(tmp_path).groups[0].rows[0]
    curves = row_curves(row, ["fourier", "zernike"])
    assert curves is not None
    assert [s.fused.tolist() for s in curves.segments] == [[[0.5, 0.6]], [[0.7]]]
    assert [s.start for s in curves.segments] == [0, 2]
    assert [list(s.modalities) for s in curves.segments] == [["fourier"], []]
    assert curves.own_heads


def test_stages_without_a_modality_in_common_all_begin_at_epoch_1(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "ensemble", 0)
    (folder / "history.csv").write_text(
        "stage,epoch,val_accuracy,val_split_accuracy.fourier,val_split_accuracy.zernike\n"
        "unimodal/fourier,1,0.5,0.5,\n"
        "unimodal/fourier,2,0.6,0.6,\n"
        "unimodal/zernike,1,0.4,,0.4\n"
        "together,1,0.7,0.6,0.4\n"
    )
    curves = row_curves(compare(tmp_path).groups[0].rows[0], ["fourier", "zernike"])
    assert curves is not None
    assert [s.start for s in curves.segments] == [0, 0, 2]
    assert not curves.own_heads


def test_files_are_written_and_pyplot_is_left_alone(group: Group, tmp_path: Path) -> None:
    open_figures = plt.get_fignums()
    written, empty = write_figures(group, tmp_path)
    assert empty == []
    assert {file.name for file in written} == {
        f"{name}.{suffix}"
        for name in ("accuracy", "contributions", "learning_curves")
        for suffix in ("png", "svg")
    }
    for file in written:
        if file.suffix == ".png":
            assert plt.imread(file).std() > 0.01
        else:
            assert ElementTree.parse(file).getroot().tag.endswith("svg")
    assert plt.get_fignums() == open_figures


def test_what_is_not_stored_is_not_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "joint", 0, probes={})
    (folder / "history.csv").write_text("stage,epoch,train_loss\ntrain,1,0.5\n")
    written, empty = write_figures(compare(tmp_path / "runs").groups[0], tmp_path)
    assert empty == ["contributions", "learning_curves"]
    assert [file.name for file in written] == ["accuracy.png", "accuracy.svg"]


def test_an_unwritable_folder_is_one_line(group: Group, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="choose another --output"):
        write_figures(group, tmp_path / "absent")


def test_a_single_seed_has_no_error_bar(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", [0.8])
    (axis,) = outcome_figure(compare(tmp_path).groups[0]).axes
    assert all(not container.has_xerr for container in axis.containers)  # type: ignore[attr-defined]
