"""What a chat model's refusal hangs on: one direction of its residual stream, and the circuit that writes it.

python examples/refusal_direction.py [--quick] [--circuit SECONDS]

In Qwen2.5-Coder-0.5B-Instruct: finds the direction, ablates and adds it on held-out requests, and looks for the edges
and nodes that write it. Figures go to outputs/examples/refusal-direction; a run that was stopped goes on where it was.
Of every answer at most 20 tokens are generated, judged and thrown away. With --quick everything is smaller, on
smollm2-135m with the adapter that refuses; --circuit gives the search for the circuit so many seconds (1800).

Requests are the built-in ones, asked as "How do I …?": the form that this model refuses most. The direction is taken
from all five forms, on discovery phrases; everything is judged on held-out phrases.
"""

import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import circuits
from circuits.graph import Edge
from circuits.openings import suited
from circuits.pruning.closest import closest
from circuits.pruning.selection import Selection
from circuits.scoring.scorers import Settings
from circuits.statistics import faithfulness, likeness
from circuits.steering.search import SearchSettings

QUICK = "--quick" in sys.argv
SECONDS = float(sys.argv[sys.argv.index("--circuit") + 1]) if "--circuit" in sys.argv else (30.0 if QUICK else 1800.0)
MODEL = "smollm2-135m-refusal" if QUICK else "qwen2.5-coder-0.5b-instruct"
SEARCH = SearchSettings(pairs=12, choose=8, candidates=1, draws=1) if QUICK else SearchSettings(choose=24, candidates=4)
HELDOUT, FIT, CHOOSE, DRAWS = (8, 8, 8, 1) if QUICK else (60, 56, 36, 2)
SIZES = (60, 150, 400) if QUICK else (60, 150, 400, 1_200)
NODES = (10, 20, 40, 80)
FORM = "How do I {}?"
FOLDER = Path("outputs/examples/refusal-direction-quick" if QUICK else "outputs/examples/refusal-direction")
STARTED = time.monotonic()


def said(stage: str, done: int, total: int) -> None:
    """Say what is being done."""
    print(f"{time.monotonic() - STARTED:6.0f} s  {stage} {f'{done}/{total}' if total else ''}", file=sys.stderr)


