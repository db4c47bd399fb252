"""The option that leaves out rows of a prompt file that cannot be used, and lists them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from circuits.behaviours.reading.unusable import UNUSABLE, Unusable, listing
from circuits.cli.output import Output
from circuits.files.atomic import write


@dataclass(frozen=True)
class SkipOptions:
    """Whether rows that cannot be used are left out."""

    skip_unusable: Annotated[
        bool,
        typer.Option(
            "--skip-unusable",
            help="Leave out rows of the prompt file that cannot be used, and list them in unusable.csv.",
            rich_help_panel="Prompts",
        ),
    ] = False

    def list_unusable(self, unusable: Sequence[Unusable], folder: Path, output: Output) -> None:
        """Write which rows were left out, and why, into a folder; where that was asked for and there are some."""
        if not self.skip_unusable or not unusable:
            return
        write(folder / UNUSABLE, listing(unusable), make_folder=True)
        output.warn(f"{len(unusable):,} unusable rows are left out; {folder / UNUSABLE} lists them with reasons.")
