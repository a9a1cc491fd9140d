"""Tables: all formats say the same, and what they say follows from the stored predictions."""

import csv
import io
import itertools
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mmbench.cli.app import main
from mmbench.errors import RequestError
from mmbench.report import tables
from mmbench.report.columns import View, check_columns, columns
from mmbench.report.comparison import Comparison, Group, compare
from mmbench.report.rows import METRICS
from mmbench.store.frame import load_runs, predictions
from tests.unit.records import metrics, write_run, write_setting

SHAPLEY = {"fourier": 0.75, "zernike": 0.25}
JITTER = [0.0, 0.01, -0.01, 0.005, -0.005, 0.015, 0.0, -0.015]
"""Of 8 seeds: with 4 rows to test, p is 4 / 2^7 = 0.03 at best."""
WIDE = View(width=400)


def around(level: float, *extra: float) -> list[float]:
    """Return an accuracy a seed; the extra differ from seed to seed."""
    return [level + j + e for j, e in itertools.zip_longest(JITTER, extra, fillvalue=0.0)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    alone = {"fourier": 0.70, "zernike": 0.73}
    for m, level in alone.items():
        values = around(level)
        write_setting(
            folder, "unimodal", values, changed={"modality": m}, probes={m: level}, shapley={m: 1.0}
        )
    write_setting(folder, "joint", around(0.81, 0.005, -0.005), shapley=SHAPLEY, probes=alone)
    mixed = [0.01, -0.01, 0.02, -0.02, 0.01, -0.015, 0.03, 0.0]
    write_setting(folder, "ogm", around(0.812, *mixed), shapley=SHAPLEY)
    write_setting(
        folder, "ogm_ge", around(0.85), changed={"recipe.select": "best-test"}, shapley=SHAPLEY
    )
    return folder


@pytest.fixture(scope="module")
def group(root: Path) -> Group:
    return compare(root).groups[0]


Table = dict[str, dict[str, str]]


def sign_flip(differences: np.ndarray) -> float:
    """Return the share of all assignments of signs with a sum at least as far from zero."""
    signs = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    return float(np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12))


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Return p-values corrected by the definition: the i-th smallest, times those not yet passed,
    never below an earlier one."""
    done: dict[str, float] = {}
    for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        now = min(1.0, p_values[name] * (len(p_values) - i))
        done[name] = max([now, *done.values()])
    return done


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
    for name, numbers in seeds.items():
        x, base = numbers["mean"], seeds["joint"]["mean"]
        low, high = stats.t.interval(0.95, len(x) - 1, loc=np.mean(x), scale=stats.sem(x))
        row = {"low": low, "high": high} | {k: float(np.mean(v)) for k, v in numbers.items()}
        if name != "joint":
            test = stats.ttest_rel(x, base)
            interval = test.confidence_interval()
            row |= {
                "difference": float(np.mean(np.subtract(x, base))),
                "difference_low": interval.low,
                "difference_high": interval.high,
                "p": sign_flip(np.subtract(x, base)),
                "p_t": float(test.pvalue),
            }
        result[name] = row
    for name, p in holm({name: row["p"] for name, row in result.items() if "p" in row}).items():
        result[name]["p_holm"] = p
    return result


KEYS = {
    "unimodal[fourier]": "unimodal.fourier",
    "unimodal[zernike]": "unimodal.zernike",
    "joint": "joint",
    "ogm_ge[recipe.select=best-test] †": "ogm_ge",
    "ogm": "ogm",
}
STANDING = dict(zip(KEYS, ["apart", "apart", "tied", "", "best"], strict=True))
"""By accuracy; the row that was selected on the test set takes no part."""


def from_markdown(group: Group) -> Table:
    lines = [line for line in tables.markdown(group).splitlines() if line.startswith("| ")]
    lines = [re.sub(r"\*\*(.*?)\*\*", r"\1 *", line) for line in lines]
    lines = [re.sub(r"\\(.)", r"\1", line) for line in lines]
    head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def from_latex(group: Group) -> Table:
    body = re.sub(r"\\textbf\{(.*?)\}", r"\1 *", tables.latex(group))
    for escaped, plain in (
        ("$-$", "-"),
        (r"\%", "%"),
        (r"\_", "_"),
        ("{[}", "["),
        ("{]}", "]"),
        (r"\textdagger{}", "†"),
        (r"\textless{}", "<"),
        ("$\\sim$", "~"),
    ):
        body = body.replace(escaped, plain)
    lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r" \\")]
    head, *rows = [[cell.strip() for cell in line.split(" & ")] for line in lines]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def from_text(group: Group) -> Table:
    """Read the wide text table back: cells are told apart by two blanks or more, and an empty one
    by the places of the columns, which the widest cells give."""
    lines = tables.text(group, WIDE).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("-----")) + 1
    made = columns(group, WIDE)
    found: Table = {}
    signs = {"": "", "apart": "", "best": " *", "tied": " ~"}
    for i in range(len(group.rows)):
        cells = [c.cells[i] + signs[c.mark(i)] for c in made]
        assert re.split(r" {2,}", lines[start + i].strip()) == [cell for cell in cells if cell]
        found[cells[0]] = {c.title: cell for c, cell in zip(made, cells, strict=True)}
    return found


class Parsed(HTMLParser):
    """The cells of an HTML table, with their attributes; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[dict[str, dict[str, str | None]]] = []
        self.rows: list[dict[str, str]] = []
        self.heads: dict[str, str] = {}
        self.place: tuple[dict[str, str], str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.open.append(tag)
        self.seen.append(tag)
        if tag == "tr" and "tbody" in self.open:
            self.rows.append({})
            self.attributes.append({"": about})
        if tag in ("td", "th"):
            name = about["data-column"]
            assert name is not None
            row = self.rows[-1] if "tbody" in self.open else self.heads
            row[name] = ""
            self.place = (row, name)
            if "tbody" in self.open:
                self.attributes[-1][name] = about

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.place = None

    def handle_data(self, data: str) -> None:
        if self.place is not None:
            row, name = self.place
            row[name] += f"{data} *" if self.open[-1] == "strong" else data


def parsed(words: str) -> Parsed:
    parser = Parsed()
    parser.feed(words)
    parser.close()
    assert parser.open == []
    return parser


def from_html(group: Group) -> Table:
    page = parsed(tables.rendered([group], "html"))
    titles = page.heads
    return {row["method"]: {titles[name]: cell for name, cell in row.items()} for row in page.rows}


@pytest.mark.parametrize("read", [from_markdown, from_latex, from_text, from_html])
def test_tables_for_people_agree_with_the_predictions(
    root: Path, group: Group, read: Callable[[Group], Table]
) -> None:
    table = read(group)
    truth = expected(root)
    assert list(table) == list(KEYS)
    signs = {"best": " *", "tied": " ~", "apart": "", "": ""}
    for label, key in KEYS.items():
        row, true = table[label], truth[key]
        assert row["seeds"] == "8"
        assert row["test accuracy (%)"] == f"{100 * true['mean']:.1f}{signs[STANDING[label]]}"
        assert row["95 % interval"] == f"[{100 * true['low']:.1f}, {100 * true['high']:.1f}]"
        for m in ("fourier", "zernike"):
            probe = true.get(f"probe.{m}")
            assert row[f"{m} probe (%)"] == ("" if probe is None else f"{100 * probe:.1f}")
        if key == "joint":
            assert row["p"] == row["p (Holm)"] == row["difference to joint (points)"] == ""
            assert row["verdict"] == "(reference)"
            continue
        change = [100 * true[k] for k in ("difference", "difference_low", "difference_high")]
        mean, low, high = (f"{c:+.1f}" for c in change)
        assert row["difference to joint (points)"] == f"{mean} [{low}, {high}]"
        assert row["p"] == f"{true['p']:.3f}"
        assert row["p (Holm)"] == f"{true['p_holm']:.3f}"
        word = "better" if true["difference"] > 0 else "worse"
        assert row["verdict"] == (word if true["p_holm"] < 0.05 else "not distinguishable")


def test_html_holds_the_full_numbers_for_a_script(root: Path, group: Group) -> None:
    page, truth = parsed(tables.rendered([group], "html")), expected(root)
    for row, about in zip(page.rows, page.attributes, strict=True):
        label = row["method"]
        true = truth[KEYS[label]]
        assert about[""]["data-label"] == label.removesuffix(" †")
        assert about[""]["data-control"] == str(not label.startswith("ogm")).lower()
        assert about[""]["data-reference"] == str(label == "joint").lower()
        assert about[""]["data-selected-on-test"] == str("†" in label).lower()
        assert float(about["accuracy"]["data-value"] or "nan") == pytest.approx(true["mean"])
        assert about["accuracy"].get("data-mark", "") == STANDING[label]
        assert ("data-value" in about["p_holm"]) == ("p_holm" in true)
    assert page.seen.count("table") == page.seen.count("thead") == page.seen.count("caption") == 1


def test_words_from_outside_are_escaped_in_html(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'"
    write_run(tmp_path, "a", 0, changed={"text": evil}, notes=[evil])
    write_run(tmp_path, "b", 0)
    page = parsed(tables.rendered(compare(tmp_path).groups, "html"))
    assert "script" not in page.seen
    assert evil in page.rows[0]["method"]


def test_csv_has_full_precision_in_fractions(root: Path, group: Group) -> None:
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(tables.csv_text([group])))}
    truth = expected(root)
    for label, key in KEYS.items():
        row = rows[label.removesuffix(" †")]
        assert row["selected_on_test"] == str("†" in label)
        assert row["mean_standing"] == STANDING[label]
        for name, number in truth[key].items():
            assert float(row[name]) == pytest.approx(number, abs=1e-12)
    assert rows["joint"]["p"] == ""
    assert rows["unimodal[fourier]"]["probe.zernike"] == ""
    seconds = np.mean([1.5 + 0.1 * seed for seed in range(8)])
    assert float(rows["joint"]["train_seconds"]) == pytest.approx(seconds)
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
    made = {c.title: c.cells for c in columns(group, View(shapley=True))}
    assert made["fourier Shapley share (%)"] == ("100.0", "", "75.0", "75.0", "75.0")
    assert made["zernike Shapley share (%)"] == ("", "100.0", "25.0", "25.0", "25.0")
    assert not any("Shapley" in c.title for c in columns(group))


