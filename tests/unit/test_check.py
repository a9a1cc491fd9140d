"""Regression checks: what is compared, what is allowed, and what a check says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from scipy import stats

from mmbench.check.annotations import github, junit
from mmbench.check.baseline import Baseline, Settings, Stored, load_baseline, values_of
from mmbench.check.checking import Check, check, parse_limits
from mmbench.check.measuring import Measured, Problem
from mmbench.check.quantities import Quantity, check_name, read
from mmbench.check.text import rendered
from mmbench.check.tolerance import derived, parse_given
from mmbench.check.updating import update
from mmbench.errors import RequestError
from mmbench.store.frame import load_runs
from tests.unit.records import write_run

STEADY = [0.80, 0.82, 0.81, 0.83, 0.79, 0.80, 0.81, 0.82]
ENVIRONMENT = {"mmbench": "0.1.0", "git_commit": "abc", "device": "cpu", "torch": "2.11.0"}

Values = Mapping[str, Mapping[str, Sequence[float]]]


def settings_of(values: Values, fail: Mapping[str, str] | None = None) -> Settings:
    count = len(next(iter(next(iter(values.values())).values())))
    return Settings(
        dataset="mfeat",
        protocol="few",
        seeds=list(range(count)),
        quantities=list(dict.fromkeys(name for row in values.values() for name in row)),
        rows={row: {"method": row} for row in values},  # type: ignore[misc]
        fail=dict(fail or {}),
    )


def stored_of(values: Values, settings: Settings) -> Stored:
    prints = {seed: {"split": f"s{seed}", "data": f"d{seed}"} for seed in settings.seeds}
    plain = {row: {k: list(v) for k, v in named.items()} for row, named in values.items()}
    return Stored(
        settings=settings.fingerprint(), fingerprints=prints, environment={}, values=plain
    )


def measured_of(values: Values) -> Measured:
    by_seed = {
        row: {name: dict(enumerate(found)) for name, found in named.items()}
        for row, named in values.items()
    }
    prints = {s: {"split": f"s{s}", "data": f"d{s}"} for s in range(8)}
    return Measured(by_seed, [], prints, dict(ENVIRONMENT))


def judged(before: Values, now: Values, *fail: str, **options: Any) -> Check:
    settings = settings_of(before)
    return check(
        settings,
        stored_of(before, settings),
        measured_of(now),
        list(before),
        parse_limits(fail),
        **options,
    )


def only(
    before: Sequence[float], now: Sequence[float], name: str = "accuracy", *fail: str
) -> Check:
    return judged({"joint": {name: before}}, {"joint": {name: now}}, *fail)


# -- tolerances ------------------------------------------------------------------------------------


def test_the_tolerance_is_the_bound_of_a_paired_t_test_beyond_a_small_effect() -> None:
    now = [0.79, 0.83, 0.80, 0.80, 0.80, 0.78, 0.82, 0.81]
    differences = [b - a for a, b in zip(STEADY, now, strict=True)]
    found = derived(STEADY, now, Quantity("accuracy"), tests=10, false_alarms=0.05)
    # The tolerance is where scipy's one-sided test of the differences, moved by the small effect,
    # has the p-value that is left of 5 % for one of ten, a tenth of it for single seeds.
    at_the_limit = np.array(differences) - mean(differences) - found + 0.2 * stdev(STEADY)
    assert stats.ttest_1samp(at_the_limit, 0, alternative="less").pvalue == pytest.approx(0.0045)


def test_a_quantity_that_can_be_wrong_on_both_sides_has_the_bound_of_a_two_sided_test() -> None:
    rng = np.random.default_rng(0)
    now = list(np.array(STEADY) + rng.normal(0, 0.01, 8))
    found = derived(STEADY, now, Quantity("shapley.a"), tests=1, false_alarms=0.05)
    differences = np.array(now) - np.array(STEADY)
    at_the_limit = differences - differences.mean() + found - 0.2 * stdev(STEADY)
    assert stats.ttest_1samp(at_the_limit, 0).pvalue == pytest.approx(0.045)


@pytest.mark.parametrize(
    ("text", "name", "stored", "allowed"),
    [
        ("-1.5pp", "accuracy", [0.5], 0.015),
        ("1.5pp", "accuracy", [0.5], 0.015),
        ("-2%", "accuracy", [0.5, 0.7], 0.012),
        ("-0.01", "probe.audio", [0.5], 0.01),
        ("+0.05", "nll", [1.0], 0.05),
        ("+10%", "nll", [1.0, 3.0], 0.2),
        ("0.5", "report.gate.temperature", [2.0], 0.5),
    ],
)
def test_given_tolerances(text: str, name: str, stored: list[float], allowed: float) -> None:
    assert parse_given(text).allowed(Quantity(name), stored) == pytest.approx(allowed)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("accuracy", "write QUANTITY:AMOUNT"),
        ("accuracy:much", "write it as -1.5pp"),
        ("accuracy:-1.5 pp", "write it as"),
        ("acuracy:-1pp", "did you mean accuracy"),
        ("cost.seconds:+1", "cost.forwards"),
        ("accuracy.audio:-1pp", "write accuracy"),
        ("report:0.1", "report.gate.temperature"),
        ("accuracy:+1pp", "gets worse by falling; write -1pp"),
        ("accuracy:-1.5", "-1.5pp for points"),
        ("nll:-0.1", "gets worse by rising; write +0.1"),
        ("nll:+1pp", "not in percent"),
        ("ece:+1pp", "unknown quantity of the baseline in --fail 'ece'"),
    ],
)
def test_a_wrong_tolerance_is_refused_with_what_to_write(text: str, words: str) -> None:
    before = {"joint": {"accuracy": STEADY, "nll": STEADY}}
    with pytest.raises(RequestError) as caught:
        judged(before, before, text)
    assert words in str(caught.value)


def test_a_tolerance_for_a_kind_holds_for_all_modalities_and_is_not_counted() -> None:
    before = {"joint": {"probe.a": STEADY, "probe.b": STEADY, "accuracy": STEADY}}
    found = judged(before, before, "probe:-3pp", "probe.b:-1pp")
    assert [f.allowed for f in found.findings[:2]] == [pytest.approx(0.03), pytest.approx(0.01)]
    assert found.tests == 1


# -- verdicts --------------------------------------------------------------------------------------


def test_the_same_values_are_ok_and_leave_no_change() -> None:
    found = only(STEADY, STEADY)
    assert (found.exit_code, found.is_unchanged) == (0, True)
    assert rendered(found).startswith("ok: all 1 values are those stored")


def test_rounding_is_no_change() -> None:
    found = only(STEADY, [x + 1e-13 for x in STEADY], "cost.updates")
    assert found.findings[0].change == 0
    assert found.exit_code == 0


def test_a_shift_of_every_seed_is_found_once_it_is_beyond_a_small_effect() -> None:
    small = 0.2 * stdev(STEADY)
    assert only(STEADY, [x - 0.99 * small for x in STEADY]).exit_code == 0
    assert only(STEADY, [x - 1.01 * small for x in STEADY]).exit_code == 1


@pytest.mark.parametrize(
    ("name", "shift", "verdict"),
    [
        ("accuracy", -0.02, "worse"),
        ("accuracy", 0.02, "better"),
        ("nll", 0.02, "worse"),
        ("nll", -0.02, "better"),
        ("shapley.a", 0.02, "moved"),
        ("shapley.a", -0.02, "moved"),
        ("probe.a", -0.02, "worse"),
    ],
)
def test_which_side_is_worse(name: str, shift: float, verdict: str) -> None:
    found = only(STEADY, [x + shift for x in STEADY], name)
    assert found.findings[0].verdict == verdict
    assert found.exit_code == (0 if verdict == "better" else 1)


def test_a_count_that_never_varies_may_not_change() -> None:
    assert only([50.0] * 8, [50.0] * 8, "cost.updates").exit_code == 0
    found = only([50.0] * 8, [51.0] * 8, "cost.updates")
    assert "joint cost.updates is moved: 50 -> 51" in found.findings[0].sentence


def test_a_seed_that_breaks_down_does_not_hide_behind_the_spread_it_makes() -> None:
    found = only(STEADY, [*STEADY[:-1], 0.1])
    assert found.exit_code == 1
    assert "seed 7: 82.00 % -> 10.00 %" in found.findings[0].sentence
    assert only(STEADY, [*STEADY[:-1], 0.81]).exit_code == 0


def test_one_seed_with_another_count_is_a_regression() -> None:
    found = only([50.0] * 8, [50.0] * 7 + [51.0], "cost.updates")
    assert (found.exit_code, found.findings[0].verdict) == (1, "moved")


def test_too_few_seeds_cannot_tell_and_a_given_tolerance_can() -> None:
    found = only([0.8, 0.81], [0.5, 0.5])
    assert (found.exit_code, found.findings[0].verdict) == (2, "cannot tell")
    assert "needs 3 seeds, not 2" in rendered(found)
    assert only([0.8], [0.5], "accuracy", "accuracy:-1pp").exit_code == 1


def test_a_value_that_is_no_longer_finite_is_a_regression() -> None:
    found = only(STEADY, [*STEADY[:-1], math.nan], "nll")
    assert found.exit_code == 1
    assert "not a finite number in seed 7" in found.findings[0].sentence


def test_a_missing_run_cannot_be_told_but_does_not_hide_a_regression() -> None:
    before = {"joint": {"accuracy": STEADY}, "other": {"accuracy": STEADY}}
    settings = settings_of(before)
    now = measured_of({"joint": {"accuracy": STEADY[:-1]}, "other": {"accuracy": STEADY}})
    now.problems.append(Problem("joint", "seed 7 failed: the loss is not finite"))
    found = check(settings, stored_of(before, settings), now, list(before))
    assert found.exit_code == 2
    assert "joint: seed 7 failed: the loss is not finite" in rendered(found)
    now.values["other"]["accuracy"] = dict.fromkeys(range(8), 0.1)
    found = check(settings, stored_of(before, settings), now, list(before))
    assert found.exit_code == 1
    assert rendered(found).startswith("REGRESSION in 1 of 2 values: other accuracy")


def test_a_tolerance_does_not_depend_on_the_rows_that_are_looked_at() -> None:
    rng = np.random.default_rng(1)
    before = {row: {"accuracy": STEADY} for row in ("a", "b", "c")}
    now = {"a": {"accuracy": list(np.array(STEADY) + rng.normal(0, 0.01, 8))}}
    settings = settings_of(before)
    stored = stored_of(before, settings)
    one = check(settings, stored, measured_of(now), ["a"])
    everything = check(settings, stored, measured_of({**before, **now}), list(before))
    assert one.findings[0] == everything.findings[0]


def test_another_environment_is_noted() -> None:
    before = {"joint": {"accuracy": STEADY}}
    settings = settings_of(before)
    stored = stored_of(before, settings).model_copy(update={"environment": {"torch": "2.10.0"}})
    found = check(settings, stored, measured_of(before), ["joint"])
    assert "torch 2.10.0 -> 2.11.0" in rendered(found)
    assert found.exit_code == 0


# -- false alarms ----------------------------------------------------------------------------------


def simulated(rng: np.random.Generator, seeds: int, rows: int) -> tuple[Values, Values]:
    """Return stored and present values of methods that have not changed, but draw other numbers.

    Spreads are those of mfeat: a split that all rows share moves accuracies by 1 point, training
    by 0.8, and both by counts of 1,500 test rows; the loss follows the accuracy, with a tail.
    """
    split = rng.normal(0, 0.01, seeds)
    tables: list[dict[str, dict[str, list[float]]]] = [{}, {}]
    for row in range(rows):
        for table in tables:
            truth = 0.85 + split + 0.008 * rng.standard_normal(seeds)
            accuracy = rng.binomial(1500, truth) / 1500
            loss = 2.5 * (1 - accuracy) * np.exp(0.15 * rng.standard_exponential(seeds))
            table[f"method{row}"] = {
                "accuracy": list(accuracy),
                "nll": list(loss),
                "probe.a": list(accuracy - 0.1 + rng.integers(-6, 7, seeds) / 1500),
                "history.gradient_norm.a": list(np.exp(0.1 * rng.standard_normal(seeds))),
            }
    return tables[0], tables[1]


@pytest.mark.parametrize(("seeds", "level"), [(8, 0.05), (5, 0.05), (8, 0.01)])
def test_unchanged_methods_raise_no_more_false_alarms_than_stated(seeds: int, level: float) -> None:
    rng = np.random.default_rng([seeds, round(100 * level)])
    checks = 400
    pairs = (simulated(rng, seeds, rows=5) for _ in range(checks))
    alarms = sum(judged(*pair, false_alarms=level).exit_code for pair in pairs)
    # More than this has a chance of 1 in 1,000 if the rate is the stated one.
    assert alarms <= stats.binom.ppf(0.999, checks, level)


def test_a_loss_of_three_standard_deviations_in_one_of_twenty_values_is_found() -> None:
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(100):
        before, now = simulated(rng, 8, rows=5)
        worse = np.array(now["method3"]["accuracy"]) - 3 * 0.016
        changed = {**now, "method3": {**now["method3"], "accuracy": list(worse)}}
        regressions = judged(before, changed).regressions
        found += any(f.name == "method3 accuracy" for f in regressions)
    assert found >= 90


# -- quantities ------------------------------------------------------------------------------------


def test_quantities_are_those_of_the_record_and_the_history(tmp_path: Path) -> None:
    report = {"gate": {"temperature": 1.7, "fitted_on": "holdout"}}
    folder = write_run(tmp_path, "joint", 0, 0.8, record_changes={"report": report})
    (run,) = load_runs(tmp_path)
    record = json.loads((folder / "record.json").read_text())

    def values(name: str) -> dict[str, float]:
        return {quantity.name: value for quantity, value in read(run, name)}

    assert values("nll") == {"nll": record["metrics"]["test"]["nll"]}
    probes = {m: record["per_modality"][m]["probe"]["test"] for m in record["modalities"]}
    assert values("probe") == {f"probe.{m}": value for m, value in probes.items()}
    assert values("probe.fourier") == {"probe.fourier": probes["fourier"]}
    assert values("cost.updates") == {"cost.updates": 300}
    assert values("report.gate.temperature") == {"report.gate.temperature": 1.7}
    assert values("report.gate.fitted_on") == {}
    assert values("report.gate.none.of.it") == {}
    assert values("probe.touch") == {}
    lines = (folder / "history.csv").read_text().splitlines()
    place = lines[0].split(",").index("val_split_accuracy.fourier")
    column = [float(line.split(",")[place]) for line in lines[1:]]
    found = values("history.val_split_accuracy")
    assert found["history.val_split_accuracy.fourier"] == pytest.approx(mean(column))
    assert len(found) == 2
    assert values("history.stage") == {}


def test_seconds_are_not_compared() -> None:
    with pytest.raises(RequestError, match=r"cost\.forwards"):
        check_name("cost.train_seconds")


# -- the file --------------------------------------------------------------------------------------


def written(tmp_path: Path, **changes: Any) -> Path:
    """Write a complete baseline with changes to its top level; None removes a field."""
    before = {"joint": {"accuracy": STEADY}}
    settings = settings_of(before)
    baseline = Baseline(schema=1, settings=settings, stored=stored_of(before, settings))
    values = baseline.model_dump(mode="json", by_alias=True) | changes
    file = tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return file


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = written(tmp_path)
    baseline = load_baseline(file)
    assert values_of(baseline, file).values == {"joint": {"accuracy": STEADY}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "has schema 2, read here is 1"),
        ({"settings": None}, "no baseline"),
        ({"settings": {"dataset": "mfeat"}}, r"settings\.protocol: field required"),
        ({"stored": None}, "no values yet: add --update"),
        ({"colour": "red"}, "colour: extra inputs"),
        ({"history": [{"date": "yesterday"}]}, r"history\.0\.date"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    file = written(tmp_path, **changes)
    with pytest.raises(RequestError, match=words) as caught:
        values_of(load_baseline(file), file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "does not exist"), ("a: [", "not valid YAML"), ("- 1", "no baseline")],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, text: str | None, words: str
) -> None:
    file = tmp_path / "base.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RequestError, match=words):
        load_baseline(file)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("settings", "seeds"), [0, 0], "a seed is named twice"),
        (("settings", "quantities"), ["acuracy"], "did you mean accuracy"),
        (("settings", "fail"), {"accuracy": "lots"}, "write it as"),
        (("settings", "recipe"), {"epochs": 3}, "settings in .* were changed"),
        (("stored", "values"), {"joint": {"accuracy": [0.5]}}, "1 values for 8 seeds"),
        (("stored", "values"), {"joint": {"accuracy": [math.nan] * 8}}, "finite"),
        (("stored", "values"), {}, "has not the seeds and rows"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, place: tuple[str, str], value: Any, words: str
) -> None:
    file = written(tmp_path)
    values = yaml.safe_load(file.read_text())
    values[place[0]][place[1]] = value
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(RequestError, match=words):
        values_of(load_baseline(file), file)


def test_an_update_keeps_settings_and_history_and_adds_reason_version_and_commit(
    tmp_path: Path,
) -> None:
    file = written(tmp_path)
    for reason, value in (("first", 0.5), ("second", 0.25)):
        now = measured_of({"joint": {"accuracy": [value] * 8}})
        update(load_baseline(file), now, file, reason, ["joint accuracy"])
    after = load_baseline(file)
    assert values_of(after, file).values == {"joint": {"accuracy": [0.25] * 8}}
    assert [change.reason for change in after.history] == ["first", "second"]
    assert (after.history[1].version, after.history[1].commit) == ("0.1.0", "abc")
    assert after.history[1].changed == ["joint accuracy"]


@pytest.mark.parametrize("fault", ["problem", "nan", "missing"])
def test_an_update_with_anything_missing_leaves_the_file_as_it_is(
    tmp_path: Path, fault: str
) -> None:
    file = written(tmp_path)
    before = file.read_bytes()
    now = measured_of({"joint": {"accuracy": STEADY}})
    if fault == "problem":
        now.problems.append(Problem("joint", "seed 3 failed: no"))
    elif fault == "nan":
        now.values["joint"]["accuracy"][3] = math.nan
    else:
        del now.values["joint"]["accuracy"][3]
    with pytest.raises(RequestError, match=r"is left as it is: row 'joint'.* seed 3"):
        update(load_baseline(file), now, file, "why")
    assert file.read_bytes() == before


# -- for programs ----------------------------------------------------------------------------------


@pytest.fixture
def mixed() -> Check:
    """A regression, an improvement, something that cannot be told, and a missing run."""
    before = {"joint": {"accuracy": STEADY, "nll": STEADY}, "other": {"accuracy": STEADY}}
    settings = settings_of(before)
    worse = [x - 0.05 for x in STEADY]
    now = measured_of({"joint": {"accuracy": worse, "nll": worse}})
    now.problems.append(Problem("other", "seed 0 failed: 100 % lost,\nat <step> 3 \x00"))
    return check(settings, stored_of(before, settings), now, list(before))


def test_junit_counts_and_names_what_the_text_says(mixed: Check) -> None:
    root = ElementTree.fromstring(junit(mixed, "mmbench.base"))
    cases = {(c.attrib["classname"], c.attrib["name"]): c for c in root.iter("testcase")}
    assert (root.attrib["tests"], root.attrib["failures"], root.attrib["errors"]) == ("4", "1", "2")
    assert len(cases) == 4
    failure = cases["mmbench.base.joint", "accuracy"].find("failure")
    assert failure is not None
    assert "81.00 % -> 76.00 % (-5.00 points" in failure.attrib["message"]
    assert cases["mmbench.base.joint", "nll"].find("failure") is None
    assert len(root.findall("testcase/error")) == 2
    broken = cases["mmbench.base.other", "runs"].find("error")
    assert broken is not None
    assert "100 % lost, at <step> 3 ?" in " ".join(broken.attrib["message"].split())


def test_github_annotations_are_one_line_each_and_escaped(mixed: Check) -> None:
    lines = github(mixed, Path("results/a,b.yaml"))
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning", "::notice"]
    assert all("\n" not in line and "file=results/a%2Cb.yaml," in line for line in lines)
    place, message = lines[1].removeprefix("::warning ").split("::", 1)
    assert place.endswith("title=mmbench check%3A cannot tell")
    assert "100 %25 lost,%0Aat" in message


def test_the_text_names_the_row_and_every_number(mixed: Check) -> None:
    text = rendered(mixed)
    assert text.startswith("REGRESSION in 1 of 3 values: joint accuracy\n")
    (line,) = [line for line in text.splitlines() if line.startswith("! ")]
    cells = line.split()
    assert cells[1:8] == ["joint", "accuracy", "81.00", "%", "76.00", "%", "-5.00"]
    assert "at most 1 % of checks report a regression by chance (3 tolerances share it)" in text
