"""``circuits draw`` and ``circuits export``: a circuit into a picture, a page or another tool's format."""

from pathlib import Path
from typing import Annotated

import typer

from circuits.circuit import Circuit
from circuits.cli.evidence import known_intervals
from circuits.cli.options import CircuitArgument, Voice, command
from circuits.cli.places import prepared_file
from circuits.export.beside import beside
from circuits.export.draw import DRAWINGS, EXPORTS
from circuits.export.draw import draw as draw_circuit
from circuits.export.draw import export as export_circuit


@command
def draw(
    circuit: CircuitArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help=f"The suffix says as what: {' '.join(DRAWINGS)}.")
    ],
    title: Annotated[str | None, typer.Option(help="Instead of the behaviour and the model.")] = None,
    *,
    voice: Voice,
) -> None:
    """Draw a circuit: diagram, report page or Mermaid text.

    Tooltips and report tell what is in the heads.json and prompts.json beside the circuit, where they are there.
    """
    output = voice.output()
    found = Circuit.load(circuit)
    file, known = prepared_file(out, DRAWINGS), beside(circuit, found)
    for remark in known.remarks:
        output.warn(remark)
    intervals = known_intervals(found, circuit) if file.suffix.lower() == ".html" else None
    draw_circuit(found, file, title=title, evidence=known.evidence, prompts=known.prompts, intervals=intervals)
    output.show(f"circuit of {len(found)} edges drawn into {out}")
    output.finish({"edges": len(found), "file": str(out)})


@command
def export(
    circuit: CircuitArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help=f"The suffix says as what: {' '.join(EXPORTS)}.")
    ],
    *,
    voice: Voice,
) -> None:
    """Write a circuit for other tools: GraphML, CSV, or the JSON of EAP-IG and MIB."""
    output = voice.output()
    found = Circuit.load(circuit)
    export_circuit(found, prepared_file(out, EXPORTS))
    output.show(f"{len(found)} edges written to {out}")
    output.finish({"edges": len(found), "file": str(out)})
