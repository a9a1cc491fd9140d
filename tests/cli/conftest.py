"""What tests of commands share."""

from pathlib import Path

import pytest

from tests.cli.command import Command


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """``mmbench``, in a working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return Command(capfd)