def test_another_readout_takes_the_place_of_the_probes(group: Group) -> None:
    made = {c.title: c.cells for c in columns(group, View(readout="split"))}
    assert made["fourier split (%)"][0] == "68.0"
    assert "fourier probe (%)" not in made
    assert "read by the modality's part" in tables.caption(group, View(readout="split"))


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
    for line in tables.text(group, View(width=width)).splitlines():
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
    made = {c.title: c.cells for c in columns(group)}
    joint = [float(np.mean(list(row.metric(METRICS["nll"]).values()))) for row in group.rows][2]
    assert made["test negative log-likelihood (nats)"][2] == f"{joint:.3f}"
    assert "in nats" in tables.caption(group)


# -- choosing columns ------------------------------------------------------------------------------


def test_columns_are_those_that_are_named_in_their_order(root: Path, group: Group) -> None:
    view = View(columns=("updates", "p_holm", "probe.zernike", "accuracy"))
    check_columns([group], view)
    assert [c.name for c in columns(group, view)] == ["method", *(view.columns or ())]
    head = next(csv.reader(io.StringIO(tables.csv_text([group], view))))
    identity = ["dataset", "protocol", "dataset_options", "label", "method", "config_hash"]
    identity += ["selected_on_test", "metric", "seeds"]
    assert head == [*identity, "updates", "p_holm", "probe.zernike", "mean", "mean_standing"]


