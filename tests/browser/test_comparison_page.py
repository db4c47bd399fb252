"""The page of a comparison in a real browser: which circuit an edge belongs to can be seen, filtered and read."""

from pathlib import Path

import numpy as np
import pytest

from circuits.comparison import CircuitDiff, Membership, difference
from circuits.diagrams.markup import number
from circuits.drawing.difference import difference_dot
from circuits.drawing.render import ImageFormat, image
from circuits.report.report import Table, comparison_html, relative_sizes
from tests.browser.driver import Browser
from tests.browser.looking import SMALL, card, drawn, on_edge, rows, set_slider
from tests.example_circuits import random_circuit

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1> '\"--> &lt;b&gt;"


@pytest.fixture(scope="module")
def diff() -> CircuitDiff:
    found = difference(random_circuit(60, SMALL, seed=1, name="first"), random_circuit(70, SMALL, seed=2, name=EVIL))
    assert set(found.membership) == set(Membership)
    return found


@pytest.fixture
def opened(window: Browser, diff: CircuitDiff, pages: Path) -> Browser:
    path = pages / "comparison.html"
    if not path.exists():
        svg = image(difference_dot(diff, page=True), ImageFormat.SVG).decode("utf-8")
        table = Table(f"Transfer {EVIL}", ("from", EVIL), (("first", "0.31"), (EVIL, "0.9")), f"Note {EVIL}")
        path.write_text(comparison_html(diff, svg, sentences=["They share little.", EVIL], tables=[table]), "utf-8")
    window.open(path)
    return window


def members(diff: CircuitDiff) -> dict[str, Membership]:
    return {str(diff.a.graph.edge(int(i))): member for i, member in zip(diff.union, diff.membership, strict=True)}


def score_in(diff: CircuitDiff, which: str, edge: str) -> float:
    circuit = diff.a if which == "A" else diff.b
    known = dict(zip(map(str, circuit.edge_list), circuit.scores.tolist(), strict=True))
    return known.get(edge, float("nan"))


@pytest.mark.parametrize("member", Membership)
def test_every_group_of_edges_can_be_hidden_alone(opened: Browser, diff: CircuitDiff, member: Membership) -> None:
    assert drawn(opened) == set(members(diff))
    opened.click(*opened.centre(f'[data-group="{member}"]'))
    left = {edge for edge, of in members(diff).items() if of is not member}
    assert drawn(opened) == left
    assert set(rows(opened)) == left
    assert opened.text("#count") == f"{len(left)} of {len(diff.union)} edges"
    opened.click(*opened.centre(f'[data-group="{member}"]'))
    assert drawn(opened) == set(members(diff))


def test_the_slider_compares_scores_with_the_largest_of_their_own_circuit(opened: Browser, diff: CircuitDiff) -> None:
    shares: dict[str, float] = {}
    for circuit in (diff.a, diff.b):
        largest = float(np.abs(circuit.scores).max())
        for edge, score in zip(map(str, circuit.edge_list), circuit.scores.tolist(), strict=True):
            shares[edge] = max(shares.get(edge, 0.0), abs(score) / largest)
    shares = {edge: float(number(share)) for edge, share in shares.items()}
    steps = sorted(set(shares.values()))
    for place in (0, len(steps) // 2, len(steps) - 1):
        set_slider(opened, place)
        assert drawn(opened) == {edge for edge, share in shares.items() if share >= steps[place]}
    assert opened.text("#at-least") == "100 %"


def test_on_a_common_scale_scores_are_compared_with_the_largest_of_both() -> None:
    scores = np.array([[1.0, -2.0, np.nan], [np.nan, 4.0, 8.0]])
    assert relative_sizes(scores, common=False).tolist() == [0.5, 1.0, 1.0]
    assert relative_sizes(scores, common=True).tolist() == [0.125, 0.5, 1.0]
    assert relative_sizes(np.full((2, 2), np.nan), common=True).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("member", Membership)
def test_an_edges_card_says_which_circuit_has_it_and_its_score_in_each(
    opened: Browser, diff: CircuitDiff, member: Membership
) -> None:
    edge = next(name for name, of in members(diff).items() if of is member)
    opened.move(*on_edge(opened, edge))
    text = card(opened).split("A: first")[0]
    for which in "AB":
        score = score_in(diff, which, edge)
        shown = f"score in {which}\n{number(score)}"
        assert (shown in text) == (score == score)  # noqa: PLR0124 - not NaN
    assert {"only_a": "only A", "only_b": "only B", "shared": "both"}.get(member, "both, opposite sign") in text


def test_what_it_says_stands_above_and_text_from_outside_is_never_run(opened: Browser) -> None:
    assert opened.text("h1") == f"first and {EVIL}"
    sentences = opened.run("[...document.querySelectorAll('.words li')].map(e => e.innerText)")
    assert sentences == ["They share little.", EVIL]
    cells = opened.run("[...document.querySelectorAll('.table td')].map(e => e.innerText)")
    assert cells == ["first", "0.31", EVIL, "0.9"]
    assert opened.text(".table h2") == f"Transfer {EVIL}"
    assert opened.text(".table .note") == f"Note {EVIL}"
    assert opened.run("typeof window.hacked") == "undefined"
    assert opened.run("document.querySelectorAll('img').length") == 0


@pytest.mark.parametrize("width", [400, 900, 1600])
def test_nothing_is_wider_than_the_window(opened: Browser, width: int) -> None:
    opened.size(width, 900)
    assert opened.run("document.documentElement.scrollWidth") <= width