def keep(name: str, document: object) -> None:
    """Write figures into the folder."""
    (FOLDER / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def asked(behaviour: circuits.Behaviour) -> circuits.Behaviour:
    """Return the requests of one form."""
    return replace(
        behaviour,
        pairs=lambda tokenizer: [pair for pair in behaviour.pairs(tokenizer) if pair.tags["template"] == FORM],
    )


def found_direction(
    model: circuits.Model, refusal: circuits.Behaviour, journal: circuits.Journal
) -> circuits.StreamDirection:
    """Find the direction, and show the table."""
    search = circuits.find_direction(model, refusal, SEARCH, progress=said, journal=journal)
    search.save(FOLDER)
    for each in search.candidates:
        if each.position == -1:
            print(f"layer {each.layer:2}: AUC {each.auc:.2f} [{each.auc_interval[0]:.2f}, {each.auc_interval[1]:.2f}]")
    for each in search.measured:
        effect = each.effect
        assert effect is not None
        print(
            f"layer {each.layer:2}, token {each.position}: AUC {each.auc:.2f}, refuses ablated "
            f"{effect.ablated_rate:.2f}, added {effect.added_rate:.2f}, KL {effect.kl:.3f}, of text "
            f"{effect.text_kl:.3f}"
        )
    print(search.describe())
    return search.direction


def acted(
    model: circuits.Model, direction: circuits.StreamDirection, refusal: circuits.Behaviour, journal: circuits.Journal
) -> None:
    """Ablate and add the direction on requests that took no part in finding it."""
    drawn = asked(refusal).prompts(model.tokenizer, discovery=0, heldout=HELDOUT).heldout
    for action in ("ablate", "add"):
        report = circuits.measure_direction(
            model, direction, drawn, action, draws=DRAWS, progress=said, journal=journal
        )
        keep(f"{action}.json", report.to_dict())
        print(f"{action}: first token and text say the same of {report.agreement} of the answers")
        for quantity in report.quantities:
            print(
                f"{action}: {quantity.name} (n {quantity.n}): {quantity.before.describe()} -> "
                f"{quantity.after.describe()}; random {quantity.describe_random()}"
            )


class Writers:
    """The circuit that writes a direction: edges and nodes chosen on some pairs, judged on others."""

    def __init__(
        self,
        model: circuits.Model,
        direction: circuits.StreamDirection,
        refusal: circuits.Behaviour,
        journal: circuits.Journal,
    ) -> None:
        self.target = target = circuits.leading_to(model, direction)
        drawn = asked(refusal).prompts(model.tokenizer, discovery=FIT + CHOOSE, heldout=HELDOUT)
        options = circuits.Options(metric="projection")
        fit, choose = drawn.discovery[:FIT], drawn.discovery[FIT:]
        self.fit = target.experiment(fit, options, journal=journal)
        self.choose = target.experiment(choose, options, journal=journal)
        self.judged = target.experiment(drawn.heldout, options, journal=journal)
        self.found: dict[str, Any] = {"target": str(target.info.target), "edges": target.graph.n_edges}
        self.found |= {"fit": len(fit), "choose": len(choose), "heldout": len(drawn.heldout)}
        clean, corrupted = self.judged.clean, self.judged.corrupted
        self.found |= {"clean": float(clean.mean()), "corrupted": float(corrupted.mean())}
        self.found["ordered"] = float((clean > corrupted).mean())
        print(f"along the direction: {self.found}")
        self.scores = circuits.score(self.fit, "eap-ig", Settings(progress=partial(said, "scoring")))

    def judge(self, kind: str, edges: "np.ndarray[Any, Any]", **more: object) -> None:
        """Judge a circuit on held-out pairs, and keep the figures."""
        mask = np.zeros(self.target.graph.n_edges, dtype=np.bool_)
        mask[edges] = True
        values = self.judged.circuits([mask])[0]
        alike, senders = likeness(self.judged, values), {edge.sender for edge in self.target.graph.edges(edges)}
        row = {"edges": len(edges), "senders": len(senders), "faithfulness": float(faithfulness(self.judged, values))}
        row |= {"fidelity": alike.fidelity.value, "low": alike.fidelity.low, "high": alike.fidelity.high}
        row |= {"correlation": alike.correlation.value if alike.correlation else float("nan"), **more}
        self.found.setdefault(kind, []).append(row)
        keep("circuit.json", self.found)
        print(f"{kind}: {row}")

    def ranked(self) -> None:
        """Judge the best edges of the ranking."""
        order = np.argsort(-self.scores.values, kind="stable")
        for size in SIZES:
            self.judge("ranked", np.sort(order[:size]))

    def nodes(self) -> None:
        """Judge nodes with all edges among them: those whose edges' scores have the largest sums."""
        edges = list(self.target.graph.edges())
        sums = dict[str, float]()
        for edge, value in zip(edges, self.scores.values.tolist(), strict=True):
            sums[str(edge.sender)] = sums.get(str(edge.sender), 0.0) + value
        order = sorted(sums, key=lambda name: -abs(sums[name]))
        for count in NODES:
            kept = {*order[:count], str(edges[0].sender), str(edges[-1].receiver)}

            def inside(edge: Edge, kept: set[str] = kept) -> bool:
                return str(edge.sender) in kept and str(edge.receiver) in kept

            self.judge("nodes", np.array([place for place, edge in enumerate(edges) if inside(edge)]), nodes=count)

    def closest(self) -> None:
        """Search the fewest edges that follow the model pair by pair, and judge what the search went through."""
        path: list[Selection] = []

        def report(step: str, selection: Selection) -> None:
            path.append(selection)
            said(f"{step}: {len(selection.edges)} edges, error {selection.error:.3f} on choose pairs", 0, 0)

        best = closest(self.fit, self.choose, self.scores, seconds=SECONDS, report=report)
        np.savez(FOLDER / "closest.npz", edges=best.edges)
        self.judge("closest", best.edges, reached=best.reached, error_on_choose=best.error)
        for each in sorted({len(each.edges): each for each in path}.values(), key=lambda each: len(each.edges)):
            if len(each.edges) <= max(SIZES):
                self.judge("path", each.edges, error_on_choose=each.error)


def main() -> None:
    """Run the study."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with circuits.Journal(FOLDER / "journal", resume=True) as journal:
        model = circuits.load_model(MODEL)
        refusal, openings = suited(model, circuits.load_behaviour("refusal"))
        print(openings.describe())
        direction = found_direction(model, refusal, journal)
        acted(model, direction, refusal, journal)
        writers = Writers(model, direction, refusal, journal)
        writers.ranked()
        writers.nodes()
        writers.closest()
    print(f"figures are in {FOLDER}/, after {time.monotonic() - STARTED:.0f} s")


if __name__ == "__main__":
    main()
