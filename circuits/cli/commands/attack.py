"""``circuits attack``: how often a model refuses, before an attack and under it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group

from circuits.behaviours import load_behaviour
from circuits.cli.arguments import BehaviourArgument, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.places import default_folder, prepared_file
from circuits.cli.prompting import Prompting
from circuits.cli.resuming import ResumeOption, kept_until_done
from circuits.cli.session import model_name
from circuits.cli.skipping import SkipOptions
from circuits.cli.tables import facts, table
from circuits.errors import UsageError
from circuits.progress import PLANS

if TYPE_CHECKING:
    from circuits.steering.attacked_answers import AttackedAnswers

FILE = "attack.json"


@command
def attack(
    behaviour: BehaviourArgument,
    *,
    along: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTION.safetensors",
            help="Also measure the stream's length along this direction (circuits direction finds one).",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(min=4, help="How many held-out pairs of requests.")] = 48,
    tokens: Annotated[
        int, typer.Option(min=1, max=20, help="How many tokens of an answer are generated and judged.")
    ] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Draws the pairs.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help=f"Where to write everything measured (default: outputs/MODEL/BEHAVIOUR/{FILE}).",
            rich_help_panel="Output",
        ),
    ] = None,
    resume: ResumeOption = False,
    prompting: Prompting,
    skipping: SkipOptions,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Measure how often the model refuses harmful and harmless requests, as they are and under an attack.

    The attack is a system message (--attack), the beginning of the answer (--attack-prefill), or both. At most 20
    tokens of an answer are generated; they are judged by patterns, together with what the answer was begun with, and
    thrown away. Intervals are 95 %. Where in the model an attack acts: circuits interchange and circuits mediate.
    """
    output = output_options.output()
    if prompting.attack is None and prompting.attack_prefill is None:
        raise UsageError("there is no attack; give --attack TEXT, or --attack-prefill TEXT.")
    plain = replace(prompting, attack=None, attack_prefill=None)
    chosen = plain.varied(load_behaviour(behaviour, skip_unusable=skipping.skip_unusable))

    from circuits.directions.stream_direction import StreamDirection
    from circuits.files.atomic import write
    from circuits.steering.attacked_answers import answers_under_attack

    direction = StreamDirection.load(along) if along else None
    file = prepared_file(out or default_folder(model_name(model_options), chosen.name) / FILE, (".json",), FILE)
    line = output.progress(plan=PLANS["attack"])
    with kept_until_done(file, output, resume=resume) as journal, line as progress:
        model = model_options.load(progress, output)
        chosen = plain.with_openings(chosen, model, output)
        attacks = {"attack": prompting.attack, "attack_prefill": prompting.attack_prefill}
        more: dict[str, Any] = {"pairs": pairs, "tokens": tokens, "seed": seed, "journal": journal}
        found = answers_under_attack(model, chosen, **attacks, direction=direction, progress=progress, **more)
        assert found.prompts is not None
        output.recorder.drew(found.prompts)
        skipping.list_unusable(found.prompts.unusable, file.parent, output)
        write(file, found.to_json(), make_folder=True)
    output.show(*_tables(found), found.describe(), f"written to {file}")
    output.leave({**found.to_document(), "file": str(file)}, file.parent, [file])


def _tables(found: "AttackedAnswers") -> list[Group]:
    judged = f"{found.tokens} tokens of every answer, with what it was begun with, by {found.judge}"
    rows = [("before", found.before), ("under attack", found.attack), ("judged", judged)]
    changes = [
        [each.name, str(each.n), each.before.describe(), each.after.describe(), each.change.describe()]
        for each in found.quantities
    ]
    heading = ["", "n", "before", "under attack", "change"]
    title = "before and under attack, with 95 % intervals"
    return [facts(f"{found.behaviour} in {found.model}", rows), table(title, heading, changes, numbers=(1, 2, 3, 4))]
