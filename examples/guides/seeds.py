"""Search the circuit of `ioi` anew on other prompts, three times, and put what the circuits share into evidence.md.

    python examples/guides/seeds.py [--write] [--quick]

Three searches with default settings, five to ten minutes each on one processor core, in outputs/guides/seeds/; one that
is finished is not repeated. ``--quick`` makes quick searches.
"""

import sys
from itertools import combinations
from pathlib import Path

from figures import publish, table

import circuits

quick = "--quick" in sys.argv
options = {"heads": False, "quick": True} if quick else {"heads": False}
campaign = circuits.Campaign(("ioi",), ("smollm2-135m",), (0, 1, 2), options=options, transfer=None)
folder = Path("outputs/guides/seeds")
circuits.run_campaign(campaign, folder)
found = [circuits.Circuit.load(path) for path in sorted(folder.glob("runs/*/circuit.json"))]


def overlap(sets: list[set[str]]) -> str:
    """Return what pairs of sets share as a share of both, the mean and the least, and how much is in all."""
    shares = [len(one & other) / len(one | other) for one, other in combinations(sets, 2)]
    return f"{sum(shares) / len(shares):.2f}, {min(shares):.2f} at least; {len(set.intersection(*sets))} in all"


rows: list[list[str]] = []
for seed, circuit in enumerate(found):
    assert circuit.evaluation is not None
    assert circuit.evaluation.likeness is not None
    fidelity = circuit.evaluation.likeness.fidelity.describe(2)
    rows.append([f"prompts of seed {seed}", f"{len(circuit)}", f"{len(circuit.nodes)}", fidelity])
edges = overlap([{str(edge) for edge in circuit} for circuit in found])
nodes = overlap([{str(node) for node in circuit.nodes} for circuit in found])
rows.append(["shared by two (Jaccard)", edges, nodes, ""])
cores = [{str(edge) for edge in circuit.core()} for circuit in found if circuit.inclusion is not None]
if len(cores) == len(found):
    whole = [{str(edge) for edge in circuit} for circuit in found]
    kept = [len(core & other) / len(core) for i, core in enumerate(cores) for j, other in enumerate(whole) if i != j]
    sizes = ", ".join(str(len(core)) for core in cores)
    rows.append([f"core edges ({sizes}) in another", f"{sum(kept) / len(kept):.2f}, {min(kept):.2f} at least", "", ""])
publish("evidence.md", "seeds", table(["search", "edges", "nodes", "fidelity, held out"], rows))
