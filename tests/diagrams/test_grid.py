"""Large circuits: every node has a place of its own, in the row of its layer, and drawing takes seconds."""

import time
from itertools import combinations

import pygraphviz  # noqa: TID251 - diagrams are read back with Graphviz's own parser

from circuits.diagrams.layout import MAX_ROUTED
from circuits.drawing.dot import circuit_dot
from circuits.graph import Node, NodeKind
from tests.example_circuits import GROUPED, random_circuit


def places(dot: str) -> dict[Node, tuple[float, float]]:
    with pygraphviz.AGraph(string=dot) as graph:
        names = [str(node) for node in graph.nodes() if not str(node).startswith("row")]
        return {Node.parse(name): tuple(map(float, graph.get_node(name).attr["pos"].split(","))) for name in names}  # type: ignore[misc]


def test_rows_are_layers_columns_are_heads_and_no_two_nodes_touch() -> None:
    circuit = random_circuit(900, GROUPED)
    found = places(circuit_dot(circuit, page=True))
    assert set(found) == set(circuit.nodes)
    for (one, (x1, y1)), (other, (x2, y2)) in combinations(found.items(), 2):
        assert abs(x1 - x2) >= 38 or abs(y1 - y2) >= 18, f"{one} touches {other}"
        if one.kind is other.kind is NodeKind.HEAD:
            assert (y1 < y2) == (one.layer < other.layer)
            if one.layer == other.layer:
                assert (x1 < x2) == (one.index < other.index)
    heights = {node: place[1] for node, place in found.items()}
    assert max(heights, key=heights.__getitem__).kind is NodeKind.LOGITS
    assert min(heights, key=heights.__getitem__).kind is NodeKind.INPUT


def test_a_group_stands_below_the_heads_that_read_it() -> None:
    circuit = random_circuit(900, GROUPED)
    found = places(circuit_dot(circuit, page=True))
    checked = 0
    for sender, receiver, key in circuit.to_networkx().edges(keys=True):
        if key == "group":
            (x1, y1), (x2, y2) = found[Node.parse(sender)], found[Node.parse(receiver)]
            assert y1 < y2
            assert abs(x1 - x2) <= 56 * (GROUPED.shape.heads_per_group - 1) / 2
            checked += 1
    assert checked > 10


def test_edges_on_few_columns_do_not_lie_on_one_line() -> None:
    circuit = random_circuit(900, GROUPED)
    found = places(circuit_dot(circuit, page=True))
    for index in range(3):
        column = [place for node, place in found.items() if node.kind is NodeKind.HEAD and node.index == index]
        aligned = sum(
            abs((b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])) < 1
            for a, b, c in combinations(column, 3)
        )
        assert aligned <= len(list(combinations(column, 3))) / 10


def test_small_circuits_are_laid_out_by_graphviz() -> None:
    assert "pos=" not in circuit_dot(random_circuit(MAX_ROUTED), page=True)
    assert "pos=" in circuit_dot(random_circuit(MAX_ROUTED + 1), page=True)


def test_a_large_diagram_takes_seconds() -> None:
    from circuits.drawing.render import ImageFormat, image

    begun = time.process_time()
    svg = image(circuit_dot(random_circuit(1500, GROUPED), page=True), ImageFormat.SVG).decode()
    assert time.process_time() - begun < 20
    assert svg.count('id="edge:') == 1500
