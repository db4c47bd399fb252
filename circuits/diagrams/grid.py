"""Places for the nodes of a large circuit: a map of the model in which every head keeps its column.

Graphviz takes minutes to lay out more than a few hundred edges, and what it gives sprawls.
Here a layer is a row: its heads by number, key/value groups below the heads that read them, the MLP on the right
and a little above, so that edges from heads into it do not run through other heads.
Layers are shifted against each other, so that straight edges between the same columns do not lie on one line.
"""

from collections.abc import Sequence

from circuits.diagrams.markup import dot_string
from circuits.diagrams.palette import LIGHT_GREY
from circuits.graph import Node, NodeKind

COLUMN, LAYER, BELOW, ABOVE = 56, 66, 27, 16
_SHIFTS = (0, 26, 10, 34, 18, 4, 30, 14, 38, 22, 8)


def grid_statements(nodes: Sequence[Node], heads_per_group: int) -> list[str]:
    """Return DOT statements that place the nodes, and a label for every layer; for the layout engine ``nop``."""
    layers = sorted({node.layer for node in nodes if _in_layer(node)})
    heights = {layer: LAYER * (i + 1) for i, layer in enumerate(layers)}
    columns = 1 + max((_column(node, heads_per_group) for node in nodes if node.kind is not NodeKind.MLP), default=0.0)
    top = LAYER * (len(layers) + 1)
    statements = [_place("rows", -COLUMN, top, "layer")]
    statements += [_place(f"row{layer}", -COLUMN, height, str(layer)) for layer, height in heights.items()]
    for node in nodes:
        x, y = columns * COLUMN / 2, top if node.kind.is_end else 0
        if _in_layer(node):
            shift = _SHIFTS[node.layer % len(_SHIFTS)]
            x = _column(node, heads_per_group) * COLUMN + shift
            if node.kind is NodeKind.MLP:  # most edges lead from MLP to MLP, so these are spread most
                x = (columns + 0.2) * COLUMN + 3 * shift
            y = heights[node.layer] + {NodeKind.KV: -BELOW, NodeKind.MLP: ABOVE}.get(node.kind, 0)
        statements.append(f'{dot_string(str(node))} [pos="{x:g},{y:g}"];')
    return statements


def _in_layer(node: Node) -> bool:
    return node.kind is not NodeKind.INPUT and not node.kind.is_end


def _column(node: Node, heads_per_group: int) -> float:
    """Return a head's number, or the middle of the heads that read a group."""
    if node.kind is NodeKind.KV:
        return node.index * heads_per_group + (heads_per_group - 1) / 2
    return float(node.index) if node.kind is NodeKind.HEAD else 0.0


def _place(name: str, x: float, y: float, label: str) -> str:
    return (
        f'{name} [shape=plaintext, style="", fontcolor="{LIGHT_GREY}", fontsize=9, tooltip=" ", '
        f'label={dot_string(label)}, pos="{x:g},{y:g}"];'
    )
