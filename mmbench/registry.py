"""Finding methods and datasets by name or by path.

Built-in ones are the files of ``methods/`` and ``datasets/``; other packages add theirs by entry
points; a single file is named by its path. Listing them imports neither the files nor torch: what
they say of themselves is read from their syntax trees.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeVar

from mmbench.errors import RequestError, unknown_name
from mmbench.info import DatasetInfo, MethodInfo

if TYPE_CHECKING:
    from mmbench.data.dataset import Dataset
    from mmbench.train.method import Method

Kind = Literal["method", "dataset"]
T = TypeVar("T")
FOLDERS: dict[Kind, str] = {"method": "methods", "dataset": "datasets"}
"""Folder of the package, and last part of the entry-point group, of each kind."""
INFOS: dict[Kind, type[MethodInfo] | type[DatasetInfo]] = {
    "method": MethodInfo,
    "dataset": DatasetInfo,
}
BUILT_IN = "built-in"


@dataclass(frozen=True)
class Entry:
    """A method or dataset that can be asked for by name."""

    name: str
    kind: Kind
    origin: str
    """``built-in``, ``by path``, or the distribution that brings it, with its version."""
    source: Path | None
    """The file that defines it; None where it cannot be found without importing."""
    target: str
    """What is imported: ``module``, or ``module:Class``; empty for a file given by its path."""


# -- what there is -------------------------------------------------------------------------------


UNAVAILABLE = {
    "ggdm": "a baseline of the IIBalance paper, as far as a digest of it tells; no paper or code "
    "that defines it could be found, and cggm is the nearest documented method",
}
"""Names that people may look for among the methods, and why they are not there."""


def entries(kind: Kind) -> list[Entry]:
    """Return everything registered of a kind, by name, built-in ones first.

    Raises :class:`RequestError` when two bear one name, or the package's links are broken.
    """
    found: dict[str, Entry] = {}
    for entry in [*_built_in(kind), *_third_party(kind)]:
        if (other := found.setdefault(entry.name, entry)) is not entry:
            raise RequestError(
                f"two {FOLDERS[kind]} are named '{entry.name}': {_whereabouts(other)} and "
                f"{_whereabouts(entry)}; rename or uninstall one"
            )
    return list(found.values())


def find(kind: Kind, name: str) -> Entry:
    """Return the entry of a name, in which ``-`` may stand for ``_``, as in kinetics-sounds.
    Raises :class:`RequestError` with near names if there is none."""
    known = {entry.name: entry for entry in entries(kind)}
    registered = registered_name(kind, name)
    if registered not in known:
        raise unknown_entry(kind, name, known)
    return known[registered]


def registered_name(kind: Kind, name: str) -> str:
    """Return the name as it is registered: ``-`` may stand for ``_``. Paths and names that nothing
    is registered by stay as they are."""
    known = {entry.name for entry in entries(kind)}
    module = name.replace("-", "_")
    return module if name not in known and module in known else name


def unknown_entry(what: str, name: str, known: Iterable[str]) -> RequestError:
    """Return the error for a name that is not registered, with the reason where one is known."""
    if name in UNAVAILABLE and name not in known:
        return RequestError(f"{name} is not available: {UNAVAILABLE[name]}")
    return unknown_name(what, name, known)


def folder(kind: Kind) -> Path:
    """Return the folder of the built-in files of a kind, reached through the package's link.

    Raises :class:`RequestError` where git has checked the link out as a text file.
    """
    path = Path(__file__).parent / FOLDERS[kind]
    if not path.is_dir():
        raise RequestError(
            f"{path} is not a folder: this checkout has no symbolic links; run "
            f"`git config core.symlinks true`, then `git checkout -- mmbench/{FOLDERS[kind]}`"
        )
    return path


def _built_in(kind: Kind) -> list[Entry]:
    package = f"mmbench.{FOLDERS[kind]}"
    return [
        Entry(path.stem, kind, BUILT_IN, path, f"{package}.{path.stem}")
        for path in sorted(folder(kind).glob("[!_]*.py"))
    ]


def _third_party(kind: Kind) -> list[Entry]:
    points = entry_points(group=f"mmbench.{FOLDERS[kind]}")
    return [
        Entry(point.name, kind, _distribution(point), _source(point.module), point.value)
        for point in sorted(points, key=lambda point: point.name)
    ]


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _source(module: str) -> Path | None:
    """Return the file of a module. Its parents are located, not imported."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.origin and not rest else None
    for location in spec.submodule_search_locations:
        base = Path(location).joinpath(*rest)
        for path in (base.with_suffix(".py") if rest else base, base / "__init__.py"):
            if path.is_file():
                return path
    return None


