"""Drawing a circuit that lies in a folder, with what lies beside it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from circuits.circuit import Circuit
from circuits.comparison.parts import live_edges
from circuits.diagrams.style import DiagramStyle, Flow, Level
from circuits.drawing.pictures import draw
from circuits.errors import UsageError
from circuits.interchange.foreign import read_circuit
from circuits.interchange.sidecars import beside, scores_beside


def draw_saved(
    circuit: str | Path,
    path: str | Path,
    *,
    title: str | None = None,
    top: int | None = None,
    core: bool = False,
    roles: bool = False,
    legend: bool = True,
    width: float | None = None,
    level: Level = Level.EDGE,
    flow: Flow = Flow.UP,
    judge: Callable[[Circuit], Circuit] | None = None,
) -> tuple[Circuit, tuple[str, ...]]:
    """Draw a circuit's file into another, with the evidence on its heads, prompts and intervals that lie beside it.

    Args:
        circuit: The file; another tool's circuit is drawn too.
        path: Where to; the suffix says as what, see :func:`circuits.drawing.pictures.draw`.
        title: In place of the behaviour and the model.
        top: Draw only so many of the strongest edges, without those on no path among them (:func:`strongest_paths`).
        core: Draw only the edges that at least 90 % of the resamples of the pairs select, those on a path.
        roles: Name the roles of heads in their nodes, where they are known.
        legend: Whether there is one.
        width: Of the diagram, in millimetres; see :class:`DiagramStyle`.
        level: What one arrow stands for: an edge, or all edges between two nodes or two layers.
        flow: Whether a diagram goes from the input up, or to the right; a report's always goes up.
        judge: Is given what is drawn, where that is a part, and returns it with an evaluation of its own.

    Returns the circuit that is drawn, and remarks on what was lost in reading it or could not be used. The caption is
    of what is drawn: without ``judge`` it says that the part was not evaluated.
    """
    read = read_circuit(circuit)
    found, known = read.circuit, beside(circuit, read.circuit)
    scores = scores_beside(found, circuit) if Path(path).suffix.lower() == ".html" else None
    remarks = [*read.losses, *known.remarks]
    if roles and not known.roles:
        remarks.append(f"no roles of heads are known; 'circuits heads {circuit}' measures them.")
    drawn, named = (core_paths(found), "core edges") if core else (found, "")
    if top is not None and top < len(drawn):
        drawn, named = strongest_paths(drawn, top), "strongest edges"
    if named:
        title = f"{found.behaviour.name} in {found.model.id}, {named}" if title is None else title
        drawn = judge(drawn) if judge else drawn
    intervals = None if scores is None else scores.intervals(drawn.edges)
    style = DiagramStyle(width, legend, known.roles if roles else {}, level, flow)
    draw(drawn, path, title=title, evidence=known.evidence, prompts=known.prompts, intervals=intervals, style=style)
    return drawn, tuple(remarks)


def core_paths(circuit: Circuit) -> Circuit:
    """Return the core edges of a circuit (:meth:`Circuit.core`) that are on a path of them; not evaluated.

    Raises :class:`UsageError` where none is, and for circuits of which it is not known how stable their edges are.
    """
    edges = live_edges(circuit.core())
    if not len(edges):
        raise UsageError(
            f"no core edge lies on a path of core edges from the input to {circuit.model.shape.end}: of "
            f"{len(circuit)} edges {len(circuit.core())} are core. Draw the whole circuit; unstable edges are pale."
        )
    return circuit.with_edges(edges, circuit.scores[np.isin(circuit.edges, edges)])


def strongest_paths(circuit: Circuit, count: int) -> Circuit:
    """Return the ``count`` strongest edges of a circuit without those on no path from input to end; not evaluated.

    Raises :class:`UsageError` where none of them is on a path.
    """
    if count < 1:
        raise UsageError(f"a diagram shows at least 1 edge, got {count}.")
    edges = live_edges(circuit.strongest(count))
    if not len(edges):
        raise UsageError(
            f"none of the {count} strongest edges lies on a path from the input to {circuit.model.shape.end} among "
            f"them; draw more of the {len(circuit)}."
        )
    return circuit.with_edges(edges, circuit.scores[np.isin(circuit.edges, edges)])
