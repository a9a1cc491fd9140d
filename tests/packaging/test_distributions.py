"""What a user gets who installs mmbench: the wheel is built from the source distribution, installed
into an empty folder, and asked what it holds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# One process builds for all tests here, however many run side by side.
pytestmark = pytest.mark.xdist_group("packaging")

SOURCES = (
    "mmbench",
    "methods",
    "datasets",
    "experiments",
    "results/reported",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


def run(*command: str | Path, cwd: Path) -> str:
    """Return the output of a command; show all of it where the command fails."""
    ran = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A wheel built from an sdist that is built from a copy: a build leaves files beside its
    sources, and those of an earlier one would end up in the wheel."""
    copy = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        source = repository / name
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(source, copy)
    built = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, copy, cwd=built)
    assert len(list(built.glob("mmbench-*.tar.gz"))) == 1
    (path,) = built.glob("mmbench-*.whl")
    return path


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A folder into which the wheel, and nothing else, is installed."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


@pytest.fixture
def ask(site: Path, tmp_path: Path) -> Callable[[str], object]:
    """Return a function that runs code, which prints JSON, in an interpreter that sees the
    installed wheel and the standard library alone."""

    def answer(code: str) -> object:
        start = f"import sys, json; sys.path.insert(0, {str(site)!r})\n"
        script = start + textwrap.dedent(code)
        return json.loads(run(sys.executable, "-I", "-S", "-c", script, cwd=tmp_path))

    return answer


@pytest.mark.parametrize("kind", ["method", "dataset"])
def test_the_installed_wheel_lists_what_the_folder_holds(
    kind: str, ask: Callable[[str], object], repository: Path
) -> None:
    listed = ask(f"""
        from mmbench.registry import entries, summary
        print(json.dumps([e.name for e in entries({kind!r}) if summary(e).title]))
    """)
    assert isinstance(listed, list)
    assert set(listed) == stems(repository / f"{kind}s") != set()


def test_the_installed_files_are_those_that_are_imported(
    ask: Callable[[str], object], site: Path
) -> None:
    origin = ask("""
        from importlib.util import find_spec
        print(json.dumps(find_spec("mmbench.methods.joint").origin))
    """)
    assert origin == str(site / "mmbench" / "methods" / "joint.py")


def test_an_installation_adds_one_package_only(site: Path) -> None:
    added = {path.name for path in site.iterdir()}
    assert {re.sub(r"-[\d.]+\.dist-info", ".dist-info", name) for name in added} == {
        "mmbench",
        "mmbench.dist-info",
        "bin",
    }
    assert {path.name for path in (site / "bin").iterdir()} == {"mmbench"}


def test_an_installation_brings_no_package_called_datasets_or_methods(
    ask: Callable[[str], object],
) -> None:
    found = ask("""
        from importlib.util import find_spec
        print(json.dumps([name for name in ("datasets", "methods") if find_spec(name)]))
    """)
    assert found == []


def test_a_package_called_datasets_wins_even_inside_the_checkout(
    tmp_path: Path, repository: Path
) -> None:
    stand_in = tmp_path / "datasets" / "__init__.py"
    stand_in.parent.mkdir()
    stand_in.write_text("")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r}); import datasets; print(datasets.__file__)"
    )
    assert run(sys.executable, "-c", code, cwd=repository).strip() == str(stand_in)


def test_the_wheel_holds_the_embedded_data_the_licence_and_the_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"mmbench/data/mfeat.npz", "mmbench/data/mfeat.README.md", "mmbench/py.typed"} <= names
    assert any(name.endswith("/LICENSE") for name in names)
    page = {f"mmbench/report/page/page.{kind}" for kind in ("html.jinja", "css", "js")}
    assert page <= names
    assert wheel.stat().st_size < 1_500_000


@pytest.mark.parametrize(
    ("folder", "source"), [("experiments", "experiments"), ("reported", "results/reported")]
)
def test_the_wheel_holds_experiments_and_accuracies_in_print(
    folder: str, source: str, wheel: Path, repository: Path
) -> None:
    held = zipfile.ZipFile(wheel).namelist()
    names = {Path(name).name for name in held if name.startswith(f"mmbench/{folder}/")}
    assert names == {path.name for path in (repository / source).glob("*.yaml")} != set()


def test_git_holds_the_folders_of_the_package_as_links(repository: Path) -> None:
    if shutil.which("git") is None or not (repository / ".git").exists():
        pytest.skip("needs a git checkout")
    folders = ("methods", "datasets", "experiments", "reported")
    links = [f"mmbench/{folder}" for folder in folders]
    staged = run("git", "ls-files", "-s", *links, cwd=repository)
    modes = {line.split("\t")[1]: line.split()[0] for line in staged.splitlines()}
    assert modes == dict.fromkeys(links, "120000")


def test_constraints_pin_every_dependency_by_version_alone(repository: Path) -> None:
    text = (repository / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pinned = {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])
    # These three are released together.
    for line in ("torch==2.11.0", "torchaudio==2.11.0", "torchvision==0.26.0"):
        assert line in lines
