"""The machine and the software of a run."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mmbench import __version__
from mmbench.errors import RequestError

PACKAGES = ("torch", "torchvision", "torchaudio", "numpy", "scipy", "scikit-learn", "pandas")


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is the first GPU, else the CPU.

    Raises :class:`RequestError` for a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"unknown device '{name}': use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"device '{name}' is not there ({torch.cuda.device_count()} GPUs): use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"device '{name}' is not supported: use cpu or cuda")
    return device


def default_threads(encoders: Iterable[str]) -> int:
    """Return one thread for networks of MLPs, whose products are too small to share out, and as
    many as torch would use for others."""
    return 1 if set(encoders) <= {"mlp"} else torch.get_num_threads()


def make_repeatable(threads: int, precision: str) -> None:
    """Choose deterministic algorithms, the number of threads and the precision of products, so
    that the same configuration gives the same bits on the same machine."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def describe(device: torch.device, threads: int) -> dict[str, Any]:
    """Return versions, device, CPU threads and platform, for a record."""
    return {
        "mmbench": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else _processor(),
        "threads": threads,
        "platform": platform.platform(),
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Return the commit of mmbench's own checkout, with ``+changes`` if files differ from it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}+changes" if git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.CalledProcessError):
        return None
