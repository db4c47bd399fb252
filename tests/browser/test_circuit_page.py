"""The report of a circuit in a real browser: what is drawn, hidden, highlighted and said is what the circuit holds."""

from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.diagrams.markup import number
from circuits.drawing.pictures import draw
from circuits.graph import Node, NodeKind
from circuits.records import Example
from tests.browser.driver import Browser
from tests.browser.looking import SMALL, at_node, card, drawn, focused, on_edge, rows, set_slider
from tests.example_circuits import GROUPED, circuit_of, random_circuit

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1> '\"--> &lt;b&gt;"
PROMPTS = [
    Example(f"clean {EVIL}", f"corrupted {EVIL}", (f" {EVIL}",), (" no",), split) for split in ("discovery", "heldout")
]


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    """45 edges of a small model, one of them without a score."""
    made = random_circuit(45, SMALL, seed=3)
    scores = np.round(made.scores, 9)
    scores[7] = np.nan
    scores[5] = -scores[4]
    return replace(made, scores=scores)


def evidence(circuit: Circuit) -> dict[Node, str]:
    heads = [node for node in circuit.nodes if node.kind is NodeKind.HEAD]
    return {node: f"label {i}; attends to place {i}; copies {i}%" for i, node in enumerate(heads)}


@pytest.fixture(scope="module")
def page(circuit: Circuit, pages: Path) -> Path:
    path = pages / "report.html"
    draw(circuit, path, evidence=evidence(circuit), prompts=PROMPTS)
    return path


@pytest.fixture
def opened(window: Browser, page: Path) -> Browser:
    window.open(page)
    return window


def sizes(circuit: Circuit) -> dict[str, float]:
    """|score| of every edge as circuit.json and the page have it."""
    values = [0.0 if score != score else float(number(abs(score))) for score in circuit.scores.tolist()]  # noqa: PLR0124
    return dict(zip(map(str, circuit.edge_list), values, strict=True))


def thresholds(circuit: Circuit) -> list[float]:
    return sorted(set(sizes(circuit).values()))


def kept(circuit: Circuit, least: float) -> set[str]:
    return {edge for edge, size in sizes(circuit).items() if size >= least}


def on_paths(circuit: Circuit, node: str, within: set[str]) -> set[str]:
    """Edges on simple paths from input to logits through a node, by networkx."""
    view: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    for sender, receiver, key in circuit.to_networkx().edges(keys=True):
        name = f"{sender}->{receiver}<{key}>" if key else f"{sender}->{receiver}"
        if key == "group" or name in within:
            view.add_edge(sender, receiver, key=name)
    if not view.has_node("input") or not view.has_node("logits"):
        return set()
    paths = nx.all_simple_edge_paths(view, "input", "logits")
    return {name for path in paths if node in {n for edge in path for n in edge[:2]} for _, _, name in path} & within


# ------------------------------------------------------------------------------------------------------------- slider


@pytest.mark.parametrize("share", [0.0, 0.3, 0.77, 1.0])
def test_the_slider_shows_exactly_the_edges_whose_score_is_at_least_its_threshold(
    opened: Browser, circuit: Circuit, share: float
) -> None:
    steps = thresholds(circuit)
    place = round(share * (len(steps) - 1))
    set_slider(opened, place)
    expected = kept(circuit, steps[place])
    assert drawn(opened) == expected
    assert set(rows(opened)) == expected
    assert opened.text("#count") == f"{len(expected)} of {len(circuit)} edges"
    assert opened.text("#at-least") == opened.run(f"String(Number(({steps[place]!r}).toPrecision(3)))")
    ends = {end for edge in circuit.edge_list if str(edge) in expected for end in (edge.sender, edge.receiver.node)}
    assert drawn(opened, "node") == {str(node) for node in ends} | {"input", "logits"}


def test_the_slider_moves_by_keyboard_and_says_what_it_does(opened: Browser, circuit: Circuit) -> None:
    assert len(drawn(opened)) == len(circuit)
    opened.run("document.getElementById('threshold').focus()")
    for _ in range(6):
        opened.press("ArrowRight")
    assert drawn(opened) == kept(circuit, thresholds(circuit)[6])
    assert opened.text("#count") in opened.run("document.getElementById('threshold').getAttribute('aria-valuetext')")


def test_arrows_from_groups_to_heads_are_shown_as_long_as_both_ends_are(opened: Browser, circuit: Circuit) -> None:
    groups = {f"{s}->{r}" for s, r, key in circuit.to_networkx().edges(keys=True) if key == "group"}
    assert groups
    assert drawn(opened, "group") == groups
    set_slider(opened, 30)
    nodes = drawn(opened, "node")
    assert drawn(opened, "group") == {name for name in groups if set(name.split("->")) <= nodes}
    assert drawn(opened, "group") != groups


