"""Circuits summed up by node and by layer."""

from dataclasses import replace
from pathlib import Path

import pytest

from circuits.diagrams.merging import arrows
from circuits.diagrams.style import DiagramStyle, Level
from circuits.drawing.pictures import draw
from circuits.drawing.summary import summary_dot
from circuits.errors import UnknownNameError, UsageError
from circuits.graph import Node
from circuits.records import SearchOutcome
from tests.example_circuits import PLAIN, circuit_of, random_circuit

SCORES = {
    "input->a0.h1<q>": 0.5,
    "input->a0.kv0<v>": 0.25,
    "input->a0.kv0<k>": 0.5,
    "a0.h1->m0": -0.25,
    "a0.h2->m0": 0.125,
    "m0->logits": 1.5,
    "a0.h2->logits": float("nan"),
}


def sums(level: Level) -> dict[str, tuple[float, int]]:
    return {
        f"{arrow.sender.label} -> {arrow.receiver.label}": (arrow.score, arrow.edges)
        for arrow in arrows(circuit_of(SCORES), level)
    }


def test_arrows_between_nodes_add_up_slots_and_divide_what_heads_share() -> None:
    assert sums(Level.NODE) == {
        "input -> a0.h1": (0.5 + 0.75 / 2, 3),
        "input -> a0.h2": (0.75 / 2, 2),
        "a0.h1 -> m0": (-0.25, 1),
        "a0.h2 -> m0": (0.125, 1),
        "m0 -> logits": (1.5, 1),
        "a0.h2 -> logits": (0.0, 1),
    }


def test_arrows_between_layers_add_up_all_heads_of_a_layer() -> None:
    assert sums(Level.LAYER) == {
        "input -> attention 0: h1 h2": (1.25, 5),
        "attention 0: h1 h2 -> MLP 0": (-0.125, 2),
        "MLP 0 -> logits": (1.5, 1),
        "attention 0: h1 h2 -> logits": (0.0, 1),
    }


@pytest.mark.parametrize("level", [Level.NODE, Level.LAYER])
def test_sums_of_a_model_whose_heads_share_nothing_are_those_of_its_edges(level: Level) -> None:
    circuit = random_circuit(3000, PLAIN, seed=2)
    found = arrows(circuit, level)
    assert sum(arrow.score for arrow in found) == pytest.approx(circuit.scores.sum())
    assert sum(arrow.edges for arrow in found) == len(circuit)
    assert len({(arrow.sender, arrow.receiver) for arrow in found}) == len(found) < len(circuit)
    assert all(arrow.sender.row <= arrow.receiver.row for arrow in found)


def test_a_summary_tells_sums_signs_roles_and_doubts() -> None:
    circuit = replace(circuit_of(SCORES), search=SearchOutcome(True, False, ("It is a rough answer.",)))
    style = DiagramStyle(level=Level.NODE, roles={Node.parse("a0.h1"): "name mover"})
    dot = summary_dot(circuit, style=style)
    assert dot == summary_dot(circuit, style=style)
    assert '"a0.h1->m0: -0.25, the sum of 1 edges"' in dot
    assert 'label="0.875"' in dot
    assert dot.count("style=dashed") == 1
    for text in ("name mover", "It is a rough answer.", "in tiny-grouped, by node", "faithfulness 0.93"):
        assert text in dot
    assert "by node" not in summary_dot(circuit, style=replace(style, legend=False))


def test_of_many_arrows_the_largest_are_drawn_and_the_legend_says_so() -> None:
    circuit = random_circuit(400, PLAIN, seed=3)
    found = arrows(circuit, Level.NODE)
    assert len(found) > 200
    dot = summary_dot(circuit, style=DiagramStyle(level=Level.NODE))
    assert f"drawn: the 200 largest of {len(found)} arrows" in dot
    largest = max(found, key=lambda arrow: abs(arrow.score))
    assert f"edge:{largest.sender.name}-&gt;{largest.receiver.name}" in dot or (
        f"edge:{largest.sender.name}->{largest.receiver.name}" in dot
    )
    assert dot.count("the sum of") == 200 + 1  # and the note


def test_a_summary_is_a_picture_not_a_report(tmp_path: Path) -> None:
    style = DiagramStyle(84, level=Level.LAYER)
    draw(circuit_of(SCORES), tmp_path / "x.svg", style=style)
    assert "attention 0: h1 h2" in (tmp_path / "x.svg").read_text()
    for name in ("x.html", "x.mmd"):
        with pytest.raises(UsageError, match=r"summaries by layer are drawn as \.svg"):
            draw(circuit_of(SCORES), tmp_path / name, style=style)


def test_a_circuit_draws_itself_in_any_style(tmp_path: Path) -> None:
    circuit_of(SCORES).draw(tmp_path / "x.dot", width=84, level="layer", legend=False)
    text = (tmp_path / "x.dot").read_text()
    assert "attention 0: h1 h2" in text
    assert 'size="3.307,' in text
    assert "toy" not in text
    with pytest.raises(UnknownNameError, match=r"no level of a diagram 'nodes'\. Closest: 'node'"):
        circuit_of(SCORES).draw(tmp_path / "x.dot", level="nodes")
