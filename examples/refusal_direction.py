"""What a chat model's refusal hangs on: one direction of its residual stream, and the circuit that writes it.

python examples/refusal_direction.py [--quick]

In Qwen2.5-Coder-0.5B-Instruct: finds the direction, ablates and adds it on held-out requests, and measures how few
edges write it. Figures go to outputs/examples/refusal-direction; a run that was stopped goes on where it was. Of every
answer at most 20 tokens are generated, judged and thrown away. With --quick everything is smaller, on smollm2-135m with
the adapter that refuses.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

import circuits
from circuits.openings import suited
from circuits.scoring.scorers import Settings
from circuits.statistics import faithfulness, likeness
from circuits.steering.search import SearchSettings

QUICK = "--quick" in sys.argv
MODEL = "smollm2-135m-refusal" if QUICK else "qwen2.5-coder-0.5b-instruct"
SEARCH = SearchSettings(pairs=12, choose=8, candidates=1, draws=1) if QUICK else SearchSettings(choose=24, candidates=4)
HELDOUT, FIT, JUDGED, DRAWS = (8, 8, 8, 1) if QUICK else (60, 64, 48, 2)
SIZES = (60, 150, 400) if QUICK else (60, 150, 400, 1_200, 4_000)
FOLDER = Path("outputs/examples/refusal-direction-quick" if QUICK else "outputs/examples/refusal-direction")
STARTED = time.monotonic()


def said(stage: str, done: int, total: int) -> None:
    """Say what is being done."""
    print(f"{time.monotonic() - STARTED:6.0f} s  {stage} {f'{done}/{total}' if total else ''}", file=sys.stderr)


def keep(name: str, document: object) -> None:
    """Write figures into the folder."""
    (FOLDER / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


FOLDER.mkdir(parents=True, exist_ok=True)
with circuits.Journal(FOLDER / "journal", resume=True) as journal:
    model = circuits.load_model(MODEL)
    refusal, openings = suited(model, circuits.load_behaviour("refusal"))
    print(openings.describe())

    # 1. The direction.
    search = circuits.find_direction(model, refusal, SEARCH, progress=said, journal=journal)
    search.save(FOLDER)
    for each in search.measured:
        effect = each.effect
        assert effect is not None
        print(
            f"layer {each.layer:2}, token {each.position}: AUC {each.auc:.2f} [{each.auc_interval[0]:.2f}, "
            f"{each.auc_interval[1]:.2f}], refuses ablated {effect.ablated_rate:.2f}, added {effect.added_rate:.2f}, "
            f"KL {effect.kl:.3f}, of text {effect.text_kl:.3f}"
        )
    print(search.describe())

    # 2. What it does to requests that took no part in finding it.
    drawn = refusal.prompts(model.tokenizer, discovery=0, heldout=HELDOUT).heldout
    for action in ("ablate", "add"):
        report = circuits.measure_direction(
            model, search.direction, drawn, action, draws=DRAWS, progress=said, journal=journal
        )
        keep(f"{action}.json", report.to_dict())
        for quantity in report.quantities:
            print(
                f"{action}: {quantity.name}: {quantity.before.describe()} -> {quantity.after.describe()}; "
                f"random {quantity.describe_random()}"
            )

    # 3. The circuit that writes it: edges ranked on some pairs, judged on others.
    target = circuits.leading_to(model, search.direction)
    prompts = refusal.prompts(model.tokenizer, discovery=FIT, heldout=JUDGED)
    options = circuits.Options(metric="projection")
    fit = circuits.experiment_on(target, prompts.discovery, options, journal=journal)
    scores = circuits.score(fit, "eap-ig", Settings(progress=lambda done, total: said("scoring", done, total)))
    judged = circuits.experiment_on(target, prompts.heldout, options, journal=journal)
    print(
        f"along the direction: clean {judged.clean.mean():.2f}, corrupted {judged.corrupted.mean():.2f}, ordered right "
        f"{(judged.clean > judged.corrupted).mean():.2f} of {JUDGED} pairs; {target.graph.n_edges:,} edges"
    )
    order, curve = np.argsort(-scores.values, kind="stable"), list[dict[str, float]]()
    for size in SIZES:
        mask = np.zeros(target.graph.n_edges, dtype=np.bool_)
        mask[order[:size]] = True
        values = judged.circuits([mask])[0]
        alike, nodes = likeness(judged, values), {edge.sender for edge in target.graph.edges(np.flatnonzero(mask))}
        row = {"edges": size, "senders": len(nodes), "faithfulness": float(faithfulness(judged, values))}
        row |= {"fidelity": alike.fidelity.value, "low": alike.fidelity.low, "high": alike.fidelity.high}
        row["correlation"] = alike.correlation.value if alike.correlation else float("nan")
        curve.append(row)
        keep("circuit.json", {"target": str(target.info.target), "edges": target.graph.n_edges, "curve": curve})
        print(
            f"{size:5} edges from {len(nodes)} senders: fidelity {row['fidelity']:.2f} [{row['low']:.2f}, "
            f"{row['high']:.2f}], faithfulness {row['faithfulness']:.2f}, correlation {row['correlation']:.2f}"
        )
print(f"figures are in {FOLDER}/, after {time.monotonic() - STARTED:.0f} s")
