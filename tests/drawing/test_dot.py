"""Diagrams as text: what is drawn is what is stored."""

import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pygraphviz  # noqa: TID251 - diagrams are read back with Graphviz's own parser
import pytest

from circuits.circuit import Circuit
from circuits.comparison import difference
from circuits.diagrams.layout import MAX_LABELLED
from circuits.diagrams.markup import number, short_number
from circuits.diagrams.palette import BLUE, GREEN, GREY, MEMBER_COLOURS, VERMILLION
from circuits.drawing.difference import difference_dot
from circuits.drawing.dot import circuit_dot
from circuits.drawing.render import ImageFormat, image
from circuits.records import ModelInfo
from tests.example_circuits import GROUPED, PLAIN, circuit_of, random_circuit

Drawn = list[dict[str, str]]


def edges_of(dot: str) -> Drawn:
    """Read the drawn edges back with Graphviz's own parser, without the invisible column of layers."""
    with pygraphviz.AGraph(string=dot) as graph:
        return [
            {"sender": edge[0], "receiver": edge[1], **edge.attr.to_dict()}
            for edge in graph.edges()
            if edge.attr["style"] != "invis"
        ]


def stored(circuit: Circuit) -> list[tuple[str, str, str]]:
    """Sender, receiver node and 'edge: score' of every stored edge."""
    return sorted(
        (str(edge.sender), str(edge.receiver.node), f"{edge}: score {number(score)}")
        for edge, score in zip(circuit.edge_list, circuit.scores.tolist(), strict=True)
    )


def drawn(edges: Drawn) -> list[tuple[str, str, str]]:
    return sorted(
        (edge["sender"], edge["receiver"], edge["tooltip"].split(";")[0])
        for edge in edges
        if " score " in edge["tooltip"]
    )