def test_another_metric_is_a_column_beside_the_one_compared(root: Path, group: Group) -> None:
    (column,) = columns(group, View(columns=("nll",)))[1:]
    for row, value in zip(group.rows, column.values, strict=True):
        losses = []
        for run in row.runs:
            arrays = predictions(run)
            losses.append(metrics(arrays["test_labels"], arrays["test_logits"])["nll"])
        assert value == pytest.approx(np.mean(losses))
    lowest = min(
        (v, row.label)
        for v, row in zip(column.values, group.rows, strict=True)
        if not row.selected_on_test
    )
    assert dict(zip((r.label for r in group.rows), column.marks, strict=True))[lowest[1]] == "best"


def test_a_family_stands_for_a_column_a_modality_and_cost_for_what_is_known(group: Group) -> None:
    names = [c.name for c in columns(group, View(columns=("shapley", "cost")))[1:]]
    assert names[:2] == ["shapley.fourier", "shapley.zernike"]
    assert names[2:] == [
        *("parameters", "updates", "forwards", "encoder_forwards", "backwards", "train_seconds")
    ]


def test_memory_and_operations_are_shown_where_they_are_recorded(tmp_path: Path) -> None:
    counts = dict.fromkeys(("updates", "forwards", "encoder_forwards", "backwards"), 1)
    memory = {"peak_memory_bytes": 3 * 2**20, "step_flops": 2_500_000}
    cost = counts | memory | {"parameters": 9, "train_seconds": 2.0}
    environment = {"mmbench": "0.1.0", "device": "cuda:0"}
    for method in ("joint", "ogm"):
        changes = {"cost": cost, "environment": environment}
        write_run(tmp_path, method, 0, record_changes=changes)
    made = {c.title: c.cells[0] for c in columns(compare(tmp_path).groups[0])}
    assert made["peak memory (MiB)"] == "3"
    assert made["MFLOP a step"] == "2.5"
    assert made["GPU seconds"] == "2.0"


