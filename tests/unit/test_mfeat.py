"""The embedded dataset: what the package holds, how it is split, and UCI's own files."""

import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmbench.data.dataset import Rows
from mmbench.data.standardise import standardise
from mmbench.datasets import mfeat
from mmbench.datasets.mfeat import ARCHIVE, FILES, ROUNDED, SHIPPED, MultipleFeatures, shipped_view
from mmbench.errors import DataError, RequestError
from mmbench.options import validated

KEYS = {view: name.removeprefix("mfeat-") for view, (name, _) in FILES.items()}
"""Names of the views in the shared archive."""


def dataset(**options: object) -> MultipleFeatures:
    return MultipleFeatures(validated(MultipleFeatures.Config, options, "mfeat"))


def array(source: object) -> np.ndarray:
    assert isinstance(source, Rows)
    return source.tensor.numpy()


@pytest.fixture(scope="module")
def uci(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text files like UCI's, with the values of the package and random counts for the
    view that it lacks."""
    folder = tmp_path_factory.mktemp("uci")
    for view, (name, columns) in FILES.items():
        if view in SHIPPED:
            values = shipped_view(view)
        else:
            values = np.random.default_rng(0).integers(0, 1000, (2000, columns))
        np.savetxt(folder / name, values, fmt="%.9g")
    return folder


@pytest.fixture(scope="module")
def originals(shared_data: Path) -> dict[str, np.ndarray]:
    with np.load(shared_data / "embedded-candidates" / "uci_mfeat.npz") as archive:
        return {view: archive[key] for view, key in KEYS.items()}


def make_mfeat() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "make_mfeat.py"
    spec = importlib.util.spec_from_file_location("make_mfeat", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_archive_is_small_and_needs_no_pickle() -> None:
    assert ARCHIVE.stat().st_size < 500_000
    with np.load(ARCHIVE, allow_pickle=False) as archive:
        assert {archive[view].shape for view in SHIPPED} == {
            (FILES[view][1], 2000) for view in SHIPPED
        }


def test_shipped_values_are_the_originals_up_to_the_documented_rounding(
    originals: dict[str, np.ndarray],
) -> None:
    for view in SHIPPED:
        original = originals[view].astype(np.float64)
        error = shipped_view(view) - original
        if view not in ROUNDED:
            assert not error.any(), view
        extent = original.max(axis=0) - original.min(axis=0)
        assert (np.abs(error) <= 0.002 * extent).all(), view
        assert (np.sqrt((error**2).mean(axis=0)) < 0.01 * original.std(axis=0)).all(), view


def test_the_script_reproduces_the_archive(
    originals: dict[str, np.ndarray], tmp_path: Path
) -> None:
    for view in SHIPPED:
        np.savetxt(tmp_path / FILES[view][0], originals[view], fmt="%.9g")
    script = make_mfeat()
    arrays = script.packed(tmp_path)
    script.write_archive(arrays, tmp_path / "one.npz")
    script.write_archive(arrays, tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.npz") as made, zipfile.ZipFile(ARCHIVE) as shipped:
        assert made.namelist() == shipped.namelist()
        for name in shipped.namelist():
            assert made.read(name) == shipped.read(name), name
            assert shipped.getinfo(name).date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("protocol", "sizes"), [("few", (300, 200, 1500)), ("full", (1200, 300, 500))]
)
def test_protocols_have_their_sizes_and_even_classes(protocol: str, sizes: tuple[int, ...]) -> None:
    splits = dataset().load(protocol, seed=3)
    splits.check("mfeat")
    for part, size in zip(splits.named().values(), sizes, strict=True):
        assert np.bincount(part.y.numpy()).tolist() == [size // 10] * 10


def test_the_seed_draws_the_split_and_nothing_else_does() -> None:
    same = dataset().load("few", 1), dataset(views=["pixels"]).load("few", 1)
    assert same[0].fingerprints()["split"] == same[1].fingerprints()["split"]
    assert dataset().load("few", 2).fingerprints()["split"] != same[0].fingerprints()["split"]


def test_ids_name_rows_of_the_source_with_their_labels_and_values() -> None:
    splits = dataset(views=["morphological"]).load("few", 0)
    rows = np.array([int(i.removeprefix("mfeat-")) for i in splits.train.ids])
    assert splits.train.ids[0] == f"mfeat-{rows[0]:04d}"
    np.testing.assert_array_equal(splits.train.y.numpy(), rows // 200)
    raw = shipped_view("morphological")[rows].astype(np.float64)
    expected = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    np.testing.assert_allclose(array(splits.train.inputs["morphological"]), expected, atol=1e-5)


def test_test_rows_do_not_enter_the_standardisation(uci: Path, tmp_path: Path) -> None:
    before = dataset(views=["morphological"], source=str(uci)).load("few", 0)
    values = shipped_view("morphological").copy()
    outside = [int(i[-4:]) for part in (before.val, before.test) for i in part.ids]
    values[outside] *= 100
    np.savetxt(tmp_path / "mfeat-mor", values, fmt="%.9g")
    after = dataset(views=["morphological"], source=str(tmp_path)).load("few", 0)
    np.testing.assert_array_equal(
        array(after.train.inputs["morphological"]), array(before.train.inputs["morphological"])
    )


def test_every_view_tells_the_digits_apart_as_published(originals: dict[str, np.ndarray]) -> None:
    """Accuracies of a logistic regression with the exact values, same split: the rounding and the
    order of rows and labels must not cost more than a point."""
    splits = dataset().load("full", 0)
    for view, source in splits.train.inputs.items():
        train, test = ([int(i[-4:]) for i in part.ids] for part in (splits.train, splits.test))
        model = LogisticRegression(max_iter=300)
        mine = model.fit(array(source), splits.train.y).score(
            array(splits.test.inputs[view]), splits.test.y
        )
        labels = np.repeat(np.arange(10), 200)
        x_train, x_test = standardise(originals[view][train], originals[view][test])
        exact = model.fit(x_train, labels[train]).score(x_test, labels[test])
        assert abs(mine - exact) <= 0.01, view
        assert exact > 0.65, view


def test_views_keep_the_order_asked_for() -> None:
    splits = dataset(views=["karhunen", "fourier"]).load("few", 0)
    assert list(splits.modalities) == list(splits.train.inputs) == ["karhunen", "fourier"]
    assert splits.modalities["karhunen"].shape == (64,)


def test_views_may_be_written_as_words() -> None:
    assert dataset(views="pixels,zernike").config.views == ["pixels", "zernike"]


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (["fourir"], "unknown view 'fourir': did you mean fourier"),
        ([], "name at least one view"),
        (["pixels", "pixels"], "a view is named twice"),
        (["profile_correlations"], "profile_correlations is not in the package"),
    ],
)
def test_views_that_cannot_be_had_are_refused(views: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message) as raised:
        dataset(views=views)
    assert "\n" not in str(raised.value)


def test_a_source_gives_all_six_views_exactly(uci: Path) -> None:
    splits = dataset(views=list(FILES), source=str(uci)).load("few", 0)
    assert [m.shape for m in splits.modalities.values()] == [(c,) for _, c in FILES.values()]
    rows = [int(i[-4:]) for i in splits.train.ids]
    counts = np.loadtxt(uci / "mfeat-fac")[rows]
    (expected,) = standardise(counts)
    np.testing.assert_array_equal(array(splits.train.inputs["profile_correlations"]), expected)


def test_verify_accepts_a_whole_folder(uci: Path) -> None:
    found = dataset().verify(uci)
    assert found.usable
    assert not found.problems
    assert found.counts == {f"{name} rows": 2000 for name, _ in FILES.values()}


def test_each_damage_to_a_source_is_named(uci: Path, tmp_path: Path) -> None:
    lines = (uci / "mfeat-mor").read_text().splitlines()
    damages = {
        "": "is empty",
        "\n".join(lines[:-1]): "there are 1999 lines instead of 2000",
        "\n".join([*lines[:4], "1 2 3", *lines[5:]]): "line 5 has 3 columns instead of 6",
        "\n".join([*lines[:7], "1 2 x 4 5 6", *lines[8:]]): "line 8 holds 'x'",
        "\n".join([*lines[:7], "1 2 nan 4 5 6", *lines[8:]]): "line 8 holds 'nan'",
        "<!DOCTYPE html><title>404</title>": "is a web page",
    }
    for text, message in damages.items():
        (tmp_path / "mfeat-mor").write_text(text)
        with pytest.raises(DataError, match=f"mfeat-mor.*{message}.*; ") as raised:
            dataset(views=["morphological"], source=str(tmp_path)).load("few", 0)
        assert "\n" not in str(raised.value)


def test_verify_lists_every_problem(uci: Path, tmp_path: Path) -> None:
    lines = (uci / "mfeat-mor").read_text().splitlines()
    (tmp_path / "mfeat-mor").write_text("\n".join(reversed(lines)))
    (tmp_path / "mfeat-fou").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    found = dataset().verify(tmp_path)
    assert not found.usable
    assert found.counts == {"mfeat-mor rows": 2000}
    what = {Path(problem.path).name: problem.what for problem in found.problems}
    assert what.keys() == {name for name, _ in FILES.values()}
    assert what["mfeat-mor"] == "does not hold UCI's values in UCI's order"
    assert what["mfeat-fou"] == "is a git-LFS pointer, not the data"
    assert what["mfeat-zer"] == "does not exist"


def test_an_unknown_protocol_suggests_a_near_one() -> None:
    with pytest.raises(RequestError, match="did you mean full"):
        dataset().load("ful", 0)


def test_the_recipe_is_a_valid_one() -> None:
    from mmbench.config import Recipe

    recipe = validated(Recipe, dataset().recipe("few"), "recipe")
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum) == (60, 64, 0.01, 0.9)


def test_a_damaged_archive_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "mfeat.npz"
    cut.write_bytes(ARCHIVE.read_bytes()[:1000])
    monkeypatch.setattr(mfeat, "ARCHIVE", cut)
    shipped_view.cache_clear()
    with pytest.raises(DataError, match="is cut"):
        dataset().load("few", 0)
    shipped_view.cache_clear()