# --------------------------------------------------------------------------------------------------------------- cards


def test_pointing_at_a_head_shows_its_evidence_and_its_strongest_edges(opened: Browser, circuit: Circuit) -> None:
    assert card(opened) == ""
    head = next(iter(evidence(circuit)))
    opened.move(*opened.centre(at_node(str(head))))
    text = card(opened)
    assert f"{head}, attention head {head.index} of layer {head.layer}" in text
    assert all(fact in text for fact in evidence(circuit)[head].split("; "))
    mine = {name: size for name, size in sizes(circuit).items() if str(head) in name.replace("<", "->").split("->")}
    strongest = max(mine, key=mine.__getitem__)
    score = dict(zip(map(str, circuit.edge_list), circuit.scores.tolist(), strict=True))[strongest]
    assert f"{strongest}: score (nats) {number(score)}" in text
    opened.move(1, 1)
    assert card(opened) == ""


def test_pointing_at_an_edge_shows_score_loss_and_whether_it_is_estimated(opened: Browser, circuit: Circuit) -> None:
    place = int(np.nanargmax(np.abs(circuit.scores)))
    name = str(circuit.edge_list[place])
    opened.move(*on_edge(opened, name))
    text = card(opened)
    assert circuit.removal is not None
    for part in (name, number(circuit.scores[place]), number(circuit.removal[place]), "estimated by eap-ig"):
        assert part in text
    assert opened.run(f"document.querySelector('tr.hot').dataset.edge === {name!r}")


_BOXES = """(() => {
  const box = (id) => {
    const { left, right, top, bottom } = document.getElementById(id).getBoundingClientRect();
    return [left, right, top, bottom];
  };
  return [box('card'), box(NODE)];
})()"""


@pytest.mark.parametrize("width", [400, 900, 1600])
def test_the_card_stands_inside_the_window_beside_the_node(opened: Browser, circuit: Circuit, width: int) -> None:
    opened.size(width, 700)
    for node in circuit.nodes:
        opened.move(1, 1)
        opened.move(*opened.centre(at_node(str(node))))
        assert card(opened)
        (left, right, top, bottom), (node_left, node_right, _, _) = opened.run(_BOXES.replace("NODE", f"'node:{node}'"))
        assert left >= -1
        assert right <= width + 1
        assert top >= -1
        if width > 400:
            gap = max(left - node_right, node_left - right)
            assert 0 < gap < 30, node
        else:
            assert abs(bottom - 692) < 2


# --------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("place", [0, 12])
def test_a_click_highlights_exactly_the_edges_on_paths_through_the_node(
    opened: Browser, circuit: Circuit, place: int
) -> None:
    set_slider(opened, place)
    within = kept(circuit, thresholds(circuit)[place])
    counts: list[int] = []
    for node in sorted(drawn(opened, "node")):
        opened.click(*opened.centre(at_node(node)))
        expected = on_paths(circuit, node, within)
        assert drawn(opened, more=".on") == expected, node
        assert set(rows(opened)) == expected
        assert str(len(expected) or "no path") in opened.text("#chosen")
        counts.append(len(expected))
        opened.press("Escape")
        assert drawn(opened, more=".on") == set()
        assert set(rows(opened)) == within
    assert len(set(counts)) > 3, "the example has too few kinds of paths to tell anything"


def test_a_highlight_follows_the_slider(opened: Browser, circuit: Circuit) -> None:
    opened.click(*opened.centre(at_node("input")))
    before = drawn(opened, more=".on")
    set_slider(opened, 15)
    after = drawn(opened, more=".on")
    assert after == on_paths(circuit, "input", kept(circuit, thresholds(circuit)[15]))
    assert after < before


# ------------------------------------------------------------------------------------------------------------ keyboard


def test_everything_can_be_done_by_keyboard_and_the_focus_is_seen(opened: Browser, circuit: Circuit) -> None:
    seen: list[str] = []
    for _ in range(12):
        opened.press("Tab")
        seen.append(focused(opened))
        if seen[-1].startswith("node:"):
            break
    assert seen[0] == "theme"
    assert {"threshold", "search", "zoom-out", "zoom-in", "fit"} < set(seen)
    assert seen[-1] == "node:input"
    assert "input embedding" in card(opened)
    width = "parseFloat(getComputedStyle(document.activeElement.querySelector('polygon, path')).strokeWidth)"
    assert opened.run(width) > 3
    opened.press("ArrowUp")
    reached = focused(opened).removeprefix("node:")
    assert reached != "input"
    opened.press("Enter")
    assert drawn(opened, more=".on") == on_paths(circuit, reached, kept(circuit, 0))
    assert opened.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    opened.press("Enter")
    assert drawn(opened, more=".on") == set()
    opened.press("ArrowDown")
    assert focused(opened) == "node:input"


