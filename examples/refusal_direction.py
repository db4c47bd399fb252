"""What a chat model's refusal hangs on: one direction of its residual stream, and the circuit that writes it.

python examples/refusal_direction.py [--quick] [--circuit SECONDS] [--write]

In Qwen2.5-Coder-0.5B-Instruct: finds the direction, ablates and adds it on held-out requests, and looks for the edges
and nodes that write it, and for which nodes it needs. Figures go to outputs/examples/refusal-direction, and
with --write into the guide; a run that was stopped goes on where it was.
Of every answer at most 20 tokens are generated, judged and thrown away. With --quick everything is smaller, on
smollm2-135m with the adapter that refuses; --circuit gives the search for the circuit so many seconds (480).

Requests are the built-in ones, asked as "How do I …?": the form that this model refuses most. The direction is taken
from all five forms, on discovery phrases; everything is judged on held-out phrases.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from guides.figures import publish, table

import circuits
from circuits.certainty.node_tests import interchange_nodes
from circuits.graph import Edge, Node
from circuits.openings import with_openings
from circuits.pruning.closest import closest
from circuits.pruning.selection import Selection
from circuits.scoring.scorers import Settings
from circuits.statistics import faithfulness, likeness
from circuits.steering.search import Effect, SearchSettings
from circuits.steering.steered_model import SteeredModel

QUICK = "--quick" in sys.argv
SECONDS = float(sys.argv[sys.argv.index("--circuit") + 1]) if "--circuit" in sys.argv else (30.0 if QUICK else 480.0)
MODEL = "smollm2-135m-refusal" if QUICK else "qwen2.5-coder-0.5b-instruct"
SEARCH = SearchSettings(pairs=12, choose=8, candidates=1, draws=1) if QUICK else SearchSettings(choose=24, candidates=4)
HELDOUT, FIT, CHOOSE, JUDGED = (8, 8, 8, 8) if QUICK else (60, 48, 28, 48)
FORMS = 10 if QUICK else 75
DRAWS, TIMES = 1 if QUICK else 2, (1.0, 1.5, 2.0)
SIZES = (60, 150, 400) if QUICK else (60, 150, 400, 1_200)
NODES, TESTED = ((5, 10), 6) if QUICK else ((10, 20, 40, 80), 24)
SHOWN = 6
"""About how many of the circuits that a search goes through are judged."""
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


def shown(effect: Effect) -> list[str]:
    """Return what a direction does, as a row has it."""
    rates = f"{effect.ablated_rate:.2f}", f"{effect.added_rate:.2f}"
    return [*rates, f"{effect.kl:.3f}", f"{effect.text_kl:.3f}"]


def found_direction(
    model: circuits.Model, refusal: circuits.Behaviour, journal: circuits.Journal
) -> circuits.StreamDirection:
    """Find the direction, and show the table."""
    search = circuits.find_direction(model, refusal, SEARCH, progress=said, journal=journal)
    search.save(FOLDER)
    rows = [["none", "", *shown(search.before)]]
    for each in search.candidates:
        if each.position == -1:
            effect = ["", "", "", ""] if each.effect is None else shown(each.effect)
            interval = f"{each.auc:.2f} [{each.auc_interval[0]:.2f}, {each.auc_interval[1]:.2f}]"
            rows.append([str(each.layer), interval, *effect])
    publish(
        "refusal.md",
        "directions",
        table(["layer", "AUC", "refuses, ablated", "refuses, added", "KL, harmless", "KL, text"], rows),
    )
    print(search.describe())
    return search.direction


def ablated(
    model: circuits.Model,
    direction: circuits.StreamDirection,
    drawn: Sequence[circuits.TokenPair],
    journal: circuits.Journal,
) -> None:
    """Ablate the direction on requests that took no part in finding it, and judge the answers too."""
    found = circuits.measure_direction(model, direction, drawn, draws=DRAWS, progress=said, journal=journal)
    keep("ablate.json", found.to_dict())
    print(f"ablated: first token and text say the same of {found.agreement} of the answers")
    rows = [[q.name, str(q.n), q.before.describe(), q.after.describe(), q.describe_random()] for q in found.quantities]
    publish("refusal.md", "ablated", table(["", "n", "before", "after", f"random ({DRAWS})"], rows))


def by_form(model: circuits.Model, direction: circuits.StreamDirection, refusal: circuits.Behaviour) -> None:
    """Count which harmful requests of each form the model refuses by the first token, before and after."""
    drawn = refusal.prompts(model.tokenizer, discovery=0, heldout=FORMS).heldout
    counts = {pair.tags["template"]: [0, 0, 0] for pair in drawn}
    for place, steered in enumerate((SteeredModel(model), SteeredModel(model, direction)), start=1):
        _, logits = steered.answers([pair.clean for pair in drawn])
        for pair, row in zip(drawn, logits, strict=True):
            counts[pair.tags["template"]][place] += int(row.argmax()) in pair.answers
    for pair in drawn:
        counts[pair.tags["template"]][0] += 1
    rows = [[form.replace("{}", "…"), *map(str, each)] for form, each in sorted(counts.items())]
    publish("refusal.md", "forms", table(["form", "n", "refused", "refused, ablated"], rows))


def added(
    model: circuits.Model,
    direction: circuits.StreamDirection,
    drawn: Sequence[circuits.TokenPair],
    journal: circuits.Journal,
) -> None:
    """Add the direction once and more often; of the answers the first token is measured."""
    reports = {
        times: circuits.measure_direction(
            model, direction, drawn, "add", scale=times, tokens=0, draws=1, progress=said, journal=journal
        )
        for times in TIMES
    }
    keep("add.json", [each.to_dict() for each in reports.values()])
    rows = list[list[str]]()
    for each in zip(*(report.quantities for report in reports.values()), strict=True):
        first, last = each[0], each[-1]
        found = [quantity.after.describe() for quantity in each]
        rows.append([first.name, str(first.n), first.before.describe(), *found, last.describe_random()])
    headings = ["", "n", "before", *(f"× {times:g}" for times in TIMES), f"random, × {TIMES[-1]:g}"]
    publish("refusal.md", "added", table(headings, rows))


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
        drawn = asked(refusal).prompts(model.tokenizer, discovery=FIT + CHOOSE, heldout=JUDGED)
        options = circuits.Options(metric="projection")
        fit, choose = drawn.discovery[:FIT], drawn.discovery[FIT:]
        self.fit = target.experiment(fit, options, journal=journal)
        self.choose = target.experiment(choose, options, journal=journal)
        self.judged = target.experiment(drawn.heldout, options, journal=journal)
        self.found: dict[str, Any] = {"target": str(target.info.target), "edges": target.graph.n_edges}
        self.found |= {"fit": len(fit), "choose": len(choose), "heldout": len(drawn.heldout)}
        clean, corrupted = self.judged.clean, self.judged.corrupted
        self.options, self.journal, self.asked = options, journal, asked(refusal)
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

    @cached_property
    def ordered(self) -> list[str]:
        """The senders, those whose edges' scores have the largest sums first."""
        sums = dict[str, float]()
        for edge, value in zip(self.target.graph.edges(), self.scores.values.tolist(), strict=True):
            sums[str(edge.sender)] = sums.get(str(edge.sender), 0.0) + value
        return sorted(sums, key=lambda name: -abs(sums[name]))

    def nodes(self) -> None:
        """Judge nodes with all edges among them: those whose edges' scores have the largest sums."""
        edges, order = list(self.target.graph.edges()), self.ordered
        for count in NODES:
            kept = {*order[:count], str(edges[0].sender), str(edges[-1].receiver)}
            kept |= {str(self.target.graph.shape.group_of(node)) for node in map(Node.parse, order[:count])}

            def inside(edge: Edge, kept: set[str] = kept) -> bool:
                return str(edge.sender) in kept and str(edge.receiver.node) in kept

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
        small = [each for each in path if len(best.edges) != len(each.edges) <= max(SIZES)]
        for each in small[:: max(1, len(small) // SHOWN)]:
            self.judge("path", each.edges, error_on_choose=each.error)

    def tested(self) -> None:
        """Exchange nodes between the runs: what the direction needs, what is enough, what is written directly."""
        names = [name for name in self.ordered if name != "input"][:TESTED]
        pairs, options = 8 if QUICK else 12, self.options
        found = interchange_nodes(
            self.target, self.asked, names, options=options, pairs=pairs, progress=said, journal=self.journal
        )
        keep("nodes.json", found.to_document())
        direct = {
            str(edge.sender): value / found.gap
            for edge, value in zip(self.target.graph.edges(), self.scores.values.tolist(), strict=True)
            if edge.receiver.node == self.target.graph.nodes[-1]
        }
        rows = [
            [
                each.nodes[0],
                each.necessity.describe(),
                f"{each.p_necessity:.2g}",
                each.sufficiency.describe(),
                f"{each.p_sufficiency:.2g}",
                f"{direct[each.nodes[0]]:.2f}",
            ]
            for each in sorted(found.tests, key=lambda each: -each.necessity.value)
        ]
        publish("refusal.md", "exchanged", table(["node", "necessity", "p", "sufficiency", "p", "direct"], rows))

    def summed_up(self) -> None:
        """Show the figures of all circuits."""
        rows = [
            [
                f"{row['nodes']} nodes" if "nodes" in row else kind,
                f"{row['edges']:,}",
                str(row["senders"]),
                f"{row['faithfulness']:.2f}",
                f"{row['fidelity']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
                f"{row['correlation']:.2f}",
            ]
            for kind in ("ranked", "nodes", "path", "closest")
            for row in self.found.get(kind, [])
        ]
        publish(
            "refusal.md",
            "writers",
            table(["chosen", "edges", "senders", "faithfulness", "fidelity", "correlation"], rows),
        )


def main() -> None:
    """Run the study."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with circuits.Journal(FOLDER / "journal", resume=True) as journal:
        model = circuits.load_model(MODEL)
        refusal, openings = with_openings(model, circuits.load_behaviour("refusal"))
        print(openings.describe())
        direction = found_direction(model, refusal, journal)
        drawn = asked(refusal).prompts(model.tokenizer, discovery=0, heldout=HELDOUT).heldout
        ablated(model, direction, drawn, journal)
        by_form(model, direction, refusal)
        writers = Writers(model, direction, refusal, journal)
        writers.ranked()
        writers.nodes()
        writers.closest()
        writers.summed_up()
        writers.tested()
        added(model, direction, drawn, journal)
    print(f"figures are in {FOLDER}/, after {time.monotonic() - STARTED:.0f} s")


if __name__ == "__main__":
    main()
