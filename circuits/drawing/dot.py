"""Circuits as Graphviz DOT text: pure functions, the same bytes every time.

Shape and fill tell heads from MLPs, the colour and arrow of an edge its slot, its line style the sign of the score, its
width the size of the score. Every edge carries its stored score in its tooltip.
"""

import math
from collections.abc import Mapping

import numpy as np

from circuits.circuit import UNSTABLE, Circuit
from circuits.diagrams.layout import Line, count_nodes, layered_dot
from circuits.diagrams.legend import Key, legend
from circuits.diagrams.markup import number, short_number
from circuits.diagrams.palette import (
    INK,
    LIGHT_GREY,
    NODE_BORDERS,
    NODE_FILLS,
    SLOT_COLOURS,
)
from circuits.diagrams.style import PLAIN, DiagramStyle
from circuits.graph import Node, NodeKind, Slot

AT_MOST, ON_PAGE = 200, 2000
"""How many edges are drawn, the strongest: more cannot be told apart. A page can hide the weak ones, so it has more."""
ROLES = "Beside edges: at which tokens; at all others the edge is corrupted."
SIGN = "A positive score means that corrupting the edge moves the metric away from clean behaviour."


def circuit_dot(
    circuit: Circuit,
    *,
    title: str | None = None,
    notes: Mapping[Node, str] | None = None,
    page: bool = False,
    style: DiagramStyle = PLAIN,
) -> str:
    """Return the DOT text of a circuit's diagram, layers from bottom to top.

    Up to 30 edges carry their score as a label; all have it in their tooltip, with six significant digits as in
    ``circuit.json``. Of more than 200 edges the strongest are drawn, and the legend says so. Deterministic: the same
    circuit gives the same bytes. ``title`` replaces the first line of the legend; ``notes`` (what is known of heads) go
    into nodes' tooltips; ``style`` says how large it is and what stands in nodes. For a ``page``, which has a legend of
    its own, up to 2,000 edges are drawn, without legend.
    """
    drawn = circuit.strongest(ON_PAGE if page else AT_MOST)
    lines = [
        Line(
            edge=edge,
            colour=SLOT_COLOURS[edge.receiver.slot],
            style=line_style(score),
            strength=strength,
            tooltip=_tooltip(drawn, i),
            label=short_number(score),
            faint=drawn.inclusion is not None and bool(drawn.inclusion[i] < UNSTABLE),
        )
        for i, (edge, score, strength) in enumerate(
            zip(drawn.edge_list, drawn.scores.tolist(), strengths(drawn), strict=True)
        )
    ]
    heading = title if title is not None else f"{circuit.behaviour.name} in {circuit.model.id}"
    doubts = circuit.search.doubts if circuit.search else ()
    facts = [*circuit_facts(circuit), *omitted(len(drawn), len(circuit)), *doubts]
    keys, more = circuit_keys(drawn), circuit_notes(drawn)
    below = "" if page or not style.legend else legend(heading, facts, keys, more, letters=style.letters)
    return layered_dot(drawn, lines, below, notes=notes, style=style)


def omitted(drawn: int, total: int) -> list[str]:
    """Return the remark that only the strongest edges are drawn, where that is so."""
    said = f"drawn: the {drawn} strongest of {total:,} edges; the figures are of all {total:,}"
    return [said] if drawn < total else []


def strengths(circuit: Circuit) -> list[float]:
    """Scale |score| to 0-1; the square root keeps weak edges visible beside one very strong one."""
    sizes = np.nan_to_num(np.abs(circuit.scores))
    largest = float(sizes.max()) if len(sizes) else 0.0
    return [math.sqrt(size / largest) if largest > 0 else 0.0 for size in sizes.tolist()]


def line_style(score: float) -> str:
    """Return the line style that tells the sign of a score."""
    if math.isnan(score):
        return "dotted"
    return "dashed" if score < 0 else "solid"


def _tooltip(circuit: Circuit, i: int) -> str:
    text = f"{circuit.edge_list[i]}: score {number(float(circuit.scores[i]))}"
    if circuit.removal is not None:
        text += f"; removing it costs {number(float(circuit.removal[i]))} of the faithfulness"
    if circuit.inclusion is not None:
        text += f"; selected by {circuit.inclusion[i]:.0%} of the resamples of the pairs"
    return text


def circuit_facts(circuit: Circuit) -> list[str]:
    """Return in lines how large a circuit is, and what it was judged to be."""
    size = f"{len(circuit):,} of {circuit.graph.n_edges:,} edges, {count_nodes(circuit)}"
    size += f", towards {circuit.model.target}" if circuit.model.target else ""
    evaluation = circuit.evaluation
    if evaluation is None:
        return [size, "not evaluated on held-out prompts"]
    fidelity = f"fidelity {evaluation.likeness.fidelity.describe(2)}, " if evaluation.likeness else ""
    return [
        size,
        f"{fidelity}faithfulness {evaluation.faithfulness:.2f}, {evaluation.interval(2)}, "
        f"on n = {evaluation.n} held-out prompt pairs",
    ]


def circuit_notes(circuit: Circuit) -> list[str]:
    """Return in sentences what widths and signs mean."""
    sizes = np.abs(circuit.scores[np.isfinite(circuit.scores)])
    width = "Width: size of the score"
    if len(sizes):
        width += f", from {float(sizes.min()):.2g} to {float(sizes.max()):.2g} {circuit.behaviour.unit}"
    kind = "measured" if circuit.measured else "estimated"
    pale = circuit.inclusion is not None and bool((circuit.inclusion < UNSTABLE).any())
    return [
        f"{width} ({circuit.behaviour.metric}, {kind} by {circuit.method.scorer}, {circuit.method.direction}).",
        SIGN,
        *([ROLES] if circuit.model.roles else []),
        *(["Pale: edges that fewer than half of the resamples of the prompt pairs select."] if pale else []),
    ]


def node_keys(circuit: Circuit) -> list[Key]:
    """Return the legend's samples of the kinds of nodes."""
    keys = [
        Key("round", NODE_FILLS[NodeKind.HEAD], "attention head", NODE_BORDERS[NodeKind.HEAD]),
        Key("box", NODE_FILLS[NodeKind.MLP], "MLP", NODE_BORDERS[NodeKind.MLP]),
    ]
    if circuit.model.shape.grouped:
        group = Key("round", NODE_FILLS[NodeKind.KV], "key/value group", NODE_BORDERS[NodeKind.KV])
        keys += [group, Key("line", LIGHT_GREY, "head of the group")]
    return keys


def circuit_keys(circuit: Circuit) -> list[list[Key]]:
    """Return the samples of nodes, slots and signs for the legend."""
    slots = [
        Key("line", SLOT_COLOURS[Slot.Q], "into query"),
        Key("line", SLOT_COLOURS[Slot.K], "into key"),
        Key("line", SLOT_COLOURS[Slot.V], "into value"),
        Key("line", SLOT_COLOURS[None], "into MLP or logits"),
    ]
    signs = [Key("line", INK, "positive score"), Key("dashes", INK, "negative score")]
    if np.isnan(circuit.scores).any():
        signs.append(Key("dots", INK, "no score"))
    return [node_keys(circuit), slots, signs]
