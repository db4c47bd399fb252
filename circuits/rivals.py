"""Rivals of a circuit: others that do the same without what that one is made of, as far as that goes.

A circuit that follows the model is a way to do what the model does, and there may be others: of two heads that do the
same a search keeps one, and every edge of what it found may look needed. So the search is made again with a price on
every edge of the circuits found before, beside the loss that it aims at (:mod:`circuits.pruning.residuals`): such an
edge is kept only where leaving it out would cost more than the price. Where a rival reaches the target too, the edges
that only one of them has cannot be called necessary; those that all share are what nothing was found to replace.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from circuits.behaviours import clusters_of
from circuits.circuit import Circuit
from circuits.discovery import CIRCUIT, Discovery, circuit_of, experiment_on, pruned, record_pairs
from circuits.discovery_settings import DiscoverySettings
from circuits.errors import UsageError
from circuits.evaluation import evaluate
from circuits.files.atomic import write
from circuits.files.journal import Journal
from circuits.graph import Edge
from circuits.model import Model
from circuits.patching.protocol import StageProgress, no_stages, of_stage
from circuits.records import SearchOutcome

PRICE = 0.02
"""What an edge of an earlier circuit costs, in units of the loss: error squared, and the mean's miss squared. A circuit
that just reaches the default target has a loss of 0.1 to 0.11, so 0.02 is the loss of a fifth of that for one edge."""


@dataclass(frozen=True)
class Rivals:
    """A circuit and its rivals, in the order they were searched in, each judged on the same held-out pairs."""

    first: Circuit
    rivals: tuple[Circuit, ...]

    @property
    def reaching(self) -> tuple[Circuit, ...]:
        """The rivals that reach the target on the pairs that circuits are chosen by."""
        return tuple(each for each in self.rivals if each.search and each.search.reached)

    @property
    def indispensable(self) -> tuple[Edge, ...]:
        """The edges of the first circuit that every rival has which reaches the target."""
        edges = self.first.edges
        for each in self.reaching:
            edges = np.intersect1d(edges, each.edges)
        return tuple(self.first.graph.edges(edges))

    def shared(self, rival: Circuit) -> int:
        """Return how many edges of the first circuit a rival has."""
        return len(np.intersect1d(self.first.edges, rival.edges))

    def shared_nodes(self, rival: Circuit) -> int:
        """Return how many nodes of the first circuit a rival has."""
        return len(set(self.first.nodes) & set(rival.nodes))

    def describe(self) -> str:
        """Return in a sentence or two whether the first circuit is one of several."""
        count, all_of = len(self.reaching), len(self.first)
        if not count:
            return (
                f"none of {len(self.rivals)} rivals reaches the target with the circuit's edges at a price of "
                f"{PRICE:g}: nothing was found that could take its place."
            )
        kept, sizes = len(self.indispensable), " and ".join(f"{len(each):,}" for each in self.reaching)
        return (
            f"{count} of {len(self.rivals)} rivals ({sizes} edges) reach{'es' if count == 1 else ''} the target on the "
            f"pairs that circuits are chosen by. {kept} of the circuit's {all_of} edges are in all of them; the other "
            f"{all_of - kept} can be replaced, so that none of these is necessary. That does not show that the {kept} "
            "are."
        )

    def document(self) -> dict[str, object]:
        """Return what JSON holds of them."""
        return {"rivals": list(self._documents()), "indispensable": [str(edge) for edge in self.indispensable]}

    def _documents(self) -> Iterator[dict[str, object]]:
        for each in self.rivals:
            likeness = each.evaluation.likeness if each.evaluation else None
            yield {
                "edges": len(each),
                "shared_edges": self.shared(each),
                "nodes": len(each.nodes),
                "shared_nodes": self.shared_nodes(each),
                "reached": bool(each.search and each.search.reached),
                "faithfulness": each.evaluation.faithfulness if each.evaluation else None,
                "fidelity": asdict(likeness.fidelity) if likeness else None,
            }


def leave_rivals(found: Discovery, rivals: Rivals, folder: Path) -> tuple[Discovery, tuple[str, ...]]:
    """Write the rivals into the folder of a discovery; return it with what they say of its circuit, and their files."""
    names = tuple(f"rival_{number}.json" for number in range(1, len(rivals.rivals) + 1))
    for name, each in zip(names, rivals.rivals, strict=True):
        write(folder / name, each.to_json())
    said, search = rivals.describe(), found.circuit.search
    if rivals.reaching and search is not None:
        circuit = replace(found.circuit, search=replace(search, doubts=(*search.doubts, said)))
        found = replace(found, circuit=circuit, warnings=(*found.warnings, said))
        write(folder / CIRCUIT, circuit.to_json())
    return found, names


def find_rivals(
    model: Model,
    first: Discovery,
    settings: DiscoverySettings | None = None,
    *,
    count: int = 1,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> Rivals:
    """Search so many rivals of the circuit of a discovery, one after the other.

    Args:
        model: The model.
        first: What :func:`circuits.discover` found with the same model and settings; its prompts and scores are used.
        settings: How it was searched; the pruner must be ``closest``.
        count: How many rivals; the edges of each have a price for the next ones too.
        progress: Is told about the stages.
        journal: Where measurements are kept.

    Raises :class:`UsageError` for another pruner. Cost: that of the search alone for each, about 80 forward passes of
    the discovery pairs, and about 25 of the held-out ones.
    """
    settings = settings or DiscoverySettings()
    settings.pruner.check_rivals()
    if count < 1:
        raise UsageError(f"the number of rivals must be at least 1, got {count}.")
    prompts, prices = first.prompts, np.zeros(first.circuit.graph.n_edges)
    pairs = record_pairs(model, prompts, settings, progress=progress, journal=journal)
    prices[first.circuit.edges] = PRICE
    searched = list[Circuit]()
    for _ in range(count):
        found = pruned(pairs, first.scores, settings, progress, prices=prices)
        prices[found.edges] = PRICE
        rival = circuit_of(pairs.model, prompts, settings, first.scores, found)
        searched.append(replace(rival, search=SearchOutcome(found.reached, found.locally_minimal)))
    of_edges = pairs.model
    del pairs
    heldout = experiment_on(of_edges, prompts.heldout, prompts, settings, journal)
    told = of_stage(progress, "evaluating rivals")
    judged = [
        evaluate(heldout, each.edges, clusters=clusters_of(prompts.heldout), seed=settings.seed, progress=told)
        for each in searched
    ]
    return Rivals(first.circuit, tuple(replace(each, evaluation=of) for each, of in zip(searched, judged, strict=True)))
