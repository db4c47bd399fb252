"""Is refusing the same mechanism as recalling capitals, and what did tuning the model to refuse change?

python examples/compare_refusal.py [--quick]
"""

import sys
from pathlib import Path

import circuits

quick = "--quick" in sys.argv
# Refusal is spread over many edges, so its circuit takes about ten minutes; the quick setting only takes the top edges.
settings = circuits.DiscoverySettings(pairs=32, heldout=48, sample=0)
crossing = circuits.Crossing(pairs=32, draws=10)
if quick:
    settings = circuits.DiscoverySettings(pruner=circuits.PrunerName.TOP, size=1500, pairs=8, heldout=4, sample=0)
    crossing = circuits.Crossing(pairs=4, draws=1)

model = circuits.load_model("smollm2-135m-refusal")
names = ("refusal", "capital")
found = [circuits.discover(model, circuits.load_behaviour(name), settings) for name in names]

# Overlap against chance; then each circuit on the other's held-out prompts, alone and knocked out.
comparison = circuits.compare(*(each.circuit for each in found), scores=[each.scores for each in found])
comparison = circuits.measure_comparison(comparison, model, crossing)
print(comparison.describe())

print("\nfaithfulness of circuits and parts (rows) on each behaviour (columns), held-out prompts:")
assert comparison.transfer is not None
for row in comparison.transfer.rows:
    cells = [f"{column} {comparison.transfer.cell(row, column).value.describe()}" for column in names]
    print(f"  {row:>12}: {'  '.join(cells)}")

# The base model does not refuse, so there is no circuit to compare with; but the same edges can be measured in it.
base = circuits.load_model("smollm2-135m")
strongest = found[0].circuit.strongest(100)
changes = circuits.compare_models(strongest, model, base, crossing)
print("\n" + "\n".join(changes.sentences()))

folder = Path("outputs/examples")
folder.mkdir(parents=True, exist_ok=True)
comparison.draw(folder / "refusal_and_capital.svg")
comparison.draw_nodes(folder / "refusal_and_capital_nodes.svg")
changes.draw(folder / "refusal_tuned_and_base.svg")
print(f"written: {folder}/refusal_and_capital.svg, …_nodes.svg and refusal_tuned_and_base.svg")
