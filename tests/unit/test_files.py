"""Files as users have them, standardised features, and columns out of tables."""

import errno
import gzip
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.preprocessing import StandardScaler

from mmbench.data.files import (
    cache_root,
    file_sha256,
    inspect,
    require_sound,
    write_atomically,
)
from mmbench.data.standardise import standardise
from mmbench.data.tables import Place, read_numbers, read_words
from mmbench.errors import DataError


def archive_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(1000))
    return buffer.getvalue()


SOUND = {
    "a.csv": b"a,b\n1,2\n",
    "a.gz": gzip.compress(b"digits" * 1000),
    "a.npz": archive_bytes(),
    "data.xml": b"<?xml version='1.0'?><annotations/>",
}
UNSOUND = {
    "empty.csv": (b"", "is empty", "again"),
    "pointer.npz": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
        "git-LFS pointer",
        "git lfs pull",
    ),
    "page.npz": (b"\n <!DOCTYPE HTML><html><body>Not found", "web page", "the file itself"),
    "page.csv": (b"\xef\xbb\xbf<html lang=en>", "web page", "the file itself"),
    "denied.zip": (
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "web page",
        "the file itself",
    ),
    "cut.gz": (gzip.compress(np.random.default_rng(0).bytes(5000))[:-900], "is cut", "again"),
    "odd.gz": (SOUND["a.gz"][:-8] + b"\0" * 8, "is damaged", "again"),
    "cut.npz": (SOUND["a.npz"][:-200], "is cut", "again"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_files_pass(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SOUND[name])
    assert inspect(tmp_path / name) is None


@pytest.mark.parametrize("name", UNSOUND)
def test_impostors_are_told_by_their_content(tmp_path: Path, name: str) -> None:
    content, what, mend = UNSOUND[name]
    path = tmp_path / name
    path.write_bytes(content)
    problem = inspect(path)
    assert problem is not None
    assert problem.path == str(path)
    assert what in problem.what
    assert mend in problem.mend
    with pytest.raises(DataError) as raised:
        require_sound(path)
    assert str(raised.value) == f"{path}: {problem.what}; {problem.mend}"


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        require_sound(tmp_path / "none.csv")
    with pytest.raises(DataError, match="is a folder"):
        require_sound(tmp_path)


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes((1 << 20) + 17)
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x.npy"
    with write_atomically(target) as temporary:
        assert temporary.suffix == ".npy"
        np.save(temporary, np.arange(3))
        assert not target.exists()
    assert np.load(target).tolist() == [0, 1, 2]
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")

    def fail_half_way() -> None:
        with write_atomically(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    with (
        pytest.raises(
            DataError, match=r"cannot write .*x\.txt: no space left; free some"
        ) as raised,
        write_atomically(tmp_path / "x.txt"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "\n" not in str(raised.value)


def test_a_place_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(DataError, match=r"cannot write .*MMBENCH_CACHE"),
        write_atomically(tmp_path / "file" / "x.txt") as temporary,
    ):
        temporary.write_text("x")


def test_errors_about_other_files_keep_their_meaning(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_atomically(tmp_path / "x.txt"):
        (tmp_path / "source.txt").read_text()


def test_the_cache_follows_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MMBENCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == Path.home() / ".cache" / "mmbench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "mmbench"
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


# -- standardised features -----------------------------------------------------------------------

features = arrays(
    np.float32,
    st.tuples(st.integers(2, 20), st.just(3)),
    elements=st.floats(-100, 100, width=32).map(lambda x: round(x, 2)),
)


@settings(max_examples=40, deadline=None)
@given(train=features, test=features)
def test_features_are_scaled_as_scikit_learn_does(train: np.ndarray, test: np.ndarray) -> None:
    varies = train.max(axis=0) > train.min(axis=0)
    scaler = StandardScaler().fit(train.astype(np.float64))
    mine = standardise(train, test)
    for got, raw in zip(mine, (train, test), strict=True):
        assert got.dtype == np.float32
        expected = scaler.transform(raw.astype(np.float64))
        np.testing.assert_allclose(got[:, varies], expected[:, varies], rtol=1e-4, atol=1e-4)
        assert not got[:, ~varies].any()


def test_a_feature_constant_in_training_is_zero_not_nan() -> None:
    train, test = standardise(np.full((7, 1), 0.1, dtype=np.float32), np.array([[5.0]]))
    assert not train.any()
    assert not test.any()


# -- numbers and words out of files --------------------------------------------------------------

TABLE = pd.DataFrame(
    {
        "id": ["007", "b", "c"],
        "au_1": [1.5, 2.5, 3.5],
        "au_2": [1, 2, 3],
        "label": [10, 9, 10],
        "au_3": [0.0, 0.0, 1.0],
        "flag": [True, False, True],
    }
)


@pytest.fixture(params=[".csv", ".parquet"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"table{request.param}"
    if path.suffix == ".csv":
        TABLE.to_csv(path, index=False)
    else:
        TABLE.to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("place", "columns"),
    [
        (Place(column="au_2"), ["au_2"]),
        (Place(columns=["au_3", "au_1"]), ["au_3", "au_1"]),
        (Place(prefix="au_"), ["au_1", "au_2", "au_3"]),
        (Place(first="au_2", last="au_3"), ["au_2", "label", "au_3"]),
        (Place(columns=["flag", "au_1"]), ["flag", "au_1"]),
    ],
)
def test_columns_are_chosen_in_order(table: Path, place: Place, columns: list[str]) -> None:
    expected = TABLE[columns].to_numpy(dtype=np.float64)
    np.testing.assert_array_equal(read_numbers(table, place), expected)


def test_words_keep_their_leading_zeros_and_integers_have_no_fraction(table: Path) -> None:
    assert read_words(table, Place(column="id")).tolist() == ["007", "b", "c"]
    assert read_words(table, Place(column="label")).tolist() == ["10", "9", "10"]


def test_whole_floats_are_words_without_fraction(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([[1.0], [0.0]]))
    assert read_words(tmp_path / "y.npy", Place()).tolist() == ["1", "0"]
    np.save(tmp_path / "b.npy", np.array([b"a", b"\xc3\xa9"]))
    assert read_words(tmp_path / "b.npy", Place()).tolist() == ["a", "é"]


def test_a_parquet_column_of_lists_is_a_matrix(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"e": [[1.0, 2.0], [3.0, 4.0]]}).to_parquet(path)
    np.testing.assert_array_equal(read_numbers(path, Place(column="e")), [[1, 2], [3, 4]])
    pd.DataFrame({"e": [[1.0, 2.0], [3.0]]}).to_parquet(path)
    with pytest.raises(DataError, match=r"column 'e', row 2 has 1 values, row 1 has 2"):
        read_numbers(path, Place(column="e"))


def test_integers_stay_and_doubles_become_floats(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", i=np.array([[1, 2]], dtype=np.int16), x=np.array([0.5, 1.0]))
    assert read_numbers(tmp_path / "a.npz", Place(key="i")).dtype == np.int16
    x = read_numbers(tmp_path / "a.npz", Place(key="x"))
    assert (x.dtype, x.shape) == (np.dtype(np.float32), (2, 1))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place(column="au_4"), "has no column 'au_4'; did you mean au_"),
        (Place(prefix="mfcc_"), "has no column that starts with 'mfcc_'; it has id, au_1"),
        (Place(column="id"), "column 'id'"),
        (Place(), "no column is named; give one of"),
        (Place(column="au_1", prefix="au_"), "column and prefix are given"),
        (Place(first="au_1"), "a range needs both"),
        (Place(first="au_3", last="au_1"), "column 'au_1' stands before 'au_3'"),
        (Place(first="au_1", last="au_9"), "has no column 'au_9'"),
        (Place(columns=["au_1", "au_1"]), "column 'au_1' is named twice"),
        (Place(columns=[]), "columns is an empty list"),
        (Place(key="x"), "key is not used for"),
    ],
)
def test_columns_that_cannot_be_had_are_named(table: Path, place: Place, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_numbers(table, place)
    assert str(raised.value).startswith(f"{table}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,x\n", "column 'b', row 2 holds 'x', not a number"),
        ("a,b\n1,2\n3,\n", "column 'b', row 2 is empty, NaN or infinite"),
        ("a,b\n1,2\n3\n", "is not a regular table: .*Expected 2 columns, got 1"),
        ("a,b\n1,NA\n3,1\n", "column 'b', row 1 is empty"),
        ("a,b\n,\n,\n", "column 'a', row 1 is empty"),
        ("a,b,a\n1,2,3\n", "column 'a' stands twice in the header"),
        ("a,b\n1,inf\n3,1\n", "column 'b', row 1 is empty, NaN or infinite"),
        ("a,b\n1,1e300\n3,1\n", "column 'b', row 1 is empty, NaN or infinite"),
        ("a,b\n1,2\n1,2,3\n", "is not a regular table"),
        ("a,b\n1,2,3\n1,2,3\n", "is not a regular table"),
        ("a;b\n1;2\n", "has no column 'a'; .*a;b"),
        ("a,b\n", "holds no rows"),
        ("\n\n", "has no column 'a'; it has none"),
        ("a,b\n\0,2\n", "is not text"),
    ],
)
def test_bad_cells_are_named_with_column_and_row(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_numbers(path, Place(columns=["a", "b"]))
    assert "\n" not in str(raised.value)


def test_a_wrong_cell_far_down_a_long_table_is_found(tmp_path: Path) -> None:
    rows = ["1,2"] * 300_000
    rows[270_000] = "1,two"
    (tmp_path / "t.csv").write_text("a,b\n" + "\n".join(rows))
    with pytest.raises(DataError, match="column 'b', row 270001 holds 'two'"):
        read_numbers(tmp_path / "t.csv", Place(column="b"))
    rows[270_000] = "1,2.5"
    (tmp_path / "t.csv").write_text("a,b\n" + "\n".join(rows))
    assert read_numbers(tmp_path / "t.csv", Place(column="b"))[270_000:270_002].tolist() == [
        [2.5],
        [2],
    ]


def test_blanks_after_commas_and_quotes_are_no_part_of_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('\ufeffmood, x\n"a, b", 1.5\n c , 2\n')
    assert read_words(tmp_path / "t.csv", Place(column="mood")).tolist() == ["a, b", "c"]
    assert read_numbers(tmp_path / "t.csv", Place(column="x")).tolist() == [[1.5], [2.0]]


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a\né\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_words(tmp_path / "t.csv", Place(column="a"))


@pytest.mark.parametrize("empty", ["", " ", "nan", "NaN"])
def test_empty_words_are_named_with_their_row(tmp_path: Path, empty: str) -> None:
    (tmp_path / "t.csv").write_text(f"a,b\nx,1\n{empty},1\n")
    with pytest.raises(DataError, match=r"t\.csv: column 'a', row 2 is empty or NaN; fill it in"):
        read_words(tmp_path / "t.csv", Place(column="a"))


def test_nan_among_numeric_words_is_named_too(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="its array, row 2 is empty or NaN"):
        read_words(tmp_path / "y.npy", Place())
    pd.DataFrame({"y": ["a", None]}).to_parquet(tmp_path / "y.parquet")
    with pytest.raises(DataError, match="column 'y', row 2 is empty or NaN"):
        read_words(tmp_path / "y.parquet", Place(column="y"))


def test_words_come_from_one_column(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.eye(3))
    with pytest.raises(DataError, match=r"has shape \(3, 3\).*argmax"):
        read_words(tmp_path / "y.npy", Place())
    (tmp_path / "t.csv").write_text("a,b\nx,1\n")
    with pytest.raises(DataError, match="one column is needed, not prefix"):
        read_words(tmp_path / "t.csv", Place(prefix="a"))


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.mark,))


