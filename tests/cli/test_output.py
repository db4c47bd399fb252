"""Results go to stdout, everything else to stderr; bars appear on terminals only and tell the time left."""

import inspect
import io
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from circuits.cli.command import command
from circuits.cli.output import Output
from circuits.cli.places import default_folder
from circuits.cli.tables import table
from circuits.files.documents import plain
from circuits.progress import PLANS
from tests.cli.conftest import done


def on_a_terminal(output: Output, *, width: int = 100) -> io.StringIO:
    screen = io.StringIO()
    output._messages = Console(file=screen, force_terminal=True, width=width, legacy_windows=False)
    return screen


def test_the_line_tells_stage_and_share_of_the_whole() -> None:
    output = Output()
    screen = on_a_terminal(output)
    with output.progress(plan=PLANS["score"]) as progress:
        progress("recording the prompts", 0, 0)
        progress("scoring (eap)", 2, 4)
    assert "stage 3 of 3: scoring (eap)" in screen.getvalue()
    assert "72%" in screen.getvalue()  # 8 and 8 of 36, and half of 20
    free = on_a_terminal(output)
    with output.progress() as progress:
        progress("running 3 circuits", 1, 4)
    assert "running 3 circuits" in free.getvalue()
    assert "%" not in free.getvalue()


def test_no_bars_without_a_terminal_or_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, int, int]] = []
    with Output().progress(lambda *step: seen.append(step)) as progress:
        progress("scoring", 1, 2)
    quiet = Output(quiet=True)
    screen = on_a_terminal(quiet)
    with quiet.progress(lambda *step: seen.append(step)) as progress:
        progress("scoring", 2, 2)
    assert (capsys.readouterr(), screen.getvalue()) == (("", ""), "")
    assert seen == [("scoring", 1, 2), ("scoring", 2, 2)]


def test_messages_are_broken_between_words_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a circuit of many edges takes long to prune " * 6
    terminal = Output()
    screen = on_a_terminal(terminal, width=80)
    terminal._results = terminal._messages
    terminal.warn(text.strip())
    terminal.show(text.strip())
    lines = screen.getvalue().splitlines()
    assert max(len(Text.from_ansi(line).plain.rstrip()) for line in lines) <= 80
    assert " ".join(Text.from_ansi(line).plain.strip() for line in lines) == f"warning: {text}{text}".strip()
    Output().warn(text.strip())
    assert capsys.readouterr().err == f"warning: {text.strip()}\n"


def test_json_alone_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.say("a message")
    output.warn("a warning")
    output.show("a table")
    output.finish({"number": math.nan, "text": "→"})
    written = capsys.readouterr()
    assert json.loads(written.out) == {"number": None, "text": "→"}
    assert written.err == "a message\nwarning: a warning\n"


def test_quiet_hides_messages_but_neither_warnings_nor_results(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(quiet=True)
    output.say("a message")
    output.warn("a warning")
    output.show("a table")
    written = capsys.readouterr()
    assert written.err == "warning: a warning\n"
    assert written.out.strip() == "a table"


def test_names_that_look_like_markup_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.show("[red]x[/red]", table("[b]", ["name"], [["[link=x]y"]]))
    output.warn("[/nothing]")
    written = capsys.readouterr()
    assert "[red]x[/red]" in written.out
    assert "[link=x]y" in written.out
    assert "[/nothing]" in written.err


def test_what_is_not_a_number_becomes_null_at_any_depth() -> None:
    assert plain({"a": (1.5, [math.inf, {"b": math.nan}])}) == {"a": [1.5, [None, {"b": None}]]}


@pytest.mark.parametrize(
    ("model", "behaviour", "folder"),
    [
        ("smollm2-135m", "ioi", "smollm2-135m/ioi"),
        ("org/name", "greater-than", "org--name/greater-than"),
        ("org/name", "../../my pairs", "org--name/my-pairs"),
        ("a:b", "...", "a-b/unnamed-ab5df625"),
    ],
)
def test_default_folders_stay_below_outputs(model: str, behaviour: str, folder: str) -> None:
    assert default_folder(model, behaviour) == Path("outputs") / folder


def test_a_folder_as_model_gives_its_name(tmp_path: Path) -> None:
    (tmp_path / "my model").mkdir()
    assert default_folder(str(tmp_path / "my model"), "ioi") == Path("outputs/my-model/ioi")


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="How wide.")] = 3
    tall: bool = False


def test_a_command_takes_a_group_of_options_as_one_parameter() -> None:
    seen: list[object] = []

    @command
    def measure(name: str, *, size: Size, debug: bool = False) -> None:
        warnings.warn("noise of another package", stacklevel=1)
        seen.append((name, size, debug))

    app = typer.Typer()
    app.command()(measure)
    run = CliRunner().invoke
    assert run(app, ["box", "--width", "7", "--tall"]).exit_code == 0
    assert run(app, ["box"]).exit_code == 0
    assert seen == [("box", Size(7, True), False), ("box", Size(), False)]
    assert "--width" in run(app, ["--help"]).stdout
    assert isinstance(run(app, ["box", "--debug"]).exception, UserWarning)


def test_the_version_is_shown() -> None:
    assert done("--version").stdout.startswith("circuits")


def test_the_defaults_are_those_of_the_library() -> None:
    from circuits.cli.arguments import DISCOVERY_PAIRS
    from circuits.cli.commands.discover import discover
    from circuits.discovery_settings import DiscoverySettings
    from circuits.patching.measurement import Options

    library, parameters = DiscoverySettings(), inspect.signature(discover).parameters
    for name in ("scorer", "pruner", "target", "size", "prune_limit", "steps", "heldout"):
        assert parameters[name].default == getattr(library, name), name
    assert library.pairs == DISCOVERY_PAIRS
    assert library.options is None
    assert parameters["direction"].default == Options().direction
