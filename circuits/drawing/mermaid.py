"""Circuits as Mermaid flowcharts, for Markdown pages that draw them (GitHub, GitLab, many wikis)."""

import json

from circuits.circuit import Circuit
from circuits.diagrams.layout import MAX_LABELLED, count_nodes
from circuits.diagrams.markup import one_line, short_number
from circuits.diagrams.palette import LIGHT_GREY, NODE_BORDERS, NODE_FILLS, SLOT_COLOURS
from circuits.diagrams.style import Flow
from circuits.graph import Node, NodeKind

_BRACKETS = {
    NodeKind.INPUT: ("[", "]"),
    NodeKind.HEAD: ("(", ")"),
    NodeKind.KV: ("((", "))"),
    NodeKind.MLP: ("[", "]"),
    NodeKind.LOGITS: ("[", "]"),
    NodeKind.RESID: ("[", "]"),
    NodeKind.MIDDLE: ("[", "]"),
}


def circuit_mermaid(circuit: Circuit, *, title: str | None = None, flow: Flow = Flow.UP) -> str:
    """Return the text of a Mermaid flowchart from the input, at the bottom or the left, to the end.

    Colours and line styles as in :func:`circuits.drawing.dot.circuit_dot`: slot by colour, dotted for negative scores.
    Up to 30 edges carry slot and score as a label. Mermaid itself refuses more than 500 edges unless configured.
    """
    heading = title if title is not None else f"{circuit.behaviour.name} in {circuit.model.id}"
    lines = [
        "---",
        f"title: {json.dumps(one_line(heading), ensure_ascii=True)}",
        "---",
        f"flowchart {flow.rankdir}",
        f"%% {len(circuit)} of {circuit.graph.n_edges} edges, {count_nodes(circuit)}",
        "%% blue: query, orange: key, green: value, grey: MLP or logits; dotted: negative score",
        "%% positive score: corrupting the edge moves the metric away from clean behaviour",
    ]
    for kind in NodeKind:
        style = f"fill:{NODE_FILLS[kind]},stroke:{NODE_BORDERS[kind]},color:#222222"
        lines.append(f"classDef {_class(kind)} {style}")
    lines += [_node(node) for node in circuit.nodes]
    return "\n".join([*lines, *_edges(circuit)]) + "\n"


def _identifier(text: str) -> str:
    return "n_" + text.replace(".", "_")


def _class(kind: NodeKind) -> str:
    return f"kind_{kind.value}"


def _node(node: Node) -> str:
    left, right = _BRACKETS[node.kind]
    return f'{_identifier(str(node))}{left}"{node}"{right}:::{_class(node.kind)}'


def _edges(circuit: Circuit) -> list[str]:
    lines: list[str] = []
    styles: dict[str, list[int]] = {}
    for edge, score in zip(circuit.edge_list, circuit.scores.tolist(), strict=True):
        arrow = "-.->" if score < 0 else "-->"
        slot = f"{edge.receiver.entrance} " if edge.receiver.entrance else ""
        label = f'|"{slot}{short_number(score)}"|' if len(circuit) <= MAX_LABELLED else ""
        styles.setdefault(f"stroke:{SLOT_COLOURS[edge.receiver.slot]}", []).append(len(lines))
        lines.append(f"{_identifier(str(edge.sender))} {arrow}{label} {_identifier(str(edge.receiver.node))}")
    for group, head, key in circuit.to_networkx().edges(keys=True):
        if key == "group":
            styles.setdefault(f"stroke:{LIGHT_GREY},stroke-width:1px", []).append(len(lines))
            lines.append(f"{_identifier(group)} --> {_identifier(head)}")
    for style, indices in styles.items():
        lines.append(f"linkStyle {','.join(map(str, indices))} {style}")
    return lines