def test_pickles_are_refused_and_never_run(tmp_path: Path) -> None:
    import pickle

    mark = tmp_path / "mark"
    objects = np.array([Trap(mark)], dtype=object)
    np.savez(tmp_path / "o.npz", x=objects)
    with pytest.raises(DataError, match="array 'x' holds Python objects"):
        read_numbers(tmp_path / "o.npz", Place(key="x"))
    np.save(tmp_path / "o.npy", objects, allow_pickle=True)
    with pytest.raises(DataError, match="its array holds Python objects"):
        read_numbers(tmp_path / "o.npy", Place())
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(DataError, match="is a Python pickle"):
        read_numbers(tmp_path / "p.npy", Place())
    assert not mark.exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place(), r"holds 9 arrays \(one, two, x2, x3, x4, x5, x6, x7 and 1 more\); name one"),
        (Place(key="tow"), "has no array 'tow'; did you mean two"),
        (Place(key="one", column="a"), "column is not used for .npz"),
        (Place(key="one"), "array 'one' is not numeric"),
        (Place(key="two"), "array 'two', row 2 is empty, NaN or infinite"),
    ],
)
def test_arrays_that_cannot_be_had_are_named(tmp_path: Path, place: Place, message: str) -> None:
    others: dict[str, Any] = {f"x{i}": np.arange(3) for i in range(2, 9)}
    two = np.array([[1.0, 2.0], [3.0, np.nan]])
    np.savez(tmp_path / "a.npz", one=np.array(["a"]), two=two, **others)
    with pytest.raises(DataError, match=message):
        read_numbers(tmp_path / "a.npz", place)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_cut_files_are_refused_wherever_they_are_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    values = np.random.default_rng(0).normal(size=(50, 4))
    if suffix == ".npz":
        np.savez_compressed(path, x=values)
    elif suffix == ".npy":
        np.save(path, values)
    else:
        pd.DataFrame(values, columns=list("abcd")).to_parquet(path)
    place = Place(prefix="a") if suffix == ".parquet" else Place()
    whole = path.read_bytes()
    assert len(read_numbers(path, place)) == 50
    for length in range(1, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"is cut|is not a"):
            read_numbers(path, place)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=500))
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(DataError, match="is cut or damaged"):
        read_numbers(path, Place(key="x"))


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not end in one of"):
        read_numbers(tmp_path / "x.mat", Place())
    (tmp_path / "x.npy").write_bytes(b"1,2,3\n")
    with pytest.raises(DataError, match=r"is not a \.npy file"):
        read_numbers(tmp_path / "x.npy", Place())
