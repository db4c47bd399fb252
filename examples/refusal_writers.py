"""Few nodes that write a chat model's refusal direction, chosen on the discovery requests of one form.

python examples/refusal_writers.py DIRECTION.safetensors [--opening] [--quick] [--write]

Searches the nodes, with all edges among them, that follow the model pair by pair: towards the direction that
refusal_direction.py finds, and with --opening towards the logits of the answer's first token. The requests are "How do
I …?": nodes are chosen on discovery phrases, and judged on held-out ones. Figures go to
outputs/examples/refusal-writers, and with --write into the guide; a run that was stopped goes on where it was.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from guides.figures import publish, table

import circuits
from circuits.openings import with_openings
from circuits.patching.node_circuits import edges_among, node_values
from circuits.patching.sequences import of_one_token
from circuits.pruning.closest_nodes import closest_nodes
from circuits.pruning.stopping import Candidate
from circuits.statistics import faithfulness, likeness

QUICK, OPENING = "--quick" in sys.argv, "--opening" in sys.argv
MODEL = "smollm2-135m-refusal" if QUICK else "qwen2.5-coder-0.5b-instruct"
FIT, CHOOSE, JUDGED = (8, 8, 8) if QUICK else (55, 40, 48)
SIZES, LEAST = (20, 30, 40, 60, 80, 120), 18
FORM = "How do I {}?"
FOLDER = Path("outputs/examples/refusal-writers-quick" if QUICK else "outputs/examples/refusal-writers")
STARTED = time.monotonic()


def asked(behaviour: circuits.Behaviour) -> circuits.Behaviour:
    """Return the requests of one form."""
    return replace(
        behaviour,
        pairs=lambda tokenizer: [pair for pair in behaviour.pairs(tokenizer) if pair.tags["template"] == FORM],
    )


def main() -> None:
    """Search the nodes, and judge what the search went through."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    given = [text for text in sys.argv[1:] if not text.startswith("-")]
    with circuits.Journal(FOLDER / "journal", resume=True) as journal:
        model = circuits.load_model(MODEL)
        behaviour = circuits.load_behaviour("refusal")
        if OPENING:
            behaviour, openings = with_openings(model, behaviour)
            print(openings.describe())
            options = circuits.Options()
        else:
            model = circuits.leading_to(model, circuits.StreamDirection.load(given[0]))
            options = circuits.Options(metric="projection")
        drawn = asked(behaviour).prompts(model.tokenizer, discovery=FIT + CHOOSE, heldout=JUDGED)
        choose, fit = drawn.discovery[:CHOOSE], drawn.discovery[CHOOSE:]
        fit, choose, judged = (
            of_one_token(model.experiment(each, options, journal=journal), "the search")
            for each in (fit, choose, drawn.heldout)
        )
        print(f"pairs: {fit.n_pairs} fit, {choose.n_pairs} choose, {judged.n_pairs} held out")

        def told(found: Candidate) -> None:
            print(f"{time.monotonic() - STARTED:6.0f} s  {len(found.edges)} nodes, error {found.error:.3f}", flush=True)

        search = closest_nodes(fit, choose, least=LEAST, report=told)
        rows = []
        for what, each in [(f"at most {size}", search.with_at_most(size)) for size in SIZES] + [("taken", search.best)]:
            values = node_values(judged, each.edges)
            alike = likeness(judged, values)
            correlation = f"{alike.correlation.value:.2f}" if alike.correlation else ""
            edges, f = len(edges_among(model.graph, each.edges)), float(faithfulness(judged, values))
            found = f"{alike.fidelity.value:.2f} [{alike.fidelity.low:.2f}, {alike.fidelity.high:.2f}]"
            rows.append(
                [what, str(len(each.edges)), f"{edges:,}", f"{1 - each.error**2:.2f}", found, f"{f:.2f}", correlation]
            )
    name = "opening" if OPENING else "writing"
    publish(
        "refusal.md", name, table(["", "nodes", "edges", "on choose", "fidelity", "faithfulness", "correlation"], rows)
    )
    document = {
        "clean": float(judged.clean.mean()),
        "corrupted": float(judged.corrupted.mean()),
        "reached": search.reached,
        "rows": rows,
        "path": [[len(each.edges), each.error, each.faithfulness] for each in search.path],
        "best": [str(model.graph.senders[place]) for place in search.best.edges],
        "nodes": {str(size): [str(model.graph.senders[p]) for p in search.with_at_most(size).edges] for size in SIZES},
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"after {time.monotonic() - STARTED:.0f} s")


if __name__ == "__main__":
    main()
