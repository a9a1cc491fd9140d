"""What is registered, what it says of itself without being imported, and how it is loaded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmbench import registry
from mmbench.errors import RequestError
from mmbench.info import DatasetInfo, MethodInfo
from mmbench.registry import Kind, entries, file_hash, load_dataset, load_method, summary

METHOD = """
'''A method for tests.

    L = {scale} CE(z, y)
'''
from mmbench.options import Options, option
from mmbench.train.method import Method, MethodInfo


class Scaled(Method):
    info = MethodInfo(
        title="Scaled", family="loss", summary="a scaled loss", acts="in the loss", cost="none"
    )

    class Config(Options):
        scale: float = option({scale}, "factor of the loss", ge=0)
"""

DATASET = """
from mmbench.data.dataset import Dataset, DatasetInfo


class Nothing(Dataset):
    info = DatasetInfo(
        title="Nothing", summary="no rows", licence="MIT", citation="none",
        modalities={"a": "a vector"}, protocols={"default": "no split"},
    )
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path, which is left behind without a trace."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if not name.startswith("mmbench."):
            del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def distribution(folder: Path, name: str, group: str, *points: str) -> None:
    """Lay down what pip would write for a distribution with these entry points."""
    info = folder / f"{name}-1.2.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    write(info / "entry_points.txt", f"[mmbench.{group}]\n" + "\n".join(points) + "\n")


# -- built-in ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["method", "dataset"])
def test_every_file_of_the_folder_is_registered_and_describes_itself(
    kind: Kind, repository: Path
) -> None:
    files = {path.stem for path in (repository / f"{kind}s").glob("*.py")}
    built_in = [entry for entry in entries(kind) if entry.origin == registry.BUILT_IN]
    assert {entry.name for entry in built_in} == files
    for entry in built_in:
        assert summary(entry).summary


def test_what_is_read_of_a_method_is_what_importing_it_gives(any_method: str) -> None:
    loaded = load_method(any_method)
    assert summary(registry.find("method", any_method)) == loaded.info
    assert loaded.name() == any_method
    assert file_hash(loaded) is None


def test_what_is_read_of_a_dataset_is_what_importing_it_gives(any_dataset: str) -> None:
    loaded = load_dataset(any_dataset)
    assert summary(registry.find("dataset", any_dataset)) == loaded.info
    assert loaded.name() == any_dataset
    assert file_hash(loaded) is None


