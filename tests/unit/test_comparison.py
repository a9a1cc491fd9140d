"""Grouping, labels, pairing and what a comparison says in words."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mmbench.errors import RequestError, StoreError
from mmbench.report.comparison import Group, compare
from mmbench.report.rows import METRICS
from mmbench.store.frame import load_runs, predictions
from tests.unit.records import metrics, write_run, write_setting

JOINT = [0.80, 0.81, 0.79, 0.80, 0.82, 0.80, 0.81, 0.79]
BETTER = [0.85, 0.87, 0.84, 0.85, 0.88, 0.86, 0.85, 0.84]
SAME = [0.82, 0.80, 0.80, 0.80, 0.83, 0.79, 0.82, 0.80]


def only(root: Path, **options: str | list[str]) -> Group:
    (group,) = compare(root, **options).groups  # type: ignore[arg-type]
    return group


def labels(group: Group) -> list[str]:
    return [row.label for row in group.rows]


def warned(group: Group, *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in group.warnings)


def test_controls_stand_first_then_methods_from_the_best(tmp_path: Path) -> None:
    for method, level in (("ogm", 0.81), ("zeta", 0.83), ("alpha", 0.79), ("multiloss", 0.82)):
        write_run(tmp_path, method, 0, level)
    write_run(tmp_path, "joint", 0, 0.8)
    write_run(tmp_path, "ensemble", 0, 0.84)
    for m in ("zernike", "fourier"):
        write_run(tmp_path, "unimodal", 0, 0.7, changed={"modality": m}, probes={m: 0.7})
    write_run(tmp_path, "majority", 0, 0.25, probes={}, updates=0)
    write_run(tmp_path, "ogm", 0, 0.9, changed={"alpha": 0.3})
    assert labels(only(tmp_path)) == [
        "majority",
        "unimodal[fourier]",
        "unimodal[zernike]",
        "ensemble",
        "joint",
        "multiloss",
        "ogm",
        "ogm[alpha=0.3]",
        "zeta",
        "alpha",
    ]


def test_settings_of_all_rows_go_to_the_caption_and_others_to_the_labels(tmp_path: Path) -> None:
    everywhere = {"recipe.epochs": 10}
    write_run(tmp_path, "joint", 0, changed=everywhere)
    write_run(tmp_path, "joint", 0, changed=everywhere | {"fusion": "film"})
    write_run(tmp_path, "iibalance", 0, changed=everywhere | {"align.gate": False, "beta": None})
    # Nothing is trained, so that the recipe of this row does not matter.
    write_run(tmp_path, "majority", 0, updates=0)
    group = only(tmp_path)
    assert group.common == everywhere
    assert labels(group) == [
        "majority",
        "joint",
        "joint[fusion=film]",
        "iibalance[align.gate=off, beta=none]",
    ]


def test_settings_that_no_field_tells_apart_are_told_apart_by_their_hash(tmp_path: Path) -> None:
    write_run(tmp_path, "joint", 0, config_hash="aaaaaa111111")
    write_run(tmp_path, "joint", 0, config_hash="bbbbbb222222")
    assert labels(only(tmp_path)) == ["joint[#aaaaaa]", "joint[#bbbbbb]"]


def test_datasets_protocols_and_dataset_options_are_never_mixed(tmp_path: Path) -> None:
    write_run(tmp_path, "joint", 0)
    write_run(tmp_path, "joint", 0, protocol="full")
    write_run(tmp_path, "joint", 0, dataset="avdigits")
    write_run(tmp_path, "joint", 0, dataset="avdigits", changed={"dataset.noise": 1.5})
    names = {group.name for group in compare(tmp_path).groups}
    assert names == {"mfeat few", "mfeat full", "avdigits few", "avdigits few noise=1.5"}
    assert [g.name for g in compare(tmp_path, dataset="mfeat", protocol="full").groups] == [
        "mfeat full"
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_values_and_differences_are_those_of_the_predictions(tmp_path: Path, metric: str) -> None:
    write_setting(tmp_path, "joint", JOINT)
    write_setting(tmp_path, "ogm", BETTER)
    by_method: dict[str, list[float]] = {}
    for run in load_runs(tmp_path):
        arrays = predictions(run)
        found = metrics(arrays["test_labels"], arrays["test_logits"])
        by_method.setdefault(run.method, []).append(found[metric])
    joint, ogm = only(tmp_path, metric=metric).rows
    assert joint.difference is None
    assert joint.is_reference
    assert ogm.difference is not None
    assert ogm.value.mean == pytest.approx(np.mean(by_method["ogm"]))
    expected = stats.ttest_rel(by_method["ogm"], by_method["joint"])
    assert ogm.difference.p_t == pytest.approx(expected.pvalue)
    flips = stats.permutation_test(
        (np.subtract(by_method["ogm"], by_method["joint"]),),
        np.mean,
        permutation_type="samples",
        n_resamples=10_000,
    )
    # scipy doubles the smaller tail, in which ties count too.
    assert ogm.difference.p == pytest.approx(flips.pvalue, abs=2 / 2**7)
    assert ogm.difference.p_holm == ogm.difference.p
    better = (expected.statistic > 0) == METRICS[metric].higher_is_better
    word = "not distinguishable" if flips.pvalue >= 0.05 else "better" if better else "worse"
    assert ogm.difference.verdict == word


def test_the_verdict_names_what_is_distinguishable_and_by_how_much(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT)
    write_setting(tmp_path, "good", BETTER)
    write_setting(tmp_path, "same", SAME)
    write_setting(tmp_path, "single", [0.9])
    group = only(tmp_path)
    text = " ".join(group.verdict)
    good, same = (
        row.difference for row in group.rows if row.difference and row.difference.p is not None
    )
    # Of one sign in all 8 pairs: 2 of 2^8 assignments, for 2 rows.
    assert (good.p, good.p_holm, good.comparisons) == (2 / 256, 4 / 256, 2)
    assert group.verdict[0] == (
        "1 of 3 rows is distinguishable from joint (test accuracy 80.2 %); p after Holm's "
        "correction for 2 tests."
    )
    assert f"Better: good +5.2 points [{100 * (good.low or 0):+.1f}, " in text
    assert "], p = 0.016." in text
    assert "Not distinguishable: same." in text
    assert "Not tested: single (one seed: no interval; add --seed)." in text
    assert same.seeds_needed is not None
    assert f"(80 % power), about: same {same.seeds_needed}." in text


def test_the_reference_alone_is_said_to_be_alone(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT[:5])
    assert only(tmp_path).verdict == (
        "Only joint (test accuracy 80.4 %) is here: run other methods to compare.",
    )


def test_with_few_seeds_it_says_what_cannot_be_said_and_how_many_it_takes(tmp_path: Path) -> None:
    for method, level in (("joint", JOINT), ("good", BETTER), ("same", SAME)):
        write_setting(tmp_path, method, level[:5])
    write_setting(tmp_path, "majority", [0.25] * 5, probes={}, updates=0)
    group = only(tmp_path)
    assert {row.difference.verdict for row in group.rows if row.difference} == {
        "not distinguishable"
    }
    assert group.verdict[0] == (
        "0 of 3 rows are distinguishable from joint (test accuracy 80.4 %): with 5 paired seeds "
        "none could be, however large its difference, as p cannot fall below 0.0625 (0.188 "
        "corrected for 3 tests). A verdict takes 7 seeds or more."
    )
    assert group.verdict[1].startswith("Hints, not verdicts (95 % intervals without 0")
    assert group.verdict[1].endswith(": good +5.4 points, majority -55.4 points.")
    assert "about: good 7, same " in group.verdict[2]
    assert len(group.verdict) == 3
    # 7 seeds are enough, as was said.
    for seed in (5, 6):
        for method, level in (("joint", JOINT), ("good", BETTER), ("same", SAME)):
            write_run(tmp_path, method, seed, level[seed])
        write_run(tmp_path, "majority", seed, 0.25, probes={}, updates=0)
    assert "Better: good" in " ".join(only(tmp_path).verdict)


def test_rows_with_too_few_pairs_among_others_are_named(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT)
    write_setting(tmp_path, "good", BETTER)
    write_setting(tmp_path, "short", BETTER[:3])
    text = " ".join(only(tmp_path).verdict)
    assert "Better: good" in text
    assert "Not distinguishable: short." in text
    assert "Too few pairs for a verdict, however large the difference: short (3 pairs)." in text


def test_long_tables_do_not_flood_the_verdict(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT[:2])
    for i in range(12):
        write_setting(tmp_path, f"method{i}", [0.3 + i / 50, 0.3125 + i / 50])
    group = only(tmp_path)
    assert len(group.rows) == 13
    assert len(" ".join(group.verdict)) < 700
    assert ", and 8 more." in group.verdict[1]


def test_equal_rows_everywhere_are_not_distinguishable(tmp_path: Path) -> None:
    for method in ("joint", "ogm", "pmr"):
        write_setting(tmp_path, method, SAME)
    group = only(tmp_path)
    assert group.verdict == (
        "0 of 2 rows are distinguishable from joint (test accuracy 80.8 %); p after Holm's "
        "correction for 2 tests.",
        "Not distinguishable: ogm, pmr.",
    )


def test_an_infinite_loss_is_told_and_never_a_number(tmp_path: Path) -> None:
    scores = {"accuracy": 0.9, "macro_f1": 0.9, "nll": None, "ece": 0.1, "brier": 0.2}
    write_setting(tmp_path, "joint", JOINT)
    write_setting(tmp_path, "alpha", BETTER[:7])
    write_run(tmp_path, "alpha", 7, 0.9, record_changes={"metrics": {"test": scores}})
    write_setting(tmp_path, "beta", SAME)
    group = only(tmp_path, metric="nll")
    assert labels(group) == ["joint", "beta", "alpha"]  # what has no mean comes last
    broken = group.rows[2]
    assert broken.difference is not None
    assert (broken.difference.mean, broken.difference.p) == (None, None)
    assert warned(group, "alpha: negative log-likelihood of seed 7 is not a number")
    assert "Not tested: alpha (not a number in seed 7: no difference)." in group.verdict
    assert only(tmp_path).rows[1].difference is not None
    assert "alpha" in " ".join(only(tmp_path).verdict)


def test_runs_on_other_data_are_not_paired_and_are_named(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT)
    write_setting(tmp_path, "ogm", BETTER[:3])
    write_run(tmp_path, "ogm", 3, 0.1, fingerprint="other")
    write_run(tmp_path, "ogm", 8, 0.9)
    group = only(tmp_path)
    difference = group.rows[1].difference
    assert difference is not None
    assert difference.pairs == 3
    assert difference.mean == pytest.approx(np.mean(np.subtract(BETTER[:3], JOINT[:3])))
    assert warned(group, "ogm", "seed 3 not paired", "fingerprints")
    assert warned(group, "ogm", "seed 8 not paired", "no such run")


def test_a_missing_reference_leaves_differences_blank_with_a_hint(tmp_path: Path) -> None:
    write_setting(tmp_path, "ogm", SAME)
    group = only(tmp_path)
    assert group.reference is None
    assert group.rows[0].difference is None
    assert warned(group, "mmbench run --method joint")


def test_the_reference_can_be_a_method_or_a_label(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT)
    write_setting(tmp_path, "joint", BETTER, changed={"fusion": "film"})
    write_setting(tmp_path, "ogm", SAME)
    assert only(tmp_path).reference == "joint"
    assert warned(only(tmp_path), "differences are to joint", "joint[fusion=film]")
    assert only(tmp_path, reference="joint[fusion=film]").reference == "joint[fusion=film]"
    assert only(tmp_path, reference="ogm").reference == "ogm"
    with pytest.raises(RequestError, match="did you mean ogm"):
        compare(tmp_path, reference="ogn")


def test_chosen_methods_keep_the_reference_beside_them(tmp_path: Path) -> None:
    for method in ("joint", "ogm", "pmr"):
        write_setting(tmp_path, method, SAME)
    assert labels(only(tmp_path, methods=["pmr"])) == ["joint", "pmr"]
    with pytest.raises(RequestError, match="did you mean pmr"):
        compare(tmp_path, methods=["pmrr"])


def test_a_control_that_beats_every_fused_method_is_pointed_out(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT)
    write_setting(tmp_path, "ogm", SAME)
    write_setting(tmp_path, "ensemble", BETTER)
    low = [v - 0.1 for v in JOINT]
    write_setting(tmp_path, "unimodal", low, changed={"modality": "fourier"}, probes={})
    group = only(tmp_path)
    assert warned(group, "ensemble", "beats the best fused method", ", distinguishable")
    assert not warned(group, "unimodal", "best fused")
    write_setting(tmp_path, "unimodal", BETTER, changed={"modality": "zernike"}, probes={})
    assert warned(only(tmp_path), "unimodal[zernike]", "beats the best fused method")
    # Of a loss, the lower is the better: the ensemble is right more often and loses less.
    assert warned(only(tmp_path, metric="nll"), "ensemble", "beats the best fused method")


def test_selection_on_the_test_set_is_marked(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT)
    write_setting(tmp_path, "ogm", SAME, changed={"recipe.select": "best-test"}, select="best-test")
    group = only(tmp_path)
    assert [row.selected_on_test for row in group.rows] == [False, True]
    assert warned(group, "ogm", "selected on the test set")
    assert warned(group, "recipe.select", "not trained alike")


def test_other_things_a_reader_must_know_are_said(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT, notes=["actors shared by train and test"])
    write_setting(tmp_path, "ogm", SAME, changed={"recipe.lr": 0.1}, version="0.2.0")
    write_run(tmp_path, "pmr", 0, 0.8, extra_fingerprints={"method_file": "a"})
    write_run(tmp_path, "pmr", 1, 0.8, extra_fingerprints={"method_file": "b"})
    write_run(tmp_path, "single", 0, 0.8)
    write_run(tmp_path, "ogm", 9, status="failed", reason="the loss became nan")
    write_run(tmp_path, "ogm", 9, status="failed", reason="elsewhere", protocol="full")
    partial = write_run(tmp_path, "late", 0).parent / ".seed-4.partial"
    partial.mkdir()
    group = only(tmp_path)
    assert group.notes == ("actors shared by train and test",)
    assert warned(group, "recipe.lr is 0.1 in ogm[recipe.lr=0.1]; default elsewhere")
    assert warned(group, "different versions of mmbench: 0.1.0, 0.2.0")
    assert warned(group, "pmr", "different versions of a method or dataset file")
    assert warned(group, "one seed only", "single")
    assert warned(group, "1 run failed", "ogm seed 9 (the loss became nan)")
    assert warned(group, "1 run interrupted", "late seed 4")
    assert not warned(group, "elsewhere)")


def test_an_untroubled_comparison_has_no_warnings(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT)
    write_setting(tmp_path, "ogm", SAME)
    assert only(tmp_path).warnings == ()


def test_a_record_that_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    write_setting(tmp_path, "joint", JOINT)
    folder = write_run(tmp_path, "joint", 9, 0.99)
    (folder / "record.json").write_text("{")
    found = compare(tmp_path)
    assert found.groups[0].rows[0].seeds == tuple(range(len(JOINT)))
    assert len(found.left_out) == 1
    assert str(folder / "record.json") in found.left_out[0]


def test_nothing_but_failures_is_an_error_with_the_reason(tmp_path: Path) -> None:
    write_run(tmp_path, "joint", 0, status="failed", reason="the loss became nan")
    with pytest.raises(StoreError, match="the loss became nan"):
        compare(tmp_path)


def test_unknown_names_suggest_near_ones(tmp_path: Path) -> None:
    write_run(tmp_path, "joint", 0)
    for options, near in (
        ({"dataset": "mfaet"}, "mfeat"),
        ({"protocol": "fwe"}, "few"),
        ({"metric": "acuracy"}, "accuracy"),
    ):
        with pytest.raises(RequestError, match=f"did you mean {near}"):
            compare(tmp_path, **options)


def test_a_modality_can_be_compared_by_a_readout(tmp_path: Path) -> None:
    steps = (0.0, 0.03, -0.03, 0.01, 0.02, -0.02)
    probes = {"joint": [0.5 + s for s in steps], "ogm": [0.6 + 1.2 * s for s in steps]}
    for method, values in probes.items():
        for seed, probe in enumerate(values):
            write_run(tmp_path, method, seed, 0.8, probes={"fourier": probe, "zernike": 0.6})
    write_run(tmp_path, "majority", 0, 0.3, probes={})
    found = compare(tmp_path, metric="probe.fourier")
    (group,) = found.groups
    assert [row.method for row in group.rows] == ["joint", "ogm"]
    joint, ogm = group.rows
    assert joint.value.mean == pytest.approx(np.mean(probes["joint"]), abs=0.5 / 400)
    assert ogm.difference is not None
    first, second = (list(row.metric(group.metric).values()) for row in (ogm, joint))
    expected = stats.ttest_rel(first, second)
    assert ogm.difference.p_t == pytest.approx(expected.pvalue)
    assert ogm.difference.p == 2 / 64
    assert ogm.difference.verdict == "better"
    assert found.left_out == ("majority, 1 runs: no probe.fourier",)
    with pytest.raises(RequestError, match=r"probe\.fourier"):
        compare(tmp_path, metric="probe.fouriers")
