"""Draw the pictures of the README and the guides: diagrams of `ioi`, its layers, and two reports in a real browser.

    python -m examples.guides.pictures [--ioi]

From the circuits that `ioi.py` and (without --ioi) `comparing.py` leave in outputs/guides/. About two minutes on one
processor core; the browser is that of the tests (`pip install -e ".[test]"`).
"""

import subprocess
import sys
from pathlib import Path

from tests.browser.driver import Browser, browser

HERE = Path(__file__).parent
PICTURES = HERE.parent / "pictures"
FOUND = Path("outputs/guides")


def circuits(*words: object) -> None:
    """Run a command of this package."""
    subprocess.run(
        [sys.executable, "-m", "circuits", *map(str, words), "--quiet"], check=True, stdout=subprocess.DEVNULL
    )


def picture(window: Browser, page: Path, node: str, pointed: str, to: Path) -> None:
    """Open a report, click a node, point at something else, and take a picture."""
    window.open(page.resolve(), width=1420, height=960)
    window.click(*window.centre(f'[id="node:{node}"]'))
    x, y = window.centre(f'[id="{pointed}"]')
    window.run("scrollTo(0, 0)")
    box = window.run(
        f"(() => {{ const b = document.getElementById('{pointed}').getBoundingClientRect(); "
        "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    window.move(x, y)
    window.move(*box)
    window.screenshot(to)


if __name__ == "__main__":
    ioi, compared = FOUND / "ioi" / "circuit.json", FOUND / "comparing"
    circuits("heads", ioi, "--pairs", 16)
    circuits("draw", ioi, "--labels", "roles", "--width", 120, "-o", PICTURES / "ioi.svg")
    column = ("--top", 80, "--labels", "roles", "--width", 84)
    circuits("draw", ioi, *column, "-o", PICTURES / "exercise_circuit.svg")
    layers = PICTURES / "exercise_layers.svg"
    circuits("patch", "ioi", "--site", "attn", "--by", "layer", "-o", layers, "--record", FOUND / "layers.json")
    layers.with_suffix(".csv").unlink()
    circuits("draw", ioi, "-o", ioi.with_name("report.html"))
    with browser() as window:
        picture(window, ioi.with_name("report.html"), "a20.h0", "node:a23.h7", PICTURES / "report.png")
    if "--ioi" not in sys.argv:
        two = compared / "two"
        circuits("compare", compared / "ioi.json", compared / "pronoun.json", "--no-transfer", "--out", two)
        with browser() as window:
            picture(window, two / "report.html", "m24", "node:a26.h2", PICTURES / "comparison_report.png")