@pytest.mark.parametrize("model", [PLAIN, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize("n_edges", [20, 150])
def test_every_drawn_edge_is_in_the_circuit_and_its_tooltip_is_the_stored_score(model: ModelInfo, n_edges: int) -> None:
    circuit = random_circuit(n_edges, model)
    edges = edges_of(circuit_dot(circuit))
    assert drawn(edges) == stored(circuit)
    assert len(drawn(edges)) == n_edges
    others = len(edges) - n_edges
    groups = sum(key == "group" for _, _, key in circuit.to_networkx().edges(keys=True))
    assert others == groups


def test_a_changed_score_or_edge_changes_what_is_drawn() -> None:
    circuit = circuit_of({"input->a0.h1<q>": 0.5, "a0.h1->logits": 1.25})
    other = replace(circuit, scores=np.array([0.5, 1.2501]))
    assert drawn(edges_of(circuit_dot(other))) != stored(circuit)
    moved = circuit_of({"input->a0.h2<q>": 0.5, "a0.h1->logits": 1.25})
    assert drawn(edges_of(circuit_dot(moved))) != stored(circuit)


def test_up_to_thirty_edges_carry_their_score_as_label_and_more_do_not() -> None:
    few = random_circuit(MAX_LABELLED)
    scores = {str(e): s for e, s in zip(few.edge_list, few.scores.tolist(), strict=True)}
    labels = {
        edge["tooltip"].split(": ")[0]: edge["label"].strip("\N{NO-BREAK SPACE}")
        for edge in edges_of(circuit_dot(few))
        if " score " in edge["tooltip"]
    }
    assert labels == {text: short_number(score) for text, score in scores.items()}
    many = edges_of(circuit_dot(random_circuit(MAX_LABELLED + 1)))
    assert not any(edge.get("label") for edge in many)


def test_slot_is_colour_sign_is_line_style_and_size_is_width() -> None:
    circuit = circuit_of(
        {
            "input->a0.h1<q>": 4.0,
            "input->a0.kv0<k>": -1.0,
            "input->a0.kv0<v>": 0.25,
            "a0.h1->m0": float("nan"),
            "m0->logits": 2.0,
        }
    )
    edges = {edge["tooltip"].split(":")[0]: edge for edge in edges_of(circuit_dot(circuit))}
    colours = {text: edge["color"][:7] for text, edge in edges.items()}
    assert colours["input->a0.h1<q>"] == BLUE
    assert colours["input->a0.kv0<k>"] == VERMILLION
    assert colours["input->a0.kv0<v>"] == GREEN
    assert colours["m0->logits"] == GREY
    styles = [edges[text]["style"] for text in ("input->a0.h1<q>", "input->a0.kv0<k>", "a0.h1->m0")]
    assert styles == ["solid", "dashed", "dotted"]
    order = ["a0.h1->m0", "input->a0.kv0<v>", "input->a0.kv0<k>", "m0->logits", "input->a0.h1<q>"]
    widths = [float(edges[text]["penwidth"]) for text in order]
    assert widths == sorted(widths)
    assert widths[0] < widths[1] < widths[2] < widths[3] < widths[4]
    assert "not measured" in edges["a0.h1->m0"]["tooltip"]


def test_a_head_that_reads_through_its_group_only_hangs_on_the_groups_node() -> None:
    circuit = circuit_of({"input->a3.kv1<v>": 1.0, "a3.h4->logits": 1.0})
    pairs = {(edge["sender"], edge["receiver"]) for edge in edges_of(circuit_dot(circuit))}
    assert pairs == {("input", "a3.kv1"), ("a3.kv1", "a3.h4"), ("a3.h4", "logits")}


def test_layers_go_from_the_input_at_the_bottom_to_the_logits_on_top() -> None:
    circuit = random_circuit(60, GROUPED)
    with pygraphviz.AGraph(string=circuit_dot(circuit)) as graph:
        graph.layout(prog="dot")
        height = {str(node): float(node.attr["pos"].split(",")[1]) for node in graph.nodes()}
    part = {"kv": 0, "head": 1, "mlp": 2}
    rank = {
        str(node): -1 if str(node) == "input" else 10**6 if str(node) == "logits" else 10 * node.layer + part[node.kind]
        for node in circuit.nodes
    }
    ordered = sorted(rank, key=rank.__getitem__)
    for lower, upper in pairwise(ordered):
        if rank[lower] == rank[upper]:
            assert abs(height[lower] - height[upper]) < 1
        else:
            assert height[lower] < height[upper] - 5, f"{lower} should be below {upper}"


@pytest.mark.parametrize(
    "name", ['say "hi"', "<script>alert(1)</script>", "back\\slash \\N \\", "a & b &lt; c", "new\nline\x00\ud800"]
)
def test_names_are_shown_as_they_are_and_never_become_markup(name: str) -> None:
    circuit = circuit_of({"input->logits": 1.0}, name=name)
    svg = image(circuit_dot(circuit), ImageFormat.SVG).decode("utf-8")
    root = ElementTree.fromstring(svg.split("<!DOCTYPE")[1].split(">", 1)[1])
    text = "".join(part for node in root.iter() for part in (node.text or "",) if node.tag.endswith("text"))
    assert " ".join(name.replace("\x00", " ").replace("\ud800", " ").split()) in text
    assert not [node for node in root.iter() if node.tag.endswith("script")]


def test_a_very_long_title_is_wrapped_and_does_not_widen_the_figure() -> None:
    circuit = circuit_of({"input->logits": 1.0})
    normal, long = (
        float(
            re.search(r'<svg width="([\d.]+)pt"', image(circuit_dot(circuit, title=title), ImageFormat.SVG).decode())[1]
        )  # type: ignore[index]
        for title in ("short", "a long title " * 60)
    )
    assert long < 1.5 * normal


def test_the_legend_names_model_behaviour_size_and_quality() -> None:
    dot = circuit_dot(random_circuit(20))
    for text in ("toy in tiny-grouped", "20 of", "faithfulness 0.93", "[0.88, 0.97]", "n = 64", "positive score"):
        assert text in dot
    unmeasured = circuit_dot(replace(random_circuit(20), evaluation=None))
    assert "not evaluated" in unmeasured
    assert "faithfulness 0" not in unmeasured


def test_an_empty_circuit_is_drawn_as_input_and_logits() -> None:
    empty = circuit_of({})
    with pygraphviz.AGraph(string=circuit_dot(empty)) as graph:
        assert [str(n) for n in graph.nodes() if not str(n).startswith("row")] == ["input", "logits"]
    assert image(circuit_dot(empty), ImageFormat.SVG).startswith(b"<?xml")


def test_a_difference_shows_each_edges_circuit_by_hue_and_both_scores() -> None:
    a = circuit_of({"input->m0": 1.0, "input->m1": 2.0, "m0->logits": 0.5}, name="first")
    b = circuit_of({"input->m1": 3.0, "m0->logits": -0.25, "m1->logits": 1.0}, name="second")
    diff = difference(a, b)
    edges = {edge["tooltip"].split(":")[0]: edge for edge in edges_of(difference_dot(diff))}
    expected = {"input->m0": "only_a", "input->m1": "shared", "m0->logits": "sign_flip", "m1->logits": "only_b"}
    by_colour: dict[str, str] = {colour: member.value for member, colour in MEMBER_COLOURS.items()}
    assert {text: by_colour[edge["color"][:7]] for text, edge in edges.items()} == expected
    assert edges["input->m1"]["tooltip"] == "input->m1: score A 2, B 3"
    assert edges["m0->logits"]["tooltip"] == "m0->logits: score A 0.5, B -0.25"
    assert edges["input->m0"]["tooltip"] == "input->m0: score A 1"
    assert "A: first and B: second" in difference_dot(diff)


def chain(names: str, strength: float) -> dict[str, float]:
    """Scores of the edges between nodes one after the other."""
    nodes = names.split()
    return {f"{here}->{there}": strength for here, there in pairwise(nodes)}


def hanging(drawn: Drawn) -> set[str]:
    """Nodes but the ends into which nothing leads, or which lead to nothing."""
    senders, receivers = {edge["sender"] for edge in drawn}, {edge["receiver"] for edge in drawn}
    return (senders ^ receivers) - {"input", "logits"}


def test_no_node_hangs_in_a_drawn_comparison_whose_weakest_edges_are_left_out() -> None:
    strong = {
        f"input->{node}": 5.0 + i for i, node in enumerate(["m0", "m1", "m2", *(f"a0.h{h}<q>" for h in range(6))])
    }
    strong |= {f"m{i}->m{j}": 4.0 for i in range(9) for j in range(i + 1, 9)}
    weak = {f"m{i}->logits": 0.01 * (i + 1) for i in range(9)} | {f"a0.h{h}->m9": 0.001 for h in range(6)}
    a = circuit_of({**strong, **weak, "m9->logits": 0.002}, name="first")
    b = circuit_of(chain("input m1 m3 logits", 1.0), name="second")
    diff = difference(a, b)
    text = difference_dot(diff)
    drawn = edges_of(text)
    assert hanging(drawn) == set()
    assert len(drawn) < len(diff.union)
    only_a = [edge for edge in drawn if edge["tooltip"].count("score A") and "B" not in edge["tooltip"]]
    said = re.search(r"only A: the strongest 40 of (\d+) and (\d+) that connect them", text)
    assert said is not None
    assert (int(said[1]), 40 + int(said[2])) == (len(diff.only_a), len(only_a))
    strongest = sorted((abs(score) for score in a.scores[~np.isin(a.edges, b.edges)]), reverse=True)[:40]
    assert sum(min(strongest) <= abs(float(edge["tooltip"].rpartition(" ")[2])) for edge in only_a) >= 40


@pytest.mark.parametrize("text_of", [circuit_dot, lambda c: difference_dot(difference(c, random_circuit(40, seed=5)))])
def test_the_same_circuit_gives_the_same_text(text_of: Callable[[Circuit], str]) -> None:
    assert text_of(random_circuit(50)) == text_of(random_circuit(50))
    assert text_of(random_circuit(50)) != text_of(random_circuit(50, seed=1))


def test_of_a_large_circuit_the_strongest_edges_are_drawn_and_the_legend_says_so() -> None:
    circuit = random_circuit(341, GROUPED, seed=3)
    text = circuit_dot(circuit)
    assert "drawn: the 200 strongest of 341 edges; the figures are of all 341" in text
    assert f"341 of {circuit.graph.n_edges:,} edges" in text
    drawn = circuit.strongest(200)
    weakest = np.abs(drawn.scores).min()
    left_out = np.setdiff1d(circuit.edges, drawn.edges)
    assert np.abs(circuit.scores[np.isin(circuit.edges, left_out)]).max() <= weakest
    for index, edge in zip(circuit.edges, circuit.edge_list, strict=True):
        assert (f"{edge}: score" in unescape(text)) == (index in drawn.edges)
