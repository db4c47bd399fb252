"""Any number of circuits in one figure: a map of their heads and MLPs, and the edges that several have.

The map has a row per layer and a cell per head, key/value group and MLP; a cell has one stripe per circuit, coloured if
the circuit has the node, the darker the more its edges weigh.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from circuits.circuit import Circuit
from circuits.comparison import Comparison
from circuits.diagrams.layout import FONT, Line, layered_dot
from circuits.diagrams.legend import Key, legend
from circuits.diagrams.markup import dot_string, html_text, number
from circuits.diagrams.palette import BLUE, GREEN, INK, LIGHT_GREY, PURPLE, VERMILLION
from circuits.drawing.dot import SIGN, line_style, node_keys, strengths
from circuits.drawing.render import ImageFormat, image
from circuits.files.atomic import write
from circuits.graph import Edge, Node, NodeKind

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, "#56B4E9", "#E69F00", INK)
SET_COLOURS = (INK, "#56B4E9", "#E69F00", PURPLE, GREEN, VERMILLION, BLUE)
"""Of circuits and of sets of circuits, from Okabe and Ito (2008); more than these are grey."""
AT_MOST = 120
"""How many edges of the shared ones are drawn: those in most circuits, then the strongest."""
_LIGHTEST = 0.3
_EMPTY = "#FFFFFF"
_CELL, _HEIGHT = 27, 13
_SHARED_NOTE = "Dotted: scores of opposite signs. Width: size of the score, relative to each circuit's largest."


def draw_several(comparison: Comparison, path: str | Path, *, shared: bool = False) -> None:
    """Draw the map of nodes, or with ``shared`` the edges that several circuits have, as .svg, .pdf, .png or .dot."""
    dot = shared_dot(comparison) if shared else node_map_dot(comparison)
    suffix = Path(path).suffix.lower()
    write(path, dot if suffix == ".dot" else image(dot, ImageFormat(suffix[1:])))


# ------------------------------------------------------------------------------------------------------- map of nodes


def node_map_dot(comparison: Comparison) -> str:
    """Return the DOT text of the map: which circuits have which heads, key/value groups and MLPs, and how strongly."""
    weights = [_node_weights(circuit) for circuit in comparison.circuits]
    shape = comparison.circuits[0].model.shape
    groups = shape.n_kv_heads if shape.grouped else 0
    columns = [(NodeKind.HEAD, i) for i in range(shape.n_heads)]
    columns += [(NodeKind.KV, i) for i in range(groups)] + [(NodeKind.MLP, 0)]
    names = [f"h{i}" for i in range(shape.n_heads)] + [f"kv{i}" for i in range(groups)] + ["mlp"]
    head = "".join(_text(name, 8) for name in ("layer", *names))
    rows = [
        f"<TR>{_text(str(layer), 8)}{''.join(_cell(Node(kind, layer, i), weights) for kind, i in columns)}</TR>"
        for layer in reversed(range(shape.n_layers))
    ]
    table = f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="2" CELLPADDING="0"><TR>{head}</TR>{"".join(rows)}</TABLE>'
    return (
        "digraph map {\n"
        f'  graph [bgcolor="white", pad="0.15", fontname="{FONT}", fontcolor="{INK}", labelloc="b", labeljust="l", '
        f"label={_map_legend(comparison)}];\n"
        f'  node [fontname="{FONT}", fontcolor="{INK}", shape=plaintext, margin=0];\n'
        f"  map [tooltip={dot_string('heads, key/value groups and MLPs by circuit')}, label=<{table}>];\n}}\n"
    )


def _node_weights(circuit: Circuit) -> dict[Node, float]:
    """Weigh nodes by the summed |score| of their edges in and out, relative to the heaviest; NaN counts as nothing."""
    weights: Counter[Node] = Counter()
    for edge, size in zip(circuit.edge_list, np.nan_to_num(np.abs(circuit.scores)).tolist(), strict=True):
        for node in (edge.sender, edge.receiver.node):
            if node.kind is not NodeKind.INPUT and not node.kind.is_end:
                weights[node] += size
    largest = max(weights.values(), default=0.0) or 1.0
    return {node: math.sqrt(weight / largest) for node, weight in weights.items()}


def _cell(node: Node, weights: Sequence[dict[Node, float]]) -> str:
    width = max(4, _CELL // len(weights))
    stripes = "".join(
        f'<TD WIDTH="{width}" HEIGHT="{_HEIGHT}" FIXEDSIZE="TRUE" BGCOLOR="{_shade(i, each.get(node))}"></TD>'
        for i, each in enumerate(weights)
    )
    inner = f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>{stripes}</TR></TABLE>'
    used = any(node in each for each in weights)
    return f'<TD BORDER="1" COLOR="{LIGHT_GREY if used else "#E4E4E4"}">{inner}</TD>'


def _shade(circuit: int, weight: float | None) -> str:
    if weight is None:
        return _EMPTY
    colour = COLOURS[circuit] if circuit < len(COLOURS) else LIGHT_GREY
    strength = _LIGHTEST + (1 - _LIGHTEST) * weight
    parts = [round(255 + (int(colour[i : i + 2], 16) - 255) * strength) for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02X}" for part in parts)


def _text(text: str, size: int) -> str:
    return f'<TD><FONT POINT-SIZE="{size}" COLOR="{LIGHT_GREY}">{html_text(text)}</FONT></TD>'


def _map_legend(comparison: Comparison) -> str:
    keys = [
        Key("box", COLOURS[i] if i < len(COLOURS) else LIGHT_GREY, f"{name} ({len(circuit)} edges)")
        for i, (name, circuit) in enumerate(zip(comparison.names, comparison.circuits, strict=True))
    ]
    models = " and ".join(dict.fromkeys(circuit.model.id for circuit in comparison.circuits))
    return legend(
        f"heads, key/value groups and MLPs of {_listed(comparison.names)}",
        [f"in {models}", *_node_counts(comparison)],
        [keys[i : i + 3] for i in range(0, len(keys), 3)],
        [
            "One stripe per circuit, left to right. Darker: the node's edges have a larger sum of |score|, relative to "
            "the circuit's heaviest node (square root). White: the circuit does not have the node."
        ],
    )


def _node_counts(comparison: Comparison) -> list[str]:
    counts = [f"{_listed(each.circuits)} {each.nodes}" for each in comparison.memberships if each.nodes]
    return [f"nodes in exactly: {'; '.join(counts)}"]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# ------------------------------------------------------------------------------------------------------- shared edges


def shared_dot(comparison: Comparison, *, title: str | None = None) -> str:
    """Return the DOT text of the edges that at least two circuits have, coloured by which; tooltips hold all scores.

    Of more than 120 edges those in most circuits are drawn, then the strongest.
    """
    members, sizes = _members(comparison)
    shared = [edge for edge, within in members.items() if len(within) > 1]
    order = sorted(shared, key=lambda edge: (-len(members[edge]), -sizes[edge], edge))[:AT_MOST]
    keep = np.array(sorted(order), dtype=np.int64)
    counts = Counter(members[edge] for edge in shared)
    sets = sorted(counts, key=lambda within: (-len(within), -counts[within], within))
    colours = dict(zip(sets, SET_COLOURS, strict=False))
    strength = np.array([sizes[edge] for edge in keep.tolist()], dtype=np.float64)
    drawn = comparison.circuits[0].with_edges(keep, strength)
    lines = [
        _shared_line(edge, comparison, index, colours.get(members[index], LIGHT_GREY), sizes[index])
        for edge, index in zip(drawn.edge_list, keep.tolist(), strict=True)
    ]
    heading = title if title is not None else f"edges that several of {_listed(comparison.names)} have"
    facts = _shared_facts(comparison, len(keep), len(shared))
    keys = [
        Key("line", colours.get(each, LIGHT_GREY), f"{_listed([comparison.names[i] for i in each])} ({counts[each]})")
        for each in sets
    ]
    rows = [*(keys[i : i + 2] for i in range(0, len(keys), 2)), node_keys(drawn)]
    return layered_dot(drawn, lines, legend(heading, facts, rows, [_SHARED_NOTE, SIGN]))


def _members(comparison: Comparison) -> tuple[dict[int, tuple[int, ...]], dict[int, float]]:
    """Return the circuits of every edge, and its largest size relative to its circuits' largest."""
    members: dict[int, tuple[int, ...]] = {}
    sizes: dict[int, float] = {}
    for i, circuit in enumerate(comparison.circuits):
        for edge, strength in zip(circuit.edges.tolist(), strengths(circuit), strict=True):
            members[edge] = (*members.get(edge, ()), i)
            sizes[edge] = max(sizes.get(edge, 0.0), strength)
    return members, sizes


def _shared_facts(comparison: Comparison, drawn: int, shared: int) -> list[str]:
    facts = [
        f"{name}: {len(circuit):,} edges, {circuit.behaviour.name} in {circuit.model.id}"
        for name, circuit in zip(comparison.names, comparison.circuits, strict=True)
    ]
    return facts + ([f"drawn: {drawn} of {shared} edges that several have"] if drawn < shared else [])


def _shared_line(edge: Edge, comparison: Comparison, index: int, colour: str, strength: float) -> Line:
    scores = {
        name: float(circuit.scores[np.searchsorted(circuit.edges, index)])
        for name, circuit in zip(comparison.names, comparison.circuits, strict=True)
        if index in circuit.edges
    }
    known = [score for score in scores.values() if not math.isnan(score)]
    flipped = bool(known) and min(known) < 0 < max(known)
    style = "dotted" if flipped or not known else line_style(known[0])
    tooltip = f"{edge}: score " + ", ".join(f"{name} {number(score)}" for name, score in scores.items())
    return Line(edge, colour, style, max(strength, 0.4) if flipped else strength, tooltip, "")