def test_an_unknown_column_suggests_near_ones_and_lists_all(group: Group) -> None:
    with pytest.raises(RequestError) as caught:
        check_columns([group], View(columns=("accurcy",)))
    said = str(caught.value)
    assert "unknown column 'accurcy': did you mean accuracy" in said
    for name in ("interval", "probe.zernike", "step_flops", "p_best"):
        assert name in said
    with pytest.raises(RequestError, match=r"unknown column 'probe\.audio'"):
        check_columns([group], View(columns=("probe.audio",)))
    with pytest.raises(RequestError, match="add --reported"):
        check_columns([group], View(columns=("reported",)))
    with pytest.raises(RequestError, match="no column named"):
        check_columns([group], View(columns=()))


def test_a_column_of_a_modality_is_left_out_where_a_dataset_lacks_it(tmp_path: Path) -> None:
    write_run(tmp_path, "joint", 0)
    write_run(tmp_path, "joint", 0, dataset="avdigits", modalities=("audio", "image"))
    groups = compare(tmp_path).groups
    view = View(columns=("accuracy", "probe.audio"))
    check_columns(groups, view)
    assert [len(columns(group, view)) for group in groups] == [3, 2]


def test_every_known_column_can_be_shown(group: Group) -> None:
    from mmbench.report.columns import known_columns

    names = tuple(name for name in known_columns([group]) if name != "reported")
    view = View(columns=names)
    check_columns([group], view)
    for format in tables.FORMATS:
        assert "nan" not in tables.rendered([group], format, view)


def test_controls_are_in_the_table_whatever_methods_are_named(tmp_path: Path) -> None:
    for method in ("majority", "ensemble", "joint", "multiloss", "ogm", "pmr"):
        write_run(tmp_path, method, 0)
    write_run(tmp_path, "joint", 0, changed={"fusion": "film"})
    for m in ("fourier", "zernike"):
        write_run(tmp_path, "unimodal", 0, changed={"modality": m})
    (group,) = compare(tmp_path, methods=["pmr"]).groups
    assert [row.label for row in group.rows] == [
        *("majority", "unimodal[fourier]", "unimodal[zernike]", "ensemble", "joint", "multiloss"),
        "pmr",
    ]


# -- the best --------------------------------------------------------------------------------------


