"""What tests of all folders share."""

import os
from pathlib import Path

import pytest

from mmbench.registry import FOLDERS, entries

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    for kind in FOLDERS:
        parser.addoption(
            f"--{kind}",
            action="append",
            metavar="NAME_OR_PATH",
            help=f"run the contract tests on this {kind} rather than on all registered ones",
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes ``any_method`` or ``any_dataset`` the name of each registered one, or
    those that are asked for with ``--method`` or ``--dataset``, which may be paths."""
    for kind in FOLDERS:
        if (argument := f"any_{kind}") in metafunc.fixturenames:
            asked: list[str] | None = metafunc.config.getoption(f"--{kind}")
            metafunc.parametrize(argument, asked or [entry.name for entry in entries(kind)])


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that the project uses and does not distribute: ``../shared/data``
    beside the checkout, or ``$MMBENCH_SHARED_DATA``. Tests that need it are skipped without it."""
    place = Path(os.environ.get("MMBENCH_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not place.is_dir():
        pytest.skip(f"no shared data at {place}; set MMBENCH_SHARED_DATA")
    return place