def _whereabouts(entry: Entry) -> str:
    return f"{entry.source or entry.target} ({entry.origin})"


# -- what they say of themselves -----------------------------------------------------------------


def summary(entry: Entry) -> MethodInfo | DatasetInfo:
    """Return the ``info`` of a method or dataset, read from its syntax tree.

    Raises :class:`RequestError` when the file cannot be found or parsed, or when its ``info`` is
    not one call with literal values.
    """
    kind = INFOS[entry.kind]
    call = _info_call(entry, kind.__name__)
    values: dict[str, object] = {}
    for keyword in call.keywords:
        try:
            values[keyword.arg or "**"] = ast.literal_eval(keyword.value)
        except ValueError as error:
            raise RequestError(
                f"{entry.source}:{keyword.value.lineno}: '{keyword.arg}' of {kind.__name__} is "
                "worked out when the file runs; write its value as a literal"
            ) from error
    try:
        return kind(**values)  # type: ignore[arg-type]
    except TypeError as error:
        reason = str(error).partition("__init__() ")[2]
        raise RequestError(f"{entry.source}:{call.lineno}: {kind.__name__} {reason}") from error


def docstring(entry: Entry) -> str:
    """Return the docstring of the file: the paper's equations; empty where there is none."""
    return ast.get_docstring(_tree(entry)) or ""


def _info_call(entry: Entry, name: str) -> ast.Call:
    """Return the one call ``name(...)`` that a class of the file assigns to ``info``."""
    for defined in (node for node in _tree(entry).body if isinstance(node, ast.ClassDef)):
        for statement in defined.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id="info")], value=ast.Call() as call):
                    pass
                case ast.AnnAssign(target=ast.Name(id="info"), value=ast.Call() as call):
                    pass
                case _:
                    continue
            if ast.unparse(call.func).rpartition(".")[2] == name:
                return call
    raise RequestError(f"{entry.source}: no class has a line `info = {name}(...)`; add one")


def _tree(entry: Entry) -> ast.Module:
    if entry.source is None:
        raise RequestError(f"{entry.kind} '{entry.name}' of {entry.origin}: its file is not found")
    try:
        return ast.parse(entry.source.read_bytes(), str(entry.source))
    except SyntaxError as error:
        raise RequestError(f"{entry.source}:{error.lineno}: {error.msg}") from error
    except (OSError, ValueError) as error:
        raise RequestError(f"{entry.source} cannot be read: {error}") from error


# -- loading -------------------------------------------------------------------------------------


def load_method(name_or_path: str) -> type[Method]:
    """Return the method of a registered name, or of a path that ends in ``.py``.

    Raises :class:`RequestError` for an unknown name, a file that cannot be imported, or one that
    does not define exactly one method.
    """
    from mmbench.train.method import Method

    return _load("method", name_or_path, Method)


def load_dataset(name_or_path: str) -> type[Dataset]:
    """Return the dataset of a registered name, or of a path that ends in ``.py``.

    Raises :class:`RequestError` as :func:`load_method` does.
    """
    from mmbench.data.dataset import Dataset

    return _load("dataset", name_or_path, Dataset)


