"""What is to be seen on a page, and where to point."""

from circuits.records import ModelInfo
from tests.browser.driver import Browser

SMALL = ModelInfo("small", n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)

_VISIBLE = (
    "[...document.querySelectorAll('#stage [id^=\"{kind}:\"]{more}')]"
    ".filter(e => getComputedStyle(e).display !== 'none' && e.getBoundingClientRect().width + "
    "e.getBoundingClientRect().height > 0).map(e => e.id.slice('{kind}:'.length))"
)


def drawn(window: Browser, kind: str = "edge", more: str = "") -> set[str]:
    """The names of the edges (or nodes, or group arrows) that are visible in the diagram."""
    names: list[str] = window.run(_VISIBLE.format(kind=kind, more=more))
    assert len(names) == len(set(names))
    return set(names)


def rows(window: Browser) -> list[str]:
    """The edges that the table lists, in its order."""
    return window.run(
        "[...document.querySelectorAll('#edges tbody tr')].filter(r => r.offsetHeight > 0).map(r => r.dataset.edge)"
    )


def set_slider(window: Browser, value: int) -> None:
    window.run(
        f"(() => {{ const s = document.getElementById('threshold'); s.value = {value}; "
        "s.dispatchEvent(new Event('input')); })()"
    )


def card(window: Browser) -> str:
    """The text of the card; empty while it is hidden."""
    return window.run("document.getElementById('card').hidden ? '' : document.getElementById('card').innerText")


def at_node(name: str) -> str:
    return f'[id="node:{name}"]'


def on_edge(window: Browser, name: str) -> tuple[float, float]:
    """A point of an edge's line that nothing else covers, in the window."""
    point = window.run(
        f"""(() => {{
          const shape = document.getElementById('edge:{name}'), line = shape.querySelector('path');
          shape.scrollIntoView({{block: 'center', inline: 'center', behavior: 'instant'}});
          for (let i = 1; i < 40; i++) {{
            const p = line.getPointAtLength(line.getTotalLength() * i / 40).matrixTransform(line.getScreenCTM());
            if (shape.contains(document.elementFromPoint(p.x, p.y))) return [p.x, p.y];
          }}
        }})()"""
    )
    assert point, f"{name} is covered everywhere"
    return point[0], point[1]


def focused(window: Browser) -> str:
    """The id of the element that has the focus, or the edge of the row that has it."""
    return window.run(
        "document.activeElement.id || document.activeElement.dataset.edge || document.activeElement.tagName"
    )
