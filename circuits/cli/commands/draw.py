"""``circuits draw`` and ``circuits export``: a circuit into a picture, a page or another tool's format."""

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.arguments import CircuitArgument
from circuits.cli.command import OutputOptions, command
from circuits.cli.places import prepared_file, prepared_folder
from circuits.cli.session import imported
from circuits.drawing.pictures import DRAWINGS, EXPORT_SUFFIXES, FOLDER
from circuits.drawing.pictures import export as export_circuit
from circuits.drawing.saved import draw_saved
from circuits.interchange.sidecars import scores_beside


@command
def draw(
    circuit: CircuitArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help=f"The suffix says as what: {' '.join(DRAWINGS)}.")
    ],
    title: Annotated[str | None, typer.Option(help="Instead of the behaviour and the model.")] = None,
    *,
    output_options: OutputOptions,
) -> None:
    """Draw a circuit: diagram, report page or Mermaid text.

    Tooltips and report tell what is in the heads.json and prompts.json beside the circuit, where they are there.
    """
    output = output_options.output()
    file = prepared_file(out, DRAWINGS, "circuit.svg")
    found, remarks = draw_saved(circuit, file, title=title)
    for remark in remarks:
        output.warn(remark)
    output.show(f"circuit of {len(found)} edges drawn into {file}")
    output.finish({"edges": len(found), "file": str(file)})


@command
def export(
    circuit: CircuitArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help=f"The suffix says as what: {' '.join(EXPORT_SUFFIXES)}.")
    ],
    *,
    output_options: OutputOptions,
) -> None:
    """Write a circuit for other tools or a paper: GraphML, CSV, LaTeX, Markdown, and the formats of EAP-IG and MIB.

    Tables (.tex, .md) have all that is known of each edge, with the scores that discover left beside the circuit.
    .mib.json and .mib.pt hold the scores of all edges where discover left them beside the circuit; .mib is a folder
    that MIB evaluates.
    """
    output = output_options.output()
    read = imported(circuit, output)
    found, scores = read.circuit, read.scores or scores_beside(read.circuit, circuit)
    place = prepared_folder(out) if out.name.lower().endswith(FOLDER) else prepared_file(out, EXPORT_SUFFIXES)
    file = export_circuit(found, place, scores=scores)
    scored = 0 if scores is None or ".mib" not in out.name.lower() else len(scores.scored)
    output.show(f"{len(found)} edges{f', and the scores of {scored:,},' * bool(scored)} written to {file}")
    output.finish({"edges": len(found), "scored": scored, "file": str(file)})
