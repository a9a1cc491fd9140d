"""The report in a browser: it asks for nothing, its tables sort and filter, and it fits a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmbench.report.comparison import compare
from mmbench.report.page import report, unplaced
from tests.browser.chromium import Browser, find, framed, with_script
from tests.unit.records import write_run, write_setting

# One process starts the browser for all tests here, however many run side by side.
pytestmark = pytest.mark.xdist_group("browser")

HOSTILE = "<img src=x onerror=\"document.title='taken over'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(find(), tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with figures, long names and failed runs, on two datasets."""
    root = tmp_path_factory.mktemp("store") / "runs"
    for dataset in ("mfeat", "avdigits"):
        for m in ("fourier", "zernike"):
            options = {"changed": {"modality": m}, "probes": {m: 0.6}}
            write_setting(root, "unimodal", [0.60, 0.62], dataset=dataset, **options)
        write_setting(root, "joint", [0.80, 0.82], dataset=dataset)
        write_setting(root, "ogm", [0.90, 0.91], dataset=dataset)
        long = {"a_rather_long_name_of_an_option_of_a_method": "with-a-value-that-is-long-as-well"}
        write_setting(root, "pmr", [0.70, 0.75], dataset=dataset, changed=long, notes=[HOSTILE])
        write_run(root, "agm", 0, dataset=dataset, status="failed", reason=HOSTILE)
    found = compare(root)
    return report(found, elsewhere=unplaced(found))


def saved(folder: Path, content: str, name: str = "page.html") -> Path:
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return file


def test_a_page_that_misbehaves_is_noticed(browser: Browser, tmp_path: Path) -> None:
    """The check of the tests below can fail."""
    bad = "<html><head></head><body><img src='http://localhost:9/x.png'><script>oops()</script>"
    loaded = browser.load(saved(tmp_path, with_script(bad, REQUESTS)))
    assert any("oops is not defined" in line for line in loaded.console)
    assert loaded.probe == ["http://localhost:9/x.png"]


REQUESTS = """
function findings() {
  return performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:"));
}
"""


def test_it_loads_without_errors_and_requests(browser: Browser, page: str, tmp_path: Path) -> None:
    loaded = browser.load(saved(tmp_path, page))
    assert loaded.console == ()  # its own policy lets its style and script pass
    assert loaded.dom.count("5 of 5 rows") == 2  # the script ran
    watched = browser.load(saved(tmp_path, with_script(page, REQUESTS), "watched.html"))
    assert watched.probe == []
    assert watched.console == ()
    assert "<title>taken over" not in watched.dom
    assert "<title>Which method to use on each of 2 datasets" in watched.dom


SORTING = """
function findings() {
  const section = document.querySelector("section.dataset");
  const table = section.querySelector("table.rows");
  const other = document.querySelectorAll("section.dataset")[1].querySelector("table.rows");
  const labels = (t) => [...t.tBodies[0].rows].map((row) => row.dataset.label);
  const shown = (t) => [...t.tBodies[0].rows].filter((r) => r.checkVisibility())
    .map((row) => row.dataset.label);
  const head = (name) => table.querySelector(`thead [data-column="${name}"]`);
  const press = (name) => {
    const button = head(name).querySelector("button");
    button.focus();
    const focused = document.activeElement === button;
    button.click();
    return [head(name).getAttribute("aria-sort"), focused, labels(table)];
  };
  const found = { original: labels(table) };
  found.accuracy = [press("accuracy"), press("accuracy"), press("accuracy")];
  found.difference = [press("difference"), press("difference")];
  found.method = press("method");
  found.cleared = head("difference").getAttribute("aria-sort");
  found.elsewhere = labels(other);

  const control = (name) => section.querySelector(`.toolbar [name="${name}"]`);
  const choose = (name, value) => {
    control(name).value = value;
    control(name).dispatchEvent(new Event("input", { bubbles: true }));
    return [shown(table), section.querySelector(".toolbar output").textContent];
  };
  press("method"), press("method");
  found.named = choose("name", "UNI");
  found.alike = [...section.querySelectorAll("table.rows")].map((t) => shown(t).length);
  found.untouched = shown(other).length;
  choose("name", "");
  found.methods = choose("kind", "false");
  found.all = choose("kind", "");
  found.verdict = choose("verdict", "not distinguishable");
  found.labelled = [...section.querySelectorAll(".toolbar input, .toolbar select")]
    .every((c) => c.labels.length === 1);
  return found;
}
"""


