"""Figures: what is drawn is what is stored, and it can be read."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mmbench.errors import StoreError
from mmbench.report.comparison import Group, compare
from mmbench.report.figures import (
    contribution_figure,
    learning_curve_figure,
    outcome_figure,
    row_curves,
    save,
    write_figures,
)
from mmbench.report.figures.labels import wrapped
from mmbench.report.figures.style import new_figure
from mmbench.report.figures.writing import FIGURES
from tests.unit.drawn import assert_readable, fabricated
from tests.unit.records import write_run, write_setting


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    return fabricated(tmp_path_factory.mktemp("runs"), 3, ("fourier", "zernike"))


@pytest.mark.parametrize(
    ("methods", "modalities"),
    [
        (1, ("x",)),
        (3, ("fourier", "zernike", "a_modality_with_a_long_name")),
        pytest.param(30, tuple(f"a_long_modality_{c}" for c in "abcdef"), marks=pytest.mark.slow),
    ],
)
def test_no_text_is_cut_or_hidden(
    tmp_path: Path, methods: int, modalities: tuple[str, ...]
) -> None:
    group = fabricated(tmp_path, methods, modalities, seeds=1 if methods > 10 else 2)
    drawn = [figure for draw in (outcome_figure, *FIGURES.values()) if (figure := draw(group))]
    assert len(drawn) == 5 if methods == 1 else 7
    for figure in drawn:
        assert_readable(figure)


def test_what_cannot_be_read_is_found() -> None:
    """The check of the tests above: a text over another, and one outside of the figure."""
    for place in ((0.51, 0.5), (0.95, 0.9)):
        figure = new_figure(3, 2, constrained=False)
        figure.text(0.5, 0.5, "something")
        assert_readable(figure)
        figure.text(*place, "something else")
        with pytest.raises(AssertionError):
            assert_readable(figure)


def test_modalities_are_told_apart_without_colours(tmp_path: Path) -> None:
    group = fabricated(tmp_path, 2, tuple("abcdef"), seeds=1)
    curves, contributions = learning_curve_figure(group), contribution_figure(group)
    assert curves is not None
    assert contributions is not None
    joint = next(axis for axis in curves.axes if axis.get_title() == "joint")
    assert len({str(line._dash_pattern) for line in joint.lines}) == 7  # type: ignore[attr-defined]
    *probes, shapley = contributions.axes
    assert len({axis.lines[-1].get_marker() for axis in probes}) == 6
    assert len({container[0].get_hatch() for container in shapley.containers}) == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short", "short"),
        ("a_method_with_a_name_22", "a_method_with_\na_name_22"),
        ("two words that are long", "two words that\nare long"),
        ("unbreakablename", "unbreakablenam\ne"),
    ],
)
def test_labels_are_broken_at_blanks_and_underscores(text: str, expected: str) -> None:
    assert wrapped(text, 14) == expected


def test_outcomes_stand_at_their_means_in_the_order_of_the_table(group: Group) -> None:
    figure = outcome_figure(group)
    (axis,) = figure.axes
    names = [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()]
    assert [name.replace(" [", "[") for name in names] == [row.label for row in group.rows]
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
    assert empty == ["robustness"]
    assert [file.name for file in written] == [
        f"{name}.{suffix}"
        for name in (
            "accuracy",
            "contributions",
            "learning_curves",
            "confidence_ratio",
            "reliability",
            "cost",
            "budgets",
        )
        for suffix in ("png", "svg")
    ]
    for file in written:
        if file.suffix == ".png":
            assert plt.imread(file).std() > 0.01
        else:
            assert ElementTree.parse(file).getroot().tag.endswith("svg")
    assert plt.get_fignums() == open_figures


def test_the_same_figure_is_the_same_file(group: Group, tmp_path: Path) -> None:
    for name in ("contributions", "reliability"):
        first, second = FIGURES[name](group), FIGURES[name](group)
        assert first is not None
        assert second is not None
        for file, again in zip(
            save(first, tmp_path, name), save(second, tmp_path, f"{name}_again"), strict=True
        ):
            assert file.read_bytes() == again.read_bytes(), file.name


def test_what_is_not_stored_is_not_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "joint", 0, probes={}, updates=0)
    (folder / "history.csv").write_text("stage,epoch,train_loss\ntrain,1,0.5\n")
    (folder / "predictions.npz").unlink()
    written, empty = write_figures(compare(tmp_path / "runs").groups[0], tmp_path)
    assert empty == list(FIGURES)
    assert [file.name for file in written] == ["accuracy.png", "accuracy.svg"]


def test_a_mean_that_is_not_a_number_is_said_to_be_none(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", [0.8, 0.82])
    folder = write_run(tmp_path, "ogm", 0)
    record = json.loads((folder / "record.json").read_text())
    record["metrics"]["test"]["nll"] = None
    (folder / "record.json").write_text(json.dumps(record))
    group = compare(tmp_path, metric="nll").groups[0]
    figure = outcome_figure(group)
    assert_readable(figure)
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["not a number"]
    cost = FIGURES["cost"](group)
    assert cost is not None
    assert [text.get_text() for text in cost.axes[-1].texts] == ["joint"]


def test_an_unwritable_folder_is_one_line(group: Group, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="choose another --output"):
        write_figures(group, tmp_path / "absent")


def test_a_single_seed_has_no_error_bar(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", [0.8])
    (axis,) = outcome_figure(compare(tmp_path).groups[0]).axes
    assert all(not container.has_xerr for container in axis.containers)  # type: ignore[attr-defined]
