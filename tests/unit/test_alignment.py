"""The alignment diagnostic: where the answer is known in closed form, it is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import mmbench
from mmbench.cli.app import main
from mmbench.errors import RequestError
from mmbench.evaluate import alignment
from mmbench.evaluate.alignment import (
    Change,
    ModalityDiagnosis,
    diagnose,
    effective_rank,
    linear_cka,
    modality_gap,
    paired_cosine,
    residuals,
    retrieval,
)
from mmbench.evaluate.decodability import PROBES, Table, decode, interval, resampling
from mmbench.restoring import restore

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


# -- the verdict -----------------------------------------------------------------------------------

KEPT = Change(0.8, 0.8, -0.02, 0.02)
LOST = Change(0.8, 0.5, 0.25, 0.35)
LESS = ModalityDiagnosis(dict.fromkeys(PROBES, LOST), dict.fromkeys(PROBES, KEPT), rank=(10.0, 9.0))


def test_loss_is_said_only_where_nothing_else_explains_it() -> None:
    assert LESS.verdict == "modality-specific loss"
    for kind in ("linear", "mlp"):
        still = replace(LESS, own={**LESS.own, kind: KEPT})
        assert still.verdict == "no evidence", f"the {kind} probe still tells it"
        control = replace(LESS, label={**LESS.label, kind: LOST})
        assert control.verdict == "no evidence", "the class is told less too"
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


def test_two_stored_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, ref = stored("lfm", tmp_path), stored("joint", tmp_path)
    found = diagnose(restore(run), restore(ref), resamples=100)
    assert set(found.modalities) == {"x1", "x2"}
    again = diagnose(restore(run), restore(ref), resamples=100)
    assert again == found, "nothing is left to chance"
    same = diagnose(restore(ref), restore(ref), resamples=100)
    for diagnosis in same.modalities.values():
        assert diagnosis.verdict == "no evidence"
        assert all(c.loss == c.low == c.high == 0 for c in diagnosis.own.values())
    capsys.readouterr()
    words = ["diagnose", "alignment", "--run", str(run), "--ref", str(ref)]
    assert main(words) == 0
    text = capsys.readouterr().out
    for m, diagnosis in diagnose(restore(run), restore(ref)).modalities.items():
        assert f"{m}: {diagnosis.verdict}\n" in text
        assert f"{diagnosis.own['mlp'].loss:+.3f}" in text
    assert main([*words, "--format", "json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["modalities"]["x2"]["own"]["linear"]["loss"] == pytest.approx(
        diagnose(restore(run), restore(ref)).modalities["x2"].own["linear"].loss
    )
    assert main([*words, "--format", "xml"]) == 2


def test_a_planted_loss_is_found() -> None:
    """Features are the raw inputs in the reference, and in the run what both modalities share:
    exactly what is unique has gone."""
    views = gaussian_views(2400)
    parts = {"train": slice(0, 1200), "val": slice(1200, 1600), "test": slice(1600, 2400)}
    raw = {m: {n: views[f"x{i}"][p] for n, p in parts.items()} for m, i in (("x1", 1), ("x2", 2))}
    own = residuals(raw, None, 0)
    weights = resampling(None, 800, 200, 0)
    shared = {n: views["s"][p] for n, p in parts.items()}
    for m in ("x1", "x2"):
        mine = {"reference": raw[m], "run": shared}
        changes = alignment._changes(mine, own[m], weights)
        assert changes["linear"].is_drop
        assert changes["mlp"].is_drop
        label = {n: (s[:, 0] > 0).astype(int) for n, s in shared.items()}
        control = alignment._changes(mine, label, weights)
        assert not control["linear"].is_drop


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
