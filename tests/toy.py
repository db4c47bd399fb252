"""Experiments that can be checked with a pencil, for testing scorers, pruners and evaluation without a model.

``ToyExperiment`` is one head and one MLP with scalars for activations, written out by hand. ``LinearToy`` is any graph
with a weight on every edge; with the pencil weights it is the same thing, and ``planted_toy`` hides a known circuit in
a graph of any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from circuits.adapters.rules import PLAIN, BackwardRules
from circuits.builder import build_graph
from circuits.files.journal import NOWHERE
from circuits.graph import ComputationalGraph, Edge, EdgeIndices, ModelShape, Node, NodeKind, Receiver, Slot
from circuits.patching.protocol import Progress, no_progress
from circuits.vocabulary import Direction, Metric

Floats = NDArray[np.float64]
Masks = Sequence[NDArray[np.bool_]]

PENCIL_SHAPE = ModelShape(n_layers=1, n_heads=1, n_kv_heads=1, d_model=1, d_head=1)
PENCIL_EFFECTS = {
    "input->a0.h0<q>": 0.0,
    "input->a0.h0<k>": 0.0,
    "input->a0.h0<v>": 8.0,
    "input->m0": 3.0,
    "a0.h0->m0": 6.0,
    "input->logits": 1.0,
    "a0.h0->logits": 2.0,
    "m0->logits": 9.0,
}
"""What corrupting one edge costs, downstream recomputed. Clean logits 12, corrupted logits 0."""


class ToyExperiment:
    """head = 2 input, mlp = 3 (input + head), logits = input + head + mlp; clean input 1, corrupted input 0.

    Only the head's value slot carries a number; its query and key change nothing. With several pairs the clean input of
    pair i is ``clean_inputs[i]``; corrupted inputs are 0.
    """

    metric = Metric.LOGIT_DIFFERENCE
    kept = NOWHERE

    def __init__(self, clean_inputs: Sequence[float] = (1.0,), *, direction: Direction = Direction.NOISING) -> None:
        self.graph = build_graph(PENCIL_SHAPE)
        self.direction = direction
        self.clean_inputs = tuple(clean_inputs)

    @property
    def n_pairs(self) -> int:
        return len(self.clean_inputs)

    @property
    def clean(self) -> Floats:
        return np.array([12.0 * x for x in self.clean_inputs])

    @property
    def corrupted(self) -> Floats:
        return np.zeros(self.n_pairs)

    def part(self, begin: int, end: int) -> "ToyExperiment":
        return ToyExperiment(self.clean_inputs[begin:end], direction=self.direction)

    def circuits(self, masks: Masks, *, progress: Progress = no_progress) -> Floats:
        rows = []
        for i, mask in enumerate(masks):
            live = {str(edge): bool(mask[index]) for index, edge in enumerate(self.graph.edges())}
            rows.append([self._logits(live, x) for x in self.clean_inputs])
            progress(i + 1, len(masks))
        return np.array(rows).reshape(len(masks), self.n_pairs)

    @staticmethod
    def _logits(live: dict[str, float], x: float) -> float:
        head = 2 * x * live["input->a0.h0<v>"]
        mlp = 3 * (x * live["input->m0"] + head * live["a0.h0->m0"])
        return x * live["input->logits"] + head * live["a0.h0->logits"] + mlp * live["m0->logits"]

    def circuit_gradient(self, weights: Floats, *, among: EdgeIndices | None = None) -> tuple[Floats, Floats]:
        names = [str(edge) for edge in self.graph.edges()]

        def logits(of: Floats) -> Floats:
            live = dict(zip(names, of.tolist(), strict=True))
            return np.array([self._logits(live, x) for x in self.clean_inputs])

        slopes = np.zeros((self.n_pairs, self.graph.n_edges))
        for edge in range(self.graph.n_edges) if among is None else {*among, *np.flatnonzero(weights)}:
            up, down = weights.copy(), weights.copy()
            up[edge], down[edge] = 1.0, 0.0
            slopes[:, edge] = logits(up) - logits(down)  # linear in every single weight
        return logits(weights), slopes

    def edge_effects(self, edges: EdgeIndices, *, progress: Progress = no_progress) -> Floats:
        progress(len(edges), len(edges))
        effects = [PENCIL_EFFECTS[str(edge)] for edge in self.graph.edges(edges)]  # linear: both directions agree
        return np.outer(np.array(effects), self.clean_inputs)

    def attributions(
        self,
        points: Sequence[float],
        *,
        stepwise: bool = False,
        rules: BackwardRules = PLAIN,
        progress: Progress = no_progress,
    ) -> Floats:
        progress(len(points), len(points))
        effects = self.edge_effects(np.arange(self.graph.n_edges))  # linear: exact to first order at every point
        return mean_and_sd(effects.T)


@dataclass(frozen=True, eq=False)
class LinearToy:
    """A graph in which a node's value is the weighted sum of what it reads, and the metric a function of the logits.

    ``weights[e]`` multiplies the value of edge e's sender; a head's value is the sum over its query, key and value (the
    last two shared by its group). Logits are thus the sum over all paths of the product of weights, and single-edge
    effects of a circuit do not add up wherever paths have several edges. ``saturation=s`` makes the metric
    ``s tanh(logits / s)``: near the clean end, edges then back each other up and single effects understate them.
    """

    shape: ModelShape
    weights: Floats
    clean_inputs: tuple[float, ...] = (1.0,)
    corrupted_inputs: tuple[float, ...] = (0.0,)
    saturation: float | None = None
    direction: Direction = Direction.NOISING

    metric = Metric.LOGIT_DIFFERENCE
    kept = NOWHERE

    @cached_property
    def graph(self) -> ComputationalGraph:
        return build_graph(self.shape)

    @property
    def n_pairs(self) -> int:
        return len(self.clean_inputs)

    @cached_property
    def clean(self) -> Floats:
        return self.circuits([np.ones(self.graph.n_edges, dtype=np.bool_)])[0]

    @cached_property
    def corrupted(self) -> Floats:
        return self.circuits([np.zeros(self.graph.n_edges, dtype=np.bool_)])[0]

    @property
    def planted(self) -> EdgeIndices:
        """Positions of the edges whose weight is not zero."""
        return np.flatnonzero(self.weights)

    def part(self, begin: int, end: int) -> "LinearToy":
        fewer = self.clean_inputs[begin:end], self.corrupted_inputs[begin:end]
        return replace(self, clean_inputs=fewer[0], corrupted_inputs=fewer[1])

    def circuits(self, masks: Masks, *, progress: Progress = no_progress) -> Floats:
        stacked = np.asarray(masks, dtype=np.bool_).reshape(len(masks), self.graph.n_edges)
        result = self._run(stacked, np.array(self.clean_inputs), self._plain(np.array(self.corrupted_inputs)))
        progress(len(masks), len(masks))
        return self._metric(result[..., -1])

    def circuit_gradient(self, weights: Floats, *, among: EdgeIndices | None = None) -> tuple[Floats, Floats]:
        base = self._plain(np.array(self.corrupted_inputs))
        values = self._run(weights[None], np.array(self.clean_inputs), base)[0]
        changes, senders, receivers = values - base, self.graph.edge_senders, self.graph.edge_receivers
        slopes = self.weights * changes[:, senders] * self._gains_of(weights)[receivers] * self._slope(values[:, -1:])
        wanted = np.ones(self.graph.n_edges, dtype=np.bool_) if among is None else weights != 0
        wanted[slice(None) if among is None else among] = True
        return self._metric(values[:, -1]), np.where(wanted, slopes, 0.0)

    def edge_effects(self, edges: EdgeIndices, *, progress: Progress = no_progress) -> Floats:
        """Run the definition on edges with a weight; the others change nothing."""
        effects = np.zeros((len(edges), self.n_pairs))
        clean, corrupted = self._plain(np.array(self.clean_inputs)), self._plain(np.array(self.corrupted_inputs))
        noising = self.direction is Direction.NOISING
        here, there = (clean, corrupted) if noising else (corrupted, clean)
        active = np.flatnonzero(self.weights[edges])
        for block in np.array_split(active, max(1, len(active) // 256)):
            masks = np.ones((len(block), self.graph.n_edges), dtype=np.bool_)
            masks[np.arange(len(block)), edges[block]] = False
            changed = self._metric(self._run(masks, here[:, 0], there)[..., -1])
            effects[block] = (self._metric(here[:, -1]) - changed) * (1 if noising else -1)
        progress(len(edges), len(edges))
        return effects

    def attributions(
        self,
        points: Sequence[float],
        *,
        stepwise: bool = False,
        rules: BackwardRules = PLAIN,
        progress: Progress = no_progress,
    ) -> Floats:
        clean, corrupted = np.array(self.clean_inputs), np.array(self.corrupted_inputs)
        shares = points if self.direction is Direction.NOISING else [1 - point for point in points]
        slopes = [self._slope(self._plain(corrupted + share * (clean - corrupted))[:, -1]) for share in shares]
        difference = self._plain(clean) - self._plain(corrupted)
        senders, receivers = self.graph.edge_senders, self.graph.edge_receivers
        to_logits = self.weights * difference[:, senders] * self._gains[receivers]
        progress(len(points), len(points))
        scores = to_logits * np.mean(slopes, axis=0)[:, None]
        return mean_and_sd(scores)

    def _metric(self, logits: Floats) -> Floats:
        return logits if self.saturation is None else self.saturation * np.tanh(logits / self.saturation)

    def _slope(self, logits: Floats) -> Floats:
        return np.ones_like(logits) if self.saturation is None else 1 / np.cosh(logits / self.saturation) ** 2

    def _plain(self, inputs: Floats) -> Floats:
        """Value of every sender and, in the last column, of the logits: (pair, sender + 1)."""
        everything = np.ones((1, self.graph.n_edges), dtype=np.bool_)
        return self._run(everything, inputs, np.zeros((len(inputs), len(self.graph.senders) + 1)))[0]

    def _run(self, masks: NDArray[np.bool_] | Floats, inputs: Floats, base: Floats) -> Floats:
        """Walk the graph in canonical order, (circuit, pair, sender + 1); dead edges carry ``base``, others a mix."""
        values = np.zeros((len(masks), len(inputs), len(self.graph.senders) + 1))
        values[..., 0] = inputs
        for receiver, feeds in self._feeds:
            start = self.graph.offsets[receiver]
            used = np.flatnonzero(self.weights[start : self.graph.offsets[receiver + 1]])
            live = masks[:, start + used][:, None, :]
            read = (base[:, used] + live * (values[..., used] - base[:, used])) @ self.weights[start + used]
            values[..., feeds] += read[..., None]
        return values

    @cached_property
    def _feeds(self) -> tuple[tuple[int, list[int]], ...]:
        """For every receiver with a weight: its position, and the senders whose value it is a part of."""
        return tuple(
            (i, fed_columns(self.graph, receiver))
            for i, receiver in enumerate(self.graph.receivers)
            if np.any(self.weights[self.graph.offsets[i] : self.graph.offsets[i + 1]])
        )

    @cached_property
    def _gains(self) -> Floats:
        return self._gains_of(np.ones(self.graph.n_edges))

    def _gains_of(self, live: Floats) -> Floats:
        """By how much the logits rise per unit that a receiver reads, where edges are live by so much."""
        of_sender = np.zeros(len(self.graph.senders) + 1)
        of_sender[-1] = 1.0
        of_receiver = np.zeros(len(self.graph.receivers))
        for receiver, feeds in reversed(self._feeds):
            of_receiver[receiver] = of_sender[feeds].sum()
            start, stop = self.graph.offsets[receiver], self.graph.offsets[receiver + 1]
            of_sender[: stop - start] += (live * self.weights)[start:stop] * of_receiver[receiver]
        return of_receiver


def mean_and_sd(by_pair: Floats) -> Floats:
    """Give mean and sample standard deviation (0 for a single pair) over the first axis."""
    spread = by_pair.std(0, ddof=1) if len(by_pair) > 1 else np.zeros_like(by_pair[0])
    return np.stack([by_pair.mean(0), spread])


def fed_columns(graph: ComputationalGraph, receiver: Receiver) -> list[int]:
    """Positions of the senders whose value a receiver is a part of; one past the last stands for the logits."""
    node = receiver.node
    if node.kind is NodeKind.LOGITS:
        return [len(graph.senders)]
    if node.kind is NodeKind.KV:
        first = node.index * graph.shape.heads_per_group
        heads = range(first, first + graph.shape.heads_per_group)
        return [graph.sender_index[Node(NodeKind.HEAD, node.layer, head)] for head in heads]
    return [graph.sender_index[node]]


def pencil_toy(**options: object) -> LinearToy:
    """Give the :class:`ToyExperiment` as a :class:`LinearToy`."""
    graph = build_graph(PENCIL_SHAPE)
    weights = {
        "input->a0.h0<v>": 2.0,
        "input->a0.h0<q>": 0.0,
        "input->a0.h0<k>": 0.0,
        "input->m0": 3.0,
        "a0.h0->m0": 3.0,
    }
    return LinearToy(PENCIL_SHAPE, np.array([weights.get(str(edge), 1.0) for edge in graph.edges()]), **options)


def planted_toy(
    shape: ModelShape, n_edges: int, *, seed: int = 0, n_pairs: int = 4, noise: float = 0.0, **options: object
) -> LinearToy:
    """Hide a circuit of ``n_edges`` edges, each on a path from input to logits, in a graph of the given shape.

    Planted weights lie between 0.5 and 1.5. ``noise`` puts random weights of that scale on all other edges, whose
    positions are then no longer told apart by ``planted``: call :func:`planted_edges` with the same seed.
    """
    graph, rng = build_graph(shape), np.random.default_rng([seed, 1])
    chosen = planted_edges(graph, n_edges, seed=seed)
    weights = rng.normal(size=graph.n_edges) * noise if noise else np.zeros(graph.n_edges)
    weights[chosen] = rng.uniform(0.5, 1.5, len(chosen))
    inputs = tuple(float(x) for x in rng.uniform(0.8, 1.2, n_pairs))
    return LinearToy(shape, weights, inputs, (0.0,) * n_pairs, **options)


def planted_edges(graph: ComputationalGraph, n_edges: int, *, seed: int = 0) -> EdgeIndices:
    """Draw paths from the logits back to the input until exactly ``n_edges`` different edges lie on them."""
    rng = np.random.default_rng(seed)
    for _ in range(100):
        chosen: set[int] = set()
        for _ in range(1000):  # paths of a wrong length can leave a gap that nothing fills: then start again
            path = _random_path(graph, rng)
            if len(chosen | path) <= n_edges:
                chosen |= path
            if len(chosen) == n_edges:
                return np.array(sorted(chosen), dtype=np.int64)
    raise ValueError(f"could not place {n_edges} edges in a graph of {graph.n_edges}.")


def _random_path(graph: ComputationalGraph, rng: np.random.Generator) -> set[int]:
    path: set[int] = set()
    receiver = graph.receivers[-1]
    while True:
        reach = graph.fan_in[graph.receiver_index[receiver]]
        sender = graph.senders[0 if rng.random() < 0.3 else int(rng.integers(reach))]
        path.add(graph.index(Edge(sender, receiver)))
        if sender.kind is NodeKind.INPUT:
            return path
        receiver = _receivers_of(graph, sender)[int(rng.integers(3)) if sender.kind is NodeKind.HEAD else 0]


def _receivers_of(graph: ComputationalGraph, node: Node) -> list[Receiver]:
    """The receivers through which a sender's own input comes in."""
    if node.kind is NodeKind.MLP:
        return [Receiver(node)]
    shape = graph.shape
    shared = Node(NodeKind.KV, node.layer, node.index // shape.heads_per_group) if shape.grouped else node
    return [Receiver(node, Slot.Q), Receiver(shared, Slot.K), Receiver(shared, Slot.V)]
