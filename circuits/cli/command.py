"""What makes a function a command: groups of options, what it prints, and the recorder that follows its run."""

import inspect
import logging
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import typer

from circuits.cli.output import Output
from circuits.errors import UsageError
from circuits.recording.recorder import RunRecorder

DEBUG = "circuits.debug"
"""The key under which a run remembers ``--debug``."""
ARGUMENTS = "circuits.arguments"
"""The key under which a run remembers what was typed."""
_CONTEXT = "context"
_PRINTING = ("json", "quiet", "debug", "record")
"""Options that are no settings: they change nothing of what is measured."""

_MAY_BE_EMPTY = ("system", "prefill", "attack", "attack_prefill", "title", "behaviour")
"""Options whose empty text means something, or has a message of its own."""
_PROMPTING = ("system", "prefill", "attack", "attack_prefill", "refuse", "comply")
_HALF = re.compile("[\ud800-\udfff]")


def _remember_debug(ctx: typer.Context, asked: bool) -> bool:
    ctx.meta[DEBUG] = asked
    return asked


@dataclass(frozen=True)
class OutputOptions:
    """What a command prints, and how."""

    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel="Output")] = (
        False
    )
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No messages, no progress bars.", rich_help_panel="Output")
    ] = False
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help="Show tracebacks, and warnings of other packages.",
            callback=_remember_debug,
            rich_help_panel="Output",
        ),
    ] = False

    recorder: RunRecorder | None = field(default=None, metadata={"no option": True})
    """Follows the run."""

    def output(self) -> Output:
        """Open the output."""
        return Output(as_json=self.json, quiet=self.quiet, recorder=self.recorder)


@dataclass(frozen=True)
class RecordedOutputOptions(OutputOptions):
    """What a command prints that leaves a record of its run, and where the record goes."""

    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Where the record of this run goes (default: run.json beside the results).",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None

    def output(self) -> Output:
        """Open the output; raises :class:`UsageError` for a record that is no ``.json`` file."""
        if self.record is not None and self.record.suffix.lower() != ".json":
            raise UsageError(f"the record of a run is a .json file, got '{self.record}'; expected --record FILE.json.")
        return Output(as_json=self.json, quiet=self.quiet, recorder=self.recorder, record=self.record)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: a parameter whose type is a dataclass stands for one option per field."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for parameter in inspect.signature(function).parameters.values():
        group: Any = parameter.annotation
        if is_dataclass(group) and isinstance(group, type):
            hints = get_type_hints(group, include_extras=True)
            options = [each for each in fields(group) if not each.metadata.get("no option")]
            groups[parameter.name] = (group, [option.name for option in options])
            parameters += [
                inspect.Parameter(
                    option.name, parameter.KEYWORD_ONLY, default=option.default, annotation=hints[option.name]
                )
                for option in options
            ]
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))

    @wraps(function)
    def run(**given: Any) -> None:
        debug, recorder = bool(given.get("debug")), _recorder(given.pop(_CONTEXT), given)
        _require_text(given)
        for name, (group, members) in groups.items():
            given[name] = group(**{member: given.pop(member) for member in members})
            if isinstance(given[name], OutputOptions):
                given[name] = replace(given[name], recorder=recorder)
        with _silent_packages(debug=debug), _library_warnings(recorder):
            function(**given)

    parameters.append(inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _recorder(context: typer.Context, given: Mapping[str, Any]) -> RunRecorder:
    """Return what follows a run: of this command, with these options, and the files that they name."""
    named = [text for value in given.values() for text in _several(value)]
    paths = [Path(str(text)) for text in named if isinstance(text, str | Path)]
    paths += [Path(text.partition("=")[2]) for text in named if isinstance(text, str) and "=" in text]
    inputs = dict.fromkeys(path for path in paths if path not in (given.get("out"), given.get("record")))
    settings = {name: _told(value) for name, value in given.items() if name not in _PRINTING}
    arguments = context.meta.get(ARGUMENTS, ())
    return RunRecorder(str(context.info_name), arguments=arguments, settings=settings, inputs=inputs)


def _several(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _told(value: Any) -> Any:
    """Return an option's value as JSON can hold it."""
    if isinstance(value, list | tuple):
        return [_told(each) for each in cast("Iterable[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def _require_text(given: Mapping[str, Any]) -> None:
    """Raise :class:`UsageError` for an empty text: a shell variable that is not set is no wish for the default."""
    for name, value in given.items():
        texts = _several(value)
        broken = next((text for text in texts if isinstance(text, str) and _HALF.search(text)), None)
        if broken is not None and name in _PROMPTING:
            raise UsageError(f"--{name} {broken!r} holds what is no UTF-8 text; expected text that the model can read.")
        if "" in texts and name not in _MAY_BE_EMPTY:
            raise UsageError(
                f"--{name.replace('_', '-')} is empty; expected a value, or leave the option out for its default."
            )


@contextmanager
def _silent_packages(*, debug: bool) -> Generator[None]:
    """Hide warnings of other packages: users of the command line cannot act on them."""
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        yield


class _Warnings(logging.Handler):
    """Shows what the library warns of, which is said once for the command that it concerns."""

    def __init__(self, recorder: RunRecorder) -> None:
        super().__init__(logging.WARNING)
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        """Write the warning; those of the command line itself are shown by their command."""
        if not record.name.startswith("circuits.cli"):
            Output(recorder=self._recorder).warn(record.getMessage())


@contextmanager
def _library_warnings(recorder: RunRecorder) -> Generator[None]:
    """Show the library's warnings as those of commands are shown."""
    library, handler = logging.getLogger("circuits"), _Warnings(recorder)
    library.addHandler(handler)
    try:
        yield
    finally:
        library.removeHandler(handler)
