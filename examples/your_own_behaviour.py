"""A behaviour of your own: write pairs to a file, look where the answer comes from, and measure a few edges exactly.

python examples/your_own_behaviour.py [--quick]
"""

import json
import sys
from pathlib import Path

import numpy as np

import circuits

quick = "--quick" in sys.argv
folder = Path("outputs/examples")
folder.mkdir(parents=True, exist_ok=True)

# Opposites: the last word decides the answer. Both sides of a pair must have the same number of tokens.
opposites = {" hot": " cold", " big": " small", " old": " new", " high": " low", " black": " white", " early": " late"}
opposites |= {" rich": " poor", " long": " short", " fast": " slow", " hard": " soft"}
words = list(opposites)
with (folder / "opposites.jsonl").open("w") as file:
    for first, second in zip(words, words[1:] + words[:1], strict=True):
        shots = "The opposite of up is down. The opposite of left is right. The opposite of"
        pair = {"clean": f"{shots}{first} is", "corrupted": f"{shots}{second} is"}
        file.write(json.dumps(pair | {"answer": opposites[first], "wrong_answer": opposites[second]}) + "\n")

model = circuits.load_model("smollm2-135m")
behaviour = circuits.load_behaviour(folder / "opposites.jsonl")
prompts = behaviour.prompts(model.tokenizer, discovery=4, heldout=4)

# First look: which layer and position carries the answer? Clean values go into the corrupted run; 1 restores it.
experiment = model.experiment(prompts.discovery, circuits.Options(direction=circuits.Direction.DENOISING))
tokens = [model.tokenizer.decode([token]) for token in prompts.discovery[0].clean]
restored = circuits.patch_sites(experiment, circuits.Site.RESID, tokens).restored
for layer in range(0, model.info.n_layers, 5):
    print(f"layer {layer:2}: last word {restored[layer, -2]:5.2f}   last token {restored[layer, -1]:5.2f}")

# Estimate all edges, then measure the best ones exactly.
experiment = model.experiment(prompts.discovery)
scores = circuits.score(experiment, circuits.ScorerName.EAP)
best = scores.ranked()[: 5 if quick else 25]
exact = experiment.edge_effects(best).mean(axis=1)
for edge, estimate, effect in zip(model.graph.edges(best), scores.values[best], exact, strict=True):
    print(f"  {edge!s:<24} estimated {estimate:+.3f}   exact {effect:+.3f}")
print(f"correlation on these edges: {np.corrcoef(scores.values[best], exact)[0, 1]:.2f}")
