"""Place nodes and edges in layers: DOT text for a figure that is read from the input, at the bottom, to the logits.

A layer takes up to three rows: the key/value groups, the heads that read them, the MLP that reads the heads. Rows are
held in order by an invisible column of layer numbers on the left. Everything is written in graph order, so the same
circuit always gives the same text.

In an SVG every element can be found again: nodes have the id ``node:a3.h5``, edges ``edge:a3.h5->m4``, the arrows from
groups to their heads ``group:a3.kv1->a3.h4``, and classes name kind and colour, so that a page can restyle them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from circuits.circuit import Circuit
from circuits.diagrams.grid import grid_statements
from circuits.diagrams.markup import dot_string, html_text
from circuits.diagrams.palette import INK, LIGHT_GREY, NODE_BORDERS, NODE_FILLS, SLOT_ARROWS, colour_name
from circuits.diagrams.style import PLAIN, DiagramStyle, Flow
from circuits.graph import Edge, ModelShape, Node, NodeKind

FONT = "Helvetica,Arial,sans-serif"
MAX_LABELLED = 30
"""Up to this many edges the scores are printed beside the edges; beyond it they are in the tooltips only."""
MAX_ROUTED = 200
"""For more edges Graphviz takes minutes to place nodes and to route edges; so both are done here: see ``grid.py``."""
NOTE_LIMIT = 900
"""The longest tooltip, in characters."""

_LAST_ROW = 10**9
_ROW_IN_LAYER = {NodeKind.RESID: -1, NodeKind.MIDDLE: -1, NodeKind.KV: 0, NodeKind.HEAD: 1, NodeKind.MLP: 2}
_SHAPES = {NodeKind.HEAD: 'shape=box, style="filled,rounded"', NodeKind.KV: "shape=ellipse, style=filled"}

Row = tuple[int, int]
_FAINT = 64
"""How dark a faint line is, of 255."""


@dataclass(frozen=True)
class Line:
    """How one edge is drawn; ``strength`` from 0 to 1 sets its width and how dark it is, unless it is ``faint``.

    The label has the edge's token role, if any, also where there are too many edges for their scores.
    """

    edge: Edge
    colour: str
    style: str
    strength: float
    tooltip: str
    label: str
    faint: bool = False


def layered_dot(
    circuit: Circuit,
    lines: Sequence[Line],
    legend: str,
    *,
    borders: Mapping[Node, str] | None = None,
    notes: Mapping[Node, str] | None = None,
    style: DiagramStyle = PLAIN,
) -> str:
    """Return the DOT text of a circuit whose edges are drawn as ``lines``.

    ``borders`` overrides the colour of nodes' outlines (difference diagrams); ``notes`` are added to nodes' tooltips.
    Without a legend (empty text) the figure is the diagram alone.
    """
    given = circuit.nodes, circuit.model.shape, lines, legend
    return nodes_dot(*given, groups=_groups(circuit), borders=borders, notes=notes, style=style)


def nodes_dot(
    drawn: Sequence[Node],
    shape: ModelShape,
    lines: Sequence[Line],
    legend: str,
    *,
    groups: Sequence[tuple[str, str]] = (),
    borders: Mapping[Node, str] | None = None,
    notes: Mapping[Node, str] | None = None,
    style: DiagramStyle = PLAIN,
) -> str:
    """Return the DOT text of nodes between the input and a shape's end, and of edges among them.

    As :func:`layered_dot`, also of nodes that no one circuit has; ``groups`` are key/value groups and their heads.
    """
    end = shape.end
    nodes = tuple(dict.fromkeys([Node(NodeKind.INPUT), *drawn]))
    nodes = (*(node for node in nodes if node != end), end)
    entering = Counter(line.edge.receiver.node for line in lines)
    leaving = Counter(line.edge.sender for line in lines)
    statements = [
        *_defaults(len(lines), legend, style),
        *(
            _rows(nodes, end, style.letters)
            if len(lines) <= MAX_ROUTED
            else grid_statements(nodes, shape.heads_per_group)
        ),
        *(
            _node(node, (entering[node], leaving[node]), borders or {}, (notes or {}).get(node, ""), style)
            for node in nodes
        ),
        *(_line(line, labelled=len(lines) <= MAX_LABELLED) for line in lines),
        *(_group_arrow(*each) for each in groups),
    ]
    return "digraph circuit {\n" + "".join(f"  {statement}\n" for statement in statements) + "}\n"


def _defaults(n_edges: int, legend: str, style: DiagramStyle) -> list[str]:
    graph = {
        "rankdir": style.flow.rankdir,
        "nodesep": "0.16" if n_edges <= 60 and style.width is None else "0.10",
        "ranksep": "0.32",
        "splines": "true",
        "outputorder": "edgesfirst",
        "bgcolor": '"white"',
        "pad": "0.15",
        "fontname": f'"{FONT}"',
        "fontcolor": f'"{INK}"',
    }
    if n_edges > MAX_ROUTED:
        graph |= {"layout": "nop", "splines": "line", "rankdir": Flow.UP.rankdir}
    if style.size:
        graph |= {"size": style.size}
    if legend:
        graph |= {"labelloc": "b", "labeljust": "l", "label": legend}
    return [
        "graph [" + ", ".join(f"{key}={value}" for key, value in graph.items()) + "];",
        f'node [fontname="{FONT}", fontsize={10 * style.letters:g}, fontcolor="{INK}", height=0.27, width=0.42, '
        'margin="0.06,0.02"];',
        f'edge [fontname="{FONT}", fontsize={8 * style.letters:g}, fontcolor="{INK}", arrowsize=0.55];',
    ]


def _row(node: Node, end: Node) -> Row:
    if node.kind is NodeKind.INPUT:
        return (-1, 0)
    if node == end:
        return (_LAST_ROW, 0)
    return (node.layer, _ROW_IN_LAYER[node.kind])


def _rows(nodes: Sequence[Node], end: Node, letters: float) -> list[str]:
    rows: dict[Row, list[Node]] = {}
    for node in sorted(nodes, key=partial(_row, end=end)):
        rows.setdefault(_row(node, end), []).append(node)
    keys = list(rows)
    names = [f"row{i}" for i in range(len(keys))]
    statements = [
        f'{name} [shape=plaintext, style="", group=rows, fontcolor="{LIGHT_GREY}", fontsize={9 * letters:g}, '
        f'tooltip=" ", label={dot_string(_row_label(key, keys))}];'
        for name, key in zip(names, keys, strict=True)
    ]
    statements.append(" -> ".join(names) + " [style=invis, weight=100];")
    for name, key in zip(names, keys, strict=True):
        statements.append("{rank=same; " + " ".join([name, *(dot_string(str(node)) for node in rows[key])]) + "}")
    return statements


def _row_label(key: Row, keys: Sequence[Row]) -> str:
    """Number each layer once: beside its heads, else its MLP, else its key/value groups."""
    layer, part = key
    if layer in (-1, _LAST_ROW):
        return "layer" if layer == _LAST_ROW else ""
    parts = [other for in_layer, other in keys if in_layer == layer]
    labelled = 1 if 1 in parts else max(parts)
    return str(layer) if part == labelled else ""


def _node(node: Node, counts: tuple[int, int], borders: Mapping[Node, str], note: str, style: DiagramStyle) -> str:
    entering, leaving = counts
    border = borders.get(node, NODE_BORDERS[node.kind])
    shape = _SHAPES.get(node.kind, "shape=box, style=filled")
    role = style.roles.get(node, "")
    label, extra = dot_string(str(node)), ""
    if node.kind is NodeKind.KV:
        size = f"fontsize={7 * style.letters:g}, width=0.24, height=0.17, margin=0.02"
        label, extra = dot_string(f"kv{node.index}"), f", {size}"
    elif node.kind is NodeKind.INPUT or node.kind.is_end:
        extra = f", width={_bar_width(max(entering, leaving)):.2f}"
    elif role:
        small = f'<FONT POINT-SIZE="{7.5 * style.letters:g}">{html_text(role)}</FONT>'
        label = f"<{html_text(str(node))}<BR/>{small}>"
    width = 1.6 if node in borders else 1
    tooltip = f"{describe(node)}: {entering} edges in, {leaving} edges out" + (f". {note}" if note else "")
    classes = f"{node.kind} border-{colour_name(border)}" if node in borders else node.kind.value
    return (
        f'{dot_string(str(node))} [{shape}, fillcolor="{NODE_FILLS[node.kind]}", color="{border}", penwidth={width}, '
        f"label={label}, tooltip={dot_string(tooltip, limit=NOTE_LIMIT)}{extra}, "
        f'id={dot_string(f"node:{node}")}, class="{classes}"];'
    )


def _bar_width(n_edges: int) -> float:
    """Widen input and logits with the number of their edges, so that edges leave side by side."""
    return min(1.2 + 0.07 * n_edges, 7.0)


def describe(node: Node) -> str:
    """Return in words what a node is."""
    match node.kind:
        case NodeKind.HEAD:
            return f"{node}, attention head {node.index} of layer {node.layer}"
        case NodeKind.KV:
            return f"{node}, keys and values of group {node.index} in layer {node.layer}"
        case NodeKind.MLP:
            return f"{node}, MLP of layer {node.layer}"
        case NodeKind.INPUT:
            return "input embedding"
        case NodeKind.LOGITS:
            return "logits"
        case NodeKind.RESID | NodeKind.MIDDLE:
            where = "that enters" if node.kind is NodeKind.RESID else "between attention and MLP of"
            return f"{node}, the residual stream {where} layer {node.layer}, as it is read there"


def _line(line: Line, *, labelled: bool) -> str:
    slot = line.edge.receiver.slot
    opacity = _FAINT if line.faint else round(120 + 135 * line.strength)
    tooltip = dot_string(line.tooltip)
    attributes = [
        f'color="{line.colour}{opacity:02x}"',
        f"style={line.style}",
        f"penwidth={0.6 + 3.4 * line.strength:.2f}",
        f"arrowhead={SLOT_ARROWS[slot]}",
        f"weight={1 + round(4 * line.strength)}",
        f"tooltip={tooltip}",
        f"id={dot_string(f'edge:{line.edge}')}",
        f'class="{colour_name(line.colour)}"',
    ]
    label = " ".join(part for part in (line.edge.receiver.role, line.label if labelled else "") if part)
    if label:
        attributes += [f"label={_padded(label)}", f"labeltooltip={tooltip}"]
    ends = f"{dot_string(str(line.edge.sender))} -> {dot_string(str(line.edge.receiver.node))}"
    return f"{ends} [{', '.join(attributes)}];"


def _padded(label: str) -> str:
    """Keep a label clear of its line: Graphviz puts them edge to edge."""
    return f'"\N{NO-BREAK SPACE}{dot_string(label)[1:-1]}\N{NO-BREAK SPACE}"'


def _groups(circuit: Circuit) -> list[tuple[str, str]]:
    return [(group, head) for group, head, key in circuit.to_networkx().edges(keys=True) if key == "group"]


def _group_arrow(group: str, head: str) -> str:
    return (
        f'{dot_string(group)} -> {dot_string(head)} [color="{LIGHT_GREY}", penwidth=0.7, arrowsize=0.35, weight=8, '
        f"tooltip={dot_string(f'{head} reads the keys and values of {group}')}, "
        f'id={dot_string(f"group:{group}->{head}")}, class="{colour_name(LIGHT_GREY)}"];'
    )


def count_nodes(circuit: Circuit) -> str:
    """Return in words how many heads and MLPs a circuit uses."""
    kinds = Counter(node.kind for node in circuit.nodes)
    heads, mlps = kinds[NodeKind.HEAD], kinds[NodeKind.MLP]
    return f"{heads} {'head' if heads == 1 else 'heads'} and {mlps} {'MLP' if mlps == 1 else 'MLPs'}"
