"""Summaries of circuits as DOT text: one arrow for all edges between two nodes, or between the parts of two layers."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from circuits.circuit import Circuit
from circuits.diagrams.layout import FONT, MAX_LABELLED, MAX_ROUTED
from circuits.diagrams.legend import Key, legend
from circuits.diagrams.markup import dot_string, html_text, number, short_number
from circuits.diagrams.merging import Arrow, Box, arrows
from circuits.diagrams.palette import GREY, INK, LIGHT_GREY, NODE_BORDERS, NODE_FILLS
from circuits.diagrams.style import DiagramStyle, Level
from circuits.drawing.dot import circuit_facts, line_style
from circuits.graph import NodeKind

_SUMMED = "An arrow is the sum of the scores of all edges between two {ends}; edges may cancel in it."


def summary_dot(circuit: Circuit, *, title: str | None = None, style: DiagramStyle) -> str:
    """Return the DOT text of a circuit's summary at the level of the ``style``, from the input up to the logits.

    Up to 30 arrows carry their sum as a label; all have it in their tooltip, with the number of edges. Of more than 200
    the largest are drawn, and the legend says so. The same circuit gives the same bytes.
    """
    found = arrows(circuit, style.level)
    drawn = sorted(sorted(found, key=lambda arrow: -abs(arrow.score))[:MAX_ROUTED], key=found.index)
    boxes = sorted({box for arrow in drawn for box in (arrow.sender, arrow.receiver)})
    largest = max((abs(arrow.score) for arrow in drawn), default=0.0) or 1.0
    lines = [
        *_defaults(_legend(circuit, title, len(drawn), len(found), style), style),
        *_rows(boxes, style),
        *(_box(box, style) for box in boxes),
        *(_arrow(arrow, math.sqrt(abs(arrow.score) / largest), labelled=len(drawn) <= MAX_LABELLED) for arrow in drawn),
    ]
    return "digraph summary {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def _legend(circuit: Circuit, title: str | None, drawn: int, total: int, style: DiagramStyle) -> str:
    if not style.legend:
        return ""
    heading = title if title is not None else f"{circuit.behaviour.name} in {circuit.model.id}, by {style.level}"
    omitted = [f"drawn: the {drawn} largest of {total:,} arrows"] if drawn < total else []
    ends = "nodes" if style.level is Level.NODE else "parts of layers, its attention heads or its MLP"
    keys = [
        [
            Key("round", NODE_FILLS[NodeKind.HEAD], "attention", NODE_BORDERS[NodeKind.HEAD]),
            Key("box", NODE_FILLS[NodeKind.MLP], "MLP", NODE_BORDERS[NodeKind.MLP]),
        ],
        [Key("line", GREY, "positive sum"), Key("dashes", GREY, "negative sum")],
    ]
    facts = [*circuit_facts(circuit), *omitted, *(circuit.search.doubts if circuit.search else ())]
    return legend(heading, facts, keys, [_SUMMED.format(ends=ends)], letters=style.letters)


def _defaults(below: str, style: DiagramStyle) -> list[str]:
    graph: Mapping[str, str] = {
        "rankdir": style.flow.rankdir,
        "nodesep": "0.12",
        "ranksep": "0.32",
        "outputorder": "edgesfirst",
        "bgcolor": '"white"',
        "pad": "0.1",
        "fontname": f'"{FONT}"',
        **({"size": style.size} if style.size else {}),
        **({"labelloc": "b", "labeljust": "l", "label": below} if below else {}),
    }
    text = f'fontname="{FONT}", fontcolor="{INK}"'
    return [
        f"graph [{', '.join(f'{key}={value}' for key, value in graph.items())}];",
        f'node [{text}, fontsize={10 * style.letters:g}, height=0.27, width=0.42, margin="0.08,0.03"];',
        f"edge [{text}, fontsize={8 * style.letters:g}, arrowsize=0.55];",
    ]


def _rows(boxes: Sequence[Box], style: DiagramStyle) -> list[str]:
    """Hold the boxes of a row side by side, and rows in order by an invisible column of layer numbers."""
    rows: dict[tuple[int, int], list[Box]] = {}
    for box in boxes:
        rows.setdefault(box.row, []).append(box)
    statements: list[str] = []
    told: set[int] = set()
    for i, members in enumerate(rows.values()):
        layer, in_layer = members[0].row[0], members[0].kind in (NodeKind.HEAD, NodeKind.MLP)
        label = dot_string(str(layer)) if in_layer and style.level is Level.NODE and layer not in told else '""'
        told.add(layer)
        look = f'shape=plaintext, fontcolor="{LIGHT_GREY}", label={label}, tooltip=" "'
        statements.append(f"row{i} [{look}];")
        statements.append("{rank=same; " + " ".join([f"row{i}", *(dot_string(box.name) for box in members)]) + "}")
    chain = [f"row{i} -> row{j} [style=invis, weight=20];" for i, j in pairwise(range(len(rows)))]
    return [*statements, *chain]


def _box(box: Box, style: DiagramStyle) -> str:
    shape = 'style="filled,rounded"' if box.kind is NodeKind.HEAD else "style=filled"
    role = next((text for node, text in style.roles.items() if str(node) == box.name), "")
    label = dot_string(box.label)
    if role:
        label = f'<{html_text(box.label)}<BR/><FONT POINT-SIZE="{7.5 * style.letters:g}">{html_text(role)}</FONT>>'
    colours = f'fillcolor="{NODE_FILLS[box.kind]}", color="{NODE_BORDERS[box.kind]}"'
    identity = f"tooltip={dot_string(box.label)}, id={dot_string(f'node:{box.name}')}"
    return f"{dot_string(box.name)} [shape=box, {shape}, {colours}, label={label}, {identity}];"


def _arrow(arrow: Arrow, strength: float, *, labelled: bool) -> str:
    ends = f"{arrow.sender.name}->{arrow.receiver.name}"
    tooltip = dot_string(f"{ends}: {number(arrow.score)}, the sum of {arrow.edges} edges")
    label = f", label={dot_string(short_number(arrow.score))}, labeltooltip={tooltip}" if labelled else ""
    opacity = round(120 + 135 * strength)
    look = f'color="{GREY}{opacity:02x}", style={line_style(arrow.score)}, penwidth={0.6 + 3.4 * strength:.2f}'
    names = f"{dot_string(arrow.sender.name)} -> {dot_string(arrow.receiver.name)}"
    return f"{names} [{look}, tooltip={tooltip}, id={dot_string(f'edge:{ends}')}{label}];"
