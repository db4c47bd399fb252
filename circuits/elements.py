"""Nodes, slots, receivers and edges as values, and as text: what a graph is made of."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from circuits.errors import UsageError
from circuits.settings import displayed


class NodeKind(StrEnum):
    """What a node is."""

    INPUT = "input"
    """Everything present at the input of block 0: token embedding, learned positions, embedding scale."""
    HEAD = "head"
    """One attention head: writes its output, reads through its query (and key and value without grouping)."""
    KV = "kv"
    """The keys or values that a group of heads shares; reads only."""
    MLP = "mlp"
    """One MLP, with its output bias."""
    LOGITS = "logits"
    """The final norm and the unembedding; reads only."""
    RESID = "resid"
    """The residual stream that enters a layer, at the last position; the end of a graph that does not lead further."""
    MIDDLE = "mid"
    """The same between a layer's attention and its MLP."""

    @property
    def is_end(self) -> bool:
        """Whether graphs end in it."""
        return self in (NodeKind.LOGITS, NodeKind.RESID, NodeKind.MIDDLE)


class Slot(StrEnum):
    """The input of an attention head through which an edge enters."""

    Q = "q"
    K = "k"
    V = "v"

    @property
    def word(self) -> str:
        """What a head has of this slot, in words."""
        return {"q": "queries", "k": "keys", "v": "values"}[self.value]


_NODE_PATTERN = re.compile(
    r"input|logits|(?P<kind>mid|m|resid)(?P<of>[0-9]{1,9})|a(?P<layer>[0-9]{1,9})\.(?P<unit>h|kv)(?P<index>[0-9]{1,9})"
)
_HEAD_OF_PAPERS = re.compile(r"[Ll]([0-9]{1,9})\.?[Hh]([0-9]{1,9})|([0-9]{1,9})\.([0-9]{1,9})")
"""Heads as papers and other tools write them: ``L10H7``, ``10.7``."""
_RECEIVER_PATTERN = re.compile(r"(?P<node>[^<>@]+?)(?:<(?P<slot>[qkv])>)?(?:@(?P<role>[^@<>]+))?")
_ROLE_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+.-]{0,39}")


def require_role(name: object) -> str:
    """Return the name of a token role; raises :class:`UsageError` for what none can be called."""
    if not isinstance(name, str) or not _ROLE_PATTERN.fullmatch(name):
        raise UsageError(f"a role is named with letters, digits, _, +, - and ., 40 at most; got {displayed(name)}.")
    return name


@dataclass(frozen=True, order=True, slots=True)
class Node:
    """One component of the model: ``input``, ``a3.h5``, ``a3.kv1``, ``m3``, ``logits``, ``resid6`` or ``mid6``."""

    kind: NodeKind
    layer: int = -1
    index: int = 0

    def __str__(self) -> str:
        match self.kind:
            case NodeKind.HEAD | NodeKind.KV:
                return f"a{self.layer}.{'h' if self.kind is NodeKind.HEAD else 'kv'}{self.index}"
            case NodeKind.MLP | NodeKind.RESID | NodeKind.MIDDLE:
                return f"{'m' if self.kind is NodeKind.MLP else self.kind.value}{self.layer}"
            case NodeKind.INPUT | NodeKind.LOGITS:
                return self.kind.value

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a node from its text form; the inverse of ``str``, which also reads a head as ``L3H5`` or ``3.5``."""
        paper = _HEAD_OF_PAPERS.fullmatch(text)
        if paper is not None:
            layer, index = (int(number) for number in paper.groups() if number is not None)
            return cls(NodeKind.HEAD, layer, index)
        found = _NODE_PATTERN.fullmatch(text)
        if found is None:
            raise UsageError(f"'{text}' is not a node; expected input, logits, m3, a3.h5 or a3.kv1.")
        if found["kind"] is not None:
            node = cls(NodeKind.MLP if found["kind"] == "m" else NodeKind(found["kind"]), int(found["of"]))
        elif found["layer"] is not None:
            kind = NodeKind.HEAD if found["unit"] == "h" else NodeKind.KV
            node = cls(kind, int(found["layer"]), int(found["index"]))
        else:
            node = cls(NodeKind(text))
        if str(node) != text:
            raise UsageError(f"'{text}' is not a node; write it without leading zeros: '{node}'.")
        return node


@dataclass(frozen=True, order=True, slots=True)
class Receiver:
    """A place where the residual stream is read: a node and, for attention, its slot (``a7.h2<q>``).

    With a ``role`` only at the token positions that have it: ``a7.h2<q>@end``.
    """

    node: Node
    slot: Slot | None = None
    role: str = ""

    def __str__(self) -> str:
        return f"{self.node}{f'<{self.slot.value}>' if self.slot else ''}{f'@{self.role}' if self.role else ''}"

    @property
    def entrance(self) -> str:
        """The slot and the role as text: ``q``, ``q@end``, ``@end``; empty where there is neither."""
        return f"{self.slot.value if self.slot else ''}{f'@{self.role}' if self.role else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a receiver from its text form; the exact inverse of ``str``."""
        found = _RECEIVER_PATTERN.fullmatch(text)
        if found is None:
            raise UsageError(f"'{text}' is not a receiver; expected m3, logits, a3.h5<q> or a3.kv1<k>.")
        return cls(Node.parse(found["node"]), Slot(found["slot"]) if found["slot"] else None, found["role"] or "")


@dataclass(frozen=True, order=True, slots=True)
class Edge:
    """A sender's contribution as one receiver sees it (``a3.h5->a7.h2<q>``)."""

    sender: Node
    receiver: Receiver

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an edge from its text form; the exact inverse of ``str``."""
        parts = text.split("->")
        if len(parts) != 2:
            raise UsageError(
                f"'{text}' is not an edge; expected sender->receiver, such as a3.h5->a7.h2<q> or m2->logits."
            )
        return cls(Node.parse(parts[0].strip()), Receiver.parse(parts[1].strip()))
