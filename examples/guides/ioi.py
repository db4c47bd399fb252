"""Find the circuit of indirect object identification as `circuits discover ioi` does, and make all figures about it.

    python examples/guides/ioi.py [--write] [--quick]

About ten minutes on one processor core. Makes the figures on fidelity in README.md and evidence.md and the table of
heads.md, and leaves the circuit in outputs/guides/ioi/, from which pictures.py draws.
"""

import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

from figures import publish, table

import circuits

quick = "--quick" in sys.argv
settings = circuits.DiscoverySettings()
if quick:
    settings = replace(settings, pruner=circuits.PrunerName.MINIMAL, pairs=8, heldout=8, target=0.5, sample=4)
folder = Path("outputs/guides/ioi")

model = circuits.load_model("smollm2-135m")
behaviour = circuits.load_behaviour("ioi")
begun = time.process_time()
found = circuits.discover(model, behaviour, settings, folder=folder)
seconds, peak = time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
circuit, evaluation = found.circuit, found.circuit.evaluation
assert evaluation is not None
assert evaluation.likeness is not None
alike, random = evaluation.likeness, evaluation.random_baseline
low, high = evaluation.faithfulness_ci


def shares() -> list[list[str]]:
    """Return the numbers that tell how good the circuit is, and what each means."""
    rows = [
        ["edges", f"{len(circuit)} of {circuit.graph.n_edges:,}", "the size of the circuit"],
        ["fidelity", alike.fidelity.describe(), "the share of what the empty circuit gets wrong that it gets right"],
        ["error", alike.error.describe(), "its distance from the model, pair by pair; 0 is the model"],
        ["faithfulness", f"{evaluation.faithfulness:.3f} [{low:.3f}, {high:.3f}]", "the same on the average"],
    ]
    if alike.correlation is not None:
        rows.append(["correlation", alike.correlation.describe(), "of its values with the model's, over pairs"])
    if alike.agreement is not None:
        rows.append(["agreement", alike.agreement.describe(), "on how many pairs both prefer the same answer"])
    if alike.kl is not None:
        rows.append(["KL", alike.kl.describe(), "divergence of the next token's distribution, in nats"])
    rows.append(["necessity", f"{evaluation.necessity:.3f}", "what is left of the behaviour without the circuit"])
    if random is not None and random.fidelities:
        below, middle, above = random.fidelities
        chance = f"{middle:.3f} [{below:.3f}, {above:.3f}]"
        rows.append(["random circuits", chance, f"fidelity of {random.n} with other heads of the same layers"])
    return rows


publish(
    "README.md",
    "ioi",
    f"The circuit has {len(circuit)} of {circuit.graph.n_edges:,} edges. On {evaluation.n} "
    f"held-out prompt pairs its fidelity is {alike.fidelity.describe(2)} and its faithfulness "
    f"{evaluation.faithfulness:.2f} [{low:.2f}, {high:.2f}]. Searching and judging took {seconds:.0f} s of processor "
    f"time and at most {peak / 1024:.1f} GB.",
)
publish("evidence.md", "ioi", table(["number", "value", "what it is"], shares()))
curve = [
    [f"{point.edges:,}", f"{point.faithfulness:.2f}", "" if point.fidelity is None else f"{point.fidelity:.2f}"]
    for point in evaluation.curve
]
publish("evidence.md", "curve", table(["best edges of the ranking", "faithfulness", "fidelity"], curve))

roles = circuits.head_roles(model, circuit, found.prompts.heldout[:32])
heads = [
    [
        str(head.node),
        ", ".join(label.name for label in head.labels) or "none",
        ", ".join(
            f"{share.role} {share.clean:.0%} ({share.corrupted:.0%})"
            for share in sorted(head.from_last, key=lambda share: -share.clean)[:2]
        ),
        f"{head.direct.mean:+.2f} [{head.direct.low:.2f}, {head.direct.high:.2f}]",
        f"{head.copying.answers:.0%}",
        f"{head.sequences.duplicate_token:.2f}",
        f"{head.sequences.induction:.2f}",
    ]
    for head in roles.heads
]
columns = ["head", "label", "attends from the last token to, clean (corrupted)", "direct effect", "copies names"]
publish("heads.md", "heads", table([*columns, "duplicate", "induction"], heads))
