"""Pickles: what is let through, and that nothing else is run."""

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbench.data.files import FileError
from mmbench.data.pickles import load_pickle

HELD: dict[Any, Any] = {
    "matrix": np.arange(12.0).reshape(3, 4),
    "by columns": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    "of another machine": np.arange(5, dtype=">i4"),
    "without rows": np.empty((0, 3)),
    "a number": np.array(5),
    "truths": np.array([True, False]),
    "words": np.array(["abc", "d"]),
    "bytes": np.array([b"abc", b"d"]),
    "scalar": np.float32(3.5),
    "text scalar": np.str_("x"),
    "plain": [1, 2.5, "three", None, True, b"\xff", b"", (1,), {2}, frozenset({3})],
    "ordered": OrderedDict(a=1, b=2),
    7: {"nested": [np.arange(3)]},
}
PROTOCOLS = range(6)


class Calls:
    """What pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Stateful:
    """What pickles as an object that is given attributes."""

    def __init__(self) -> None:
        self.x = 1


class Reading(np.ndarray):
    """An array of a class of its own."""


def pickled(folder: Path, value: Any, protocol: int | None = None) -> Path:
    path = folder / "data.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def is_same(held: Any, loaded: Any) -> bool:
    if isinstance(held, np.ndarray):
        # Numpy itself gives arrays of another byte order back in that of this machine.
        same_type = held.dtype.newbyteorder("=") == loaded.dtype.newbyteorder("=")
        return type(loaded) is np.ndarray and same_type and np.array_equal(held, loaded)
    if isinstance(held, dict):
        return held.keys() == loaded.keys() and all(is_same(held[k], loaded[k]) for k in held)
    if isinstance(held, list):
        return len(held) == len(loaded) and all(map(is_same, held, loaded))
    return type(held) is type(loaded) and bool(held == loaded)


# -- what is let through ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_plain_values_come_back_as_they_were(protocol: int, tmp_path: Path) -> None:
    loaded = load_pickle(pickled(tmp_path, HELD, protocol))
    assert isinstance(loaded, dict)
    assert loaded.keys() == HELD.keys()
    for name, value in HELD.items():
        assert is_same(value, loaded[name]), name


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_names_of_numpy_1_and_of_numpy_2_are_known(protocol: int, tmp_path: Path) -> None:
    for old, new in (("numpy.core", "numpy._core"), ("numpy._core", "numpy.core")):
        content = pickle.dumps([np.arange(300.0), np.float64(2)], protocol)
        if protocol < 4:  # the name stands between "c" and a line feed
            content = content.replace(old.encode(), new.encode())
        else:
            for module in ("multiarray", "numeric"):
                before, after = (f"{name}.{module}".encode() for name in (old, new))
                content = content.replace(
                    bytes([len(before)]) + before, bytes([len(after)]) + after
                )
        path = tmp_path / "data.pkl"
        path.write_bytes(_unframed(content))
        loaded = load_pickle(path)
        assert isinstance(loaded, list)
        assert loaded[0].tolist() == list(range(300))
        assert loaded[1] == 2


def _unframed(content: bytes) -> bytes:
    """Return a pickle of protocol 4 or 5 without its outer frame, whose length no longer holds."""
    return content[:2] + content[11:] if content[2:3] == pickle.FRAME else content


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_object_arrays_of_allowed_values_come_back(protocol: int, tmp_path: Path) -> None:
    held = np.array(["text", {1, 2}, None, np.arange(3)], dtype=object)
    loaded = load_pickle(pickled(tmp_path, held, protocol))
    assert isinstance(loaded, np.ndarray)
    assert loaded.dtype == object
    assert loaded[:3].tolist() == ["text", {1, 2}, None]
    assert loaded[3].tolist() == [0, 1, 2]


def python_2_pickle() -> bytes:
    """A pickle as Python 2.7 and numpy 1 write it (protocol 2) of ``{'caf\\xe9': array, 'names':
    set(['a'])}``: what is text there is a byte string."""

    def text(content: bytes) -> bytes:
        return b"U" + bytes([len(content)]) + content

    raw = struct.pack("<3f", 1.0, 2.0, -0.5)
    dtype = b"cnumpy\ndtype\n" + text(b"f4") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b")
    array += b"\x87R(K\x01K\x03\x85" + dtype + b"\x89" + text(raw) + b"tb"
    names = b"c__builtin__\nset\n]" + text(b"a") + b"a\x85R"
    return b"\x80\x02}" + text(b"caf\xe9") + array + b"s" + text(b"names") + names + b"s."


def test_a_pickle_of_python_2_has_text_or_bytes_for_keys(tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(python_2_pickle())
    as_text = load_pickle(path)
    as_bytes = load_pickle(path, encoding="bytes")
    assert isinstance(as_text, dict)
    assert isinstance(as_bytes, dict)
    assert [*as_text] == ["caf\xe9", "names"]
    assert [*as_bytes] == [b"caf\xe9", b"names"]
    assert as_text["caf\xe9"].tolist() == as_bytes[b"caf\xe9"].tolist() == [1.0, 2.0, -0.5]
    assert (as_text["names"], as_bytes[b"names"]) == ({"a"}, {b"a"})


# -- what is not -----------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(FileError) as caught:
        load_pickle(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_command_in_a_pickle_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    malicious = Calls(os.system, f"touch '{mark}'")
    hidden = np.array([1, malicious], dtype=object)
    for value in (malicious, {"text": [malicious]}, hidden):
        path = pickled(tmp_path, value, protocol)
        message = refusal(path)
        assert "asks for posix.system" in message or "asks for nt.system" in message
        assert "can run any code" in message
        assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # the pickle does run it where nothing forbids it


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (Calls(eval, "1 + 1"), "asks for builtins.eval"),
        (Calls(getattr, "a", "upper"), "asks for builtins.getattr"),
        (Stateful(), "asks for "),
        (torch.ones(2), "asks for torch."),
        (np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), "an array of records"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "dtype 'M8'"),
        (np.arange(3).view(Reading), "asks for "),
    ],
)
def test_all_else_is_refused_by_name(value: Any, what: str, tmp_path: Path) -> None:
    assert what in refusal(pickled(tmp_path, value, 2)).replace("__builtin__", "builtins")


CODECS = b"c_codecs\nencode\n"
OBJECTS = b"cnumpy\ndtype\n(S'O8'\ntR(K\x03S'|'\nNNNK\x08K\x01K\x00tb"
"""The dtype of objects, whose flags say that it is none."""
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00S'b'\ntR"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (CODECS + b"(S'x'\nS'zlib'\ntR.", "asks for the codec 'zlib'"),
        (EMPTY + b"(K\x01K\x01\x85" + OBJECTS + b"\x89S'AAAAAAAA'\ntb.", "addresses of objects"),
        (
            b"cnumpy.core.multiarray\nscalar\n(" + OBJECTS + b"S'AAAAAAAA'\ntR.",
            "addresses of objects",
        ),
        (b"cnumpy\ndtype\n(S'V8'\ntRp0\n0cnumpy.core.multiarray\nscalar\n(g0\nS''\ntR.", "'V8'"),
        (
            b"cnumpy\ndtype\n(S'(2,)f4,O'\ntRp0\n0cnumpy.core.multiarray\nscalar\n(g0\nS''\ntR.",
            "f4,O",
        ),
        (b"\x80\x04\x8c\x02o\n\x8c\x06system\x93.", "asks for o?.system"),
        (b"c__builtin__\nset\n(tR(K\x01tb.", "changes the inside of a set"),
        (
            b"cnumpy.core.numeric\n_frombuffer\n("
            + EMPTY
            + b"cnumpy\ndtype\n(S'i1'\ntRK\x00\x85S'C'\ntR.",
            "memory of a ndarray",
        ),
    ],
)
def test_what_is_let_through_cannot_be_turned_against_numpy(
    content: bytes, what: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(content)
    assert what in refusal(path)


def test_every_way_to_cut_a_pickle_is_found(tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    for protocol in PROTOCOLS:
        whole = pickle.dumps({"x": np.arange(3.0), 7: ["a"]}, protocol)
        for length in range(1, len(whole)):
            path.write_bytes(whole[:length])
            assert "is no Python pickle, or is cut or damaged" in refusal(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"PK\x03\x04" + bytes(50), "zip archive"),
        (b"some words, no pickle", "is no Python pickle"),
        (b"\x80\x05" + bytes(range(256)), "is no Python pickle"),
        (
            b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
            "is damaged, or takes more memory than there is (13 bytes)",
        ),
        (b"\x80\xff.", "is no Python pickle"),
    ],
)
def test_what_is_no_pickle_is_said_to_be_none(content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(content)
    assert what in refusal(path)
    assert "does not exist" in refusal(tmp_path / "nowhere.pkl")


def test_a_compressed_pickle_is_to_be_unpacked(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "data.pkl"
    path.write_bytes(gzip.compress(pickle.dumps([1])))
    assert "is a compressed file or an archive" in refusal(path)