def file_hash(loaded: type[Method] | type[Dataset]) -> str | None:
    """Return the SHA-256 of the file that defines a third-party class, in hex digits; None for
    built-in ones, which the version and the git commit identify."""
    module = loaded.__module__
    if module.startswith(tuple(f"mmbench.{name}." for name in FOLDERS.values())):
        return None
    package, _, rest = module.partition(".")
    if package == FILES:
        return rest.partition(".")[0]
    path = sys.modules[module].__file__
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()


def failing_place(error: Exception, loaded: type[Method] | type[Dataset]) -> str:
    """Return an error that was not foreseen as one line with its place: the last one in the file of
    the method or dataset, if the error came through it."""
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if place.filename == sys.modules[loaded.__module__].__file__]
    place = (own or places)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({Path(place.filename).name}:{place.lineno})"


def at_path(kind: Kind, path: str) -> Entry:
    """Return the entry of a file: the registered one if it is that file, else one of its own.

    Raises :class:`RequestError` when there is no such file, or its name belongs to another.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise RequestError(f"{kind} file {path} does not exist")
    if "." in file.stem:
        raise RequestError(f"{path}: a {kind} is named by its file; leave dots out of it")
    for entry in entries(kind):
        if entry.source is not None and entry.source.resolve() == file:
            return entry
        if entry.name == file.stem:
            raise RequestError(
                f"{path} has the name of another {kind}, {_whereabouts(entry)}; rename the file"
            )
    return Entry(file.stem, kind, "by path", file, target="")


def _load(kind: Kind, name_or_path: str, base: type[T]) -> type[T]:
    by_path = name_or_path.endswith(".py")
    entry = at_path(kind, name_or_path) if by_path else find(kind, name_or_path)
    if entry.target:
        return _load_entry(entry, base)
    assert entry.source is not None, "an entry without an import target is a file"
    return _only_subclass(_import_file(entry.source), kind, base)


def _load_entry(entry: Entry, base: type[T]) -> type[T]:
    target, _, attribute = entry.target.partition(":")
    module = _import(target, entry.source)
    if not attribute:
        loaded = _only_subclass(module, entry.kind, base)
    else:
        named = getattr(module, attribute, None)
        if not (isinstance(named, type) and issubclass(named, base)):
            raise RequestError(
                f"{entry.kind} '{entry.name}' of {entry.origin}: {entry.target} is not a subclass "
                f"of {base.__name__}"
            )
        loaded = named
    defined_in = loaded.__module__.rpartition(".")[2]
    if defined_in != entry.name:
        raise RequestError(
            f"{entry.kind} '{entry.name}' of {entry.origin} is defined in module "
            f"'{loaded.__module__}': name the entry point '{defined_in}', after the module"
        )
    return loaded


def _only_subclass(module: ModuleType, kind: Kind, base: type[T]) -> type[T]:
    defined = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
    ]
    if len(defined) != 1:
        names = ", ".join(value.__name__ for value in defined) or "none"
        raise RequestError(
            f"{module.__file__} must define exactly one subclass of {base.__name__} "
            f"to be a {kind}; it defines {names}"
        )
    return defined[0]


FILES = "mmbench_files"
"""First part of the module names of files loaded by path; the second is the file's SHA-256."""


def _import_file(path: Path) -> ModuleType:
    """Return the module of a file outside any package. It is named by its content, so the same
    file is loaded once and a changed one anew."""
    name = f"{FILES}.{hashlib.sha256(path.read_bytes()).hexdigest()}.{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a path ending in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations of nested classes are resolved through it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _import_failure(path, error) from error
    return module


def _import(module: str, source: Path | None) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise _import_failure(source or Path(module), error) from error


def _import_failure(path: Path, error: Exception) -> RequestError:
    """Return one line with the file, the line in it where importing failed, and the reason."""
    place = str(path)
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            place = f"{path}:{trace.tb_lineno}"
        trace = trace.tb_next
    reason = " ".join(str(error).split())
    return RequestError(f"{place} cannot be imported: {type(error).__name__}: {reason}")
