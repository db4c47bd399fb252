"""The curve of faithfulness and fidelity over the number of edges, as a small inline SVG in the page's colours."""

import html
import math
from collections.abc import Mapping, Sequence

from circuits.records import CurvePoint

WIDTH, HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 38


def curve_svg(points: Sequence[CurvePoint], *, chosen: tuple[int, float] | None = None) -> str:
    """Draw faithfulness against the number of edges on a logarithmic axis; ``chosen`` marks the circuit itself.

    Fidelity, where the points have one, is drawn beside; below the axis it is cut off.
    Text and lines use ``currentColor``, so the figure reads on light and on dark pages. Empty text for no points.
    """
    shown = [(p.edges, p.faithfulness) for p in points if p.edges > 0 and math.isfinite(p.faithfulness)]
    if not shown:
        return ""
    everything = [*shown, chosen] if chosen and chosen[0] > 0 else shown
    low, high = math.log10(min(n for n, _ in everything)), math.log10(max(n for n, _ in everything))
    bottom, top = min(0.0, *(f for _, f in everything)), max(1.0, *(f for _, f in everything))

    def place(edges: int, faithfulness: float) -> tuple[float, float]:
        x = (math.log10(edges) - low) / ((high - low) or 1)
        y = (faithfulness - bottom) / (top - bottom)
        return _LEFT + x * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - y * (HEIGHT - _TOP - _BOTTOM)

    dots = [place(*point) for point in shown]
    fidelities = [(p.edges, max(bottom, p.fidelity)) for p in points if p.edges > 0 and p.fidelity is not None]
    parts = [_level(place(shown[0][0], value)[1], value) for value in (0.0, 0.5, 1.0)]
    parts += [_tick(place(10**power, bottom)[0], 10**power) for power in range(math.ceil(low), math.floor(high) + 1)]
    parts.append(f'<polyline fill="none" stroke="#0072B2" stroke-width="2" points="{_path(dots)}"/>')
    if fidelities:
        line = _path([place(*point) for point in fidelities])
        parts.append(
            f'<polyline fill="none" stroke="#009E73" stroke-width="2" stroke-dasharray="6 3" points="{line}"/>'
        )
        parts.append(_names())
    parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#0072B2"><title>{n:,} edges: {f:.3f}</title></circle>'
        for (x, y), (n, f) in zip(dots, shown, strict=True)
    ]
    if chosen and chosen[0] > 0:
        x, y = place(*chosen)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="#D55E00" stroke-width="2.5">'
            f"<title>this circuit: {chosen[0]:,} edges, {chosen[1]:.3f}</title></circle>"
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">edges kept</text>')
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Faithfulness over number of edges" '
        f'font-size="11" fill="currentColor">{"".join(parts)}</svg>'
    )


_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_DASHES = ("", "6 3", "2 2", "8 2 2 2")
_NAMES = 140
"""Room for the names of several lines, on their right."""


def curves_svg(lines: Mapping[str, Sequence[CurvePoint]], *, counted: str = "edges") -> str:
    """Draw the fidelity of several rankings' circuits against their number of edges, as a picture of its own.

    Below 0, where circuits are further from the model than the empty one, lines are cut off. ``counted`` is what their
    sizes are counted in. Empty text for no points.
    """
    shown = {
        name: [(p.edges, max(0.0, p.fidelity)) for p in points if p.edges > 0 and p.fidelity is not None]
        for name, points in lines.items()
    }
    sizes = [math.log10(edges) for points in shown.values() for edges, _ in points]
    if not sizes:
        return ""
    low, wide = min(sizes), (max(sizes) - min(sizes)) or 1

    def place(edges: float, fidelity: float) -> tuple[float, float]:
        x = _LEFT + (math.log10(edges) - low) / wide * (WIDTH - _LEFT - _RIGHT)
        return x, HEIGHT - _BOTTOM - fidelity * (HEIGHT - _TOP - _BOTTOM)

    parts = [_level(place(10**low, value)[1], value) for value in (0.0, 0.5, 0.9, 1.0)]
    parts += [_tick(place(10**power, 0)[0], 10**power) for power in range(math.ceil(low), math.floor(max(sizes)) + 1)]
    for number, (name, points) in enumerate(shown.items()):
        look = f'stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="2"'
        dash = _DASHES[number % len(_DASHES)]
        look += f' stroke-dasharray="{dash}"' if dash else ""
        y = _TOP + 10 + 18 * number
        parts.append(f'<polyline fill="none" {look} points="{_path([place(*point) for point in points])}"/>')
        parts.append(f'<line x1="{WIDTH}" x2="{WIDTH + 24}" y1="{y - 4}" y2="{y - 4}" {look}/>')
        parts.append(f'<text x="{WIDTH + 30}" y="{y}">{html.escape(name)}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">{counted} kept</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + _NAMES} {HEIGHT}" role="img" '
        f'aria-label="Fidelity over number of {counted}" font-family="sans-serif" font-size="11" fill="#222222">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def _names() -> str:
    """Name the two lines, under each other in the upper left."""
    named = (("faithfulness", "#0072B2"), ("fidelity (pair by pair)", "#009E73"))
    return "".join(
        f'<text x="{_LEFT + 8}" y="{_TOP + 12 + 14 * i}" fill="{colour}">{name}</text>'
        for i, (name, colour) in enumerate(named)
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _level(y: float, value: float) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" '
        f'stroke-opacity="0.25"/><text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _tick(x: float, edges: int) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{edges:,}</text>'
