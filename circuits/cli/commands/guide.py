"""``circuits guide``: the guides in the terminal."""

from typing import Annotated

import typer
from rich.markdown import Markdown

from circuits.cli.command import OutputOptions, command
from circuits.cli.tables import table
from circuits.guides import guide as text_of
from circuits.guides import topics


@command
def guide(
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="Which guide; without one they are listed.")] = (
        None
    ),
    *,
    output_options: OutputOptions,
) -> None:
    """Read a guide: how to read the numbers, write prompts, compare circuits, describe models."""
    output = output_options.output()
    if topic is None:
        known = topics()
        shown = table("guides", ["topic", "what it is about"], known.items())
        output.show(shown, "Read one with: circuits guide TOPIC")
        output.finish({"topics": known})
        return
    text = text_of(topic)
    output.show(Markdown(text) if output.is_terminal else text)
    output.finish({"topic": topic, "text": text})
