"""Where the tuned model decides to refuse, and by how many edges: the figures of refusal.md.

    python examples/guides/refusal.py [--write] [--quick]

About ten minutes on one processor core. `python examples/train_refusal_adapter.py --evaluate` makes the table of how
well the model refuses.
"""

import sys

from figures import publish, table

import circuits

quick = "--quick" in sys.argv
pairs = 8 if quick else 32

model = circuits.load_model("smollm2-135m-refusal")
behaviour = circuits.load_behaviour("refusal")
settings = circuits.DiscoverySettings(
    pruner=circuits.PrunerName.TOP, size=100 if quick else 1000, pairs=pairs, heldout=pairs, sample=0
)
found = circuits.discover(model, behaviour, settings)

# Which layers: the output of one attention block or MLP on the harmful prompt, put into the run of the harmless one.
experiment = model.experiment(found.prompts.discovery[:16], circuits.Options(direction=circuits.Direction.DENOISING))
tokens = [""] * len(found.prompts.discovery[0].clean)
layers = {
    site: circuits.patch_sites(experiment, site).restored[:, 0] for site in (circuits.Site.ATTN, circuits.Site.MLP)
}
rows = [
    [str(layer), *(f"{restored[layer]:.2f}" for restored in layers.values())]
    for layer in range(model.info.n_layers)
    if max(abs(restored[layer]) for restored in layers.values()) >= 0.15
]
publish("refusal.md", "layers", table(["layer", "attention", "MLP"], rows))

# By how many edges: how closely the best edges of the ranking follow the model on held-out pairs.
evaluation = found.circuit.evaluation
assert evaluation is not None
curve = [
    [f"{point.edges:,}", f"{point.faithfulness:.2f}", "" if point.fidelity is None else f"{point.fidelity:.2f}"]
    for point in evaluation.curve
]
publish("refusal.md", "curve", table(["best edges", "faithfulness", "fidelity"], curve))

# What tuning changed: the strongest edges, each measured in both models on the same prompts.
base = circuits.load_model("smollm2-135m")
strongest = found.circuit.strongest(20 if quick else 200)
changes = circuits.compare_models(strongest, model, base, circuits.Crossing(pairs=8, draws=0))
publish("refusal.md", "tuning", "\n>\n".join(f"> {line}" for line in changes.sentences()))
