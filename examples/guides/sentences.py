"""How far circuits that were found in one sentence hold in others, for evidence.md.

    python examples/guides/sentences.py [--write] [--quick] [BEHAVIOUR ...]

Of `ioi` the circuit that `ioi.py` leaves in outputs/guides/ioi/, also with the names in the other order: about two
minutes on one processor core. Of the other BEHAVIOURs (all by default) it is searched first, with default settings,
five to ten minutes each, into outputs/guides/sentences/; an earlier search that is there is not repeated. ``--quick``
searches few pairs.
"""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from figures import publish, table

import circuits
from circuits import TokenPair

OTHERS = ("capital", "agreement", "pronoun", "greater-than")
QUICK = "--quick" in sys.argv
EACH = 4 if QUICK else 16
"""Pairs of every sentence in every order."""
wanted = [name for name in sys.argv[1:] if not name.startswith("--")] or ["ioi", *OTHERS]
model = circuits.load_model("smollm2-135m")


def by_tags(name: str, *tags: str) -> dict[tuple[str, ...], list[TokenPair]]:
    """Return the pairs of a behaviour in several sentences, by the values of tags."""
    prompts = circuits.load_behaviour(f"{name}-sentences").prompts(model.tokenizer, discovery=1000, heldout=1000)
    groups = defaultdict[tuple[str, ...], list[TokenPair]](list)
    for pair in (*prompts.discovery, *prompts.heldout):
        groups[tuple(pair.tags[tag] for tag in tags)].append(pair)
    return groups


def cells(circuit: circuits.Circuit, pairs: list[TokenPair]) -> list[str]:
    """Return how good a circuit is on some pairs."""
    found = circuits.evaluate(model.experiment(pairs), circuit.edges)
    assert found.likeness is not None
    return [found.likeness.fidelity.describe(2), f"{found.faithfulness:.2f}"]


def of_ioi() -> None:
    """Publish the table of ioi, by sentence and order."""
    circuit, groups = (
        circuits.Circuit.load(Path("outputs/guides/ioi/circuit.json")),
        by_tags("ioi", "sentence", "order"),
    )
    orders, rows = ("receiver first", "giver first"), list[list[str]]()
    for sentence in sorted({sentence for sentence, _ in groups}):
        both = [cells(circuit, groups[sentence, order][:EACH]) for order in orders]
        rows.append([sentence, *both[0], *both[1]])
    everything = [
        [pair for (_, each), pairs in groups.items() if each == order for pair in pairs[:EACH]] for order in orders
    ]
    rows.append(["all of them", *(cell for pairs in everything for cell in cells(circuit, pairs))])
    headings = [f"{what}, {order}" for order in orders for what in ("fidelity", "faithfulness")]
    publish("evidence.md", "sentences", table(["sentence", *headings], rows))


def searched(name: str) -> circuits.Circuit:
    """Search a circuit in the behaviour's one sentence, where that was not done before."""
    folder = Path("outputs/guides/sentences") / name
    few = ("--pairs", "8", "--choose", "8", "--fresh", "0", "--heldout", "8", "--target", "0.5") if QUICK else ()
    if not (folder / "circuit.json").is_file():
        command = [sys.executable, "-m", "circuits", "discover", name, "--out", str(folder), "--resume", "--quiet"]
        subprocess.run([*command, *few], check=True, stdout=subprocess.DEVNULL)
    return circuits.Circuit.load(folder / "circuit.json")


def of_others(names: list[str]) -> None:
    """Publish the table of the other behaviours, by sentence, the one that was searched first."""
    rows: list[list[str]] = []
    for name in names:
        circuit = searched(name)
        assert circuit.evaluation is not None
        assert circuit.evaluation.likeness is not None
        numbers = [circuit.evaluation.likeness.fidelity.describe(2), f"{circuit.evaluation.faithfulness:.2f}"]
        rows.append([name, "the one searched, held-out pairs", *numbers])
        groups = by_tags(name, "sentence")
        rows += [[name, sentence, *cells(circuit, pairs[:EACH])] for (sentence,), pairs in groups.items()]
        print(*rows[-len(groups) - 1 :], sep="\n", flush=True)
    headings = ["behaviour", "sentence", "fidelity", "faithfulness"]
    publish("evidence.md", "others", table(headings, rows))


if "ioi" in wanted:
    of_ioi()
if set(wanted) & set(OTHERS):
    of_others([name for name in OTHERS if name in wanted])
