"""Do kinds of harm hang on mechanisms of their own? Groups of refusal's pairs, found and given, for evidence.md.

    python examples/guides/kinds.py [--write] [--quick]

Groups the pairs of ``refusal`` in the chat model, and in the small one that was tuned to refuse, by what each takes
from every edge, by the kind of harm and by the form of the request. About half an hour on one processor core; what an
earlier run in outputs/guides/kinds/ measured is not measured again. ``--quick`` takes few pairs of the small model.
"""

import json
import sys
from pathlib import Path

from figures import publish, table

import circuits

quick = "--quick" in sys.argv
MODELS = ("smollm2-135m-refusal",) if quick else ("smollm2-135m-refusal", "qwen2.5-coder-0.5b-instruct")
pairs = 16 if quick else 64
folder = Path("outputs/guides/kinds")

rows: list[list[str]] = []
for name in MODELS:
    model, behaviour = circuits.load_model(name), circuits.load_behaviour("refusal")
    with circuits.Journal(folder / name, resume=True) as journal:
        for tag in (None, "category", "template"):
            found = circuits.group_pairs(model, behaviour, by=tag, pairs=pairs, heldout=pairs, journal=journal)
            print(json.dumps(found.to_document()), flush=True)
            agree = ", ".join(f"{other} {value:.2f}" for other, value in found.tags.items())
            silhouette = max(found.silhouettes.values())
            fidelity = f"{found.size:,} edges, {found.fidelity:.2f}"
            parts = [str(len(found.groups)), f"{silhouette:.2f}", fidelity, found.gain.describe(), agree]
            rows.append([name, "their edges" if tag is None else f"their {tag}", *parts])
headings = ["model", "grouped by", "groups", "silhouette", "one circuit, fidelity", "gain of their own"]
headings.append("adjusted Rand index with")
publish("evidence.md", "kinds", table(headings, rows))
