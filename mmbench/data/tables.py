"""Columns and arrays out of ``.npz``, ``.npy``, ``.csv`` and ``.parquet`` files.

A :class:`Place` says where values stand; :func:`read_numbers` and :func:`read_words` fetch them.
What cannot be used is refused with the file, the column and the row, counted from 1 without the
header.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmbench.data.dataset import Problem
from mmbench.data.files import ZIP_MAGIC, FileError, require_sound
from mmbench.options import Options, option

ARRAY_SUFFIXES = (".npz", ".npy")
TABLE_SUFFIXES = (".csv", ".parquet")
SUFFIXES = ARRAY_SUFFIXES + TABLE_SUFFIXES
NPY_MAGIC = b"\x93NUMPY"
PICKLE_MAGIC = b"\x80"
PARQUET_MAGIC = b"PAR1"
LARGEST_BLOCK = 2**31 - 1
"""Bytes that pyarrow reads of a CSV file at once."""
SHOWN = 8
"""Names listed in a message when none is near the one asked for."""


class Place(Options):
    """Where values stand: a file, and in it an array or columns."""

    file: str | None = option(None, "file with the values: .npz, .npy, .csv or .parquet")
    key: str | None = option(None, "name of the array (.npz)")
    column: str | None = option(None, "name of one column (.csv, .parquet)")
    columns: list[str] | None = option(None, "names of several columns, in this order")
    prefix: str | None = option(None, "all columns whose names start so, in the file's order")
    first: str | None = option(None, "first of a range of neighbouring columns")
    last: str | None = option(None, "last of that range, included")
    may_be_empty: ClassVar[bool] = False
    """Whether texts that are read here may be empty or NaN; they come out empty."""

    def selectors(self) -> dict[str, Any]:
        """Return the settings, other than the file, that are given."""
        names = ("key", "column", "columns", "prefix", "first", "last")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def read_numbers(path: Path, place: Place) -> np.ndarray:
    """Return the values ``(N, ...)`` at a place: integers as stored, anything else as float32.

    A single column gives ``(N, 1)``; a parquet column of lists of D numbers ``(N, D)``.
    Raises :class:`FileError` for files that cannot be read, names that are not in them, and values
    that are not finite numbers.
    """
    _require_selectors(path, place)
    if path.suffix in ARRAY_SUFFIXES:
        values = _read_array(path, place.key)
        if values.dtype.kind not in "biuf":
            what = f"{_array_name(place)} is not numeric: its type is {values.dtype}"
            raise _fault(path, what, "features must be integers or floats")
        if values.ndim == 0:
            raise _fault(path, f"{_array_name(place)} is a single number", "give a value a row")
        names: Sequence[str] = ()
    else:
        values, names = _read_numeric_columns(path, place)
    if len(values) == 0:
        raise _fault(path, "holds no rows", "write it again")
    if values.ndim == 1:
        values = values[:, None]
    return _usable(path, place, values, names)


def read_words(path: Path, place: Place) -> np.ndarray:
    """Return a text per row ``(N,)`` from a one-dimensional array or one column.

    Whole numbers are written without a fraction, and blanks around words are dropped. Raises
    :class:`FileError` as :func:`read_numbers` does, and for an empty or NaN cell where the place
    does not allow it.
    """
    _require_selectors(path, place)
    if path.suffix in ARRAY_SUFFIXES:
        where = _array_name(place)
        values = _read_array(path, place.key)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            mend = "give one value a row (of one-hot rows, their argmax)"
            raise _fault(path, f"{where} has shape {values.shape}", mend)
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "replace")
        if values.dtype.kind not in "biufU":
            what = f"{where} holds neither words nor numbers: its type is {values.dtype}"
            raise _fault(path, what, "save it as text or integers")
    else:
        if place.column is None:
            given = ", ".join(place.selectors())
            raise _fault(path, f"one column is needed, not {given}", "write column: NAME")
        where = f"column '{place.column}'"
        values = _read_text_column(path, place.column)
    if len(values) == 0:
        raise _fault(path, "holds no rows", "write it again")
    return _words(path, where, values, place.may_be_empty)


# -- what is asked for ---------------------------------------------------------------------------


def _require_selectors(path: Path, place: Place) -> None:
    """Raise unless the file is there and the settings suit its format."""
    if path.suffix not in SUFFIXES:
        what = f"its name does not end in one of {' '.join(SUFFIXES)}"
        raise _fault(path, what, "convert it, for instance with numpy.savez")
    require_sound(path)
    given = place.selectors()
    allowed = {".npz": {"key"}, ".npy": set[str]()}.get(path.suffix, set(given) - {"key"})
    if unused := [name for name in given if name not in allowed]:
        raise _fault(path, f"{unused[0]} is not used for {path.suffix} files", "leave it out")
    if path.suffix in TABLE_SUFFIXES:
        kinds = {"range" if name in ("first", "last") else name for name in given}
        if len(kinds) != 1:
            what = f"{' and '.join(sorted(kinds))} are given" if kinds else "no column is named"
            raise _fault(path, what, "give one of column, columns, prefix, first with last")
        if ("first" in given) != ("last" in given):
            raise _fault(path, "a range needs both first and last", "add the other")


def _selected(path: Path, place: Place, known: Sequence[str]) -> list[str]:
    """Return the columns that a place names, in its order."""
    if place.prefix is not None:
        found = [name for name in known if name.startswith(place.prefix)]
        if not found:
            raise _lacks(path, "column that starts with", place.prefix, known)
        return found
    if place.first is not None and place.last is not None:
        for name in (place.first, place.last):
            if name not in known:
                raise _lacks(path, "column", name, known)
        start, end = known.index(place.first), known.index(place.last)
        if end < start:
            what = f"column '{place.last}' stands before '{place.first}'"
            raise _fault(path, what, "swap first and last")
        return list(known[start : end + 1])
    wanted = [place.column] if place.column is not None else list(place.columns or [])
    if not wanted:
        raise _fault(path, "columns is an empty list", "name at least one")
    for name in wanted:
        if name not in known:
            raise _lacks(path, "column", name, known)
        if wanted.count(name) > 1:
            raise _fault(path, f"column '{name}' is named twice", "name it once")
    return wanted


def column_names(path: Path, place: Place) -> list[str]:
    """Return the columns that a place names in a table; none for ``.npz`` and ``.npy``."""
    if path.suffix in ARRAY_SUFFIXES:
        return []
    return _selected(path, place, _header(path))


# -- arrays --------------------------------------------------------------------------------------


def _array_name(place: Place) -> str:
    return f"array '{place.key}'" if place.key is not None else "its array"


def _read_array(path: Path, key: str | None) -> np.ndarray:
    """Return an array of an ``.npz`` or ``.npy`` file, never unpickling anything."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(PICKLE_MAGIC):
        what = "is a Python pickle, which can run any code when it is loaded"
        raise _fault(path, what, "save its arrays with numpy.savez")
    if not head.startswith(ZIP_MAGIC if path.suffix == ".npz" else NPY_MAGIC):
        raise _fault(path, f"is not a {path.suffix} file", "write it with numpy again")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            array: np.ndarray = loaded[_key(path, key, loaded.files)]
            return array
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, FileError):
            raise
        if "Object arrays" in str(error):
            name = f"array '{key}'" if key else "its array"
            what = f"{name} holds Python objects (a pickle, which is refused)"
            mend = "save it as numbers or text, for instance with array.astype(float)"
            raise _fault(path, what, mend) from error
        raise _fault(path, "is cut or damaged", "download or write it again") from error


