"""mmbench: a benchmark of balanced multimodal learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "run"]

if TYPE_CHECKING:
    from mmbench.api import run
    from mmbench.report.comparison import compare


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is first used, so that ``mmbench --help`` is quick."""
    if name == "run":
        from mmbench.api import run

        return run
    if name == "compare":
        from mmbench.report.comparison import compare

        return compare
    raise AttributeError(f"module 'mmbench' has no attribute '{name}'")
