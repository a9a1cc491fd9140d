"""Tables: all formats say the same, and what they say follows from the stored predictions."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mmbench.errors import RequestError
from mmbench.report import tables
from mmbench.report.comparison import Comparison, Group, compare
from mmbench.report.rows import METRICS
from mmbench.store.frame import load_runs, predictions
from tests.unit.records import write_run, write_setting

SHAPLEY = {"fourier": 0.75, "zernike": 0.25}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    alone = {"fourier": 0.75, "zernike": 0.78}
    for m, level in alone.items():
        values = [level, level + 0.01, level - 0.01]
        write_setting(
            folder, "unimodal", values, changed={"modality": m}, probes={m: level}, shapley={m: 1.0}
        )
    write_setting(folder, "joint", [0.80, 0.82, 0.81], shapley=SHAPLEY, probes=alone)
    write_setting(
        folder,
        "ogm_ge",
        [0.84, 0.85, 0.85],
        changed={"recipe.select": "best-test"},
        shapley=SHAPLEY,
    )
    return folder


@pytest.fixture(scope="module")
def group(root: Path) -> Group:
    return compare(root).groups[0]


Table = dict[str, dict[str, str]]


def expected(root: Path) -> dict[str, dict[str, float]]:
    """Recompute the numbers from predictions.npz, with numpy and scipy alone."""
    seeds: dict[str, dict[str, list[float]]] = {}
    for run in load_runs(root):
        arrays = predictions(run)
        y = arrays["test_labels"]
        name = f"{run.method}.{(run.changed or {}).get('modality', '')}".rstrip(".")
        found = seeds.setdefault(name, {})
        found.setdefault("mean", []).append(np.mean(arrays["test_logits"].argmax(1) == y))
        for key in arrays:
            if key.startswith("test_probe."):
                right = np.mean(arrays[key].argmax(1) == y)
                found.setdefault(key.removeprefix("test_"), []).append(right)
    result: dict[str, dict[str, float]] = {}
    for name, columns in seeds.items():
        x, base = columns["mean"], seeds["joint"]["mean"]
        low, high = stats.t.interval(0.95, len(x) - 1, loc=np.mean(x), scale=stats.sem(x))
        row = {"low": low, "high": high} | {k: float(np.mean(v)) for k, v in columns.items()}
        if name != "joint":
            test = stats.ttest_rel(x, base)
            interval = test.confidence_interval()
            row |= {
                "difference": float(np.mean(np.subtract(x, base))),
                "difference_low": interval.low,
                "difference_high": interval.high,
                "p": float(test.pvalue),
            }
        result[name] = row
    return result


KEYS = {
    "unimodal[fourier]": "unimodal.fourier",
    "unimodal[zernike]": "unimodal.zernike",
    "joint": "joint",
    "ogm_ge[recipe.select=best-test] †": "ogm_ge",
}


def from_markdown(group: Group) -> Table:
    lines = [
        re.sub(r"\\(.)", r"\1", line)
        for line in tables.markdown(group).splitlines()
        if line.startswith("| ")
    ]
    head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def from_latex(group: Group) -> Table:
    body = tables.latex(group)
    for escaped, plain in (
        ("$-$", "-"),
        (r"\%", "%"),
        (r"\_", "_"),
        ("{[}", "["),
        ("{]}", "]"),
        (r"\textdagger{}", "†"),
        (r"\textless{}", "<"),
    ):
        body = body.replace(escaped, plain)
    lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r" \\")]
    head, *rows = [[cell.strip() for cell in line.split(" & ")] for line in lines]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def from_text(group: Group) -> Table:
    """Read the wide text table back by the positions of its columns, as the rule shows no gaps:
    the titles are those of the Markdown table, cells are told apart by two blanks or more."""
    lines = tables.text(group, width=400).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("-----")) + 1
    made = tables.columns(group)
    found: Table = {}
    for i in range(len(group.rows)):
        cells = [c.cells[i] for c in made]
        assert re.split(r" {2,}", lines[start + i].strip()) == [cell for cell in cells if cell]
        found[cells[0]] = {c.title: cell for c, cell in zip(made, cells, strict=True)}
    return found


@pytest.mark.parametrize("read", [from_markdown, from_latex, from_text])
def test_tables_for_people_agree_with_the_predictions(
    root: Path, group: Group, read: Callable[[Group], Table]
) -> None:
    table = read(group)
    truth = expected(root)
    assert list(table) == list(KEYS)
    for label, key in KEYS.items():
        row, true = table[label], truth[key]
        assert row["seeds"] == "3"
        assert row["test accuracy (%)"] == f"{100 * true['mean']:.1f}"
        assert row["95 % interval"] == f"[{100 * true['low']:.1f}, {100 * true['high']:.1f}]"
        for m in ("fourier", "zernike"):
            probe = true.get(f"probe.{m}")
            assert row[f"{m} probe (%)"] == ("" if probe is None else f"{100 * probe:.1f}")
        if key == "joint":
            assert row["p"] == row["difference to joint (points)"] == ""
            continue
        change = [100 * true[k] for k in ("difference", "difference_low", "difference_high")]
        mean, low, high = (f"{c:+.1f}" for c in change)
        assert row["difference to joint (points)"] == f"{mean} [{low}, {high}]"
        assert row["p"] == ("< 0.001" if true["p"] < 0.001 else f"{true['p']:.3f}")


def test_csv_has_full_precision_in_fractions(root: Path, group: Group) -> None:
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(tables.csv_text([group])))}
    truth = expected(root)
    for label, key in KEYS.items():
        row = rows[label.removesuffix(" †")]
        assert row["selected_on_test"] == str("†" in label)
        for name, number in truth[key].items():
            assert float(row[name]) == pytest.approx(number, abs=1e-12)
    assert rows["joint"]["p"] == ""
    assert rows["unimodal[fourier]"]["probe.zernike"] == ""
    assert rows["joint"]["train_seconds"] == repr(np.mean([1.5, 1.6, 1.7]).item())
    total = float(rows["joint"]["shapley.fourier"]) + float(rows["joint"]["shapley.zernike"])
    assert total == pytest.approx(truth["joint"]["mean"] - 0.25)


def test_csv_of_several_groups_is_one_table(tmp_path: Path) -> None:
    write_run(tmp_path, "joint", 0)
    write_run(tmp_path, "joint", 0, dataset="avdigits", modalities=("audio", "image"))
    text = tables.rendered(compare(tmp_path).groups, "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["dataset"] for row in rows] == ["avdigits", "mfeat"]
    assert all(None not in row for row in rows)
    assert rows[0]["probe.fourier"] == ""
    assert float(rows[0]["probe.audio"]) == pytest.approx(0.7)


def test_shapley_shares_are_shown_when_asked_for(group: Group) -> None:
    made = {c.title: c.cells for c in tables.columns(group, shapley=True)}
    assert made["fourier Shapley share (%)"] == ("100.0", "", "75.0", "75.0")
    assert made["zernike Shapley share (%)"] == ("", "100.0", "25.0", "25.0")
    assert not any("Shapley" in c.title for c in tables.columns(group))


def test_another_readout_takes_the_place_of_the_probes(group: Group) -> None:
    made = {c.title: c.cells for c in tables.columns(group, "split")}
    assert made["fourier split (%)"][0] == "73.0"
    assert "fourier probe (%)" not in made
    assert "read by the modality's part" in tables.caption(group, "split")


def test_a_readout_that_nothing_has_is_an_error(root: Path) -> None:
    found: Comparison = compare(root)
    tables.check_readout(found, "own_head")
    with pytest.raises(RequestError, match="probe, split, own_head"):
        tables.check_readout(found, "zero_feature")


@pytest.mark.parametrize("format", ["text", "markdown", "latex"])
def test_selection_on_the_test_set_is_marked_and_explained(group: Group, format: str) -> None:
    text = " ".join(tables.rendered([group], format).split())
    mark = r"\textdagger{}" if format == "latex" else "†"
    assert f"{mark} model selected on the test set" in text
    assert text.count(mark) >= 2
    assert "warning: " in text


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_text_is_as_narrow_as_asked_for(group: Group, width: int) -> None:
    for line in tables.text(group, width=width).splitlines():
        assert len(line) <= max(width, 33 + 2 + 20), line


def test_latex_special_characters_are_escaped(tmp_path: Path) -> None:
    write_run(tmp_path, "my_method", 0, changed={"a": "50%&#$~^{}\\<>"}, probes={"x_1": 0.7})
    write_run(tmp_path, "other", 0)
    body = tables.latex(compare(tmp_path).groups[0])
    row = next(line for line in body.splitlines() if line.startswith("my"))
    cell = row.split(" & ")[0]
    assert cell == (
        r"my\_method{[}a=50\%\&\#\$\textasciitilde{}\textasciicircum{}\{\}\textbackslash{}"
        r"\textless{}\textgreater{}{]}"
    )
    assert r"x\_1" not in body.split(r"\begin{table*}")[0]


def test_markdown_cells_cannot_break_the_table(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 0, changed={"text": "x|y"})
    write_run(tmp_path, "b", 0)
    made = tables.markdown(compare(tmp_path).groups[0])
    lines = [line for line in made.splitlines() if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(counts) == 1


def test_losses_are_in_their_own_unit(root: Path) -> None:
    group = compare(root, metric="nll").groups[0]
    made = {c.title: c.cells for c in tables.columns(group)}
    joint = [float(np.mean(list(row.metric(METRICS["nll"]).values()))) for row in group.rows][2]
    assert made["test negative log-likelihood (nats)"][2] == f"{joint:.3f}"
    assert "in nats" in tables.caption(group)
