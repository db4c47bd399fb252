"""``circuits draw`` and ``circuits export``: a circuit into a picture, a page or another tool's format."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from circuits.behaviours import BUILT_IN, load_behaviour
from circuits.circuit import Circuit
from circuits.cli.arguments import CircuitArgument, ModelOptions
from circuits.cli.command import OutputOptions, command
from circuits.cli.output import Output
from circuits.cli.places import prepared_file, prepared_folder
from circuits.cli.session import circuit_behaviour_name, imported
from circuits.diagrams.style import Flow, Level
from circuits.drawing.pictures import DRAWINGS, EXPORT_SUFFIXES, FOLDER
from circuits.drawing.pictures import export as export_circuit
from circuits.drawing.saved import draw_saved
from circuits.errors import UsageError
from circuits.interchange.sidecars import PROMPTS, beside, scores_beside
from circuits.patching.protocol import StageProgress
from circuits.settings import Choice


class Labels(Choice):
    """What stands in the nodes of a diagram."""

    NAMES = "names"
    ROLES = "roles"

    @classmethod
    def kind(cls) -> str:
        """Return what the members are called in messages."""
        return "value of --labels"


@command
def draw(
    circuit: CircuitArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help=f"The suffix says as what: {' '.join(DRAWINGS)}.")
    ],
    *,
    title: Annotated[str | None, typer.Option(help="Instead of the behaviour and the model.")] = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Only the N strongest edges, without those on no path among them."),
    ] = None,
    core: Annotated[
        bool, typer.Option("--core", help="Only edges that 90 % of the resamples of the prompt pairs select.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="With --top and --core: run what is drawn on the circuit's held-out prompts, for its caption.",
        ),
    ] = True,
    labels: Annotated[
        str, typer.Option(metavar="|".join(Labels), help="What stands in nodes; roles are those of heads.json.")
    ] = Labels.NAMES,
    level: Annotated[
        str,
        typer.Option(
            metavar="|".join(Level), help="What an arrow is: an edge, or all edges between two nodes or two layers."
        ),
    ] = Level.EDGE,
    direction: Annotated[
        str,
        typer.Option(
            metavar="|".join(Flow), help="Where the logits are, seen from the input: for a page, for a slide."
        ),
    ] = Flow.UP,
    legend: Annotated[bool, typer.Option("--legend/--no-legend", help="What colours and lines mean.")] = True,
    width: Annotated[
        float | None,
        typer.Option(metavar="MM", help="How wide a diagram is, such as 84 for a column, with letters to match."),
    ] = None,
    output_options: OutputOptions,
) -> None:
    """Draw a circuit: diagram, report page or Mermaid text.

    Tooltips and report tell what is in the heads.json and prompts.json beside the circuit, where they are there.
    """
    output = output_options.output()
    file = prepared_file(out, DRAWINGS, "circuit.svg")
    roles, chosen, flow = Labels.parse(labels) is Labels.ROLES, Level.parse(level), Flow.parse(direction)
    drawing = partial(draw_saved, circuit, file, title=title, legend=legend, width=width)
    with output.progress() as progress:
        judge = partial(_judged, file=circuit, output=output, progress=progress) if measure else None
        found, remarks = drawing(top=top, core=core, roles=roles, level=chosen, flow=flow, judge=judge)
    for remark in remarks:
        output.warn(remark)
    output.show(f"circuit of {len(found)} edges drawn into {file}")
    output.finish({"edges": len(found), "file": str(file)})


def _judged(part: Circuit, *, file: Path, output: Output, progress: StageProgress) -> Circuit:
    """Return a part of a circuit with its evaluation on the circuit's held-out prompts, by the circuit's own model."""
    from circuits.evaluation.circuit_evaluation import evaluate_circuit

    if part.behaviour.name not in BUILT_IN and not file.with_name(PROMPTS).is_file():
        raise UsageError(
            f"what is drawn cannot be measured: the prompts of '{part.behaviour.name}' are neither built in nor in a "
            f"{PROMPTS} beside {file}. Add --no-measure, and the caption says that it was not evaluated."
        )
    behaviour = load_behaviour(circuit_behaviour_name(part, None, "", file=file), recorded=part.behaviour)
    model = ModelOptions().load(progress, output, default=part.model.id)
    return evaluate_circuit(model, part, behaviour, progress=progress).circuit


@command
def export(
    circuit: CircuitArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help=f"The suffix says as what: {' '.join(EXPORT_SUFFIXES)}.")
    ],
    *,
    output_options: OutputOptions,
) -> None:
    """Write a circuit for other tools or a paper: GraphML, CSV, LaTeX, Markdown, EAP-IG and MIB, Neuronpedia.

    Tables (.tex, .md) have all that is known of each edge, with the scores that discover left beside the circuit.
    .mib.json and .mib.pt hold the scores of all edges where discover left them beside the circuit; .mib is a folder
    that MIB evaluates. .neuronpedia.json is an attribution graph with the first prompt of the prompts.json beside the
    circuit.
    """
    output = output_options.output()
    read = imported(circuit, output)
    found, scores = read.circuit, read.scores or scores_beside(read.circuit, circuit)
    place = prepared_folder(out) if out.name.lower().endswith(FOLDER) else prepared_file(out, EXPORT_SUFFIXES)
    file = export_circuit(found, place, scores=scores, prompts=beside(circuit, found).prompts)
    scored = 0 if scores is None or ".mib" not in out.name.lower() else len(scores.scored)
    output.show(f"{len(found)} edges{f', and the scores of {scored:,},' * bool(scored)} written to {file}")
    output.finish({"edges": len(found), "scored": scored, "file": str(file)})
