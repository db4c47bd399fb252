"""How few neurons carry the agreement of a verb with its subject? The MLPs of a model, split.

python examples/agreement_neurons.py [--quick] [--scorer relp] [CIRCUIT.json]

Neurons that are not kept have their values of the corrupted run, at all positions; everything else is as it is, in the
whole model or inside the circuit. Figures and pictures go to outputs/examples/agreement-neurons.
"""

import sys
import time
from pathlib import Path

import circuits

QUICK, SCORER = "--quick" in sys.argv, "relp" if "relp" in sys.argv else "eap-ig"
PAIRS = 12 if QUICK else 64
FOLDER = Path("outputs/examples/agreement-neurons")
FOLDER.mkdir(parents=True, exist_ok=True)

files = [each for each in sys.argv[1:] if each.endswith(".json")]
circuit = circuits.Circuit.load(files[0]) if files else None
model, behaviour = circuits.load_model("smollm2-135m"), circuits.load_behaviour("agreement")
started = time.monotonic()
found = circuits.find_neurons(
    model, behaviour, circuit, scorer=SCORER, pairs=PAIRS, heldout=PAIRS, neurons=200 if QUICK else None
)
name = f"{'circuit' if circuit else 'model'}-{SCORER}"
found.save(FOLDER / f"{name}.json")
found.draw(FOLDER / f"{name}.svg", circuit)
(FOLDER / f"{name}.curve.svg").write_text(found.to_svg(), encoding="utf-8")

print(found.verdict)
print(f"smallest set of the curve at 0.9: {found.smallest()} neurons; {time.monotonic() - started:.0f} s")
print(f"metric: all {found.metric_all:.3f}, these {found.metric_kept:.3f}, the rest {found.metric_rest:.3f}, ", end="")
print(f"none {found.metric_none:.3f} {found.unit}; against the whole model {found.against_model.fidelity.describe(2)}")
print("random neurons of the same layers:", ", ".join(f"{each:.2f}" for each in found.random))
for point, other in zip(found.curve, found.by_score, strict=True):
    print(f"{point.edges:6,} neurons: fidelity {point.fidelity:.3f}, f {point.faithfulness:.3f}, ", end="")
    print(f"by score alone {other.fidelity:.3f}")
for each in found.neurons[:10]:
    print(f"{each.neuron:>10}: exact {each.effect:+.3f} +- {each.effect_se:.3f}, score {each.score:+.3f}")