def test_arrow_keys_reach_every_node(opened: Browser, circuit: Circuit) -> None:
    opened.run("document.getElementById('node:input').focus()")
    seen, waiting = {"input"}, ["input"]
    while waiting:
        name = waiting.pop()
        for key in ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"):
            opened.run(f"document.getElementById('node:{name}').focus()")
            opened.press(key)
            there = focused(opened).removeprefix("node:")
            if there not in seen:
                seen.add(there)
                waiting.append(there)
    assert seen == {str(node) for node in circuit.nodes} | {"logits"}


def test_tab_leads_into_the_diagram_and_the_table_whatever_is_hidden(opened: Browser, circuit: Circuit) -> None:
    weakest = min(sizes(circuit), key=sizes(circuit).__getitem__)
    opened.run(f"document.querySelector('tr[data-edge=\"{weakest}\"]').focus()")
    for name in sorted(drawn(opened, "node")):
        opened.run(f"document.getElementById('node:{name}').focus()")
        set_slider(opened, len(thresholds(circuit)) - 1)
        stops = opened.run(
            "[...document.querySelectorAll('[tabindex=\"0\"]')].map(e => [e.tagName, e.getClientRects().length > 0])"
        )
        assert sorted(stops) == [["TR", True], ["g", True]], name
        set_slider(opened, 0)


def test_a_tap_highlights_the_paths_and_shows_the_evidence(opened: Browser, circuit: Circuit) -> None:
    opened.size(400, 800)
    head = next(iter(evidence(circuit)))
    click = "new PointerEvent('click', {pointerType: 'touch', bubbles: true})"
    opened.run(f"document.getElementById('node:{head}').dispatchEvent({click})")
    assert "attends to place 0" in card(opened)
    assert drawn(opened, more=".on") == on_paths(circuit, str(head), kept(circuit, 0))