def _key(path: Path, key: str | None, known: Sequence[str]) -> str:
    if key is None:
        if len(known) == 1:
            return known[0]
        what = f"holds {len(known)} arrays ({_some(known)})"
        raise _fault(path, what, "name one with key")
    if key not in known:
        raise _lacks(path, "array", key, known)
    return key


# -- tables --------------------------------------------------------------------------------------
# pyarrow is untyped: what it returns is Any.


def _header(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return list(_open_parquet(path).schema_arrow.names)
    with path.open("rb") as file:
        if b"\0" in file.read(4096):
            raise _fault(path, "is not text", "export the table as CSV in UTF-8")
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            return [name.strip() for name in next(csv.reader(text), [])]
    except UnicodeDecodeError as error:
        raise _fault(path, "is not UTF-8 text", "save it as UTF-8") from error
    except csv.Error as error:
        raise _fault(path, f"is not a table: {error}", "export it as CSV again") from error


def _read_table(path: Path, header: list[str], names: list[str], as_text: bool = False) -> Any:
    """Return a pyarrow table of the named columns; ``as_text`` keeps the cells of a CSV file."""
    for name in names:
        if header.count(name) > 1:
            raise _fault(path, f"column '{name}' stands twice in the header", "rename one")
    return (
        _read_csv(path, header, names, as_text)
        if path.suffix == ".csv"
        else _read_parquet(path, names)
    )


def _read_csv(path: Path, header: list[str], names: list[str], as_text: bool) -> Any:
    """Rows with more or fewer cells than the header are refused, not cut or filled up. The file is
    read in one block, so that the type of a column is decided by all of its cells."""
    import pyarrow
    from pyarrow import csv as arrow_csv

    block = min(path.stat().st_size + 1, LARGEST_BLOCK)
    types = {name: pyarrow.string() for name in names} if as_text else None
    try:
        return arrow_csv.read_csv(
            path,
            arrow_csv.ReadOptions(
                use_threads=False, block_size=block, column_names=header, skip_rows=1
            ),
            arrow_csv.ParseOptions(newlines_in_values=True),
            arrow_csv.ConvertOptions(include_columns=names, column_types=types),
        )
    except pyarrow.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise _fault(path, "is not UTF-8 text", "save it as UTF-8") from error
        if "Empty CSV" in str(error):
            raise _fault(path, "holds no rows", "write it again") from error
        reason = " ".join(str(error).split()).removeprefix("CSV parse error: ")[:120]
        mend = "give every row the cells of the header, and quote those with a comma"
        raise _fault(path, f"is not a regular table: {reason}", mend) from error


def _open_parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    with path.open("rb") as file:
        if file.read(4) != PARQUET_MAGIC:
            raise _fault(path, "is not a .parquet file", "write it again")
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _fault(path, "is cut or damaged", "download or write it again") from error


def _read_parquet(path: Path, names: list[str]) -> Any:
    import pyarrow

    try:
        return _open_parquet(path).read(columns=names)
    except (pyarrow.ArrowException, OSError) as error:
        raise _fault(path, "is cut or damaged", "download or write it again") from error


def _read_numeric_columns(path: Path, place: Place) -> tuple[np.ndarray, list[str]]:
    """Return the values ``(N, D)`` of columns, empty cells as NaN, and the columns' names."""
    from pyarrow import float64, types

    header = _header(path)
    names = _selected(path, place, header)
    table = _read_table(path, header, names)
    columns = {name: table.column(name) for name in names}
    if len(names) == 1 and _holds_lists(columns[names[0]].type):
        return _stacked(path, names[0], columns[names[0]]), []
    for name, column in columns.items():
        checks = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
        is_empty = types.is_null(column.type)
        if not is_empty and not any(check(column.type) for check in checks):
            raise _not_numeric(path, name, column)
    if all(types.is_integer(column.type) and not column.null_count for column in columns.values()):
        return np.stack([column.to_numpy() for column in columns.values()], axis=1), names
    floats = [column.cast(float64()).to_numpy() for column in columns.values()]
    return np.stack(floats, axis=1), names


def _not_numeric(path: Path, name: str, column: Any) -> FileError:
    for row, cell in enumerate(column.to_pylist(), start=1):
        if isinstance(cell, str) and not is_number(cell):
            what = f"column '{name}', row {row} holds '{cell[:40]}', not a number"
            return _fault(path, what, "correct the cell or leave the column out")
    what = f"column '{name}' is not numeric: its type is {column.type}"
    return _fault(path, what, "convert it to numbers or leave it out")


def is_number(text: str) -> bool:
    """Say whether a text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _holds_lists(kind: Any) -> bool:
    from pyarrow import types

    checks = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in checks)


def _stacked(path: Path, name: str, column: Any) -> np.ndarray:
    """Return a column of lists as one array ``(N, D)``."""
    rows = [() if cell is None else cell for cell in column.to_numpy()]
    lengths = np.array([len(cell) for cell in rows])
    if len(odd := np.flatnonzero(lengths != lengths[:1])):
        row = int(odd[0])
        what = f"column '{name}', row {row + 1} has {lengths[row]} values, row 1 has {lengths[0]}"
        raise _fault(path, what, "pad or cut the lists to one length")
    values = np.stack([np.asarray(cell) for cell in rows]) if rows else np.empty((0, 0))
    if values.dtype.kind not in "biuf":
        raise _fault(path, f"column '{name}' holds lists of {values.dtype}", "make them numbers")
    return values


def _read_text_column(path: Path, name: str) -> np.ndarray:
    header = _header(path)
    if name not in header:
        raise _lacks(path, "column", name, header)
    column = _read_table(path, header, [name], as_text=True).column(0)
    cells = np.array(["" if cell is None else cell for cell in column.to_pylist()], dtype=object)
    if all(isinstance(cell, int | float) for cell in cells):
        numbers: np.ndarray = np.array(cells.tolist())
        return numbers
    return cells


# -- values --------------------------------------------------------------------------------------


def _words(path: Path, where: str, values: np.ndarray, may_be_empty: bool) -> np.ndarray:
    if values.dtype.kind == "f" and (values[np.isfinite(values)] % 1 == 0).all():
        texts = [str(int(x)) if np.isfinite(x) else str(x) for x in values]
    else:
        texts = [str(x).strip() for x in values]
    if may_be_empty:
        return np.array(["" if text.lower() == "nan" else text for text in texts])
    infinite = np.isinf(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    for row, text in enumerate(texts, start=1):
        if text.lower() in ("", "nan") or infinite[row - 1]:
            what = f"{where}, row {row} is {'infinite' if infinite[row - 1] else 'empty or NaN'}"
            raise _fault(path, what, "fill it in or leave the row out of every file")
    return np.array(texts)


def _usable(path: Path, place: Place, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return integers as they are and floats as float32, all of them finite."""
    if values.dtype.kind in "iu":
        return values
    with np.errstate(over="ignore"):
        numbers: np.ndarray = values.astype(np.float32)
    bad = ~np.isfinite(numbers)
    if bad.any():
        row, *rest = (int(axis[0]) for axis in np.nonzero(bad))
        where = f"column '{names[rest[0]]}'" if names else _where(place)
        what = f"{where}, row {row + 1} is empty, NaN or infinite"
        raise _fault(path, what, "fill it in, or leave the row out of every file")
    return numbers


def _where(place: Place) -> str:
    return f"column '{place.column}'" if place.column is not None else _array_name(place)


def _lacks(path: Path, kind: str, name: str, known: Sequence[str]) -> FileError:
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    mend = f"did you mean {' or '.join(near)}?" if near else f"it has {_some(known)}"
    return _fault(path, f"has no {kind} '{name}'", mend)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[:40] for name in names[:SHOWN]) + more if names else "none"


def _fault(path: Path, what: str, mend: str) -> FileError:
    return FileError(Problem(str(path), " ".join(what.split()), mend))
