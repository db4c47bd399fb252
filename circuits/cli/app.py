"""The Typer application: which commands there are, and how errors become messages and exit codes."""

import os
import signal
import sys
from importlib import metadata
from types import FrameType, TracebackType
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from circuits.cli.command import ARGUMENTS, DEBUG
from circuits.cli.commands.ablate import ablate
from circuits.cli.commands.attack import attack
from circuits.cli.commands.check import check
from circuits.cli.commands.compare import compare
from circuits.cli.commands.compare_scorers import scorers
from circuits.cli.commands.direction import direction
from circuits.cli.commands.discover import discover
from circuits.cli.commands.draw import draw, export
from circuits.cli.commands.evaluate import evaluate
from circuits.cli.commands.groups import groups
from circuits.cli.commands.guide import guide
from circuits.cli.commands.heads import heads
from circuits.cli.commands.interchange import interchange
from circuits.cli.commands.listings import behaviours, models
from circuits.cli.commands.mediate import mediate
from circuits.cli.commands.neurons import neurons
from circuits.cli.commands.patch import patch
from circuits.cli.commands.path import path
from circuits.cli.commands.prompts import prompts
from circuits.cli.commands.run import cite, run
from circuits.cli.commands.score import score
from circuits.cli.commands.sweep import sweep
from circuits.cli.output import error
from circuits.errors import CircuitsError, MissingFileError, MissingModelError, UnknownNameError, UsageError
from circuits.files.documents import json_text

FAILED, WRONG_USAGE, STOPPED = 1, 2, 130
"""Exit codes: the work failed; what the caller can mend (an option, a name, a missing file); Ctrl-C (128 + SIGINT)."""
MENDABLE = (UnknownNameError, UsageError, MissingFileError, MissingModelError, FileNotFoundError)
"""Errors of what was typed rather than of the work."""
_WRONG_OPTION = cast("type[Exception]", typer.BadParameter.__base__)
"""What typer raises for options and arguments that it cannot parse."""


class Commands(TyperGroup):
    """Turns this package's errors into messages on stderr and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; with ``--debug`` errors pass through and Python prints the traceback.

        With ``--json`` an error is an object on stdout, in addition to the message on stderr.
        """
        typed = (*getattr(ctx, "_protected_args", ()), *ctx.args)  # before the command is parsed
        as_json = "--json" in typed
        ctx.meta[ARGUMENTS] = typed
        try:
            return super().invoke(ctx)
        except CircuitsError as problem:
            if ctx.meta.get(DEBUG):
                raise
            code = WRONG_USAGE if isinstance(problem, MENDABLE) else FAILED
            raise _told(problem, str(problem), code, as_json=as_json) from problem
        except OSError as problem:
            if ctx.meta.get(DEBUG) or isinstance(problem, BrokenPipeError):
                raise
            text = f"{problem.strerror or problem}: {problem.filename!r}. Check the path, its permissions and the disk."
            code = WRONG_USAGE if isinstance(problem, MENDABLE) else FAILED
            raise _told(problem, text, code, as_json=as_json) from problem
        except _WRONG_OPTION as problem:
            if as_json:
                _as_json(type(problem).__name__, str(cast(Any, problem).format_message()), WRONG_USAGE)
            raise
        except typer.Exit as ended:
            if as_json and ended.exit_code == STOPPED:
                _as_json("KeyboardInterrupt", "stopped.", STOPPED)
            raise
        except KeyboardInterrupt as stop:
            raise _told(stop, "stopped.", STOPPED, as_json=as_json) from stop


def _told(problem: BaseException, text: str, code: int, *, as_json: bool) -> typer.Exit:
    """Report an error, and return what ends the program."""
    error(text)
    if as_json:
        _as_json(type(problem).__name__, text, code)
    return typer.Exit(code)


def _as_json(kind: str, message: str, code: int) -> None:
    sys.stdout.write(json_text({"error": {"kind": kind, "message": message, "exit_code": code}}))


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Path patching: find, measure, draw and compare the circuits of transformer language models.",
    epilog="Begin with: circuits discover ioi",
)


def _version(asked: bool) -> None:
    if asked:
        try:
            typer.echo(f"circuits {metadata.version('path-patching-circuits')}")
        except metadata.PackageNotFoundError:
            typer.echo("circuits, run from its source without being installed")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Path patching: find, measure, draw and compare the circuits of transformer language models."""
    del version


for _command in (
    discover,
    score,
    evaluate,
    patch,
    path,
    compare,
    direction,
    interchange,
    mediate,
    attack,
    groups,
    scorers,
    ablate,
    heads,
    neurons,
    draw,
    export,
    check,
    models,
    behaviours,
    guide,
    prompts,
    sweep,
    run,
    cite,
):
    app.command()(_command)


def main() -> None:
    """Run the command line."""
    sys.excepthook = report_bug
    # Workers of the tokenizers package are forked by nobody here; without this it warns about forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait for each other make torch ten times slower when other work shares the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # else the caller (such as nohup) wants something of its own
            signal.signal(number, _stop)
    try:
        typer.main.get_command(app)(prog_name="circuits")
    except KeyboardInterrupt:  # before a command began
        error("stopped.")
        sys.exit(STOPPED)


def _stop(number: int, _frame: FrameType | None) -> None:
    """Stop as Ctrl-C does, once: what is finished is then written, in peace."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def report_bug(kind: type[BaseException], problem: BaseException, trace: TracebackType | None) -> None:
    """Report in one line what no command foresaw; the traceback only with ``--debug``."""
    if "--debug" in sys.argv:
        sys.__excepthook__(kind, problem, trace)
        return
    if "--json" in sys.argv:
        _as_json(kind.__name__, str(problem), FAILED)
    error(f"{kind.__name__}: {problem}. This was not foreseen: run it again with --debug and report what it prints.")
