"""Few nodes, with all edges among them, that follow the model pair by pair on pairs they were not fitted to.

The search of :mod:`circuits.pruning.closest` with nodes for edges. From all nodes on, each round takes the slope of
every fit pair's metric along every node's weight (one ordinary forward and backward pass, however many nodes there
are), drops those by which the loss is predicted to be least, and takes back a few that were dropped before and are
predicted to lessen it. What is left is measured on *choose* pairs, and in the end one of the circuits is taken by the
rule of :mod:`circuits.pruning.stopping`. A node is a coarser choice than an edge, of which there are a hundred times as
many: it takes fewer pairs to make it well.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from circuits.errors import UsageError
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.node_circuits import Places, node_slopes, node_values
from circuits.pruning.residuals import Residuals, greedily
from circuits.pruning.steps import RIDGE
from circuits.pruning.stopping import Candidate, candidate, chosen

_SHARE, _BACK = 0.1, 0.4
"""Which share of the nodes goes in a round, and up to which share of those as many others come back."""
_HALVES_ABOVE, _FEWEST = 60, 16
"""Circuits of more nodes see every other half of the fit pairs in every other round, if that is so many pairs."""
_LEAST = 2
"""The fewest nodes: the input, which is always kept, and one more."""


@dataclass(frozen=True)
class NodeSearch:
    """What a search for few nodes went through, the largest circuit first, and which circuit it took.

    The ``edges`` of candidates are places of senders here; errors are those on choose pairs.
    """

    path: tuple[Candidate, ...]
    best: Candidate
    reached: bool

    def with_at_most(self, count: int) -> Candidate:
        """Return the circuit of least error among those of at most so many nodes."""
        small = [each for each in self.path if len(each.edges) <= count]
        if not small:
            raise UsageError(f"the search went through no circuit of {count} nodes; {_LEAST} are the fewest.")
        return min(small, key=lambda each: each.error)


def closest_nodes(
    fit: PatchingExperiment,
    choose: PatchingExperiment,
    *,
    target: float = 0.9,
    least: int = _LEAST,
    report: Callable[[Candidate], None] = lambda _: None,
) -> NodeSearch:
    """Search the fewest nodes whose fidelity on *choose* pairs reaches the target, with f within 0.1 of 1.

    Args:
        fit: The pairs that nodes are dropped and taken back for.
        choose: Other pairs, on which every circuit is judged.
        target: The fidelity looked for.
        least: Go on down to so many nodes.
        report: Told of every circuit.

    Where no circuit reaches the target, the one by the one-standard-error rule: ``reached`` says which. The input is
    always kept. Cost: of each of about 60 rounds, a forward and a backward pass of the fit pairs, and a forward pass of
    the choose pairs.
    """
    if not 0 < target < 1 or least < _LEAST:
        raise UsageError(f"expected a target between 0 and 1 and at least {_LEAST} nodes, got {target} and {least}.")
    search = _Search(fit, choose)
    search.judge(np.arange(len(fit.graph.senders)))
    report(search.path[-1])
    while len(search.path[-1].edges) > least:
        search.judge(search.smaller(search.path[-1].edges, least))
        report(search.path[-1])
    best = chosen(search.path, target)
    return NodeSearch(tuple(search.path), best, best.reaches(target))


@dataclass
class _Search:
    fit: PatchingExperiment
    choose: PatchingExperiment
    path: list[Candidate] = field(default_factory=list[Candidate])

    def judge(self, nodes: Places) -> None:
        """Measure a circuit on choose pairs."""
        self.path.append(candidate(self.choose, nodes, node_values(self.choose, nodes)))

    def smaller(self, nodes: Places, least: int) -> Places:
        """Return fewer nodes: without some, and with a few others that were dropped before."""
        fit, turn, half = self.fit, len(self.path) % 2, self.fit.n_pairs // 2
        if len(nodes) > _HALVES_ABOVE and half >= _FEWEST:
            fit = fit.part(half * turn, half * (turn + 1))
        residuals, (values, slopes) = Residuals(fit), node_slopes(fit, nodes)
        free = nodes[nodes > 0]
        out = np.setdiff1d(np.arange(slopes.shape[1], dtype=np.int64), nodes)
        fewer = min(max(1, round(_SHARE * len(nodes))), len(nodes) - least)
        gains = residuals.rows(slopes[:, out])
        back, rest = greedily(residuals.of(values), gains, round(_BACK * fewer), ridge=2 * RIDGE, only_gains=True)
        gone, _ = greedily(rest, -residuals.rows(slopes[:, free]), fewer + len(back), ridge=RIDGE)
        return np.union1d(np.setdiff1d(nodes, free[gone]), out[back]).astype(np.int64)
