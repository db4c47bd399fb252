"""Drawing a circuit that lies in a folder, with what lies beside it."""

from pathlib import Path

from circuits.circuit import Circuit
from circuits.drawing.pictures import draw
from circuits.interchange.foreign import read_circuit
from circuits.interchange.sidecars import beside, scores_beside


def draw_saved(circuit: str | Path, path: str | Path, *, title: str | None = None) -> tuple[Circuit, tuple[str, ...]]:
    """Draw a circuit's file into another, with the evidence on its heads, prompts and intervals that lie beside it.

    Returns the circuit, and remarks on what was lost in reading it or could not be used. The suffix of ``path`` and
    errors are as of :meth:`Circuit.draw`; another tool's circuit is drawn too.
    """
    read = read_circuit(circuit)
    found, known = read.circuit, beside(circuit, read.circuit)
    scores = scores_beside(found, circuit) if Path(path).suffix.lower() == ".html" else None
    intervals = None if scores is None else scores.intervals(found.edges)
    draw(found, path, title=title, evidence=known.evidence, prompts=known.prompts, intervals=intervals)
    return found, (*read.losses, *known.remarks)
