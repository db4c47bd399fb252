"""Compare scorers with exact effects on behaviours of the built-in models: the figures of scorers.md.

    python examples/guides/scorers.py [--write] [--quick] [--kept] [BEHAVIOUR ...]

Some minutes for each behaviour on one processor core; refusal, which is measured in the chat model, takes longer and
more memory. What was measured is kept in ``outputs/guides/scorers``, and the tables show all that is there, so that
behaviours can be measured one by one; a table of which nothing is there is left as it is. With ``--kept`` nothing is
measured.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from figures import publish, table

import circuits

CHAT = ("refusal",)
BEHAVIOURS = ("ioi", "greater-than", "capital", "agreement")
MODELS = dict.fromkeys(BEHAVIOURS, "smollm2-135m") | dict.fromkeys(CHAT, "qwen2.5-coder-0.5b-instruct")
SHARES = (0.001, 0.005, 0.02, 0.1, 0.5)
quick = "--quick" in sys.argv
wanted = [name for name in sys.argv[1:] if not name.startswith("--")] or list(MODELS)
folder = Path("outputs/guides/scorers")
folder.mkdir(parents=True, exist_ok=True)

if "--kept" in sys.argv:
    wanted = []
for name in wanted:
    model, behaviour = circuits.load_model(MODELS[name]), circuits.load_behaviour(name)
    if name in CHAT:
        opened = behaviour.prompts(model.tokenizer, discovery=40, heldout=0).discovery
        openings = circuits.choose_openings(model, opened)
        print(openings.describe(), flush=True)
        refusing, complying = ([each.text for each in side] for side in (openings.refusing, openings.complying))
        behaviour = behaviour.varied(answers=refusing, wrong_answers=complying)
    found = circuits.compare_scorers(
        model,
        behaviour,
        sample=16 if quick else 48,
        pairs=4 if quick else 8,
        heldout=4 if quick else 8,
        steps=2 if quick else 5,
        progress=lambda stage, done, total: print(stage, done, total, file=sys.stderr, flush=True),
    )
    (folder / f"{name}.json").write_text(found.to_json(), "utf-8")
    (folder / f"{name}.svg").write_text(found.to_svg(), "utf-8")
    print(f"{name} measured", flush=True)

documents = {
    name: json.loads((folder / f"{name}.json").read_text("utf-8"))
    for name in MODELS
    if (folder / f"{name}.json").is_file()
}


def number(value: float | None, digits: int = 2) -> str:
    """Return a number as tables show it; empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def agreements(names: Sequence[str]) -> list[list[str]]:
    """Return how far each scorer agrees with exact effects, and what it costs."""
    rows: list[list[str]] = []
    for name in names:
        for row in documents[name]["rows"]:
            agreed = row["agreement"]
            shares = [f"{agreed[key]:.0%}" for key in ("sign_errors", "top_found")]
            ranks = [number(agreed[key]) for key in ("spearman", "pearson")]
            rows.append([name, row["scorer"], *ranks, *shares, number(row["jaccard"]), number(row["forwards"], 1)])
    return rows


def worths(names: Sequence[str]) -> list[list[str]]:
    """Return what the circuits of each ranking are worth on held-out pairs."""
    rows: list[list[str]] = []
    for name in names:
        for row in documents[name]["rows"]:
            errors = {point["requested"]: point["error"] for point in row["curve"]}
            fidelities = [number(None if errors[share] is None else 1 - errors[share] ** 2) for share in SHARES]
            rows.append([name, row["scorer"], *fidelities, number(row["cmd"], 3)])
    return rows


shown = ["Spearman", "Pearson", "wrong signs", "top tenth found", "Jaccard of halves", "forwards"]
sizes = [f"fidelity, {share:.1%} of edges" for share in SHARES]
for prefix, group in (("", BEHAVIOURS), ("chat_", CHAT)):
    there = [name for name in group if name in documents]
    if there:
        publish("scorers.md", f"{prefix}agreement", table(["behaviour", "scorer", *shown], agreements(there)))
        publish("scorers.md", f"{prefix}circuits", table(["behaviour", "scorer", *sizes, "CMD"], worths(there)))
