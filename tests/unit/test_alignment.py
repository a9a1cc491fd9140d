"""The alignment diagnostic: where the answer is known in closed form, it is found."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import mmbench
from mmbench.cli.app import main
from mmbench.cli.diagnose import as_text
from mmbench.data.dataset import Modality, Rows, Split, Splits
from mmbench.errors import RequestError, StoreError
from mmbench.evaluate import alignment
from mmbench.evaluate.alignment import Answer, Change, ModalityDiagnosis, diagnose
from mmbench.evaluate.decodability import PROBES, Table, decode, interval, resampling
from mmbench.evaluate.experts import only_right
from mmbench.evaluate.likeness import (
    effective_rank,
    linear_cka,
    modality_gap,
    paired_cosine,
    retrieval,
)
from mmbench.evaluate.residuals import residuals
from mmbench.evaluate.targets import (
    Target,
    class_target,
    group_target,
    label_targets,
    stacked,
    unique_target,
)
from mmbench.restoring import restore
from mmbench.store.record import read_predictions

SHARED, UNIQUE, NOISE = 2, 4, 0.3


def gaussian_views(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return ``x_m = A_m [s + noise; u_m]`` with A_m invertible, and the factors."""
    random = np.random.default_rng(seed)
    s = random.normal(size=(rows, SHARED))
    found = {"s": s}
    for m in ("1", "2"):
        u = random.normal(size=(rows, UNIQUE))
        seen = np.hstack([s + NOISE * random.normal(size=s.shape), u])
        found |= {
            f"u{m}": u,
            f"x{m}": seen @ random.normal(size=(SHARED + UNIQUE, SHARED + UNIQUE)).T,
        }
    return found


