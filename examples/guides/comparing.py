"""Compare the circuits of three behaviours of one model: the figures of comparing.md.

    python examples/guides/comparing.py [--write] [--quick]

About ten minutes on one processor core. The circuits are small and quickly found (the best edges of a ranking, of
which those on no path are left out), since the text is about how to read a comparison.
"""

import sys
from itertools import combinations
from pathlib import Path

from figures import publish, table

import circuits

quick = "--quick" in sys.argv
sizes = {"ioi": 120, "capital": 120, "pronoun": 80}
crossing = circuits.Crossing(pairs=8 if quick else 16, draws=1 if quick else 10)

model = circuits.load_model("smollm2-135m")
found = {
    name: circuits.discover(
        model,
        circuits.load_behaviour(name),
        circuits.DiscoverySettings(
            pruner=circuits.PrunerName.TOP, size=size, pairs=8 if quick else 32, heldout=16, sample=0
        ),
    )
    for name, size in sizes.items()
}
comparison = circuits.compare(
    *(each.circuit for each in found.values()), scores=[each.scores for each in found.values()]
)
comparison = circuits.measure_comparison(comparison, model, crossing)
folder = Path("outputs/guides/comparing")
folder.mkdir(parents=True, exist_ok=True)
for name, each in found.items():
    each.circuit.save(folder / f"{name}.json")


def overlaps() -> list[list[str]]:
    """Return what every two circuits share, beside what three ideas of chance would give."""
    rows: list[list[str]] = []
    for diff in comparison.pairs:
        for what, overlap in (("edges", diff.edge_overlap), ("nodes", diff.node_overlap)):
            levels = {each.kind: f"{each.expected:.2g}" for each in overlap.chances}
            chances = [levels.get(kind, "") for kind in ("uniform", "matched", "rewired")]
            rows.append([f"{', '.join(diff.names)}: {what}", str(overlap.shared), *chances])
    return rows


def transfers() -> list[list[str]]:
    """Return the faithfulness of every circuit on every behaviour."""
    matrix = comparison.transfer
    assert matrix is not None
    return [[row, *(matrix.cell(row, column).value.describe() for column in sizes)] for row in sizes]


def losses() -> list[list[str]]:
    """Return what corrupting the edges that only one of two circuits has costs both behaviours."""
    rows: list[list[str]] = []
    for each in comparison.dissociations:
        contrast = each.only or each.whole
        for place, knocked in enumerate(contrast.knocked):
            own, other = contrast.behaviours[place], contrast.behaviours[1 - place]
            lost = [contrast.losses[knocked, behaviour].value.describe() for behaviour in (own, other)]
            rows.append([f"{own} but not {other}", *lost, contrast.gains[place].value.describe()])
    return rows


sized = ", ".join(f"{name} {len(each.circuit)}" for name, each in found.items())
chance = ["", "shared", "any sets of these sizes", "same kinds and layers", "rewired"]
publish("comparing.md", "overlap", f"Edges: {sized}.\n\n{table(chance, overlaps())}")
publish("comparing.md", "transfer", table(["circuit of, on", *sizes], transfers()))
publish("comparing.md", "ablated", table(["edges of", "lost of its own", "lost of the other", "difference"], losses()))
short = [line for line in comparison.sentences() if line.startswith("In short")]
publish("comparing.md", "sentences", "\n>\n".join(f"> {line}" for line in short))
assert len(comparison.pairs) == len(list(combinations(sizes, 2)))
