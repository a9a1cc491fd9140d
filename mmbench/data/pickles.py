"""Pickles of numpy arrays and plain values, read without running what else a pickle can ask for.

A pickle is a program: a file from anywhere can have Python call any function when it is loaded.
Here only the names in :data:`ALLOWED` are let through, each as a function of this module that does
no more than arrays need, and only arrays are given a state. All else is refused by name.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np

from mmbench.data.files import GZIP_MAGIC, ZIP_MAGIC, FileError, require_sound
from mmbench.data.problem import Problem

Encoding = Literal["latin1", "bytes", "utf-8"]
"""How the byte strings of Python 2 are read; pickles of Python 3 say it themselves."""
CODE = re.compile(r"[<>|=]?([biufcSUO][0-9]*|\?)")
"""Dtypes of arrays: numbers, text, and objects, which are then of what is allowed here."""
DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    OverflowError,
    AssertionError,
    SystemError,
)
"""What Python raises for bytes that are no pickle, or only the beginning of one."""


def load_pickle(path: Path, encoding: Encoding = "latin1") -> object:
    """Return what a pickle holds: numbers, text, bytes, lists, tuples, sets, dicts and arrays.

    Files of Python 2 and 3, of numpy 1 and 2 and of protocols 0 to 5 are read; with ``bytes`` the
    strings of Python 2, keys of dicts among them, stay bytes. Nothing in the file is run.

    Raises :class:`FileError` for what :func:`mmbench.data.files.inspect` refuses, for a pickle
    that asks for anything else, and for one that is cut or damaged.
    """
    require_sound(path)
    with path.open("rb") as file:
        head = file.read(len(ZIP_MAGIC))
        if head.startswith(GZIP_MAGIC) or head == ZIP_MAGIC:
            what = "is a compressed file or an archive, not a Python pickle"
            raise FileError(Problem(str(path), what, "unpack it, or download the pickle itself"))
        file.seek(0)
        try:
            return Restricted(file, encoding).load()
        except Refused as error:
            what = f"{error}; it is not loaded, as a pickle can run any code"
            mend = (
                "download the original again; if this is it and you trust it, load it yourself and "
                "save its contents as numpy arrays and plain values"
            )
            raise FileError(Problem(str(path), what, mend)) from error
        except MemoryError as error:
            # A damaged length can ask for any amount, and a whole file for no less than its size.
            what = f"is damaged, or takes more memory than there is ({path.stat().st_size:,} bytes)"
            mend = "use a machine with more memory than that, or download it again"
            raise FileError(Problem(str(path), what, mend)) from error
        except DAMAGED as error:
            what = "is no Python pickle, or is cut or damaged"
            raise FileError(Problem(str(path), what, "download it again")) from error


class Refused(Exception):
    """A pickle asks for something that is not let through. Says what, to follow a file's name."""


class Description:
    """A dtype as a pickle gives it, before anything is made of it: numpy believes all that a pickle
    says of a dtype, even that bytes of the file are the addresses of objects."""

    def __init__(self, code: str | bytes, align: object = False, copy: object = False) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "="

    def describe(self, state: tuple[Any, ...]) -> None:
        """Take the byte order of a state ``(version, order, subarray, names, fields, ...)``."""
        _, order, *composed = state[:5]
        if any(part is not None for part in composed):
            raise Refused("holds an array of records")
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def dtype(self) -> np.dtype[Any]:
        """Return the dtype. Raises :class:`Refused` for one that :data:`CODE` does not match."""
        if not CODE.fullmatch(self.code):
            raise Refused(f"holds an array of dtype '{_printable(self.code)}'")
        found = np.dtype(self.code)
        if self.order == "<":
            return found.newbyteorder("<")
        return found.newbyteorder(">") if self.order == ">" else found


class ArrayClass:
    """Stands for ``numpy.ndarray``, which is not to be called."""


def _reconstruct(kind: object, shape: object, code: object) -> np.ndarray:
    """Return an array that is to be given its state."""
    if kind is not ArrayClass:
        raise Refused("holds an array of another class than numpy.ndarray")
    return np.empty(0, np.int8)


def _from_buffer(
    buffer: bytes | bytearray, description: Description, shape: tuple[int, ...], order: str
) -> np.ndarray:
    """Return the array of a pickle of protocol 5."""
    dtype = _flat(description)
    if not isinstance(buffer, bytes | bytearray):
        raise Refused(f"makes an array of the memory of a {type(buffer).__name__}")
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(description: Description, content: bytes | str) -> Any:
    """Return a number of a numpy type; text is the byte string of Python 2, read as latin1."""
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype=_flat(description), count=1)[0]


def _flat(description: Description) -> np.dtype[Any]:
    dtype = description.dtype()
    if dtype.hasobject:
        raise Refused("takes bytes for the addresses of objects")
    return dtype


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes that a pickle of Python 3 holds as text for the sake of Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"asks for the codec '{_printable(encoding)}'")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _printable(name: str) -> str:
    """Return the beginning of a name from a file, fit for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:80])


BUILTINS: dict[str, Callable[..., Any]] = {
    "set": set,
    "frozenset": frozenset,
    "bytes": _no_bytes,
}
ARRAYS: dict[str, Callable[..., Any]] = {"_reconstruct": _reconstruct, "scalar": _scalar}
ALLOWED: dict[str, dict[str, Callable[..., Any]]] = {
    "numpy": {"ndarray": ArrayClass, "dtype": Description},
    "numpy.core.multiarray": ARRAYS,
    "numpy._core.multiarray": ARRAYS,
    "numpy.core.numeric": {"_frombuffer": _from_buffer},
    "numpy._core.numeric": {"_frombuffer": _from_buffer},
    "builtins": BUILTINS,
    "__builtin__": BUILTINS,
    "_codecs": {"encode": _encode},
    "collections": {"OrderedDict": OrderedDict},
}
"""What a pickle may ask for by module and name, and what it is given. ``numpy.core`` is of numpy 1,
``numpy._core`` of numpy 2, ``__builtin__`` of Python 2."""


class Restricted(pickle._Unpickler):
    """Python's unpickler (the one written in Python, whose steps can be replaced), with the names
    of :data:`ALLOWED` alone."""

    def __init__(self, file: BinaryIO, encoding: Encoding) -> None:
        super().__init__(file, encoding=encoding)
        self.file = file
        self.proto: int
        self.stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        known = ALLOWED.get(module, {})
        if name in known:
            return known[name]
        if self.proto < 4 and not self.file.read(1):
            raise EOFError  # a name ends its line, and something has to follow
        raise Refused(f"asks for {_printable(f'{module}.{name}')}")

    def load_build(self) -> None:
        """Give the object on the stack its state, if it is a dtype or an array that has none."""
        state = self.stack.pop()
        built = self.stack[-1]
        if isinstance(built, Description):
            built.describe(state)
        elif isinstance(built, np.ndarray) and built.size == 0:
            version, shape, description, is_fortran, raw = state
            dtype = description.dtype()
            if dtype.hasobject != isinstance(raw, list):
                raise Refused("takes bytes for the addresses of objects")
            built.__setstate__((version, shape, dtype, is_fortran, raw))
        else:
            raise Refused(f"changes the inside of a {type(built).__name__}")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
    }