def test_searching_a_node_moves_the_focus_to_it(opened: Browser, circuit: Circuit) -> None:
    name = str(circuit.nodes[len(circuit.nodes) // 2])
    opened.run("document.getElementById('search').focus()")
    opened.write(name)
    opened.press("Enter")
    assert focused(opened) == f"node:{name}"
    assert card(opened).startswith(name)


def test_controls_have_names_for_screen_readers(opened: Browser) -> None:
    tree = opened.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node.get("ignored") and node["role"]["value"] in ("button", "slider", "searchbox", "checkbox")
    ]
    assert len(named) > 20
    assert [role for role, name in named if not name.strip()] == []


# --------------------------------------------------------------------------------------------------------------- table


def test_the_table_filters_sorts_and_points_at_the_diagram(opened: Browser, circuit: Circuit) -> None:
    opened.run("document.getElementById('filter').focus()")
    opened.write("<q> a2")
    found = rows(opened)
    assert set(found) == {str(e) for e in circuit.edge_list if "<q>" in str(e) and "a2" in str(e)}
    assert found
    opened.run("document.getElementById('filter').select()")
    opened.write("logits")
    opened.run("document.querySelectorAll('#edges th button')[2].click()")
    scores = dict(zip(map(str, circuit.edge_list), circuit.scores.tolist(), strict=True))
    falling = sorted((name for name in scores if "logits" in name), key=lambda name: -scores[name])
    assert rows(opened) == falling
    opened.run("document.querySelectorAll('#edges th button')[2].click()")
    assert rows(opened) == falling[::-1]
    opened.run(f"document.querySelector('tr[data-edge=\"{falling[-1]}\"]').focus()")
    assert opened.run("document.querySelector('#stage .hot').id") == f"edge:{falling[-1]}"
    opened.press("ArrowDown")
    assert focused(opened) == falling[-2]
    assert opened.run("document.querySelector('#stage .hot').id") == f"edge:{falling[-2]}"
    assert card(opened).startswith(falling[-2])


# --------------------------------------------------------------------------------------------------------------- safety


def test_text_from_outside_is_shown_and_never_run(window: Browser, tmp_path: Path) -> None:
    evil = circuit_of({"input->a0.h0<q>": 0.5, "a0.h0->logits": 1.0}, name=EVIL)
    evil = replace(evil, provenance=replace(evil.provenance, command=EVIL, device=EVIL))
    head = Node(NodeKind.HEAD, 0, 0)
    draw(evil, tmp_path / "evil.html", title=EVIL, evidence={head: f"{EVIL}; {EVIL}"}, prompts=PROMPTS)
    window.open(tmp_path / "evil.html")
    assert window.text("h1") == EVIL
    assert window.run("document.title") == EVIL
    assert window.text(".prompts td.text") == f"clean {EVIL}"
    assert window.text(".prompts code.token") == f" {EVIL}"
    assert window.text(".command pre") == EVIL
    window.move(*window.centre(at_node("a0.h0")))
    assert card(window).count(EVIL) == 2
    assert window.run("document.querySelectorAll('img').length") == 0
    assert window.run("typeof window.hacked") == "undefined"


def test_the_pages_policy_would_stop_a_script_that_got_in(opened: Browser) -> None:
    inserted = (
        "(() => { try { const s = document.createElement('script'); s.text = 'window.hacked = 1'; "
        "document.body.append(s); return 'inserted'; } catch (error) { return error.name; } })()"
    )
    assert opened.run(inserted) == "TypeError"
    assert opened.run("typeof window.hacked") == "undefined"
    assert any("TrustedScript" in problem for problem in opened.problems)
    opened.problems.clear()


# --------------------------------------------------------------------------------------------------------------- looks

_CONTRAST = """(() => {
  const light = (colour) => colour.match(/[0-9.]+/g).slice(0, 3)
    .map((part) => { const c = part / 255; return c <= 0.04 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; })
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const style = (selector) => getComputedStyle(document.querySelector(selector));
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const paper = style('section').backgroundColor;
  return {
    paper: light(paper), text: ratio(style('li').color, paper), soft: ratio(style('.note').color, paper),
    node: ratio(style('.node.head text').fill, style('.node.head path').fill),
    edge: ratio(style('.edge.blue path').stroke, paper), grey: ratio(style('.edge.grey path').stroke, paper),
  };
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_stand_out_in_light_and_in_dark(opened: Browser, dark: bool) -> None:
    opened.media(dark=dark)
    found = opened.run(_CONTRAST)
    assert (found["paper"] < 0.1) == dark
    assert min(found["text"], found["soft"], found["node"]) >= 4.5
    assert min(found["edge"], found["grey"]) >= 3


def test_the_theme_button_overrides_what_the_system_prefers(opened: Browser) -> None:
    paper = []
    for _ in range(4):
        paper.append(opened.run(_CONTRAST)["paper"] > 0.5)
        opened.click(*opened.centre("#theme"))
    assert paper == [True, True, False, True]
    assert opened.text("#theme") == "Theme: light"


@pytest.mark.parametrize("width", [400, 900, 1600])
def test_nothing_is_wider_than_the_window_and_names_of_nodes_can_be_read(opened: Browser, width: int) -> None:
    opened.size(width, 900)
    assert opened.run("document.documentElement.scrollWidth") <= width
    height = opened.run("document.querySelector('.node.head text').getBoundingClientRect().height")
    assert height >= 8


def test_on_paper_everything_is_there_and_controls_are_not(opened: Browser, circuit: Circuit) -> None:
    set_slider(opened, 20)
    opened.run("document.getElementById('theme').click(); document.getElementById('theme').click()")
    assert len(drawn(opened)) < len(circuit)
    opened.media(paper=True, dark=True)
    assert len(drawn(opened)) == len(circuit)
    assert len(rows(opened)) == len(circuit)
    assert (
        opened.run(
            "[...document.querySelectorAll('button, input')].filter(e => e.offsetHeight && !e.closest('th')).length"
        )
        == 0
    )
    assert opened.run(_CONTRAST)["paper"] > 0.5
    assert opened.run("[...document.querySelectorAll('.scroll')].every(e => e.scrollHeight <= e.clientHeight + 1)")


def test_without_scripts_the_page_shows_everything_and_no_dead_controls(
    window: Browser, page: Path, circuit: Circuit
) -> None:
    window.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        window.open(page)
        assert len(drawn(window)) == len(rows(window)) == len(circuit)
        assert window.run("[...document.querySelectorAll('button, input')].filter(e => e.offsetHeight).length") == 0
    finally:
        window.call("Emulation.setScriptExecutionDisabled", value=False)


def test_the_command_can_be_copied(opened: Browser) -> None:
    opened.click(*opened.centre(".copy"))
    assert opened.text(".copy") in ("Copied", "Press Ctrl+C")
    assert opened.run("getSelection().toString()") == "circuits discover toy"


# --------------------------------------------------------------------------------------------------------------- size


def test_a_circuit_of_1500_edges_stays_usable(window: Browser, tmp_path: Path) -> None:
    circuit = random_circuit(1500, GROUPED, seed=2)
    draw(circuit, tmp_path / "large.html")
    assert (tmp_path / "large.html").stat().st_size < 3_000_000
    window.open(tmp_path / "large.html")
    times = window.run("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert times < 10_000
    assert 150 < len(drawn(window)) <= 200
    took = window.run(
        "(() => { const begun = performance.now(), s = document.getElementById('threshold'); s.value = 0; "
        "s.dispatchEvent(new Event('input')); return performance.now() - begun; })()"
    )
    assert took < 3_000
    assert len(drawn(window)) == 1500
