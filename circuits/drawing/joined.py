"""The two halves of a mechanism in one figure: who writes a direction, and what reads it.

From the input to the direction runs a circuit that leads there; from the direction to the logits, what single edges
carry of its component. Each half has a scale of its own, since the one is measured along the direction and the other by
the answer.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from circuits.circuit import Circuit
from circuits.comparison.parts import live_edges
from circuits.diagrams.layout import Line, nodes_dot
from circuits.diagrams.legend import legend
from circuits.diagrams.markup import number, short_number
from circuits.diagrams.palette import SLOT_COLOURS
from circuits.drawing.dot import circuit_keys, line_style, strengths
from circuits.drawing.render import ImageFormat, image
from circuits.errors import UsageError
from circuits.files.atomic import write
from circuits.graph import Edge, EdgeIndices, NodeKind

AT_MOST = 40
"""How many edges of each half are drawn, the strongest."""
Carried = Sequence[tuple[Edge, float]]
"""Edges from the direction on, each with the share of the gap that it carries."""


def draw_joined(
    writers: Circuit, carried: Carried, path: str | Path, *, summary: str = "", title: str | None = None
) -> None:
    """Draw who writes a direction and what reads it, as ``.svg``, ``.pdf``, ``.png`` or ``.dot``; see the module.

    Raises :class:`UsageError` for a circuit that leads to the logits, or to another place than the edges come from.
    """
    dot = joined_dot(writers, carried, summary=summary, title=title)
    suffix = Path(path).suffix.lower()
    write(path, dot if suffix == ".dot" else image(dot, ImageFormat(suffix[1:])))


def joined_dot(writers: Circuit, carried: Carried, *, summary: str = "", title: str | None = None) -> str:
    """Return the DOT text of both halves; ``summary`` goes below the title."""
    middle, shape = writers.model.shape.end, replace(writers.model, target=None).shape
    starts = {edge.sender for edge, _ in carried if edge.sender.kind is NodeKind.RESID}
    if writers.model.target is None or starts - {middle}:
        raise UsageError(
            f"the circuit leads to {middle}, and what is read comes from {', '.join(map(str, starts)) or 'nowhere'}; "
            "give the circuit that was found with --to the same direction."
        )
    kept = _on_paths(writers)
    drawn = writers.with_edges(kept, writers.scores[np.isin(writers.edges, kept)])
    read = sorted(carried, key=lambda each: -abs(each[1]))[:AT_MOST]
    largest = max((abs(share) for _, share in read), default=1.0) or 1.0
    lines = [
        _line(edge, score, strength, f"score {number(score)}")
        for edge, score, strength in zip(drawn.edge_list, drawn.scores.tolist(), strengths(drawn), strict=True)
    ]
    lines += [
        _line(edge, share, math.sqrt(abs(share) / largest), f"carries {number(share)} of the gap")
        for edge, share in read
    ]
    ends = [node for line in lines for node in (line.edge.sender, line.edge.receiver.node)]
    heads = [node for node in ends if node.kind is NodeKind.HEAD]
    pairs = dict.fromkeys((str(shape.group_of(head)), str(head)) for head in heads if shape.group_of(head) in ends)
    heading = title if title is not None else f"{writers.behaviour.name} in {writers.model.id}, through {middle}"
    facts = [
        f"below {middle}: the strongest {len(drawn)} of {len(writers):,} edges that are on a path to it",
        f"above: the {len(read)} edges that carry most of it to the logits",
        *([summary] if summary else []),
    ]
    notes = [f"Widths below {middle} and above it have scales of their own: scores, and shares of the gap."]
    table = legend(heading, facts, circuit_keys(drawn), notes)
    order = sorted(dict.fromkeys(ends), key=lambda node: (node.layer, node.kind, node.index))
    return nodes_dot(order, shape, lines, table, groups=list(pairs))


def _on_paths(circuit: Circuit) -> EdgeIndices:
    """Return the strongest edges on paths of such edges, up to ``AT_MOST``, or the fewest that make a path."""
    found = circuit.edges[:0]
    for count in range(1, len(circuit) + 1):
        kept = live_edges(circuit.strongest(count))
        if len(kept) > AT_MOST:
            return found if len(found) else kept
        found = kept
    return found


def _line(edge: Edge, value: float, strength: float, said: str) -> Line:
    colour = SLOT_COLOURS[edge.receiver.slot]
    return Line(edge, colour, line_style(value), strength, f"{edge}: {said}", short_number(value))
