"""The report: complete, self-contained, and safe to open."""

import base64
import hashlib
import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

from circuits.circuit import Circuit
from circuits.diagrams.markup import number
from circuits.drawing.dot import circuit_dot
from circuits.drawing.render import ImageFormat, image
from circuits.graph import Node, NodeKind
from circuits.records import CurvePoint, Example
from circuits.report.curve_chart import curve_svg
from circuits.report.report import marked, report_html
from circuits.report.sentences import evaluation_sentences
from tests.example_circuits import EVALUATION, circuit_of, random_circuit

SVG = '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg id="the-diagram"></svg>\n'


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def diagram(circuit: Circuit) -> str:
    return image(circuit_dot(circuit, page=True), ImageFormat.SVG).decode("utf-8")


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    return parser.found


def test_every_edge_is_listed_with_its_stored_score_strongest_first() -> None:
    circuit = random_circuit(60)
    page = report_html(circuit, SVG)
    rows = re.findall(r'<td><code>(.*?)</code></td><td>(.*?)</td><td class="number">(.*?)</td>', page)
    order = np.argsort(-np.abs(circuit.scores), kind="stable").tolist()
    expected = [
        (str(circuit.edge_list[i]), circuit.edge_list[i].receiver.slot or "", number(float(circuit.scores[i])))
        for i in order
    ]
    assert [tuple(html.unescape(cell) for cell in row) for row in rows] == expected


EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)> --> &lt;b&gt; \' " '


def test_names_from_outside_never_become_markup() -> None:
    evil = replace(circuit_of({"input->logits": 1.0, "input->a0.h0<q>": 0.5}, name=EVIL), evaluation=None)
    evil = replace(evil, provenance=replace(evil.provenance, command=EVIL, device=EVIL))
    head = Node(NodeKind.HEAD, 0, 0)
    prompts = [Example(EVIL, EVIL + "x", (EVIL,), (EVIL,), split) for split in ("discovery", "heldout")]
    page = report_html(evil, diagram(evil), title=EVIL, evidence={head: EVIL + "; " + EVIL}, prompts=prompts)
    harmless = replace(evil, behaviour=replace(evil.behaviour, name="x"))
    harmless = replace(harmless, provenance=replace(evil.provenance, command="x", device="x"))
    plain = [Example("x", "xx", ("x",), ("x",), split) for split in ("discovery", "heldout")]
    other = report_html(harmless, diagram(harmless), title="x", evidence={head: "x; " + "x; " * 3}, prompts=plain)
    kinds = [[tag for tag, _ in tags(text) if tag not in ("mark", "li")] for text in (page, other)]
    assert kinds[0] == kinds[1]
    assert "<script>alert" not in page
    assert html.unescape(page).count("<script>alert") >= 10


def test_the_page_loads_nothing() -> None:
    circuit = random_circuit(20)
    page = report_html(circuit, diagram(circuit))
    found = tags(page)
    assert [tag for tag, _ in found if tag in ("script", "link", "img", "iframe", "object")] == ["script"]
    assert not [value for _, attributes in found for key, value in attributes.items() if key in ("src", "href")]
    assert not [key for _, attributes in found for key in attributes if key.startswith("on")]
    for text in ("@import", "url(", "fetch(", "innerHTML", "eval("):
        assert text not in page


def test_the_policy_allows_the_pages_own_script_and_style_by_their_hashes_and_nothing_else() -> None:
    page = report_html(circuit_of({"input->logits": 1.0}), SVG)
    policy = next(a["content"] or "" for _, a in tags(page) if a.get("http-equiv") == "Content-Security-Policy")
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_evidence_and_the_first_ten_prompts_of_each_part_are_shown() -> None:
    circuit = circuit_of({"input->a0.h0<q>": 0.5, "a0.h0->logits": 1.0})
    prompts = [
        Example(f"clean {i} of {part}\nnext", f"corrupted {i} of {part}\nnext", (f" yes{i}",), (f" no{i}",), part)
        for part in ("discovery", "heldout")
        for i in range(12)
    ]
    page = report_html(circuit, SVG, evidence={Node(NodeKind.HEAD, 0, 0): "induction; copies 9%"}, prompts=prompts)
    assert "<b>induction</b><ul><li>copies 9%</li></ul>" in page
    for part in ("discovery", "heldout"):
        assert [f"clean {i} of {part}\nnext" in page for i in range(12)] == [True] * 10 + [False] * 2
    assert '<code class="token"> yes3</code>' in page
    assert "the first 10 of 12 pairs" in page
    without = report_html(circuit, SVG)
    assert "What the heads do" not in without
    assert "Prompts</h2>" not in without


def test_the_words_in_which_the_corrupted_prompt_differs_are_marked() -> None:
    assert marked("Ann gave <b> to", "Bob gave <b> to") == "<mark>Bob</mark> gave &lt;b&gt; to"
    assert marked("same", "same") == "same"
    assert marked("a b", "a") == "a"


def test_text_that_is_not_unicode_does_not_stop_the_page() -> None:
    prompts = [Example("a\x00b\ud800c\n", "d", ("e",), (), "heldout")]
    page = report_html(circuit_of({"input->logits": 1.0}), SVG, prompts=prompts)
    assert "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\n" in page
    page.encode()


def test_the_diagram_is_put_in_without_its_xml_heading() -> None:
    page = report_html(circuit_of({"input->logits": 1.0}), SVG)
    assert '<svg id="the-diagram"></svg>' in page
    assert "<?xml" not in page
    assert page.count("<!doctype") + page.count("<!DOCTYPE") == 1


def test_the_evaluation_is_told_in_words_with_its_numbers() -> None:
    text = " ".join(evaluation_sentences(circuit_of({"input->logits": 1.0})))
    for part in ("64 held-out", "0.93", "[0.88, 0.97]", "4.92", "-0.11", "4.58", "0.06", "98%", "95%", "50 random"):
        assert part in text
    assert "overshoots" not in text
    over = replace(circuit_of({"input->logits": 1.0}), evaluation=replace(EVALUATION, faithfulness=1.08))
    assert "overshoots" in " ".join(evaluation_sentences(over))
    missing = replace(circuit_of({"input->logits": 1.0}), evaluation=None)
    assert evaluation_sentences(missing) == ["This circuit was not evaluated on held-out prompts."]
    assert "not evaluated" in report_html(missing, SVG)
    assert 'class="curve"' not in report_html(missing, SVG)


def test_the_curve_goes_through_its_points_on_a_logarithmic_axis() -> None:
    points = (CurvePoint(10, 0.0), CurvePoint(100, 0.5), CurvePoint(1000, 1.0))
    root = ElementTree.fromstring(curve_svg(points, chosen=(100, 0.9)))
    line = next(node for node in root if node.tag == "polyline")
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    (x1, y1), (x2, y2), (x3, y3) = places
    assert x1 < x2 < x3
    assert abs((x2 - x1) - (x3 - x2)) < 0.2
    assert y1 > y2 > y3
    assert abs((y1 - y2) - (y2 - y3)) < 0.2
    ring = [node for node in root if node.tag == "circle" and node.attrib["fill"] == "none"]
    assert len(ring) == 1
    assert abs(float(ring[0].attrib["cx"]) - x2) < 0.2
    assert y3 < float(ring[0].attrib["cy"]) < y2


def test_a_curve_without_usable_points_is_left_out() -> None:
    assert curve_svg(()) == ""
    assert curve_svg((CurvePoint(0, 0.0), CurvePoint(5, float("nan")))) == ""
    ElementTree.fromstring(curve_svg((CurvePoint(7, 1.4),)))