def test_listing_imports_neither_the_files_nor_torch() -> None:
    code = """
        import sys
        from mmbench.registry import entries, summary
        for kind in ("method", "dataset"):
            assert [summary(entry) for entry in entries(kind)]
        heavy = {"torch", "numpy", "pandas", "pydantic", "mmbench.methods", "mmbench.datasets"}
        print(*sorted(heavy & set(sys.modules)))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == []


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(RequestError, match="unknown method 'jiont': did you mean joint"):
        load_method("jiont")
    with pytest.raises(RequestError, match="unknown dataset 'mfaet': did you mean mfeat"):
        load_dataset("mfaet")


def test_a_hyphen_may_stand_for_an_underscore() -> None:
    assert load_method("ogm-ge") is load_method("ogm_ge")


def test_a_method_that_nobody_could_find_says_so() -> None:
    with pytest.raises(RequestError, match=r"ggdm is not available: .* cggm"):
        load_method("ggdm")


def test_a_checkout_without_links_is_told_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Git for Windows writes a link as a text file that holds its target.
    write(tmp_path / "methods", "../methods")
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    with pytest.raises(RequestError, match=r"git config core\.symlinks true"):
        entries("method")


# -- by path -------------------------------------------------------------------------------------


def test_a_method_is_loaded_from_a_path_with_its_options(tmp_path: Path) -> None:
    path = write(tmp_path / "scaled.py", METHOD.format(scale=2.0))
    method = load_method(str(path))
    assert method.name() == "scaled"
    assert method.Config().model_dump() == {"scale": 2.0}
    assert file_hash(method) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_method(str(path)) is method


def test_a_file_that_changed_is_loaded_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "scaled.py", METHOD.format(scale=2.0))
    old = load_method(str(path))
    write(path, METHOD.format(scale=3.0))
    new = load_method(str(path))
    assert new.Config().model_dump() == {"scale": 3.0}
    assert file_hash(new) != file_hash(old)


def test_a_dataset_is_loaded_from_a_path(tmp_path: Path) -> None:
    dataset = load_dataset(str(write(tmp_path / "nothing.py", DATASET)))
    assert dataset.name() == "nothing"


def test_the_path_of_a_built_in_file_means_the_built_in_method(repository: Path) -> None:
    assert load_method(str(repository / "methods" / "joint.py")) is load_method("joint")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent", None, "absent.py does not exist"),
        ("joint", "", "has the name of another method.*rename the file"),
        ("a.b", "", "leave dots out"),
        ("empty", "x = 1", "exactly one subclass of Method.*defines none"),
        (
            "two",
            "from mmbench.train.method import Method\n"
            "class First(Method): ...\nclass Second(First): ...",
            "exactly one subclass of Method.*defines First, Second",
        ),
        ("nowhere", "import os\nimport no_such_package", r"nowhere.py:2 .*No module named"),
        ("typo", "x = 1\ndef f(:\n    pass", r"typo.py:2 cannot be imported: SyntaxError"),
        ("raises", "def f():\n    return 1 / 0\nf()", r"raises.py:2 .*ZeroDivisionError"),
    ],
)
def test_a_file_that_is_no_method_gets_one_line_that_says_why(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    path = tmp_path / f"{name}.py"
    if text is not None:
        write(path, text)
    with pytest.raises(RequestError, match=message) as caught:
        load_method(str(path))
    assert "\n" not in str(caught.value)


# -- by entry point ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["plugin.scaled", "plugin.scaled:Scaled"])
def test_another_package_adds_a_method(folder: Path, target: str) -> None:
    write(folder / "plugin" / "__init__.py", "raise RuntimeError('imported too early')")
    source = write(folder / "plugin" / "scaled.py", METHOD.format(scale=2.0))
    distribution(folder, "plugin", "methods", f"scaled = {target}")
    (entry,) = (entry for entry in entries("method") if entry.name == "scaled")
    assert (entry.origin, entry.source) == ("plugin 1.2", source)
    info = summary(entry)
    assert isinstance(info, MethodInfo)
    assert info.title == "Scaled"
    write(folder / "plugin" / "__init__.py", "")
    method = load_method("scaled")
    assert method.__name__ == "Scaled"
    assert file_hash(method) == hashlib.sha256(source.read_bytes()).hexdigest()


def test_another_package_of_a_single_file_adds_a_dataset(folder: Path) -> None:
    write(folder / "nothing.py", DATASET)
    distribution(folder, "nothing", "datasets", "nothing = nothing")
    (entry,) = (entry for entry in entries("dataset") if entry.name == "nothing")
    assert isinstance(summary(entry), DatasetInfo)
    assert load_dataset("nothing").name() == "nothing"


def test_two_of_one_name_are_an_error_that_names_both(folder: Path) -> None:
    distribution(folder, "plugin", "methods", "joint = plugin.joint")
    with pytest.raises(RequestError, match=r"named 'joint': .*joint\.py \(built-in\) and .*plugin"):
        entries("method")


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("other = plugin.scaled", "name the entry point 'scaled'"),
        ("scaled = plugin.scaled:option", "is not a subclass of Method"),
        ("scaled = plugin.scaled:Nothing", "is not a subclass of Method"),
        ("absent = plugin.absent", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_wrong_entry_point_gets_one_line(folder: Path, point: str, message: str) -> None:
    write(folder / "plugin" / "__init__.py", "")
    write(folder / "plugin" / "scaled.py", METHOD.format(scale=2.0))
    distribution(folder, "plugin", "methods", point)
    with pytest.raises(RequestError, match=message) as caught:
        load_method(point.partition(" ")[0])
    assert "\n" not in str(caught.value)


# -- what cannot be described --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"no class has a line `info = MethodInfo\(...\)`"),
        (
            "class A:\n    info = MethodInfo(title=str(1))",
            ":2: 'title' of MethodInfo is worked out",
        ),
        ("class A:\n    info = MethodInfo(tilte='a')", ":2: MethodInfo .*tilte"),
        ("class A:\n    info = MethodInfo(title='a')", ":2: MethodInfo missing .*'family'"),
        ("class A(:\n    pass", ":1: invalid syntax"),
    ],
)
def test_an_info_that_cannot_be_read_names_the_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path / "mine.py", text)
    with pytest.raises(RequestError, match=message):
        summary(registry.at_path("method", str(path)))
