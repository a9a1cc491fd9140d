"""The report's content: what it says, where its numbers come from, and that nothing escapes."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats
from sklearn.metrics import accuracy_score

import mmbench
from mmbench.cli.app import main
from mmbench.report.comparison import Group, compare
from mmbench.report.page import page as pages
from mmbench.report.page import report, unplaced, write_report
from mmbench.report.page.answer import Answer, answer
from mmbench.report.page.modalities import modalities
from mmbench.report.page.pictures import trimmed
from mmbench.report.page.repeating import seed_ranges
from mmbench.store.frame import load_runs
from tests.unit.records import write_run, write_setting

NINE = (0.80, 0.82, 0.81, 0.79, 0.80, 0.83, 0.78, 0.81, 0.80)
VOID = {"meta", "img", "br", "hr", "input", "link"}


@dataclass
class Element:
    """A part of a parsed page."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += ([child] if child.tag == tag else []) + child.all(tag)
        return found

    def every(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.every()

    @property
    def text(self) -> str:
        words = (c if isinstance(c, str) else c.text for c in self.children)
        return " ".join("".join(words).split())

    def table(self, caption: str) -> list[dict[str, Element]]:
        """Return the rows of the first table with a caption, their cells by the column's title."""
        (found, *_) = [t for t in self.all("table") if t.all("caption")[0].text == caption]
        head, *rows = found.all("tr")
        titles = [cell.text for cell in head.all("th")]
        cells = [[c for c in row.children if isinstance(c, Element)] for row in rows]
        return [dict(zip(titles, row, strict=True)) for row in cells]


class Reader(HTMLParser):
    """Builds elements, and insists that each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(html: str) -> Element:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds; only some tests look at figures."""
    monkeypatch.setattr(pages, "pictures", lambda group: ((), ()))
    monkeypatch.setattr(pages, "ranking_picture", lambda ranking: None)


def only_group(root: Path, **options: str) -> Group:
    (group,) = compare(root, **options).groups
    return group


def answered(root: Path) -> Answer:
    return answer(only_group(root))


def shifted(by: float, count: int = 9) -> list[float]:
    """Return accuracies of 400 rows, with a little noise in the differences."""
    return [round((a + by + 0.0025 * (i % 3)) * 400) / 400 for i, a in enumerate(NINE[:count])]


# -- the verdict -----------------------------------------------------------------------------------


def test_a_method_that_beats_all_others_is_recommended_without_reserve(root: Path) -> None:
    write_setting(root, "joint", NINE)
    write_setting(root, "ogm", shifted(0.05))
    write_setting(root, "pmr", shifted(-0.05))
    found = answered(root)
    assert (found.headline, found.certain) == ("Use ogm", "Yes")
    assert found.title == "Use ogm"
    assert (
        "All 2 other rows are distinguishably worse: paired tests over 9 runs" in found.grounds[0]
    )
    assert "5 % chance" in found.grounds[0]


def test_rows_that_cannot_be_told_from_the_best_are_named_and_the_cheapest_of_them(
    root: Path,
) -> None:
    seconds = {"train_seconds": 0.4, "updates": 300, "forwards": 300, "encoder_forwards": 600}
    cheap = {"cost": {**seconds, "backwards": 300, "parameters": 1}}
    write_setting(root, "joint", NINE, record_changes=cheap)
    alike = [a + 0.005 * (-1) ** i for i, a in enumerate(NINE)]
    write_setting(root, "ogm", alike)
    write_setting(root, "pmr", shifted(-0.1))
    found = answered(root)
    assert [row.label for row in found.best] == ["ogm"]
    assert (found.headline, found.certain) == ("Use ogm", "In part")
    said = " ".join(found.grounds)
    assert "pmr is distinguishably worse" in said
    assert "Not distinguishable from it: joint." in said
    assert "joint, 0.4 against 1.9 CPU seconds" in said  # records: 1.5 + 0.1 · seed, seeds 0-8
    assert "Against joint: +0.1 points" in said


def test_with_too_few_seeds_nothing_is_claimed(root: Path) -> None:
    write_setting(root, "joint", NINE[:5])
    write_setting(root, "ogm", shifted(0.1, 5))
    write_setting(root, "pmr", [a + (0.1 if i % 2 else -0.05) for i, a in enumerate(NINE[:5])])
    found = answered(root)
    assert (found.headline, found.certain) == ("ogm is ahead so far", "Not yet")
    assert found.title == "ogm is ahead so far, not certain yet"
    # 2 tests: the smallest n with 2 · 2^(1 - n) < 0.05.
    assert "With 5 paired runs of each method" in found.grounds[0]
    assert "2 comparisons at once would take 7 runs" in found.grounds[0]
    assert "hint, no verdict): joint." in " ".join(found.grounds)
    assert "Close to it: pmr." in " ".join(found.grounds)


def test_nothing_is_certain_of_one_seed_or_of_one_row(root: Path) -> None:
    write_run(root, "joint", 0, 0.8)
    assert answered(root).certain == "Cannot be said"
    assert answered(root).headline == "joint is the only method with results"
    write_run(root, "ogm", 0, 0.9)
    found = answered(root)
    assert (found.headline, found.certain) == ("ogm is ahead so far", "Cannot be said")
    assert "--seed" in found.grounds[0]


def test_ties_everywhere_are_told_as_ties(root: Path) -> None:
    for method in ("joint", "ogm", "pmr"):
        write_setting(root, method, NINE)
    found = answered(root)
    assert (found.headline, found.certain) == ("joint or ogm or pmr are ahead so far", "No")
    assert found.grounds[0] == "All rows have the same mean."


def test_a_model_selected_on_the_test_set_is_not_recommended(root: Path) -> None:
    write_setting(root, "joint", NINE)
    write_setting(root, "ogm", shifted(0.1), select="best-test")
    assert [row.label for row in answered(root).best] == ["joint"]


def test_where_every_model_was_selected_on_the_test_set_nothing_is_said_of_new_data(
    root: Path,
) -> None:
    write_setting(root, "joint", NINE, select="best-test")
    write_setting(root, "ogm", shifted(0.1), select="best-test")
    found = answered(root)
    assert found.certain == "Cannot be said"
    assert "selected on the test set" in found.grounds[0]


def test_where_guessing_is_best_nothing_was_learned(root: Path) -> None:
    write_setting(root, "majority", [0.5] * 9, updates=0)
    write_setting(root, "joint", [0.3 + 0.01 * (i % 2) for i in range(9)])
    assert answered(root).headline.startswith("Nothing was learned")


def test_a_metric_that_is_not_a_number_recommends_nothing(root: Path) -> None:
    for seed in range(3):
        folder = write_run(root, "joint", seed)
        record = (folder / "record.json").read_text()
        (folder / "record.json").write_text(re.sub(r'"nll": [\d.]+', '"nll": null', record))
    found = answer(only_group(root, metric="nll"))
    assert (found.best, found.certain) == ((), "Cannot be said")


def test_what_training_together_costs_each_encoder_is_tested_and_told(root: Path) -> None:
    alone = {"fourier": 0.75, "zernike": 0.60}
    for seed, accuracy in enumerate(NINE):
        wiggle = 0.005 * (seed % 2)
        for m, probe in alone.items():
            probes = {m: probe + wiggle}
            write_run(root, "unimodal", seed, probe, changed={"modality": m}, probes=probes)
        write_run(root, "joint", seed, accuracy, probes={"fourier": 0.65, "zernike": 0.60 + wiggle})
    found = modalities(only_group(root))
    (loss,) = [s for s in found.sentences if "after training together (joint)" in s]
    # Mean of the wiggle: 4 seeds of 9.
    fourier = 100 * (0.65 - 0.75 - 0.005 * 4 / 9)
    assert f"fourier {fourier:+.1f} points" in loss
    assert re.search(r"fourier [^;]*\], distinguishable;", loss)
    assert re.search(r"zernike 0\.0 points \[0\.0, 0\.0\], not distinguishable", loss)
    assert "fourier 50 %, zernike 50 %" in " ".join(found.sentences)
    assert found.sheet is not None
    first = [cell.text for cell in found.sheet.rows[0]]
    assert first == ["fourier", f"{75 + 0.5 * 4 / 9:.1f}", "65.0", "50.0"]


def test_records_without_modalities_leave_the_page_whole(root: Path, no_figures: None) -> None:
    bare: dict[str, object] = {"per_modality": {}, "contributions": {}}
    write_setting(root, "joint", NINE, record_changes=bare)
    assert "The records hold nothing on single modalities." in report(compare(root))


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_numbers_are_those_of_the_stored_predictions(root: Path) -> None:
    made = {
        "joint": write_setting(root, "joint", NINE),
        "ogm": write_setting(root, "ogm", shifted(0.03)),
    }
    page = parsed(report(compare(root)))
    accuracies = {name: np.array([_accuracy(f) for f in folders]) for name, folders in made.items()}
    outcome = {row["method"].text: row for row in page.table("Outcome")}
    for name, values in accuracies.items():
        cell = outcome[name]["test accuracy (%)"]
        assert float(cell.attributes["data-value"]) == pytest.approx(values.mean(), abs=1e-12)
        assert cell.text.removesuffix(" ~") == f"{100 * values.mean():.1f}"
        low, high = stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
        assert outcome[name]["95 % interval"].text == f"[{100 * low:.1f}, {100 * high:.1f}]"
    change = (accuracies["ogm"] - accuracies["joint"]).mean()
    cell = outcome["ogm"]["difference to joint (points)"]
    assert float(cell.attributes["data-value"]) == pytest.approx(change, abs=1e-12)
    assert outcome["ogm"]["p (Holm)"].text == f"{2 / 2**9:.3f}"
    runs = page.table("Every run")
    assert len(runs) == 18
    for row in runs:
        value = accuracies[row["method"].text][int(row["seed"].text)]
        assert float(row["test accuracy (%)"].attributes["data-value"]) == value
    assert f"{100 * accuracies['ogm'].mean():.1f} % of the test samples" in page.text


def _accuracy(folder: Path) -> float:
    with np.load(folder / "predictions.npz") as stored:
        return float(accuracy_score(stored["test_labels"], stored["test_logits"].argmax(axis=1)))


@pytest.mark.usefixtures("no_figures")
def test_several_datasets_have_an_index_and_average_ranks(root: Path) -> None:
    means = {}
    for dataset, lead in (("mfeat", 0.05), ("avdigits", 0.02), ("synthetic", -0.03)):
        for method, by in (("joint", 0.0), ("ogm", lead), ("pmr", -0.1)):
            folders = write_setting(root, method, shifted(by), dataset=dataset)
            means[dataset, method] = np.mean([_accuracy(folder) for folder in folders])
    page = parsed(report(compare(root)))
    names = ("joint", "ogm", "pmr")
    table = [[-means[d, m] for m in names] for d in ("avdigits", "mfeat", "synthetic")]
    average = dict(zip(names, stats.rankdata(table, axis=1).mean(axis=0), strict=True))
    ranks = {row["method"].text: row["average rank"].text for row in page.table("Average ranks")}
    assert ranks == {name: f"{rank:.2f}" for name, rank in average.items()}
    index = {row["data"].text: row for row in page.table("The verdict on each dataset")}
    assert index["mfeat few"]["best so far"].text == "ogm"
    assert index["synthetic few"]["best so far"].text == "joint"
    for row in index.values():
        (link,) = row["data"].all("a")
        (section,) = [
            e
            for e in page.all("section")
            if f"#{e.attributes.get('id')}" == link.attributes["href"]
        ]
        assert section.all("h2")[0].text == link.text


@pytest.mark.usefixtures("no_figures")
def test_datasets_without_rows_in_common_have_no_ranks_and_a_reason(root: Path) -> None:
    write_setting(root, "joint", NINE[:2])
    write_setting(root, "ogm", NINE[:2], dataset="avdigits")
    assert "No average ranks: " in report(compare(root))


# -- where it comes from ---------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_settings_that_are_shared_stand_apart_from_those_that_differ(root: Path) -> None:
    def config(folder: Path, method: str, lr: float, options: dict[str, object]) -> None:
        values = {"schema_version": 1, "method": method, "method_options": options, "seed": 0}
        recipe = {"epochs": 7, "lr": lr}
        (folder / "config.yaml").write_text(yaml.safe_dump({**values, "recipe": recipe}))

    config(write_run(root, "joint", 0), "joint", 0.01, {})
    config(write_run(root, "ogm", 0), "ogm", 0.5, {"alpha": 0.3})
    write_run(root, "pmr", 0)
    page = parsed(report(compare(root)))
    common = {
        r["setting"].text: r["value"].text
        for r in page.table("Settings that all trained rows share")
    }
    assert common == {"recipe.epochs": "7"}
    rows = {row["method"].text: row for row in page.table("What tells the rows apart")}
    assert rows["ogm"]["all its options"].text == "alpha=0.3"
    assert rows["ogm"]["other settings"].text == "recipe.lr=0.5"
    assert rows["joint"]["other settings"].text == "recipe.lr=0.01"
    assert "config.yaml is missing" in rows["pmr"]["all its options"].text


@pytest.mark.usefixtures("no_figures")
def test_fingerprints_that_differ_between_rows_are_told_with_the_rows(root: Path) -> None:
    write_setting(root, "joint", NINE[:2])
    write_setting(root, "pmr", NINE[:2])
    write_run(root, "ogm", 0, fingerprint="other")
    rows = parsed(report(compare(root))).table("Fingerprints of the data")
    found = [(r["seed"].text, r["split"].text, r["used by"].text) for r in rows]
    assert sorted(found) == [
        ("0", "split-other-0", "ogm"),
        ("0", "split-same-0", "joint, pmr"),
        ("1", "split-same-1", "2 rows"),
    ]


@pytest.mark.usefixtures("no_figures")
def test_failed_runs_and_records_left_out_are_told_wherever_they_are(root: Path) -> None:
    write_setting(root, "joint", NINE[:2])
    write_run(root, "ogm", 0, status="failed", reason="loss is NaN at step 7")
    write_run(root, "pmr", 3, dataset="avdigits", status="failed", reason="out of memory")
    damaged = write_run(root, "pmr", 1) / "record.json"
    damaged.write_text("{")
    found = compare(root)
    page = parsed(report(found, elsewhere=unplaced(found)))
    failed = {row["method"].text: row for row in page.table("Runs without a result")}
    assert {name: row["reason"].text for name, row in failed.items()} == {"pmr": "out of memory"}
    assert "loss is NaN at step 7" in page.text
    assert f"{damaged}: not valid JSON" in page.text
    assert unplaced(compare(root, dataset="mfeat"), dataset="mfeat") == ()


def test_the_commands_on_the_page_repeat_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    results = tmp_path / "my runs"
    mmbench.run(
        "ogm_ge",
        results=results,
        seeds=(0, 2),
        fusion="sum",
        recipe={"epochs": 1, "clip_norm": 2.5},
        method_options={"alpha": 0.3, "last_epoch": 4},
        dataset_options={"views": ["fourier", "zernike"]},
        device="cpu",
    )
    stored = {run.path for run in load_runs(results)}
    page = parsed(report(compare(results)))
    (train,) = [r["command"].text for r in page.table("Commands that train all seeds of a row")]
    program, *words = shlex.split(train)
    assert program == "mmbench"
    capsys.readouterr()
    assert main([*words, "--dry-run", "--results", str(results)]) == 0
    out = capsys.readouterr().out
    assert {line for line in out.splitlines() if line.endswith("(stored)")} == {
        f"# {path} (stored)" for path in stored
    }
    again = [r["command"].text for r in page.table("Every run")]
    assert len(again) == 2
    assert main(shlex.split(again[0])[1:]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_seeds_are_written_as_the_command_line_reads_them() -> None:
    assert seed_ranges([4, 0, 1, 2, 7, 8]) == "0-2,4,7-8"


# -- the file --------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with everything on it, figures too."""
    root = tmp_path_factory.mktemp("store") / "runs"
    for dataset in ("mfeat", "a<b>c"):
        for m in ("fourier", "zernike"):
            options = {"changed": {"modality": m}, "probes": {m: 0.6}}
            write_setting(root, "unimodal", [0.6, 0.62, 0.61], dataset=dataset, **options)
        write_setting(root, "joint", NINE[:3], dataset=dataset, notes=[HOSTILE])
        write_setting(root, 'o<b>g"m', NINE[:3], dataset=dataset, changed={"x": HOSTILE})
        write_run(root, "pmr", 0, dataset=dataset, status="failed", reason=HOSTILE)
    found = compare(root)
    return report(found, elsewhere=unplaced(found))


def test_nothing_of_a_users_becomes_markup(whole: str) -> None:
    page = parsed(whole)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert page.all("b") == []
    assert all(i.attributes["src"].startswith("data:image/") for i in page.all("img"))
    assert not any(name.startswith("on") for e in page.every() for name in e.attributes)
    assert page.text.count(HOSTILE) >= 4  # a note and a reason in each of two sections
    assert f'o<b>g"m[x={HOSTILE}]' in page.text
    assert "a<b>c few" in [h.text for h in page.all("h2")]


def test_the_file_asks_nothing_of_any_network(whole: str) -> None:
    page = parsed(whole)
    assert len(page.all("img")) >= 6
    for element in page.every():
        for name, value in element.attributes.items():
            if name in ("src", "srcset", "href", "action", "data", "poster"):
                assert value.startswith(("data:image/", "#")), value[:80]
    style, script = page.all("style")[0].text, page.all("script")[0].text
    assert not re.search(r"url\(|@import|@font-face", style)
    assert not re.search(r"fetch|XMLHttp|import\(|http", script)
    for tag in ("link", "iframe", "object", "embed"):
        assert page.all(tag) == []


def test_the_policy_allows_the_files_own_style_and_script_and_nothing_else(whole: str) -> None:
    page = parsed(whole)
    metas = [m.attributes for m in page.all("meta")]
    (policy,) = [m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (content,) = page.all(tag)[0].children
        assert isinstance(content, str)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_page_can_be_read_by_ear(whole: str) -> None:
    page = parsed(whole)
    assert page.all("html")[0].attributes["lang"] == "en"
    levels = [int(e.tag[1]) for e in page.every() if re.fullmatch("h[1-6]", e.tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for image in page.all("img"):
        assert len(image.attributes["alt"]) > 20
    for table in page.all("table"):
        assert table.all("caption")[0].text
        assert {th.attributes.get("scope") for th in table.all("thead")[0].all("th")} == {"col"}
        for row in table.all("tbody")[0].all("tr"):
            first = next(c for c in row.children if isinstance(c, Element))
            assert (first.tag, first.attributes.get("scope")) == ("th", "row")
    ids = [e.attributes["id"] for e in page.every() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link.attributes["href"].removeprefix("#") in ids
    for element in page.every():
        if element.attributes.get("role") == "region":
            assert element.attributes["aria-label"]
            assert element.attributes["tabindex"] == "0"  # what scrolls is reached by keyboard
        if "aria-labelledby" in element.attributes:
            assert element.attributes["aria-labelledby"] in ids


def test_words_stand_out_from_the_page_in_light_dark_and_print() -> None:
    style = (Path(pages.__file__).parent / pages.STYLE).read_text()
    schemes = re.findall(r":root \{([^}]*)\}", style)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", scheme))
        for word in ("text", "muted", "accent", "notice"):
            for ground in ("page", "raised"):
                assert contrast(colours[word], colours[ground]) >= 4.5, (word, ground)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2, from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_same_runs_give_the_same_file(root: Path) -> None:
    write_setting(root, "joint", NINE[:2])
    found = compare(root)
    assert report(found) == report(found)


def test_a_figure_keeps_controls_and_the_best_of_many_rows(root: Path) -> None:
    write_setting(root, "joint", [0.2, 0.21])
    for i in range(8):
        write_setting(root, f"method{i}", [0.5 + 0.05 * i, 0.51 + 0.05 * i])
    group = only_group(root)
    assert {row.label for row in trimmed(group, 3).rows} == {"joint", "method6", "method7"}
    assert trimmed(group, 9) is group


# -- the command -----------------------------------------------------------------------------------


def test_the_command_writes_one_file(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    write_setting(root, "joint", NINE[:2])
    write_run(root, "joint", 0, dataset="avdigits")
    file = tmp_path / "new" / "r.html"
    words = ["report", "--results", str(root), "--output", str(file)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"wrote {file}\n"
    assert [path.name for path in file.parent.iterdir()] == ["r.html"]
    assert "avdigits few" in file.read_text()
    assert main([*words, "--dataset", "mfeat"]) == 0
    assert "avdigits few" not in file.read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--results", "nothing"], "no such folder"),
        (["--dataset", "mfeta"], "did you mean mfeat?"),
        (["--metric", "acuracy"], "did you mean accuracy"),
        (["--output", "."], "is a folder: name a file"),
        (["--output", "taken/r.html"], "cannot be written"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_figures: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("results/runs"), "joint", 0)
    Path("taken").write_text("a file")
    assert main(["report", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert told in said.err


def test_a_damaged_run_is_left_out_with_a_warning(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    write_setting(root, "joint", NINE[:2])
    shutil.copytree(root / "mfeat" / "joint", root / "mfeat" / "ogm")
    for file in (root / "mfeat" / "ogm").glob("*/*/record.json"):
        file.write_text('{"schema": 99}')
    write_report(compare(root), tmp_path / "r.html")
    assert main(["report", "--results", str(root), "--output", str(tmp_path / "r.html")]) == 0
    assert "schema 99, read here is 1" in capsys.readouterr().err
    assert "schema 99, read here is 1" in (tmp_path / "r.html").read_text()
