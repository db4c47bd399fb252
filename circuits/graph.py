"""What exists: nodes, slots, edges and the graph of all of them, in one canonical order.

No torch, no tokens. Senders are ordered ``input, a0.h0 … a0.h{H-1}, m0, a1.h0 …``; whatever may write into a receiver
is then a *prefix* of that order, so a receiver needs one number (how many senders it can read) and an edge is a pair of
indices. Receivers are ordered by layer and within a layer queries, keys, values, MLP; the logits come last. Edges are
ordered by receiver, then sender.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from circuits.elements import Edge, Node, NodeKind, Receiver, Slot, require_role
from circuits.errors import UnknownNameError, UsageError
from circuits.settings import displayed, require_kind, whole_number

__all__ = [
    "ComputationalGraph",
    "Edge",
    "EdgeIndices",
    "Edges",
    "ModelShape",
    "Node",
    "NodeKind",
    "Receiver",
    "Slot",
]

EdgeIndices = NDArray[np.int64]
"""Positions in the canonical order of a graph's edges."""

MOST_EDGES = 500_000_000
"""Larger models are refused before anything is made of them; Llama 3.1 405B has 150 million edges."""


Edges = Edge | str | int | Iterable[Edge | str | int] | EdgeIndices | NDArray[np.bool_]
"""Edges as a caller may give them: one or several, by value, text or position; or a boolean for each of a graph."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a model from which its graph follows.

    ``n_kv_heads`` is the number of key/value heads (equal to ``n_heads`` without grouped queries). In a ``parallel``
    block the MLP reads the same stream as the attention beside it; in a sequential one it also reads that attention.
    Without ``mlps`` a block is its attention alone. With ``to_stream`` these are a model's first layers only, and the
    graph ends in the stream behind them instead of in the logits; with ``half`` the last of them is its attention
    alone, and the graph ends before its MLP. With ``only`` the end reads what this one head of the last layer writes,
    and nothing else: all other edges into the end, and into that layer's other heads, are idle
    (:func:`circuits.numbering.idle_edges`). With ``roles`` of token positions every place where the stream is read is
    there once for each role.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    parallel: bool = False
    mlps: bool = True
    to_stream: bool = False
    half: bool = False
    only: int | None = None
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.n_layers, self.n_heads, self.n_kv_heads, self.d_model, self.d_head) < 1:
            raise UsageError(f"every number of a model's shape must be at least 1, got {self}.")
        if self.n_edges > MOST_EDGES:
            what = f"a model of {self.n_layers:,} layers with {self.n_heads:,} heads has more than {MOST_EDGES:,} edges"
            raise UsageError(f"{what}, which cannot be kept in memory. Check the two numbers.")
        if self.n_heads % self.n_kv_heads:
            raise UsageError(f"{self.n_heads} heads cannot share {self.n_kv_heads} key/value heads evenly.")
        if len({require_role(role) for role in self.roles}) < len(self.roles):
            raise UsageError(f"the roles {', '.join(self.roles)} must be distinct; leave out what is there twice.")

    @property
    def n_edges(self) -> int:
        """How many edges the graph has: every receiver can read what earlier layers, and the input, send."""
        beside = 0 if self.parallel or not self.mlps else self.n_layers * self.n_heads
        earlier = self.n_layers + self.senders_per_layer * self.n_layers * (self.n_layers - 1) // 2
        whole = self.receivers_per_layer * earlier + beside + 1 + self.n_layers * self.senders_per_layer
        own = 0 if self.parallel else self.n_heads
        left_out = 2 + self.senders_per_layer * (self.n_layers - 1) + own  # those of the MLP that is not there
        return self.n_roles * (whole - left_out * self.half)

    @property
    def n_roles(self) -> int:
        """How often every place where the stream is read is there: once, or once for each role."""
        return len(self.roles) or 1

    @property
    def end(self) -> Node:
        """The node that every path leads to: the logits, or the stream behind the last of the layers."""
        if self.half:
            return Node(NodeKind.MIDDLE, self.n_layers - 1)
        return Node(NodeKind.RESID, self.n_layers) if self.to_stream else Node(NodeKind.LOGITS)

    def has_mlp(self, layer: int) -> bool:
        """Return whether a layer has an MLP."""
        return self.mlps and not (self.half and layer == self.n_layers - 1)

    @property
    def senders_per_layer(self) -> int:
        """How many nodes of a layer write to the stream: its heads and its MLP, in this order."""
        return self.n_heads + self.mlps

    @property
    def receivers_per_layer(self) -> int:
        """How many places of a layer read the stream: queries, keys, values and the MLP, in this order."""
        return self.n_heads + 2 * self.n_kv_heads + self.mlps

    @property
    def grouped(self) -> bool:
        """Whether several heads share one key/value head."""
        return self.n_kv_heads != self.n_heads

    @property
    def heads_per_group(self) -> int:
        """How many query heads read one key/value head."""
        return self.n_heads // self.n_kv_heads

    def group_of(self, node: Node) -> Node:
        """Return the key/value group that a head reads, where heads share them; otherwise the node itself."""
        if node.kind is not NodeKind.HEAD or not self.grouped:
            return node
        return Node(NodeKind.KV, node.layer, node.index // self.heads_per_group)

    def describe(self) -> str:
        """Return in words which nodes a model of this shape has, for error messages."""
        text = f"layers 0-{self.n_layers - 1} and heads 0-{self.n_heads - 1}"
        text += f" in key/value groups 0-{self.n_kv_heads - 1}" if self.grouped else ""
        text += ("" if self.mlps else ", and no MLPs") + (f", up to {self.end}" if self.to_stream else "")
        return text + (f", and the roles {', '.join(self.roles)}" if self.roles else "")


@dataclass(frozen=True)
class ComputationalGraph:
    """All senders, receivers and edges of a model, in canonical order.

    ``fan_in[r]`` says how many senders receiver ``r`` can read: exactly the first ``fan_in[r]`` of ``senders``.
    With roles, the receivers of one place follow each other, and the place counts among those without roles
    (:mod:`circuits.numbering`). Build one with :func:`circuits.builder.build_graph`.
    """

    shape: ModelShape
    senders: tuple[Node, ...]
    receivers: tuple[Receiver, ...]
    fan_in: tuple[int, ...]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return len(self)

    @cached_property
    def offsets(self) -> EdgeIndices:
        """Index of each receiver's first edge, and the number of edges at the end."""
        return np.concatenate([[0], np.cumsum(self.fan_in)]).astype(np.int64)

    @cached_property
    def edge_receivers(self) -> EdgeIndices:
        """Index of the receiver of every edge."""
        return np.repeat(np.arange(len(self.receivers)), self.fan_in)

    @cached_property
    def edge_senders(self) -> EdgeIndices:
        """Index of the sender of every edge."""
        return np.arange(self.n_edges) - self.offsets[self.edge_receivers]

    @cached_property
    def edges_by_role(self) -> EdgeIndices:
        """The edges of each role, in the order of the graph without roles, ``(role, edge)``; of that graph, one row."""
        roles = np.arange(self.n_edges)[np.argsort(self.edge_receivers % self.shape.n_roles, kind="stable")]
        return roles.reshape(self.shape.n_roles, -1)

    @cached_property
    def copies(self) -> EdgeIndices:
        """How many query heads read through each edge's receiver: 1, or the heads of a key/value group.

        So many edges one of this graph stands for where each query head has keys and values of its own.
        """
        per_receiver = [self.shape.heads_per_group if each.node.kind is NodeKind.KV else 1 for each in self.receivers]
        return np.repeat(per_receiver, self.fan_in)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node once: senders, then those that only read (key/value groups, the end)."""
        reading = dict.fromkeys(receiver.node for receiver in self.receivers)
        return tuple(dict.fromkeys([*self.senders, *reading]))

    @cached_property
    def sender_index(self) -> dict[Node, int]:
        """Position of every sender in the canonical order."""
        return {node: i for i, node in enumerate(self.senders)}

    @cached_property
    def receiver_index(self) -> dict[Receiver, int]:
        """Position of every receiver in the canonical order."""
        return {receiver: i for i, receiver in enumerate(self.receivers)}

    def edge(self, index: int) -> Edge:
        """Return the edge at a position of the canonical order; raises :class:`UsageError` for one that is none."""
        return self._edge(self._place(index))

    def _edge(self, index: int) -> Edge:
        receiver = int(self.edge_receivers[index])
        return Edge(self.senders[index - int(self.offsets[receiver])], self.receivers[receiver])

    def edges(self, indices: "Edges | None" = None) -> Iterator[Edge]:
        """Walk over edges: all of them, or those given."""
        for index in range(self.n_edges) if indices is None else self.indices(indices):
            yield self._edge(int(index))

    def indices(self, edges: "Edges") -> EdgeIndices:
        """Return positions of edges, in the order and as often as they are given.

        Edges are positions, :class:`Edge` or their text (``a3.h5->m7``), one or several; or a boolean for each edge of
        the graph. Raises :class:`UsageError` for what is none of these or out of range, and ``UnknownNameError`` with
        the reason for an edge that does not exist.
        """
        given = cast("Any", edges)
        if isinstance(given, np.ndarray):
            return self._places(cast("NDArray[Any]", given))
        several = [given] if isinstance(given, str | bytes | Edge) or not hasattr(given, "__iter__") else given
        return np.array([self._index_of(edge) for edge in several], dtype=np.int64)

    def mask(self, edges: "Edges") -> NDArray[np.bool_]:
        """Return one boolean per edge of the graph: is it among these? Edges are given as to :meth:`indices`."""
        mask = np.zeros(self.n_edges, dtype=np.bool_)
        mask[self.indices(edges)] = True
        return mask

    def _places(self, edges: NDArray[Any]) -> EdgeIndices:
        """Return the positions in an array: numbers, names, or a boolean for each edge."""
        if edges.dtype.kind == "b":
            if edges.shape != (self.n_edges,):
                raise UsageError(f"a mask has one boolean for each of {self.n_edges:,} edges, got shape {edges.shape}.")
            return np.flatnonzero(edges)
        if edges.dtype.kind not in "iu":
            return np.array([self._index_of(edge) for edge in edges.flat], dtype=np.int64)
        for edge in edges[(edges < 0) | (edges >= self.n_edges)].flat:
            self._place(edge)
        return edges.astype(np.int64).reshape(-1)

    def node(self, node: "Node | str") -> Node:
        """Return a node of this graph, given as one or by its text; raises ``UnknownNameError`` with the closest."""
        found = Node.parse(node.strip()) if isinstance(node, str) else node
        require_kind(found, Node, "a node", "give a Node or its text, such as a3.h5 or m3.")
        self.require_node(found)
        return found

    def _index_of(self, edge: object) -> int:
        if isinstance(edge, str | Edge):
            return self.index(edge if isinstance(edge, Edge) else Edge.parse(edge))
        return self._place(edge)

    def _place(self, index: object) -> int:
        place = whole_number(index)
        if place is None:
            raise UsageError(
                f"an edge is an Edge, its text such as a3.h5->m7, or its position; got {displayed(index)}."
            )
        if not 0 <= place < self.n_edges:
            raise UsageError(f"there is no edge {place}; this graph has {self.n_edges:,}, numbered from 0.")
        return place

    def index(self, edge: Edge) -> int:
        """Return an edge's position; raises :class:`UnknownNameError` with the reason if it does not exist."""
        self.require_receiver(edge.receiver)
        self.require_node(edge.sender)
        sender = self.sender_index.get(edge.sender)
        if sender is None:
            reads = f"'{edge.sender}' only reads from the stream, it sends nothing."
            raise UnknownNameError("edge", str(edge), (), hint=reads)
        receiver = self.receiver_index[edge.receiver]
        if sender >= self.fan_in[receiver]:
            late = f"'{edge.sender}' is not computed before '{edge.receiver}' reads the stream."
            raise UnknownNameError("edge", str(edge), (), hint=late)
        return int(self.offsets[receiver]) + sender

    def require_node(self, node: Node) -> None:
        """Raise :class:`UnknownNameError`, naming the closest node, if the node is not in this graph."""
        if node not in self._node_set:
            raise UnknownNameError("node", str(node), self._near(node), hint=f"This model has {self.shape.describe()}.")

    def require_receiver(self, receiver: Receiver) -> None:
        """Raise :class:`UnknownNameError`, saying which slot or group is meant, if nothing reads there."""
        if receiver in self.receiver_index:
            return
        node = receiver.node
        if node.kind is NodeKind.HEAD and self.shape.grouped and receiver.slot in (Slot.K, Slot.V):
            self.require_node(node)
            shared = f"{self.shape.group_of(node)}<{receiver.slot}>"
            hint = f"Heads share keys and values in this model: write '{shared}' for the group of {node}."
            raise UnknownNameError("receiver", str(receiver), (), hint=hint)
        self.require_node(node)
        slots = [str(other) for other in self.receivers if other.node in (node, self.shape.group_of(node))]
        hint = "It only sends." if not slots else "A slot tells which input of a head is meant."
        hint += f" This graph has the roles {', '.join(self.shape.roles)}." if self.shape.roles else ""
        raise UnknownNameError("receiver", str(receiver), slots, hint=hint)

    @cached_property
    def _node_set(self) -> frozenset[Node]:
        return frozenset(self.nodes)

    def _near(self, node: Node) -> list[str]:
        if node.kind.is_end:
            return [str(self.shape.end)]
        layer = min(node.layer, self.shape.n_layers - 1)
        limit = (self.shape.n_kv_heads if node.kind is NodeKind.KV else self.shape.n_heads) - 1
        near = Node(node.kind, layer, min(node.index, limit))
        head = Node(NodeKind.HEAD, layer, min(node.index, self.shape.n_heads - 1))
        return [str(near if near in self._node_set else head)]
