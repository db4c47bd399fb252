"""Few nodes, with all edges among them, that follow the model pair by pair on pairs they were not fitted to.

The search of :mod:`circuits.pruning.closest` with nodes for edges. From all nodes on, each round takes the slope of
every fit pair's metric along every node's weight (one ordinary forward and backward pass, however many nodes there
are), drops those by which the loss is predicted to be least, and takes back a few that were dropped before and are
predicted to lessen it. What is left is measured on *choose* pairs, and in the end one of the circuits is taken by the
rule of :mod:`circuits.pruning.stopping`. A node is a coarser choice than an edge, of which there are a hundred times as
many: it takes fewer pairs to make it well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from circuits.errors import UsageError
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.node_circuits import Places, edges_among, node_slopes, node_values
from circuits.patching.protocol import Experiment, StageProgress, no_stages
from circuits.pruning.connected import connected
from circuits.pruning.residuals import Residuals, greedily
from circuits.pruning.selection import Selection
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
    fresh: Sequence[Callable[[], Experiment]] = (),
    report: Callable[[Candidate], None] = lambda _: None,
) -> NodeSearch:
    """Search the fewest nodes whose fidelity on *choose* pairs reaches the target, with f within 0.1 of 1.

    Args:
        fit: The pairs that nodes are dropped and taken back for.
        choose: Other pairs, on which every circuit is judged.
        target: The fidelity looked for.
        least: Go on down to so many nodes.
        fresh: Record further fit pairs, one group each; rounds take ``fit`` and these in turn.
        report: Told of every circuit.

    Where no circuit reaches the target, the one by the one-standard-error rule: ``reached`` says which. The input is
    always kept. Cost: of each of about 60 rounds, a forward and a backward pass of the fit pairs, and a forward pass of
    the choose pairs.
    """
    if not 0 < target < 1 or least < _LEAST:
        raise UsageError(f"expected a target between 0 and 1 and at least {_LEAST} nodes, got {target} and {least}.")
    search = _Search(fit, choose, fresh)
    search.judge(np.arange(len(fit.graph.senders)))
    report(search.path[-1])
    while len(search.path[-1].edges) > least:
        search.judge(search.smaller(search.path[-1].edges, least))
        report(search.path[-1])
    best = chosen(search.path, target)
    return NodeSearch(tuple(search.path), best, best.reaches(target))


def nodes(
    fit: Experiment,
    choose: Experiment,
    *,
    target: float = 0.9,
    fresh: Sequence[Callable[[], Experiment]] = (),
    progress: StageProgress = no_stages,
) -> Selection:
    """Return what :func:`closest_nodes` finds as edges: all among the nodes that are on a path."""
    graph, judged = fit.graph, one_forward_pass(choose)

    def told(each: Candidate) -> None:
        stage = f"pruning {len(each.edges)} nodes (error {each.error:.2f}, faithfulness {each.faithfulness:.2f})"
        progress(stage, len(graph.senders) - len(each.edges), len(graph.senders))

    found = closest_nodes(one_forward_pass(fit), judged, target=target, fresh=fresh, report=told)
    return Selection(
        connected(graph, edges_among(graph, found.best.edges)),
        found.best.faithfulness,
        proposed=graph.n_edges,
        by_magnitude=True,
        error=found.best.error,
        pairs=choose.n_pairs,
        reached=found.reached,
    )


def one_forward_pass(experiment: Experiment) -> PatchingExperiment:
    """Return an experiment whose metric takes one forward pass; :class:`UsageError` for others."""
    if not isinstance(experiment, PatchingExperiment):
        raise UsageError(
            "circuits of nodes are searched by metrics of one position, which take one forward pass; for whole answers "
            "(--metric sequence) use --pruner closest."
        )
    return experiment


@dataclass
class _Search:
    fit: PatchingExperiment
    choose: PatchingExperiment
    fresh: Sequence[Callable[[], Experiment]]
    path: list[Candidate] = field(default_factory=list[Candidate])

    def judge(self, nodes: Places) -> None:
        """Measure a circuit on choose pairs."""
        self.path.append(candidate(self.choose, nodes, node_values(self.choose, nodes)))

    def smaller(self, nodes: Places, least: int) -> Places:
        """Return fewer nodes: without some, and with a few others that were dropped before."""
        turn, group = divmod(len(self.path), 1 + len(self.fresh))
        fit = one_forward_pass(self.fresh[group - 1]()) if group else self.fit
        half = fit.n_pairs // 2
        if len(nodes) > _HALVES_ABOVE and half >= _FEWEST:
            fit = fit.part(half * (turn % 2), half * (turn % 2 + 1))
        residuals, (values, slopes) = Residuals(fit), node_slopes(fit, nodes)
        free = nodes[nodes > 0]
        out = np.setdiff1d(np.arange(slopes.shape[1], dtype=np.int64), nodes)
        fewer = min(max(1, round(_SHARE * len(nodes))), len(nodes) - least)
        gains = residuals.rows(slopes[:, out])
        back, rest = greedily(residuals.of(values), gains, round(_BACK * fewer), ridge=2 * RIDGE, only_gains=True)
        gone, _ = greedily(rest, -residuals.rows(slopes[:, free]), fewer + len(back), ridge=RIDGE)
        return np.union1d(np.setdiff1d(nodes, free[gone]), out[back]).astype(np.int64)
