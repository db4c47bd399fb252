"""Path patching over several hops: what one named path carries, everything else frozen at its clean value."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from circuits.errors import UsageError
from circuits.graph import ComputationalGraph, Edge, EdgeIndices, Node, NodeKind, Receiver, Slot
from circuits.passes.masked import run_masked
from circuits.patching.sequences import AnyExperiment, of_one_token
from circuits.tracing.runs import difference, sender_values
from circuits.tracing.state import in_own_state


@dataclass(frozen=True)
class Path:
    """A path ``sender -> receiver<slot> -> … -> logits``; a head is entered through its q, k or v.

    With grouped queries a key or value is named by its group and followed by a head of that group:
    ``a0.h1->a3.kv1<k>->a3.h5->logits``, or shorter by the head itself: ``a0.h1->a3.h5<k>->logits``.
    """

    edges: tuple[Edge, ...]

    @classmethod
    def parse(cls, text: str, graph: ComputationalGraph) -> Self:
        """Read a path from its text form; raises :class:`UsageError` or ``UnknownNameError``."""
        names = [name.strip() for name in text.split("->")]
        if len(names) < 2:
            raise UsageError(f"'{text}' is not a path; expected at least two nodes, such as a9.h8->a11.h2<q>->logits.")
        stops = [Receiver.parse(name) for name in names]
        if stops[-1].node != (end := graph.shape.end):
            raise UsageError(f"the path '{text}' must end at {end}: write '{text}->{end}'.")
        if stops[0].slot is not None:
            raise UsageError(f"the path '{text}' starts at a slot; the first node sends, so write '{stops[0].node}'.")
        edges: list[Edge] = []
        sender = stops[0].node
        if sender.kind is NodeKind.KV:
            raise UsageError(
                f"the path '{text}' starts at '{sender}', which only reads; start at a head of that group."
            )
        for stop in stops[1:]:
            if sender.kind is NodeKind.KV:
                sender = _head_of_group(sender, stop, graph)
                continue
            graph.require_node(stop.node)
            edge = Edge(sender, _receiver(stop, graph))
            graph.index(edge)
            edges.append(edge)
            sender = stop.node
        return cls(tuple(edges))

    def __str__(self) -> str:
        stops = [str(self.edges[0].sender), str(self.edges[0].receiver)]
        for before, edge in pairwise(self.edges):
            grouped = [str(edge.sender)] if before.receiver.node != edge.sender else []
            stops += [*grouped, str(edge.receiver)]
        return "->".join(stops)

    def indices(self, graph: ComputationalGraph) -> EdgeIndices:
        """Return the positions of the path's edges in the graph."""
        return np.array(sorted({graph.index(edge) for edge in self.edges}), dtype=np.int64)


def _receiver(stop: Receiver, graph: ComputationalGraph) -> Receiver:
    """Return the place where a stop reads: for a key or value of a grouped head, that of its group."""
    return Receiver(graph.shape.group_of(stop.node), stop.slot) if stop.slot in (Slot.K, Slot.V) else stop


def _head_of_group(group: Node, stop: Receiver, graph: ComputationalGraph) -> Node:
    node = stop.node
    member = node.kind is NodeKind.HEAD and node.layer == group.layer
    if not member or stop.slot is not None or node.index // graph.shape.heads_per_group != group.index:
        size = graph.shape.heads_per_group
        raise UsageError(
            f"after '{group}' a path goes on through one head of that group, "
            f"a{group.layer}.h{group.index * size} to a{group.layer}.h{(group.index + 1) * size - 1}; got '{stop}'."
        )
    return node


@in_own_state
def path_effects(experiment: AnyExperiment, paths: Sequence[Path | str]) -> NDArray[np.float64]:
    """Measure paths jointly patched one by one, shape ``(path, pair)``; positive: corrupting the path hurts.

    Base is the clean run, the first node carries its corrupted value, only the path's edges are live: every other
    input is frozen at its clean value, and a head that several keys of a group feed is entered for the whole group. A
    path of one hop gives the exact score of that edge into the logits. Cost: at most one forward pass per path.
    """
    experiment, graph = of_one_token(experiment, "path patching"), experiment.graph
    given = [paths] if isinstance(paths, str | Path) else paths
    parsed = [path if isinstance(path, Path) else Path.parse(path, graph) for path in given]
    effects = np.zeros((len(parsed), experiment.n_pairs))
    for batch in experiment.batches:
        change = difference(batch.base, batch.clean)
        plain = experiment.measured(batch, batch.clean.logits)[0]
        for row, path in enumerate(parsed):
            sender = graph.sender_index[path.edges[0].sender]
            mask = graph.mask(path.indices(graph))[None]
            changes = {sender: sender_values(experiment.tracer.anatomy, change, [sender])[:, 0]}
            logits = run_masked(experiment.tracer, graph, batch.clean, changes, mask)[0]
            effects[row, batch.index] = plain - experiment.measured(batch, logits)[0]
    return experiment.metric.sign * effects
