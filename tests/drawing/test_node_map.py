"""Figures of any number of circuits: the map of nodes and the edges that several have."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from circuits.comparison import compare, difference
from circuits.diagrams.palette import BLUE, VERMILLION
from circuits.drawing.difference import PER_GROUP, difference_dot
from circuits.drawing.node_map import AT_MOST, draw_several, node_map_dot, shared_dot
from circuits.drawing.render import ImageFormat, image
from tests.drawing.test_dot import edges_of
from tests.example_circuits import circuit_of, random_circuit

A = circuit_of({"input->m0": 4.0, "m0->m1": 2.0, "m1->logits": 1.0, "a0.h1->m0": 0.5}, name="first")
B = circuit_of({"input->m0": 2.0, "m0->m1": -1.0, "m2->logits": 1.0}, name="second")
C = circuit_of({"input->m0": 1.0, "m1->logits": 0.5, "input->a1.h0<q>": 5.0}, name="third")


def cells(dot: str, colour: str) -> int:
    return dot.count(f'FIXEDSIZE="TRUE" BGCOLOR="{colour}"')


def test_the_map_has_a_cell_for_every_node_and_a_stripe_for_every_circuit() -> None:
    dot = node_map_dot(compare(A, B))
    n_nodes = len(A.graph.nodes) - 2  # without input and logits
    assert len(re.findall(r'FIXEDSIZE="TRUE" BGCOLOR="#', dot.partition("map [")[2])) == 2 * n_nodes
    body = dot.partition("map [")[2]
    coloured = 2 * n_nodes - body.count('BGCOLOR="#FFFFFF"')
    assert coloured == len([*A.nodes, *B.nodes]) - 4  # input and logits in both


def test_the_heaviest_node_of_a_circuit_has_its_full_colour_and_others_are_lighter() -> None:
    body = node_map_dot(compare(A, B)).partition("map [")[2]
    # first: m0 4 + 2 + 0.5, m1 2 + 1, a0.h1 0.5; second: m0 2 + 1, m1 1, m2 1
    assert cells(body, BLUE) == cells(body, VERMILLION) == 1
    shades = re.findall(r'BGCOLOR="(#[0-9A-F]{6})"', body)
    assert len({shade for shade in shades if shade != "#FFFFFF"}) == 5


def test_the_legend_of_the_map_counts_nodes_by_circuits() -> None:
    dot = node_map_dot(compare(A, B, C))
    assert "first (4 edges)" in dot
    assert "first, second and third 2; first 1; second 1; third 1" in dot
    assert "Darker: the node" in dot


def test_shared_edges_are_those_of_at_least_two_circuits_with_all_their_scores() -> None:
    edges = {edge["tooltip"].split(":")[0]: edge for edge in edges_of(shared_dot(compare(A, B, C)))}
    assert set(edges) == {"input->m0", "m0->m1", "m1->logits"}
    assert edges["input->m0"]["tooltip"] == "input->m0: score first 4, second 2, third 1"
    assert edges["m0->m1"]["style"] == "dotted"  # signs differ
    assert edges["m1->logits"]["style"] == "solid"
    colours = {edge["color"][:7] for edge in edges.values()}
    assert len(colours) == 3  # of all three; of first and second; of first and third
    dot = shared_dot(compare(A, B, C))
    assert "first, second and third (1)" in dot
    assert "first and third (1)" in dot


def test_of_many_shared_edges_those_in_most_circuits_are_drawn() -> None:
    a = random_circuit(300, seed=1, name="a")
    b = replace(a, behaviour=replace(a.behaviour, name="b"))
    keep = np.arange(0, 300, 6)
    third = replace(a, edges=a.edges[keep], scores=a.scores[keep], removal=None, evaluation=None)
    c = replace(third, behaviour=replace(a.behaviour, name="c"))
    dot = shared_dot(compare(a, b, c))
    assert f"drawn: {AT_MOST} of 300 edges that several have" in dot
    drawn = {edge["tooltip"].split(":")[0] for edge in edges_of(dot) if " score " in edge["tooltip"]}
    assert len(drawn) == AT_MOST
    assert set(map(str, c.edge_list)) <= drawn


def test_of_a_large_difference_the_strongest_edges_of_each_group_are_drawn_and_the_legend_says_so() -> None:
    a, b = random_circuit(300, seed=1, name="a"), random_circuit(60, seed=2, name="b")
    diff = difference(a, b)
    dot = difference_dot(diff)
    drawn = {edge["tooltip"].split(":")[0] for edge in edges_of(dot) if " score " in edge["tooltip"]}
    only = {str(diff.a.graph.edge(int(i))) for i in diff.only_b}
    more = len(drawn & only) - PER_GROUP
    assert 0 < more < len(only) - PER_GROUP
    said = f"only B: the strongest {PER_GROUP} of {len(only)} and {more} that connect them"
    told = re.sub(r"</FONT>.*?<FONT[^>]*>", " ", dot)
    assert said in told
    assert f"drawn of only A: the strongest {PER_GROUP} of {len(diff.only_a)} and " in told
    weights = dict(zip(map(str, b.edge_list), np.abs(b.scores).tolist(), strict=True))
    strongest = sorted((weights[edge] for edge in only), reverse=True)[:PER_GROUP]
    assert sorted((weights[edge] for edge in drawn & only), reverse=True)[:PER_GROUP] == strongest
    assert "drawn of" not in difference_dot(difference(A, B))


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".png", ".dot"])
def test_figures_are_written_as_their_suffix_says(tmp_path: Path, suffix: str) -> None:
    starts = {".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG", ".dot": b"digraph"}
    for shared in (False, True):
        draw_several(compare(A, B, C), tmp_path / f"x{suffix}", shared=shared)
        assert (tmp_path / f"x{suffix}").read_bytes().startswith(starts[suffix])


def test_names_never_become_markup() -> None:
    bad = replace(A, behaviour=replace(A.behaviour, name='<script>"x"</script> & co'))
    for dot in (node_map_dot(compare(bad, B)), shared_dot(compare(bad, B)), difference_dot(difference(bad, B))):
        svg = image(dot, ImageFormat.SVG).decode("utf-8")
        assert "&lt;script&gt;" in svg
        assert "<script" not in svg


def test_the_same_circuits_give_the_same_figures() -> None:
    assert node_map_dot(compare(A, B, C)) == node_map_dot(compare(A, B, C))
    assert shared_dot(compare(A, B, C)) == shared_dot(compare(A, B, C))
    assert node_map_dot(compare(A, B, C)) != node_map_dot(compare(A, C, B))
