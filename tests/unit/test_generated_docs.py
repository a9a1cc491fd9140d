"""The pages that are written from the methods' files say what the files say now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mmbench.registry import entries


@pytest.fixture(scope="module")
def generator(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", repository / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date(generator: ModuleType) -> None:
    stale = [str(path) for path, text in generator.pages() if path.read_text() != text]
    assert not stale, f"{', '.join(stale)}: run `make docs`"


def test_every_method_has_a_page_and_a_row_of_the_readme(repository: Path) -> None:
    readme = (repository / "README.md").read_text()
    for entry in entries("method"):
        assert (repository / f"docs/methods/{entry.name}.md").is_file()
        assert f"[`{entry.name}`](docs/methods/{entry.name}.md)" in readme


def test_what_was_written_by_hand_iskept(generator: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"generated\n\n{generator.BY_HAND}\n\nmine\n")
    assert generator.kept(page) == f"\n{generator.BY_HAND}\n\nmine\n"
    page.write_text("generated\n")
    assert generator.kept(page) == ""
