"""Figures for papers: a part of a circuit with a caption of its own, roles in nodes, a width in millimetres."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuits import draw_saved
from circuits.circuit import Circuit
from circuits.comparison.parts import live_edges
from circuits.diagrams.style import DiagramStyle, Flow, Level
from circuits.drawing.dot import circuit_dot
from circuits.drawing.render import ImageFormat, image
from circuits.drawing.saved import strongest_paths
from circuits.errors import UsageError
from tests.example_circuits import random_circuit


@pytest.fixture
def circuit() -> Circuit:
    return random_circuit(200)


@pytest.fixture
def file(circuit: Circuit, tmp_path: Path) -> Path:
    circuit.save(tmp_path / "circuit.json")
    return tmp_path / "circuit.json"


def heads_json(circuit: Circuit) -> dict[str, Any]:
    """Evidence on the first head of a circuit, as far as diagrams read it."""
    head = str(next(node for node in circuit.nodes if str(node).startswith("a") and ".h" in str(node)))
    labels = [{"name": "answer mover", "because": "x"}, {"name": "copying", "because": "x"}]
    heads = [{"head": head, "text": "what it does", "labels": labels}]
    return {"format": "circuits/heads", "version": 1, "circuit_digest": circuit.digest, "heads": heads}


def size_in_points(dot: str) -> tuple[float, float]:
    found = re.search(r'<svg width="([\d.]+)pt" height="([\d.]+)pt"', image(dot, ImageFormat.SVG).decode())
    assert found is not None
    return float(found[1]), float(found[2])


def test_what_is_drawn_of_a_circuit_has_no_node_hanging_and_no_evaluation_of_the_whole(circuit: Circuit) -> None:
    part = strongest_paths(circuit, 150)
    assert 0 < len(part) <= 150
    assert set(part.edges) <= set(circuit.strongest(150).edges)
    assert live_edges(part).tolist() == part.edges.tolist()
    assert circuit.evaluation is not None
    assert part.evaluation is None
    assert part.scores.tolist() == [circuit.scores[circuit.edges.tolist().index(edge)] for edge in part.edges]


@pytest.mark.parametrize(("count", "message"), [(0, "at least 1 edge, got 0"), (1, "none of the 1 strongest edges")])
def test_a_part_that_shows_nothing_is_refused(circuit: Circuit, count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        strongest_paths(circuit, count)


def test_the_caption_is_of_what_is_drawn(circuit: Circuit, file: Path, tmp_path: Path) -> None:
    drawn, _ = draw_saved(file, tmp_path / "part.dot", top=150)
    text = (tmp_path / "part.dot").read_text()
    assert f"{len(drawn)} of {circuit.graph.n_edges:,} edges" in text
    assert "not evaluated on held-out prompts" in text
    assert "strongest edges" in text
    assert circuit.evaluation is not None
    own = replace(circuit.evaluation, faithfulness=0.51)
    draw_saved(file, tmp_path / "part.dot", top=150, judge=lambda part: part.with_evaluation(own))
    assert "faithfulness 0.51" in (tmp_path / "part.dot").read_text()
    whole, _ = draw_saved(file, tmp_path / "whole.dot", top=1000, judge=lambda part: part.with_evaluation(own))
    assert len(whole) == 200
    assert f"faithfulness {circuit.evaluation.faithfulness:.2f}" in (tmp_path / "whole.dot").read_text()


def test_roles_stand_below_the_names_of_heads_or_it_is_said_that_none_are_known(
    circuit: Circuit, file: Path, tmp_path: Path
) -> None:
    _, remarks = draw_saved(file, tmp_path / "x.dot", roles=True)
    assert "no roles of heads are known; 'circuits heads" in remarks[0]
    file.with_name("heads.json").write_text(json.dumps(heads_json(circuit)))
    _, remarks = draw_saved(file, tmp_path / "x.dot", roles=True)
    assert remarks == ()
    text = (tmp_path / "x.dot").read_text()
    assert re.search(r'label=<a\d+\.h\d+<BR/><FONT POINT-SIZE="7.5">answer mover, copying</FONT>>', text)
    assert size_in_points(text)[0] > 0
    draw_saved(file, tmp_path / "names.dot")
    assert "answer mover" not in (tmp_path / "names.dot").read_text()


def test_a_role_cannot_break_a_diagram(circuit: Circuit) -> None:
    head = next(node for node in circuit.nodes if ".h" in str(node))
    dot = circuit_dot(circuit, style=DiagramStyle(roles={head: '<B>&"x\\N</B>'}))
    assert "&lt;B&gt;&amp;" in dot
    assert size_in_points(dot)[0] > 0


@pytest.mark.parametrize("legend", [True, False])
@pytest.mark.parametrize("width", [60.0, 84.0])
def test_a_figure_has_the_width_that_is_asked_for_unless_the_page_is_too_short(width: float, legend: bool) -> None:
    wide, tall = size_in_points(circuit_dot(random_circuit(60), style=DiagramStyle(width=width, legend=legend)))
    points = (width / 25.4 * 72, 230 / 25.4 * 72)
    assert wide <= points[0] + 1.5
    assert tall <= points[1] + 1.5
    assert wide == pytest.approx(points[0], abs=1.5) or tall == pytest.approx(points[1], abs=1.5)


def test_a_figure_without_legend_has_none_and_letters_grow_with_a_width(circuit: Circuit) -> None:
    plain, paper = circuit_dot(circuit), circuit_dot(circuit, style=DiagramStyle(width=84, legend=False))
    assert "attention head</FONT>" not in paper
    assert "fontsize=10," in plain
    assert "fontsize=16," in paper
    assert asdict(DiagramStyle())["width"] is None


@pytest.mark.parametrize("level", list(Level))
def test_a_diagram_goes_to_the_right_where_that_is_asked_for(circuit: Circuit, tmp_path: Path, level: Level) -> None:
    small = circuit.with_edges(*_strongest(circuit, 150))
    small.save(tmp_path / "small.json")
    sizes = {}
    for flow in Flow:
        draw_saved(tmp_path / "small.json", tmp_path / f"{flow}.dot", level=level, flow=flow, legend=False)
        text = (tmp_path / f"{flow}.dot").read_text()
        assert f"rankdir={flow.rankdir}" in text
        sizes[flow] = size_in_points(text)
    assert sizes[Flow.UP][0] / sizes[Flow.UP][1] < sizes[Flow.RIGHT][0] / sizes[Flow.RIGHT][1]
    draw_saved(tmp_path / "small.json", tmp_path / "x.mmd", flow=Flow.RIGHT)
    assert "flowchart LR" in (tmp_path / "x.mmd").read_text()
    draw_saved(tmp_path / "small.json", tmp_path / "x.html", flow=Flow.RIGHT)
    assert "rankdir" not in (tmp_path / "x.html").read_text()


def _strongest(circuit: Circuit, count: int) -> tuple[np.ndarray, np.ndarray]:
    part = strongest_paths(circuit, count)
    return part.edges, part.scores


@pytest.mark.parametrize("width", [0.0, 19.0, 5000.0])
def test_widths_that_no_paper_has_are_refused(width: float) -> None:
    with pytest.raises(UsageError, match="20 to 1000 mm wide"):
        DiagramStyle(width=width)


def test_unstable_edges_are_pale_and_the_core_can_be_drawn_alone(circuit: Circuit, tmp_path: Path) -> None:
    shares = np.where(np.arange(200) % 10 == 0, 0.3, 0.95)
    stable = replace(circuit, inclusion=shares)
    text = circuit_dot(stable)
    assert len(re.findall(r'color="#[0-9A-F]{6}40"', text)) == 20
    assert "selected by 30% of the resamples" in text
    assert "Pale: edges that fewer than half" in " ".join(text.split())
    assert '40"' not in circuit_dot(circuit)
    stable.save(tmp_path / "stable.json")
    drawn, _ = draw_saved(tmp_path / "stable.json", tmp_path / "core.dot", core=True)
    assert set(drawn.edges) <= set(stable.core().edges)
    assert live_edges(drawn).tolist() == drawn.edges.tolist()
    assert "core edges" in (tmp_path / "core.dot").read_text()
    unstable = replace(circuit, inclusion=np.full(200, 0.2))
    unstable.save(tmp_path / "none.json")
    with pytest.raises(UsageError, match=r"no core edge lies on a path .* of 200 edges 0 are core"):
        draw_saved(tmp_path / "none.json", tmp_path / "core.dot", core=True)