def aligned(x1: np.ndarray, x2: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimisers of ``E |W1 x1 - W2 x2|^2`` under whitening: k canonical pairs."""

    def whitener(x: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(np.cov(x.T))
        return np.asarray(vectors / np.sqrt(values))

    w1, w2 = whitener(x1), whitener(x2)
    u, _, v = np.linalg.svd((x1 @ w1).T @ (x2 @ w2) / len(x1))
    return x1 @ w1 @ u[:, :k], x2 @ w2 @ v.T[:, :k]


def told(h: np.ndarray, target: np.ndarray) -> float:
    """Return the R² of a linear probe; the first half fits, the last quarter is measured."""
    n = len(h)
    parts = (slice(0, n // 2), slice(n // 2, 3 * n // 4), slice(3 * n // 4, n))
    train, val, test = (Table(h[p], target[p]) for p in parts)
    return decode(train, val, test, "linear").score()


@pytest.mark.parametrize(
    ("k", "shared", "unique"),
    [(1, 0.464, 0.0), (2, 0.917, 0.0), (3, 0.917, 0.253), (4, 0.917, 0.5), (6, 0.917, 1.0)],
)
def test_aligning_linear_encoders_costs_what_is_not_shared(
    k: int, shared: float, unique: float
) -> None:
    """Values of the linear Gaussian case. For one canonical pair, and for the directions left over
    beyond the shared ones, only sums over the equivalent directions are determined."""
    views = gaussian_views(8000)
    h1, h2 = aligned(views["x1"], views["x2"], k)
    assert told(h1, views["s"]) == pytest.approx(shared, abs=0.03)
    for h, m in ((h1, "1"), (h2, "2")):
        assert told(h, views[f"u{m}"]) == pytest.approx(unique, abs=0.04)


def test_residuals_are_what_the_other_modality_cannot_tell() -> None:
    views = gaussian_views(4000)
    parts = {"train": slice(0, 2000), "val": slice(2000, 3000), "test": slice(3000, 4000)}
    raw = {m: {n: views[f"x{m}"][p] for n, p in parts.items()} for m in ("1", "2")}
    found = residuals(raw, None, 0)
    for m, other in (("1", "2"), ("2", "1")):
        for name, part in parts.items():
            e = found[m][name]
            assert stats.pearsonr(e[:, 0], views[f"x{other}"][part][:, 0]).statistic < 0.1
        h = np.vstack([found[m][name] for name in parts])
        assert told(h, views[f"u{m}"]) > 0.95
        assert told(h, views[f"u{other}"]) < 0.02


def test_residuals_of_test_rows_do_not_depend_on_other_test_rows() -> None:
    views = gaussian_views(600)
    train, val = slice(0, 400), slice(400, 500)

    def found(rows: int) -> np.ndarray:
        test = slice(500, 500 + rows)
        raw = {
            m: {n: views[f"x{m}"][p] for n, p in (("train", train), ("val", val), ("test", test))}
            for m in ("1", "2")
        }
        return residuals(raw, None, 0)["1"]["test"]

    np.testing.assert_allclose(found(100)[:20], found(20))


@pytest.mark.parametrize("kind", PROBES)
def test_probes_find_what_is_there_and_nothing_else(kind: str) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(1500, 6))
    y = (x[:, 0] + 0.1 * random.normal(size=1500) > 0).astype(int)
    noise = random.normal(size=(1500, 2))
    parts = (slice(0, 700), slice(700, 1000), slice(1000, 1500))
    for target, low, high in ((y, 0.75, 1.0), (x[:, :2], 0.7, 1.0), (noise, -0.2, 0.05)):
        train, val, test = (Table(x[p], target[p]) for p in parts)
        assert low <= decode(train, val, test, kind).score() <= high  # type: ignore[arg-type]


def test_a_hidden_layer_finds_what_is_not_linear() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(3000, 3))
    target = (np.abs(x[:, :1]) - 0.8) * 1.5
    parts = (slice(0, 2000), slice(2000, 2400), slice(2400, 3000))
    train, val, test = (Table(x[p], target[p]) for p in parts)
    assert decode(train, val, test, "linear").score() < 0.05
    assert decode(train, val, test, "mlp").score() > 0.8


def test_intervals_draw_whole_groups() -> None:
    groups = np.repeat(np.arange(10), 5)
    weights = resampling(groups, 50, 200, 0)
    assert (weights.reshape(200, 10, 5) == weights.reshape(200, 10, 5)[:, :, :1]).all()
    assert (weights.sum(axis=1) == 50).all()
    single = resampling(None, 50, 200, 0)
    assert (single.sum(axis=1) == 50).all()
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))


def test_intervals_cover() -> None:
    """The interval of a proportion, over 200 draws, covers it about 19 times in 20."""
    covered = 0
    for seed in range(200):
        right = np.random.default_rng(seed).random(100) < 0.7
        weights = resampling(None, 100, 400, seed)
        low, high = interval(weights @ right / 100)
        covered += low <= 0.7 <= high
    assert 0.90 <= covered / 200 <= 0.98


# -- likeness --------------------------------------------------------------------------------------


def test_likeness_where_it_is_known() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 8))
    rotation = np.linalg.qr(random.normal(size=(8, 8)))[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert linear_cka(x, random.normal(size=(400, 8))) < 0.1
    assert paired_cosine(x, 2 * x + 7) == pytest.approx(1)
    assert paired_cosine(x, -x) == pytest.approx(-1)
    assert retrieval(x, 2 * x + 1) == 1
    assert retrieval(x, random.normal(size=(400, 8))) < 0.05
    assert modality_gap(x, x) == 0
    assert modality_gap(np.ones((5, 1)), -np.ones((5, 1))) == 2
    assert effective_rank(x) == pytest.approx(8, abs=0.1)
    assert effective_rank(x[:, :1] @ np.ones((1, 8))) == pytest.approx(1)
    assert effective_rank(np.ones((5, 3))) == 1


# -- what is asked for -----------------------------------------------------------------------------

PARTS = {"train": slice(0, 600), "val": slice(600, 800), "test": slice(800, 1300)}


def splits_of(
    values: dict[str, np.ndarray],
    y: np.ndarray,
    labels: dict[str, dict[str, np.ndarray]] | None = None,
    groups: np.ndarray | None = None,
    parts: dict[str, slice] | None = None,
) -> Splits:
    """Return rows cut into train, validation and test."""
    made = [
        Split(
            {m: Rows(x[part]) for m, x in values.items()},
            torch.from_numpy(y[part]),
            np.array([f"row-{i}" for i in range(len(y))])[part],
            None if groups is None else groups[part],
            {m: {n: v[part] for n, v in named.items()} for m, named in (labels or {}).items()},
        )
        for part in (parts or PARTS).values()
    ]
    kinds = {m: Modality("vector", x.shape[1:]) for m, x in values.items()}
    return Splits(made[0], made[1], made[2], kinds, ("no", "yes"))


def asked(
    reference: np.ndarray, run: np.ndarray, target: Target, groups: np.ndarray | None = None
) -> Answer:
    draws = alignment._Draws(groups, 200, 0)
    return alignment._answer({"reference": reference, "run": run}, target, draws)


def test_a_label_that_alignment_destroys_is_told_from_one_that_it_leaves() -> None:
    """Canonical correlation analysis keeps everything with six directions, the reference, and the
    shared factors alone with two, the run. A label of the unshared factors goes, as words and as
    numbers; one of the shared factors stays."""
    views = gaussian_views(1300)
    h6, h2 = (aligned(views["x1"], views["x2"], k)[0] for k in (6, 2))
    words = np.where(views["u1"][:, 0] > 0, "loud", "quiet")
    words[::10] = ""
    score = views["u1"][:, 1:2].copy()
    score[::4] = np.nan
    kept = np.where(views["s"][:, 0] > 0, "glad", "sad")
    labels = {"1": {"voice": words, "pitch": score, "mood": kept}}
    y = (views["s"][:, 0] > 0).astype(np.int64)
    splits = splits_of({"1": views["x1"], "2": views["x2"]}, y, labels)
    splits.check("toy")
    voice, pitch, mood = (asked(h6, h2, t) for t in label_targets(splits, "1"))
    assert label_targets(splits, "2") == []
    assert (voice.target, voice.of_classes, voice.rows, voice.training_rows) == (
        "voice",
        True,
        450,
        540,
    )
    assert (pitch.target, pitch.of_classes, pitch.rows) == ("pitch", False, 375)
    for lost in (voice, pitch):
        assert lost.is_lost
        assert lost.probes["linear"].reference > 0.9
        assert abs(lost.probes["linear"].run) < 0.15
    assert mood.rows == 500
    assert not mood.is_lost
    assert mood.probes["linear"].run > 0.7
    control = asked(h6, h2, class_target(splits))
    for answer, verdict in ((voice, "modality-specific loss"), (mood, "no evidence")):
        found = ModalityDiagnosis((answer, control), (6.0, 3.5))
        assert found.decided_by is answer
        assert found.verdict == verdict


def test_whose_a_row_is_is_asked_where_groups_are_trained_on_and_tested() -> None:
    rng = np.random.default_rng(0)
    speaker = np.arange(1300) % 6
    voice = rng.normal(size=(1300, 4)) + 3 * np.eye(6)[speaker, :4]
    plain = rng.normal(size=(1300, 4))
    y = rng.integers(0, 2, 1300)
    groups = np.array([f"speaker {i}" for i in speaker])
    target = group_target(splits_of({"1": voice}, y, groups=groups), 0)
    assert isinstance(target, Target)
    fitted, chosen, tested = (target.rows[part] for part in ("train", "val", "test"))
    assert sorted([*fitted, *chosen]) == [*range(600)]
    assert len(chosen) == 120
    assert tested.tolist() == [*range(800, 1300)]
    answer = asked(voice, plain, target, groups)
    assert answer.is_lost
    assert (answer.kind, answer.groups, answer.rows) == ("nuisance", 6, 500)
    diagnosis = ModalityDiagnosis((answer, CONTROL), (4.0, 4.0))
    assert diagnosis.decided_by is None
    assert diagnosis.verdict == "no evidence", "losing who speaks is no loss"
    few = asked(voice, plain, target, np.array([f"half {i % 2}" for i in speaker]))
    assert few.probes["linear"].low is None
    assert not few.is_lost, "two groups tell no interval"


def test_groups_that_cannot_be_recognised_are_not_asked_for() -> None:
    y = np.arange(1300) % 2
    x = {"1": np.zeros((1300, 2))}
    assert group_target(splits_of(x, y), 0) == "the rows have no groups"
    disjoint = np.repeat(["a", "b", "c", "d"], [300, 300, 200, 500])
    assert "0 of the 1 groups of test" in str(group_target(splits_of(x, y, groups=disjoint), 0))
    groups = np.array(["a", "b"] * 650)
    groups[:600] = ["a"] * 591 + ["b"] * 9
    assert "1 of the 2 groups of test" in str(group_target(splits_of(x, y, groups=groups), 0))


def test_a_target_of_which_probes_can_say_nothing_gives_the_reason() -> None:
    views = gaussian_views(1300)
    y = (views["s"][:, 0] > 0).astype(np.int64)

    def reason(label: np.ndarray) -> str | None:
        splits = splits_of({"1": views["x1"]}, y, {"1": {"label": label}})
        (target,) = label_targets(splits, "1")
        return target.why_not()

    words = np.where(views["u1"][:, 0] > 0, "loud", "quiet")
    assert reason(words) is None
    few = words.copy()
    few[809:] = ""
    assert reason(few) == "600 training, 200 validation and 9 test rows have it"
    one = words.copy()
    one[:600] = "loud"
    assert reason(one) == "all training rows are of one class"
    flat = views["u1"].copy()
    flat[800:, 2] = 1
    assert "the same in all training or all test rows" in str(reason(flat))
    frequent = np.where(np.arange(1300) % 3, "often", "rare")
    frequent[800:] = "often"
    assert "most frequent training class" in str(reason(frequent))


def test_unique_rows_are_those_that_one_alone_gets_right() -> None:
    right = {
        "a": np.array([1, 1, 0, 0, 1], bool),
        "b": np.array([0, 1, 1, 0, 1], bool),
        "c": np.array([0, 0, 0, 0, 1], bool),
    }
    found = {m: np.flatnonzero(mask).tolist() for m, mask in only_right(right).items()}
    assert found == {"a": [0], "b": [2], "c": []}
    y = np.arange(1300) % 2
    splits = splits_of({"1": np.zeros((1300, 2))}, y)
    mask = np.zeros(500, bool)
    mask[[3, 7, 499]] = True
    target = unique_target(splits, mask)
    assert target.rows["test"].tolist() == [803, 807, 1299]
    assert target.rows["train"].tolist() == [*range(600)]
    assert stacked(
        {"test": np.array([3]), "train": np.array([1]), "val": np.array([2])}
    ).tolist() == [
        1,
        2,
        3,
    ]


# -- the verdict -----------------------------------------------------------------------------------

KEPT = Change(0.8, 0.8, -0.02, 0.02)
LOST = Change(0.8, 0.5, 0.25, 0.35)
OWN = Answer("voice", "own", True, 600, 500, None, dict.fromkeys(PROBES, LOST))
CONTROL = Answer("class", "class", True, 600, 500, None, dict.fromkeys(PROBES, KEPT))
LESS = ModalityDiagnosis((OWN, CONTROL), rank=(10.0, 9.0))


def test_loss_is_said_only_where_nothing_else_explains_it() -> None:
    assert LESS.verdict == "modality-specific loss"
    for kind in ("linear", "mlp"):
        still = replace(OWN, probes={**OWN.probes, kind: KEPT})
        found = replace(LESS, answers=(still, CONTROL))
        assert found.verdict == "no evidence", f"the {kind} probe still tells it"
        less = replace(CONTROL, probes={**CONTROL.probes, kind: LOST})
        found = replace(LESS, answers=(OWN, less))
        assert found.verdict == "no evidence", "the class is told less too"
        found = replace(LESS, answers=(still, OWN, CONTROL))
        assert found.verdict == "no evidence", "the first target decides"
    unsure = replace(OWN, probes=dict.fromkeys(PROBES, Change(0.8, 0.5, None, None)))
    for answers in ((unsure, CONTROL), (CONTROL,), (OWN,)):
        assert replace(LESS, answers=answers).verdict == "no evidence"
    assert replace(LESS, rank=(10.0, 4.9)).verdict == "no evidence", "the features collapsed"
    assert LOST.retention == pytest.approx(0.625)
    assert Change(0.0, 0.5, 0, 0).retention == 50


# -- on stored runs --------------------------------------------------------------------------------

SMALL = {
    "dataset": "synthetic",
    "dataset_options": {"train": 150, "val": 60, "test": 100, "classes": 3},
    "recipe": {"epochs": 2},
    "threads": 1,
}


def stored(method: str, folder: Path, **changes: object) -> Path:
    (outcome, *_) = mmbench.run(method, results=folder, **{**SMALL, **changes})  # type: ignore[arg-type]
    return outcome.path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run of lfm, of joint, and of each modality alone."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("lfm", "joint", "unimodal"):
        stored(method, folder)
    return folder / "synthetic"


def folder_of(runs: Path, method: str, **options: str) -> Path:
    (path,) = (
        record.parent
        for record in runs.glob(f"{method}/*/seed-0/record.json")
        if options.items() <= json.loads(record.read_text())["changed"].items()
    )
    return path


def test_two_stored_runs_are_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, ref = folder_of(runs, "lfm"), folder_of(runs, "joint")
    found = diagnose(restore(run), restore(ref))
    assert set(found.modalities) == {"x1", "x2"}
    assert found.missing == ("group: the rows have no groups",)
    words = ["diagnose", "alignment", "--run", str(run), "--ref", str(ref)]
    text = "\n".join(as_text(found))
    for m, diagnosis in found.modalities.items():
        names = [answer.target for answer in diagnosis.answers]
        assert names == ["evidence", "own residual", "class", "class of unique rows"]
        assert f"{m}: {diagnosis.verdict} (by evidence, n = 100)\n" in text
        for answer in diagnosis.answers:
            for change in answer.probes.values():
                line = (
                    f"{answer.rows:7}{change.reference:11.3f}{change.run:8.3f}   {change.loss:+.3f}"
                )
                assert line in text
    assert "group: the rows have no groups" in text
    assert main([*words, "--format", "json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    own = found.modalities["x2"].answers[1]
    told = plain["modalities"]["x2"]["targets"][1]
    assert (told["target"], told["rows"], told["score"]) == ("own residual", 100, "R2")
    assert told["probes"]["linear"]["loss"] == pytest.approx(own.probes["linear"].loss)
    assert main([*words, "--format", "xml"]) == 2


def test_a_run_compared_with_itself_has_lost_nothing(runs: Path) -> None:
    ref = folder_of(runs, "joint")
    for diagnosis in diagnose(restore(ref), restore(ref), resamples=50).modalities.values():
        assert diagnosis.verdict == "no evidence"
        for answer in diagnosis.answers:
            assert all(c.loss == c.low == c.high == 0 for c in answer.probes.values())


def test_unique_rows_are_counted_from_the_unimodal_runs(runs: Path, tmp_path: Path) -> None:
    run = restore(folder_of(runs, "lfm"))
    alone = {m: folder_of(runs, "unimodal", modality=m) for m in ("x1", "x2")}
    arrays = {m: read_predictions(path) for m, path in alone.items()}
    expected = {"x1": 0, "x2": 0}
    for i, label in enumerate(arrays["x1"]["test_labels"]):
        right = [m for m, a in arrays.items() if a["test_logits"][i].argmax() == label]
        if len(right) == 1:
            expected[right[0]] += 1
    targets, _ = alignment._targets(run, ())
    named, _ = alignment._targets(run, [alone["x2"], alone["x1"]])
    for m in expected:
        assert len(targets[m][-1].rows["test"]) == expected[m]
        np.testing.assert_array_equal(targets[m][-1].rows["test"], named[m][-1].rows["test"])
    shutil.copytree(runs / "lfm", tmp_path / "synthetic" / "lfm")
    elsewhere = restore(next(tmp_path.glob("synthetic/lfm/*/seed-0")))
    targets, missing = alignment._targets(elsewhere, ())
    assert "class of unique rows: no unimodal run of x1 with seed 0 is stored" in missing
    assert [t.name for t in targets["x1"]] == ["evidence", "own residual", "class"]


def test_unimodal_runs_that_will_not_do_are_refused(runs: Path, tmp_path: Path) -> None:
    run = restore(folder_of(runs, "lfm"))
    first, second = (folder_of(runs, "unimodal", modality=m) for m in ("x1", "x2"))
    other = stored("unimodal", tmp_path, seeds=(1,))
    for folders, error, what in (
        ([first], RequestError, "no --alone run is of x2"),
        ([first, first], RequestError, "both of x1"),
        (
            [first, folder_of(runs, "joint")],
            RequestError,
            "a run of joint, not of unimodal with one of x1, x2",
        ),
        ([first, tmp_path / "nowhere"], RequestError, "no such folder"),
        ([first, runs], StoreError, "not the folder of a stored run"),
        ([other, second], RequestError, "saw another split"),
    ):
        with pytest.raises(error, match=what):
            alignment._targets(run, folders)


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    joint = restore(stored("joint", tmp_path))
    for changes, what in (
        ({"seeds": (1,)}, "seed"),
        ({"dataset_options": {**SMALL["dataset_options"], "generator_seed": 7}}, "data"),  # type: ignore[dict-item]
    ):
        other = restore(stored("joint", tmp_path, **changes))
        with pytest.raises(RequestError, match=f"differ in {what}"):
            diagnose(joint, other)
    alone = restore(stored("unimodal", tmp_path))
    with pytest.raises(RequestError, match=r"differ in modalities|one modality"):
        diagnose(alone, joint)
