"""Options that change a behaviour's prompts and answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.behaviours.behaviour import Behaviour
from circuits.errors import UsageError
from circuits.vocabulary import Align, OpeningsOf

if TYPE_CHECKING:
    from circuits.cli.output import Output
    from circuits.model import Model

_SEPARATOR = re.compile(r",(?=\S)")
"""A comma with a space after it belongs to an opening: ``Sorry, I``."""


AlignOption = Annotated[
    str | None,
    typer.Option(
        "--align",
        metavar="|".join(Align),
        help="Align pairs whose sides differ in length: by what they end (and begin) with alike, or by the roles that "
        "the file names on both sides. Without it they cannot be used.",
        rich_help_panel="Prompts",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Prompting:
    """What is changed about a behaviour's own prompts and answers."""

    system: Annotated[
        str | None,
        typer.Option(
            help="System message of every chat, in place of its own.", rich_help_panel="Prompts", show_default=False
        ),
    ] = None
    prefill: Annotated[
        str | None,
        typer.Option(
            help="How the assistant's answer begins already; what follows is measured.",
            rich_help_panel="Prompts",
            show_default=False,
        ),
    ] = None
    attack: Annotated[
        str | None,
        typer.Option(
            help="System message of the corrupted side, which then asks for what the clean side asks (as many tokens "
            "as --system): what does the message do?",
            rich_help_panel="Prompts",
            show_default=False,
        ),
    ] = None
    attack_prefill: Annotated[
        str | None,
        typer.Option(
            help="How the answer of the corrupted side begins already, which then asks for what the clean side asks "
            "(as many tokens as --prefill): what does the beginning do?",
            rich_help_panel="Prompts",
            show_default=False,
        ),
    ] = None
    refuse: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="First tokens that count as answers (of refusal: that refuse), between commas without spaces, or "
            "give the option several times.",
            rich_help_panel="Prompts",
            show_default=False,
        ),
    ] = None
    comply: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="The same of wrong answers.", rich_help_panel="Prompts", show_default=False),
    ] = None
    align: AlignOption = None
    openings: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(OpeningsOf),
            help="Where first tokens are from that --refuse and --comply do not give: the behaviour's own, or found in "
            "what the model does. Default: of refusal, found; its own for the built-in models.",
            rich_help_panel="Prompts",
            show_default=False,
        ),
    ] = None

    def varied(self, behaviour: Behaviour) -> Behaviour:
        """Return a behaviour with what was asked for."""
        if self.openings is not None:
            OpeningsOf.parse(self.openings)
        return behaviour.varied(
            system=self.system,
            prefill=self.prefill,
            attack=self.attack,
            attack_prefill=self.attack_prefill,
            answers=_texts(self.refuse, "--refuse"),
            wrong_answers=_texts(self.comply, "--comply"),
            align=self.align,
        )

    def with_openings(self, behaviour: Behaviour, model: "Model", output: "Output") -> Behaviour:
        """Let the model choose the openings where it should, and say which they are."""
        from circuits.openings import finds_openings, with_openings

        if self.openings == OpeningsOf.OWN or not (self.openings or finds_openings(model, behaviour)):
            return behaviour
        found, chosen = with_openings(model, behaviour)
        output.say(chosen.describe())
        return found


def _texts(given: Sequence[str] | None, option: str) -> list[str]:
    texts = [text for several in given or () for text in _SEPARATOR.split(several)]
    if not all(text.strip() for text in texts):
        raise UsageError(f"{option} has an empty opening; expected first tokens of answers, such as {option} Sorry,I.")
    return texts
