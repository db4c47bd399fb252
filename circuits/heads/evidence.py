"""What was measured of the heads of a circuit, as values: no torch, JSON and CSV out, one line of text per head."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from circuits.files.documents import json_text, plain
from circuits.graph import Node
from circuits.interchange.sidecars import HEADS_FORMAT, VERSION

METHOD = {
    "attention": "measured: the value at position j is replaced by the unit vector e_j, queries and keys stay; then a "
    "head's output is its row of attention weights, with any kernel. Checked with random values.",
    "from_last": "share of the last position's attention on a role, mean over the pairs that have the role; roles are "
    "named by the clean prompt and may overlap. uniform: the share if all positions got the same.",
    "from_changed": "the same from the last position at which clean and corrupted prompt differ.",
    "on_average": "mean over all query positions but the first that have the role.",
    "direct": "exact effect of the edge from the head to the logits on the metric, 95 % interval over pairs (normal); "
    "positive: corrupting it hurts the behaviour. share: of the gap between clean and corrupted.",
    "writes": "logits with the head minus logits with its output at the last position taken out of the final stream "
    "(through the model's own final norm and unembedding), minus the mean over tokens; on clean prompts.",
    "copying": "share of tokens that are among the five highest logits (suppressing: lowest) when the head reads "
    "nothing but the token's embedding (and layer 0's MLP of it) and only its output reaches the unembedding.",
    "sequences": "mean attention on random tokens given twice: to the position before; from the second time to the "
    "first time of the same token (duplicate) and to the token after that (induction).",
}


@dataclass(frozen=True)
class AttentionShare:
    """Attention on the positions of one role; see ``METHOD`` for how shares are averaged."""

    role: str
    clean: float
    corrupted: float
    uniform: float


@dataclass(frozen=True)
class DirectEffect:
    """The exact effect of the edge from a head to the logits, with its interval, and as a share of the gap."""

    mean: float
    low: float
    high: float
    share: float


@dataclass(frozen=True)
class WrittenTokens:
    """What a head writes at the last position.

    ``tokens`` are those that are most often among the five it raises most, with the share of pairs. ``answer`` and
    ``wrong_answer`` are by how much it raises their logits (the mean of several), mean over pairs. ``answer_in_top``
    and ``attended_in_top`` are the shares of pairs where an answer, or the token it attends to most (the first and the
    last position aside), is among the five that it raises most; ``wrong_in_bottom`` where a wrong answer is among the
    five that it lowers most. NaN where there is none.
    """

    tokens: tuple[tuple[str, float], ...]
    answer: float
    wrong_answer: float
    answer_in_top: float
    wrong_in_bottom: float
    attended_in_top: float


@dataclass(frozen=True)
class Copying:
    """How often a head copies, or suppresses, the token that it reads: of random tokens, and of the answers."""

    random: float
    answers: float
    suppressing_random: float
    suppressing_answers: float


@dataclass(frozen=True)
class SequenceScores:
    """Mean attention on random tokens given twice."""

    previous_token: float
    duplicate_token: float
    induction: float


@dataclass(frozen=True)
class Label:
    """A name for what a head does, and the numbers that passed the thresholds."""

    name: str
    because: str


@dataclass(frozen=True)
class HeadEvidence:
    """Everything measured of one head; ``labels`` only where the evidence passes the thresholds.

    ``incoming`` and ``outgoing`` are its strongest edges in the circuit with their scores.
    """

    node: Node
    from_last: tuple[AttentionShare, ...]
    from_changed: tuple[AttentionShare, ...]
    on_average: tuple[AttentionShare, ...]
    direct: DirectEffect
    writes: WrittenTokens
    copying: Copying
    sequences: SequenceScores
    incoming: tuple[tuple[str, float], ...]
    outgoing: tuple[tuple[str, float], ...]
    labels: tuple[Label, ...] = ()

    def share(self, *roles: str) -> float:
        """Return the attention on clean prompts from the last position to some roles that do not overlap."""
        return sum(share.clean for share in self.from_last if share.role in roles)

    def text(self) -> str:
        """Return in one line what the head does, for tooltips."""
        named = ", ".join(label.name for label in self.labels) or "no label"
        attends = ", ".join(f"{share.role} {share.clean:.0%}" for share in largest(self.from_last, 2))
        scores, direct = self.sequences, self.direct
        return (
            f"{named}; attends from the last position to {attends}; direct effect {direct.mean:+.2g} "
            f"[{direct.low:.2g}, {direct.high:.2g}]; copies {self.copying.random:.0%}; previous token "
            f"{scores.previous_token:.2f}, duplicate {scores.duplicate_token:.2f}, induction {scores.induction:.2f}"
        )


def largest(shares: Iterable[AttentionShare], count: int) -> list[AttentionShare]:
    """Return the roles with the largest shares on the clean side."""
    return sorted(shares, key=lambda share: -share.clean)[:count]


@dataclass(frozen=True)
class HeadRoles:
    """The evidence on all heads of a circuit, in graph order, and what it was measured on.

    ``circuit_digest`` says of which circuit; diagrams use evidence of their own circuit only.
    """

    circuit_digest: str
    model: str
    behaviour: str
    metric: str
    unit: str
    n_pairs: int
    n_sequences: int
    sequence_length: int
    thresholds: dict[str, float]
    heads: tuple[HeadEvidence, ...]

    def texts(self) -> dict[Node, str]:
        """Return one line of evidence per head, for the tooltips of diagrams."""
        return {head.node: head.text() for head in self.heads}

    def document(self) -> dict[str, Any]:
        """Return everything as plain data; each head also has its line of ``text``."""
        heads = [
            {"head": str(head.node), **{k: v for k, v in asdict(head).items() if k != "node"}, "text": head.text()}
            for head in self.heads
        ]
        plain = {key: value for key, value in asdict(self).items() if key != "heads"}
        return {"format": HEADS_FORMAT, "version": VERSION, **plain, "method": METHOD, "heads": heads}

    def to_json(self) -> str:
        """Return the text of a JSON file; what could not be measured is null."""
        return json_text(plain(self.document(), digits=6))

    def to_csv(self) -> str:
        """Return the text of a CSV file with one row per head; what could not be measured is empty."""
        rows = [_row(head) for head in self.heads]
        columns = dict.fromkeys(name for row in rows for name in row)
        written = io.StringIO()
        writer = csv.DictWriter(written, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
        return written.getvalue()


def _row(head: HeadEvidence) -> dict[str, str | float]:
    direct, copying = head.direct, head.copying
    row: dict[str, str | float] = {
        "head": str(head.node),
        "labels": "; ".join(label.name for label in head.labels),
        "direct": direct.mean,
        "direct_low": direct.low,
        "direct_high": direct.high,
        "direct_share": direct.share,
        **asdict(head.sequences),
        **{f"copying_{name}": value for name, value in asdict(copying).items()},
        **{f"writes_{name}": value for name, value in asdict(head.writes).items() if name != "tokens"},
        "writes_tokens": " ".join(repr(token) for token, _ in head.writes.tokens),
        "incoming": _edges(head.incoming),
        "outgoing": _edges(head.outgoing),
    }
    kinds = (("last", head.from_last), ("changed", head.from_changed), ("average", head.on_average))
    for when, shares in kinds:
        for share in shares:
            row |= {
                f"{when}: {share.role}, clean": share.clean,
                f"{when}: {share.role}, corrupted": share.corrupted,
            }
    return row


def _edges(edges: Iterable[tuple[str, float]]) -> str:
    return "; ".join(f"{edge} {score:.4g}" for edge, score in edges)


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if math.isfinite(value) else ""
