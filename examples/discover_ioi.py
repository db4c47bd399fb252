"""Find and draw the circuit that completes "When Mary and John went …, John gave a drink to" with " Mary".

python examples/discover_ioi.py [--quick]
"""

import sys
from pathlib import Path

import circuits

quick = "--quick" in sys.argv
settings = circuits.DiscoverySettings.quick(sample=4) if quick else circuits.DiscoverySettings()

model = circuits.load_model("smollm2-135m")
behaviour = circuits.load_behaviour("ioi")
found = circuits.discover(model, behaviour, settings)

evaluation = found.circuit.evaluation
assert evaluation is not None
low, high = evaluation.faithfulness_ci
print(f"{len(found.circuit)} of {model.graph.n_edges:,} edges keep {evaluation.faithfulness:.0%} of the behaviour")
print(f"on {evaluation.n} held-out prompts (95% interval {low:.0%} to {high:.0%})")
if found.agreement is not None:
    print(found.agreement.describe(found.scores.scorer))

print("strongest edges (the metric falls by this much when the edge alone is corrupted, estimated):")
order = sorted(range(len(found.circuit)), key=lambda i: -abs(found.circuit.scores[i]))
for i in order[:10]:
    print(f"  {found.circuit.scores[i]:+.3f}  {found.circuit.edge_list[i]}")

folder = Path("outputs/examples")
folder.mkdir(parents=True, exist_ok=True)
found.circuit.save(folder / "ioi.json")
found.circuit.draw(folder / "ioi.svg")
print(f"written: {folder}/ioi.json and {folder}/ioi.svg")
