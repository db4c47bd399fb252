"""Ablate and steer the heads of the refusal circuit while the model answers: the figures of acting.md.

    python examples/guides/acting.py [--write] [--quick]

About ten minutes on one processor core. At most five tokens of an answer are generated, and only shares are printed.
"""

import sys

from figures import publish, table

import circuits

quick = "--quick" in sys.argv
pairs, draws = (4, 1) if quick else (24, 5)

model = circuits.load_model("smollm2-135m-refusal")
settings = circuits.DiscoverySettings(
    pruner=circuits.PrunerName.TOP, size=200, pairs=8 if quick else 32, heldout=pairs, sample=0
)
found = circuits.discover(model, circuits.load_behaviour("refusal"), settings)
heads = [node for node in found.circuit.nodes if node.kind is circuits.NodeKind.HEAD]
done = {
    "steered by -1": circuits.Intervention(scale=1, steer=-1),
    "steered by 1": circuits.Intervention(scale=1, steer=1),
    "replaced by their means": circuits.Intervention(),
}
reports = {
    name: circuits.measure_ablation(
        model, heads, found.prompts.heldout, intervention, reference=found.prompts.discovery, draws=draws
    )
    for name, intervention in done.items()
}
first = next(iter(reports.values()))
rates = ("refusal rate", "over-refusal", "refusal log-odds", "perplexity")
names = [quantity.name for quantity in first.quantities if quantity.name.startswith(rates)]
rows = [["as it is", *(first.quantity(name).before.describe() for name in names)]]
for what, report in reports.items():
    rows.append([f"{len(heads)} heads {what}", *(report.quantity(name).after.describe() for name in names)])
    rows.append(["… other heads, same depth", *(report.quantity(name).describe_random() for name in names)])
publish("acting.md", "refusal", table(["", *names], rows))
publish("acting.md", "sentences", "\n>\n".join(f"> *{what}*: {report.describe()}" for what, report in reports.items()))
