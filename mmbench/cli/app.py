"""The command ``mmbench``: its subcommands, and how errors reach the user."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from mmbench import __version__
from mmbench.cli.check import check
from mmbench.cli.compare import compare
from mmbench.cli.contributions import contributions
from mmbench.cli.data import app as data
from mmbench.cli.diagnose import app as diagnose
from mmbench.cli.listing import list_registered
from mmbench.cli.report import report
from mmbench.cli.reproduce import reproduce
from mmbench.cli.robustness import robustness
from mmbench.cli.run import run
from mmbench.cli.show import show
from mmbench.errors import MmbenchError

app = typer.Typer(
    name="mmbench",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Add --debug to any command to see where in the code an error arose.",
)
app.command()(run)
app.command()(compare)
app.command()(contributions)
app.command()(check)
app.command()(robustness)
app.command("list")(list_registered)
app.command()(show)
app.command()(reproduce)
app.command()(report)
app.add_typer(data, name="data")
app.add_typer(diagnose, name="diagnose")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mmbench {__version__}")
        raise typer.Exit


@app.callback()
def _mmbench(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the version and exit.",
            callback=_show_version,
            is_eager=True,
            expose_value=False,
        ),
    ] = False,
) -> None:
    """A benchmark of balanced multimodal learning: train methods under one protocol, and compare
    them with statistics."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 for a wrong request, 1 for a failed
    run or a bug, 130 when interrupted.

    An error is one line on stderr; ``--debug``, anywhere among the arguments, adds the traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        # Outside of its standalone mode typer raises what it would print in a box, and returns
        # the code of `typer.Exit`, which is 130 for an interrupt.
        code = app([word for word in given if word != "--debug"], "mmbench", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has gone: nobody is left to tell, and the interpreter must not
        # try to flush again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = _explain(error)
        typer.echo(line, err=True)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> tuple[str, int]:
    """Return what to print for an error, one line, and the exit code it stands for."""
    if isinstance(error, MmbenchError):
        return f"error: {error}", error.exit_code
    if isinstance(error, typer.Abort):
        return "stopped", 130
    if isinstance(error, typer.TyperException):
        message = error.format_message().replace("Value error, ", "")
        if message.startswith("Usage:"):  # a group without a command: its help is the message
            return message, 2
        context = getattr(error, "ctx", None)
        command = "mmbench" if context is None else context.command_path
        return f"error: {' '.join(message.rstrip('.').split())}; see `{command} --help`", 2
    kind = type(error).__name__
    return f"error: {kind}: {error} (a bug: please report it with what --debug adds)", 1