def test_tables_sort_and_filter(browser: Browser, page: str, tmp_path: Path) -> None:
    found = browser.load(saved(tmp_path, with_script(page, SORTING))).probe
    one, two, joint, ogm = "unimodal[fourier]", "unimodal[zernike]", "joint", "ogm"
    (pmr,) = [label for label in found["original"] if label.startswith("pmr[")]
    original = [one, two, joint, ogm, pmr]
    assert found["original"] == original
    assert found["accuracy"] == [
        ["ascending", True, [one, two, pmr, joint, ogm]],
        ["descending", True, [ogm, joint, pmr, one, two]],  # equal rows keep their order
        ["none", True, original],
    ]
    # The reference has no difference: it stays at the end.
    assert found["difference"] == [
        ["ascending", True, [one, two, pmr, ogm, joint]],
        ["descending", True, [ogm, pmr, one, two, joint]],
    ]
    assert found["method"] == ["ascending", True, [joint, ogm, pmr, one, two]]
    assert found["cleared"] == "none"
    assert found["elsewhere"] == original
    assert found["named"] == [[one, two], "2 of 5 rows"]
    assert found["alike"] == [2] * len(found["alike"])
    assert found["untouched"] == 5
    assert found["methods"] == [[ogm, pmr], "2 of 5 rows"]
    assert found["all"] == [original, "5 of 5 rows"]
    assert found["verdict"] == [[one, two, ogm, pmr], "4 of 5 rows"]
    assert found["labelled"] is True


WIDTH = """
function findings() {
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  const wide = [...document.querySelectorAll("body *")].filter((element) =>
    element.getBoundingClientRect().right > innerWidth + 1
    && !element.closest(".scroll, .frame, pre")).map((element) => element.outerHTML.slice(0, 80));
  const answer = document.querySelector(".answer, .sheet").getBoundingClientRect();
  return {
    seen: innerWidth,
    needed: document.documentElement.scrollWidth,
    wide,
    top: answer.top,
    scrolling: [...document.querySelectorAll(".scroll")].some((s) => s.scrollWidth > s.clientWidth),
    broken: [...document.images].filter((image) => !image.naturalWidth).length,
    images: document.images.length,
  };
}
"""


@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_is_wider_than_the_screen_but_what_scrolls_by_itself(
    width: int, browser: Browser, page: str, tmp_path: Path
) -> None:
    posting = WIDTH + "\nparent.postMessage(JSON.stringify(findings()), '*');"
    inner = saved(tmp_path, with_script(page, posting))
    outer = saved(tmp_path, framed(inner, width), "outer.html")
    found = browser.load(outer, width=width + 40).probe
    assert found["seen"] == width
    assert found["needed"] <= width
    assert found["wide"] == []
    assert found["top"] < 500  # the verdict begins on the first screen
    assert found["scrolling"] or width != 390  # wide tables scroll in their own frame
    assert (found["broken"], found["images"] >= 6) == (0, True)


def test_light_and_dark_follow_the_reader(browser: Browser, page: str, tmp_path: Path) -> None:
    script = """
    function findings() {
      const style = getComputedStyle(document.body);
      return [matchMedia("(prefers-color-scheme: dark)").matches, style.backgroundColor];
    }"""
    file = saved(tmp_path, with_script(page, script))
    # Blink's numbers of the schemes.
    schemes = [
        browser.load(file, f"--blink-settings=preferredColorScheme={n}").probe for n in (0, 1)
    ]
    assert schemes == [[True, "rgb(20, 24, 28)"], [False, "rgb(255, 255, 255)"]]
