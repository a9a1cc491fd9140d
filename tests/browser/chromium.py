"""Pages in a real Chromium without a window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 120
"""After which a browser that hangs is given up."""

PROBE = "probe"
"""Identifier of the element that a script of a test writes its findings into."""


@dataclass(frozen=True)
class Browser:
    """A Chromium with a profile of the test's own."""

    program: str
    profile: Path

    def load(self, page: Path, *flags: str, width: int = 1440, height: int = 900) -> Loaded:
        """Return the page as it is after its scripts ran, and what was logged to its console."""
        ran = self._run(page, "--dump-dom", *flags, width=width, height=height)
        logged = re.findall(r"CONSOLE[^\]]*\] (.*)", ran.stderr)
        return Loaded(ran.stdout, tuple(logged))

    def screenshot(self, page: Path, file: Path, width: int, height: int) -> None:
        """Write what is seen of the page as PNG."""
        self._run(page, f"--screenshot={file}", "--hide-scrollbars", width=width, height=height)

    def _run(
        self, page: Path, *flags: str, width: int, height: int
    ) -> subprocess.CompletedProcess[str]:
        command = [self.program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-dev-shm-usage", "--disable-background-networking"]
        command += [f"--user-data-dir={self.profile}", "--virtual-time-budget=5000"]
        command += ["--enable-logging=stderr", f"--window-size={width},{height}", *flags]
        ran = subprocess.run(
            [*command, page.as_uri()], capture_output=True, text=True, timeout=SECONDS
        )
        assert ran.returncode == 0, ran.stderr
        return ran


@dataclass(frozen=True)
class Loaded:
    """A page after its scripts ran."""

    dom: str
    console: tuple[str, ...]

    @property
    def probe(self) -> Any:
        """Return what the test's script found, which it wrote as JSON."""
        (text,) = re.findall(rf'<pre id="{PROBE}">(.*?)</pre>', self.dom, re.DOTALL)
        return json.loads(html.unescape(text))


def find() -> str:
    """Return the browser's program; skip the test where there is none."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(NAMES)}): apt-get install chromium")
    return program


def with_script(page: str, script: str) -> str:
    """Return a copy of a page in which a script runs once it is loaded, and gives what
    ``findings()`` returns; the policy that would forbid it is taken out."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    added = f"""<script>
    window.addEventListener("load", () => {{
      {script}
      const probe = document.createElement("pre");
      probe.id = "{PROBE}";
      probe.textContent = JSON.stringify(findings());
      document.body.append(probe);
    }});
    </script>"""
    return page.replace("<head>", f"<head>{added}", 1)


def framed(page: Path, width: int, height: int = 844) -> str:
    """Return a page that shows another one at a width, as Chromium's own window is never narrower
    than 500 pixels, and takes over the findings that the other posts."""
    return f"""<!DOCTYPE html><html><head></head><body>
    <script>window.addEventListener("message", (event) => {{
      const probe = document.createElement("pre");
      probe.id = "{PROBE}";
      probe.textContent = event.data;
      document.body.append(probe);
    }});</script>
    <iframe src="{page.as_uri()}" width="{width}" height="{height}" style="border:0"></iframe>
    </body></html>"""
