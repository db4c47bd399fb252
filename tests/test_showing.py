"""Tables of edges for papers, texts, data frames and notebooks; short texts of everything that holds arrays."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuits import EdgeScores, compare
from circuits.circuit import Circuit
from circuits.drawing.pictures import export
from circuits.errors import UsageError
from circuits.records import BehaviourInfo
from circuits.showing import EdgeTable, circuit_table, html_table, latex_table
from tests.example_circuits import random_circuit


@pytest.fixture
def circuit() -> Circuit:
    made = random_circuit(30)
    return replace(made, removal=np.linspace(0.0, 0.3, 30), inclusion=np.full(30, 0.5))


@pytest.fixture
def scores(circuit: Circuit) -> EdgeScores:
    values = np.zeros(circuit.graph.n_edges)
    values[circuit.edges] = circuit.scores
    return EdgeScores(circuit.graph, values, "exact", measured=True, sd=np.full(len(values), 2.0), n=16)


def test_a_table_has_the_strongest_edges_first_with_all_that_is_known(circuit: Circuit, scores: EdgeScores) -> None:
    table = circuit_table(circuit, scores=scores, top=5)
    strongest = np.argsort(-np.abs(circuit.scores))[:5]
    assert table.edges == tuple(circuit.edge_list[place] for place in strongest)
    assert table.columns == ("score (nats)", "sd", "95 % low", "95 % high", "removal", "inclusion")
    frame = table.to_pandas()
    assert frame["score (nats)"].tolist() == circuit.scores[strongest].tolist()
    assert frame["removal"].tolist() == pytest.approx(circuit.removal[strongest].tolist())  # type: ignore[index]
    assert (frame["score (nats)"] - frame["95 % low"]).tolist() == pytest.approx([1.96 * 2 / 4] * 5)
    assert frame.index.tolist() == [str(edge) for edge in table.edges]
    assert frame["receiver"].tolist() == [str(edge.receiver.node) for edge in table.edges]


def test_what_is_not_known_has_no_column(circuit: Circuit) -> None:
    bare = replace(circuit, removal=None, inclusion=None)
    assert circuit_table(bare).columns == ("score (nats)",)
    assert len(bare.to_pandas()) == 30


def test_latex_escapes_names_and_has_a_row_for_every_edge(circuit: Circuit) -> None:
    named = replace(circuit, behaviour=BehaviourInfo("a_b", "m", "50% of_it"))
    text = named.table(top=3).to_latex()
    lines = text.splitlines()
    assert lines[0].startswith("% a_b in ")
    assert lines[1:5] == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"edge & score (50\% of\_it) & removal & inclusion \\",
        r"\midrule",
    ]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert len(lines) == 7 + 3
    assert all(re.fullmatch(r"\S+ \$\\to\$ \S+( \([qkv]\))?( & \$[-\d.e]+\$){3} \\\\", line) for line in lines[5:-2])


def test_a_table_that_is_longer_than_a_page_repeats_its_headings_on_each() -> None:
    texts = [latex_table("t", ["a", "b"], [["x", 1.0]] * rows).splitlines() for rows in (45, 46)]
    assert texts[0][1] == r"\begin{tabular}{lr}"
    assert texts[1][1:9] == [
        r"\begin{longtable}{lr}",
        r"\toprule",
        r"a & b \\",
        r"\midrule",
        r"\endhead",
        r"\bottomrule",
        r"\endfoot",
        r"x & $1$ \\",
    ]
    assert texts[1][-1] == r"\end{longtable}"
    assert len(texts[1]) == 9 + 46


def test_markdown_is_a_table_whose_cells_cannot_break_it(circuit: Circuit) -> None:
    table = EdgeTable("t", circuit.edge_list[:2], ("a|b",), (np.array([1.5, np.nan]),))
    lines = table.to_markdown().splitlines()
    assert lines[:2] == [r"| edge | a\|b |", "| --- | ---: |"]
    assert lines[2].endswith("| 1.5 |")
    assert lines[3].endswith("|  |")


def test_html_is_escaped() -> None:
    assert "<script>" not in html_table("<script>", ["<script>"], [["<script>"]])


def test_tables_of_other_graphs_or_of_no_edge_are_refused(circuit: Circuit, scores: EdgeScores) -> None:
    with pytest.raises(UsageError, match="at least 1 edge, got 0"):
        circuit_table(circuit, top=0)
    other = replace(circuit, model=replace(circuit.model, n_layers=circuit.model.n_layers + 1))
    with pytest.raises(UsageError, match="another shape"):
        circuit_table(other, scores=scores)


@pytest.mark.parametrize(("suffix", "begins"), [(".tex", "% "), (".md", "| edge |")])
def test_tables_are_exported_with_the_scores_beside_them(
    circuit: Circuit, scores: EdgeScores, tmp_path: Path, suffix: str, begins: str
) -> None:
    text = export(circuit, tmp_path / f"edges{suffix}", scores=scores).read_text()
    assert text.startswith(begins)
    assert "sd" in text
    assert "inclusion" in text


def test_a_circuit_is_walked_through_edge_by_edge(circuit: Circuit) -> None:
    assert list(circuit) == list(circuit.edge_list)


def test_what_holds_arrays_has_a_short_text_and_shows_itself_in_notebooks(circuit: Circuit, scores: EdgeScores) -> None:
    shown: list[Any] = [circuit, scores, compare(circuit, random_circuit(31)), circuit.table()]
    for each in shown[:3]:
        assert len(repr(each)) < 300
    assert repr(circuit).startswith(f"Circuit({circuit.behaviour.name!r} in {circuit.model.id!r}: 30 of ")
    assert repr(scores) == "EdgeScores(exact, measured: 4,500 of 4,500 edges, 16 pairs)"
    assert all("<" in each._repr_html_() for each in shown)
    assert "<table>" in circuit._repr_html_()
    assert "<svg" in circuit._repr_html_()
