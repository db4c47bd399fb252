"""The report: complete, self-contained, and safe to open."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

from circuits.export.curve import curve_svg
from circuits.export.dot import circuit_dot
from circuits.export.markup import number
from circuits.export.render import ImageFormat, image
from circuits.export.report import evaluation_sentences, report_html
from circuits.records import CurvePoint
from tests.export.example_circuits import EVALUATION, circuit_of, random_circuit

SVG = '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg id="the-diagram"></svg>\n'


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


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


def test_names_from_outside_never_become_markup() -> None:
    evil = '<script>alert("x")</script>'
    circuit = circuit_of({"input->logits": 1.0}, name=evil)
    circuit = replace(circuit, provenance=replace(circuit.provenance, command=evil, device=evil))
    page = report_html(circuit, image(circuit_dot(circuit), ImageFormat.SVG).decode("utf-8"), title=evil)
    assert "<script" not in page
    assert not [tag for tag, _ in tags(page) if tag == "script"]
    assert page.count("&lt;script&gt;") >= 4


def test_the_page_loads_nothing() -> None:
    circuit = random_circuit(20)
    page = report_html(circuit, image(circuit_dot(circuit), ImageFormat.SVG).decode("utf-8"))
    found = tags(page)
    assert not [tag for tag, _ in found if tag in ("script", "link", "img", "iframe", "object")]
    assert not [value for _, attributes in found for key, value in attributes.items() if key in ("src", "href")]
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


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
