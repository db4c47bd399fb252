"""How far the circuit of `ioi` holds in other sentences, and with the names in the other order, for evidence.md.

    python examples/guides/sentences.py [--write] [--quick]

Of the circuit that `ioi.py` leaves in outputs/guides/ioi/; about two minutes on one processor core.
"""

import sys
from collections import defaultdict
from pathlib import Path

from figures import publish, table

import circuits
from circuits import TokenPair

EACH = 4 if "--quick" in sys.argv else 16
"""Pairs of every sentence in every order."""

circuit = circuits.Circuit.load(Path("outputs/guides/ioi/circuit.json"))
model = circuits.load_model("smollm2-135m")
prompts = circuits.load_behaviour("ioi-sentences").prompts(model.tokenizer, discovery=1000, heldout=1000)
groups = defaultdict[tuple[str, str], list[TokenPair]](list)
for pair in (*prompts.discovery, *prompts.heldout):
    groups[pair.tags["sentence"], pair.tags["order"]].append(pair)


def cells(pairs: list[TokenPair]) -> list[str]:
    """Return how good the circuit is on some pairs."""
    found = circuits.evaluate(model.experiment(pairs), circuit.edges)
    assert found.likeness is not None
    return [found.likeness.fidelity.describe(2), f"{found.faithfulness:.2f}"]


orders, rows = ("receiver first", "giver first"), []
for sentence in sorted({sentence for sentence, _ in groups}):
    rows.append([sentence, *(cell for order in orders for cell in cells(groups[sentence, order][:EACH]))])
everything = [
    [pair for (_, each), pairs in groups.items() if each == order for pair in pairs[:EACH]] for order in orders
]
rows.append(["all of them", *(cell for pairs in everything for cell in cells(pairs))])
headings = [f"{what}, {order}" for order in orders for what in ("fidelity", "faithfulness")]
publish("evidence.md", "sentences", table(["sentence", *headings], rows))
