"""The report as a notebook's widget: in a real browser, and what comes back to Python."""

import json
import subprocess
import sys
import time
from pathlib import Path

from circuits.drawing.pictures import report_of
from circuits.report.widget import ReportWidget, explore
from tests.browser.driver import Browser
from tests.browser.looking import SMALL
from tests.example_circuits import random_circuit

CIRCUIT = random_circuit(30, SMALL, seed=4)
NAMES = [str(edge) for edge in CIRCUIT]
CELL = """<!doctype html><body style="margin:0"><div id="cell"></div><script>
const values = {page: PAGE, height: 700, node: "", edges: []}, saved = [];
const model = {get: (name) => values[name], set: (name, value) => { values[name] = value; },
  save_changes: () => saved.push({node: values.node, edges: values.edges})};
const widget = (() => {SOURCE})();
const leave = widget.default.render({model, el: document.getElementById("cell")});
</script></body>"""


def cell(folder: Path) -> Path:
    """A page that renders the widget as a notebook does, with a model that keeps what it is told."""
    source = ReportWidget._esm.replace("export default { render };", "return { default: { render } };")
    assert source != ReportWidget._esm
    page = json.dumps(report_of(CIRCUIT)).replace("</", "<\\/")
    (folder / "cell.html").write_text(CELL.replace("SOURCE", source).replace("PAGE", page), encoding="utf-8")
    return folder / "cell.html"


def told(window: Browser, *, after: int = 0) -> dict[str, object]:
    """What the widget saved last, once it has saved more than so often."""
    end = time.monotonic() + 20
    while window.run("saved.length") <= after:
        assert time.monotonic() < end, "nothing came back"
        time.sleep(0.05)
    return window.run("saved.at(-1)")


def test_what_is_chosen_in_the_page_comes_back_to_the_model(window: Browser, tmp_path: Path) -> None:
    window.open(cell(tmp_path))
    begun = told(window)
    assert begun["node"] == ""
    assert sorted(begun["edges"]) == sorted(NAMES)
    window.click(600, 30)
    for _ in range(40):
        before = window.run("saved.length")
        window.press("Tab")
        window.press("Enter")
        time.sleep(0.1)
        if window.run("saved.length > " + str(before) + " && saved.at(-1).node !== ''"):
            break
    chosen = told(window, after=1)
    assert chosen["node"] == "input"
    assert set(chosen["edges"]) < set(NAMES)
    assert {name for name in NAMES if name.startswith("input->")} & set(chosen["edges"])
    window.run("leave()")
    count = window.run("saved.length")
    window.press("Escape")
    time.sleep(0.2)
    assert window.run("saved.length") == count
    assert {url.split(":")[0] for url in window.requests} <= {"file", "about"}
    window.requests.clear()


def test_a_message_from_elsewhere_changes_nothing(window: Browser, tmp_path: Path) -> None:
    window.open(cell(tmp_path))
    told(window)
    count = window.run("saved.length")
    window.run("window.postMessage({node: 'evil', edges: ['evil']}, '*')")
    time.sleep(0.2)
    assert window.run("saved.length") == count
    assert window.run("document.querySelector('iframe').contentDocument === null"), "the frame must be sealed"
    window.requests.clear()


def test_the_selection_is_a_circuit_in_python() -> None:
    widget = explore(CIRCUIT)
    assert widget.selected.edge_list == CIRCUIT.edge_list
    seen: list[object] = []
    widget.observe(lambda change: seen.append(change.new), names="edges")
    widget.set_state({"edges": [NAMES[3], NAMES[1], "unknown"], "node": "m0"})
    assert seen == [[NAMES[3], NAMES[1], "unknown"]]
    assert [str(edge) for edge in widget.selected] == [NAMES[1], NAMES[3]]
    assert widget.selected.scores.tolist() == [CIRCUIT.scores[1], CIRCUIT.scores[3]]
    assert widget.selected.evaluation is None
    assert widget.node == "m0"
    assert "<svg" in widget.page


def test_without_anywidget_it_is_said_what_to_install() -> None:
    code = (
        "import sys; sys.modules['anywidget'] = None\nimport circuits\n"
        "try:\n    circuits.explore\nexcept circuits.CircuitsError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "path-patching-circuits[notebook]" in done.stdout
    assert "report.html" in done.stdout
