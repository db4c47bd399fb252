"""Which parts make a model refuse, and are they the parts that recall capitals? Two circuits, compared and drawn.

python examples/compare_refusal.py [--quick]
"""

import sys
from pathlib import Path

import numpy as np

import circuits
from circuits.evaluation import faithfulness
from circuits.export.draw import draw_difference
from circuits.vocabulary import PrunerName

quick = "--quick" in sys.argv
# Refusal is spread over many edges, so its circuit takes about ten minutes; the quick setting only takes the top edges.
settings = circuits.DiscoverySettings(pairs=32, heldout=48, sample=0)
if quick:
    settings = circuits.DiscoverySettings(pruner=PrunerName.TOP, size=1500, pairs=4, heldout=4, sample=0)

model = circuits.load_model("smollm2-135m-refusal")
names = ("refusal", "capital")
found = {name: circuits.discover(model, circuits.load_behaviour(name), settings) for name in names}

diff = circuits.compare(*(found[name].circuit for name in names))
print(diff.describe())

print("\nfaithfulness of each circuit (rows) on each behaviour (columns), held-out prompts:")
experiments = {name: model.experiment(found[name].prompts.heldout) for name in names}
for name in names:
    mask = found[name].circuit.mask()
    values = [faithfulness(experiments[other], experiments[other].circuits([mask]))[0] for other in names]
    print(
        f"  {name:>8}: "
        + "  ".join(f"{other} {value:5.2f}" for other, value in zip(names, np.array(values), strict=True))
    )

folder = Path("outputs/examples")
folder.mkdir(parents=True, exist_ok=True)
draw_difference(diff, folder / "refusal_and_capital.svg")
print(f"written: {folder}/refusal_and_capital.svg")