def marks(root: Path, metric: str = "accuracy") -> dict[str, str]:
    (group,) = compare(root, metric=metric).groups
    made = next(c for c in columns(group) if c.name == metric)
    return {row.label: made.mark(i) for i, row in enumerate(group.rows)}


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_nothing_is_called_tied_where_no_test_could_have_told(tmp_path: Path, seeds: int) -> None:
    rng = np.random.default_rng(0)
    for method in ("joint", "ogm", "iibalance"):
        write_setting(tmp_path, method, [0.8 + rng.uniform(0, 0.03) for _ in range(seeds)])
    assert sorted(marks(tmp_path).values()) == ["", "", "best"]
    caption = tables.caption(compare(tmp_path).groups[0])
    assert "too few paired seeds to test the other rows against it" in caption
    assert "~" not in tables.text(compare(tmp_path).groups[0])


def test_rows_of_other_seeds_are_not_called_tied(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", [0.8 + j for j in JITTER])
    for seed, j in enumerate(JITTER):
        write_run(tmp_path, "ogm", seed + 100, 0.79 + j / 2)
    assert sorted(marks(tmp_path).values()) == ["", "best"]


def test_equal_means_are_best_together(tmp_path: Path) -> None:
    for method in ("joint", "ogm", "iibalance"):
        write_setting(tmp_path, method, [0.8, 0.8])
    assert set(marks(tmp_path).values()) == {"best"}


def test_a_row_alone_is_not_called_best(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", [0.8, 0.82])
    assert marks(tmp_path) == {"joint": ""}


def test_a_loss_that_is_not_a_number_is_not_the_best(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", [0.8, 0.82])
    write_setting(tmp_path, "ogm", [0.7, 0.72])
    broken = {"accuracy": 0.9, "macro_f1": 0.9, "nll": None, "ece": 0.0, "brier": 0.0}
    for seed in range(2):
        write_run(tmp_path, "iibalance", seed, record_changes={"metrics": {"test": broken}})
    assert marks(tmp_path, "nll") == {"joint": "best", "ogm": "", "iibalance": ""}


def test_latex_is_balanced(group: Group) -> None:
    body = tables.latex(group, View(columns=("accuracy", "difference", "share", "cost")))
    code = "\n".join(line for line in body.splitlines() if not line.startswith("%"))
    depth = 0
    for character in re.sub(r"\\[{}]", "", code):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    began, ended = (re.findall(rf"\\{word}\{{(\w+\*?)\}}", code) for word in ("begin", "end"))
    assert began == ended[::-1] == ["table*", "tabular"]
    assert code.replace(r"\%", "").count("$") % 2 == 0
    match = re.search(r"\\begin\{tabular\}\{([lr]+)\}", code)
    assert match is not None
    counts = {line.count(" & ") + 1 for line in code.splitlines() if line.endswith(r"\\")}
    assert counts == {len(match[1])}


# -- over all tables -------------------------------------------------------------------------------


def test_average_ranks_are_those_of_the_means_in_each_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies = {"first": (0.7, 0.8, 0.6), "second": (0.6, 0.7, 0.5), "third": (0.8, 0.6, 0.5)}
    for dataset, values in accuracies.items():
        for method, accuracy in zip(("joint", "ogm", "agm"), values, strict=True):
            write_run(tmp_path / "runs", method, 0, accuracy, dataset=dataset)
    words = ["compare", "--results", str(tmp_path / "runs")]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    table = text[text.index("Average ranks over datasets") :]
    found = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line}
    assert found["ogm"] == ["1.33", "1", "1", "2"]
    assert found["joint"] == ["1.67", "2", "2", "1"]
    assert found["agm"] == ["3.00", "3", "3", "3"]
    page = (tmp_path / "out" / "ranks.md").read_text()
    assert "| ogm | 1.33 | 1 | 1 | 2 |" in page
    assert (tmp_path / "out" / "critical_differences.svg").is_file()


def test_datasets_without_common_rows_are_not_ranked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dataset, method in (("first", "joint"), ("second", "ogm")):
        write_run(tmp_path, method, 0, 0.7, dataset=dataset)
    assert main(["compare", "--results", str(tmp_path)]) == 0
    assert "no ranks over datasets: first few, second few: fewer than" in capsys.readouterr().out
