"""Search rivals of the circuit of indirect object identification, and put what they share with it into evidence.md.

    python examples/guides/rivals.py [--write] [--quick]

Three searches, so about half an hour on one processor core; what an earlier run in outputs/guides/rivals/ measured is
not measured again. ``--quick`` searches few pairs.
"""

import subprocess
import sys
from pathlib import Path

from figures import publish, table

from circuits import Circuit, Rivals

quick = "--quick" in sys.argv
few = ("--pairs", "8", "--choose", "8", "--fresh", "0", "--heldout", "8", "--target", "0.5") if quick else ()
folder = Path("outputs/guides/rivals")
command = [sys.executable, "-m", "circuits", "discover", "ioi", "--rivals", "2", "--out", str(folder), "--resume"]
subprocess.run([*command, "--quiet", *few], check=True, stdout=subprocess.DEVNULL)
first = Circuit.load(folder / "circuit.json")
rivals = Rivals(first, tuple(Circuit.load(folder / f"rival_{number}.json") for number in (1, 2)))


def row(name: str, circuit: Circuit) -> list[str]:
    """Return how large and how good a circuit is, and what it shares with the first one."""
    assert circuit.evaluation is not None
    assert circuit.evaluation.likeness is not None
    assert circuit.search is not None
    sizes = (len(circuit), rivals.shared(circuit), f"{rivals.shared_nodes(circuit)} of {len(circuit.nodes)}")
    reached = "yes" if circuit.search.reached else "no"
    likeness = circuit.evaluation.likeness.fidelity.describe()
    return [name, *map(str, sizes), reached, likeness, f"{circuit.evaluation.faithfulness:.3f}"]


rows = [row("circuit", first), *(row(f"rival {i}", each) for i, each in enumerate(rivals.rivals, 1))]
headings = ["", "edges", "shared edges", "shared nodes", "reaches the target", "fidelity, held out", "faithfulness"]
publish("evidence.md", "rivals", f"{table(headings, rows)}\n\nIn its words: {rivals.describe()}")
