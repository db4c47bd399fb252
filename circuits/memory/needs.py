"""What each operation needs in memory on top of the loaded model: the whole model of memory, in named terms.

The terms are read off the code of the operations, their factors are measured on Llama shapes
(``examples/benchmarks/memory.py`` holds them against measured peaks). Bytes are per pair, or per row of a pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from circuits.graph import ModelShape
from circuits.numbering import first_sender

if TYPE_CHECKING:
    from circuits.adapters.anatomy import Anatomy

Terms = Mapping[str, int]
"""Bytes by what they hold; the sum is the peak."""

PULLED_BACK_AT_ONCE = 256
"""At so many positions gradients are pulled back to what receivers read together: enough for products to be fast."""

LONG_MASK = 2**16
"""From so many numbers on, the mask over a prefix and what follows it is done without (``tracing.after_prefix``)."""

SUM = 4
"""Bytes of the numbers that are summed: at least float32."""
_SLACK_OF_HOST = 0.6
"""Resident memory over what torch asked for, at its most: 1.57, in attribution of a 360M Llama."""

_LASTING = 1 / 3
"""Of that slack, what there is in values that stay: 64 recorded pairs of a 135M Llama took 1.11 times their size."""


@dataclass(frozen=True)
class ModelSizes:
    """What of a model decides how much memory its runs need.

    Attributes:
        shape: Layers, heads and widths.
        mlp: Width of an MLP's hidden layer.
        vocabulary: How many logits there are.
        itemsize: Bytes of one activation.
        scores: Whether attention keeps a number for every pair of positions (eager attention does).
        slack: What the allocator takes beyond what is asked for, as a share: freed blocks that it cannot reuse.
    """

    shape: ModelShape
    mlp: int
    vocabulary: int
    itemsize: int = 4
    scores: bool = False
    slack: float = 0.0

    @classmethod
    def of(cls, anatomy: "Anatomy") -> Self:
        """Read the sizes of a loaded model."""
        shape = anatomy.shape
        config = getattr(anatomy.module, "config", None)
        width = (getattr(config, "intermediate_size", None) or 4 * shape.d_model) if shape.mlps else 0
        eager = getattr(config, "_attn_implementation", "eager") == "eager"
        slack = _SLACK_OF_HOST if anatomy.device.type == "cpu" else 0.0
        return cls(shape, int(width), anatomy.vocabulary, anatomy.dtype.itemsize, eager, slack)

    @property
    def n_senders(self) -> int:
        """How many senders the graph has."""
        return first_sender(self.shape, self.shape.n_layers)

    @property
    def projected(self) -> int:
        """Queries, keys and values of one layer and position."""
        return (self.shape.n_heads + 2 * self.shape.n_kv_heads) * self.shape.d_head


@dataclass(frozen=True, order=True)
class PromptSize:
    """How many positions of a prompt are run, and how many before them are read from the prefix cache."""

    positions: int
    prefix: int = 0


@dataclass(frozen=True)
class Needs:
    """Bytes per pair, or per row of a pass, for prompts of one size; see the module's docstring."""

    sizes: ModelSizes
    prompt: PromptSize

    def recorded(self, runs: int = 2) -> Terms:
        """Return what stays of one pair: its runs (three with zero ablation) and the keys and values of its prefix."""
        shape = self.sizes.shape
        streams = (shape.n_layers + 1) + shape.n_layers * (2 if shape.parallel else 3)
        by_layer = shape.n_heads * shape.d_head + self.sizes.projected
        numbers = self.prompt.positions * (streams * shape.d_model + shape.n_layers * by_layer) + self.sizes.vocabulary
        terms = {"runs": runs * numbers * self.sizes.itemsize, "prefix": self._keys_and_values(self.prompt.prefix)}
        return {**terms, "allocator": int(_LASTING * self.sizes.slack * sum(terms.values()))}

    def recording(self) -> Terms:
        """Return what recording one pair needs while it runs."""
        prompt = self.prompt
        return self._terms(
            {
                "layer": max(prompt.positions, prompt.prefix) * (4 * self.sizes.shape.d_model * SUM + self._layer()),
                "scores": self._scores(),
                "logits": 3 * self.sizes.vocabulary * SUM,
            }
        )

    def exact(self) -> Terms:
        """Return what one row ``(edge, pair)`` of a pass of single edges needs."""
        prompt, shape = self.prompt, self.sizes.shape
        return self._terms(
            {
                "streams": int(8.5 * prompt.positions * shape.d_model * max(SUM, self.sizes.itemsize)),
                "layer": prompt.positions * self._layer(),
                "scores": self._scores(),
                "logits": 2 * self.sizes.vocabulary * SUM,
                "prefix": self._repeated_prefix(),
            }
        )

    def differences(self) -> Terms:
        """Return what exact edges keep of a pair while they run: its senders' changes, and a group's head outputs."""
        shape, stream = self.sizes.shape, self.prompt.positions * self.sizes.shape.d_model
        by_layer = shape.n_heads * shape.d_head + shape.d_model
        numbers = self.prompt.positions * shape.n_layers * by_layer + stream
        return self._terms(
            {
                "differences": numbers * self.sizes.itemsize,
                "group": shape.heads_per_group * stream * max(SUM, self.sizes.itemsize),
            }
        )

    def circuits(self, senders: int) -> Terms:
        """Return what one row ``(circuit, pair)`` needs when so many senders are computed."""
        prompt, shape = self.prompt, self.sizes.shape
        stream = prompt.positions * shape.d_model * max(SUM, self.sizes.itemsize)
        reading = max(senders, 4 * shape.n_heads) * stream
        return self._terms(
            {
                "changes": senders * stream,
                "reading": max(reading, prompt.positions * self._layer()),
                "streams": 6 * stream,
                "scores": self._scores(),
                "logits": 2 * self.sizes.vocabulary * SUM,
                "prefix": self._repeated_prefix(),
            }
        )

    def attribution(self, tile: int, checkpointing: bool = False) -> Terms:
        """Return what attribution of one pair needs, with the changes of ``tile`` senders at a time.

        With ``checkpointing`` it has the activations of one layer at a time, and all layers' streams and gradients.
        """
        prompt, sizes, shape = self.prompt, self.sizes, self.sizes.shape
        heads = shape.n_heads * shape.d_head
        wide = max(SUM, sizes.itemsize)
        at_once = 1 if checkpointing else shape.n_layers
        kept = at_once * (5 * shape.d_model + 2 * sizes.projected)
        if checkpointing:
            kept += shape.n_layers * (2 * shape.d_model + sizes.projected)
        backward = at_once * int(3.5 * sizes.mlp + 2 * heads + 3 * shape.d_model)
        pulled = int(7.2 * (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_model) * wide
        after = min(prompt.positions, PULLED_BACK_AT_ONCE) * (pulled + tile * shape.d_model * wide)
        return self._terms(
            {
                "kept": prompt.positions * kept * sizes.itemsize,
                "backward, then pulled back and multiplied": max(prompt.positions * backward * wide, after),
                "scores": (1 + at_once) * self._scores(),
                "logits": 4 * sizes.vocabulary * SUM,
                "prefix": 2 * self._repeated_prefix(),
            }
        )

    def gradient(self, senders: int) -> Terms:
        """Return what one row needs in a pass that takes a circuit's gradients, when so many senders are computed.

        Beside the changes and their gradients, what every receiver reads is kept for the way back.
        """
        prompt, sizes, shape = self.prompt, self.sizes, self.sizes.shape
        wide, share = max(SUM, sizes.itemsize), senders / sizes.n_senders
        by_layer = 1.4 * self._receivers * shape.d_model + 3.5 * sizes.mlp
        return self._terms(
            {
                "changes and their gradients": 2 * senders * prompt.positions * shape.d_model * wide,
                "kept": int(share * prompt.positions * shape.n_layers * by_layer * wide),
                "slopes": self._edges * wide,
                "scores": (1 + shape.n_layers) * self._scores(),
                "logits": 3 * sizes.vocabulary * SUM,
                "prefix": 2 * self._repeated_prefix(),
            }
        )

    def weights(self) -> int:
        """Return what a circuit's gradients keep once, however many rows a pass has: copies of attention's weights."""
        shape = self.sizes.shape
        numbers = shape.n_layers * (self.sizes.projected + shape.n_heads * shape.d_head) * shape.d_model
        return sum(self._terms({"weights": numbers * self.sizes.itemsize}).values())

    @property
    def _receivers(self) -> int:
        """Receivers of one layer."""
        return self.sizes.shape.receivers_per_layer

    @property
    def _edges(self) -> int:
        """Edges of the graph, to a few per cent: a receiver reads half of the senders on average."""
        return (self.sizes.shape.n_layers * self._receivers + 2) * self.sizes.n_senders // 2

    def _terms(self, terms: Terms) -> Terms:
        return {**terms, "allocator": int(self.sizes.slack * sum(terms.values()))}

    def _layer(self) -> int:
        """Return what one position needs inside a layer: the wider of its MLP and its attention."""
        heads = self.sizes.shape.n_heads * self.sizes.shape.d_head
        return max(3 * self.sizes.mlp, self.sizes.projected + 3 * heads) * self.sizes.itemsize

    def _scores(self) -> int:
        both = self.prompt.positions * (self.prompt.positions + self.prompt.prefix)
        return 3 * self.sizes.shape.n_heads * both * SUM if self.sizes.scores else 0

    def _repeated_prefix(self) -> int:
        """Return the keys and values of a row, which every pass with a prefix keeps for all layers, and its mask."""
        prompt = self.prompt
        if not prompt.prefix:
            return 0
        return self._keys_and_values(prompt.prefix + prompt.positions) + (0 if self.sizes.scores else self._mask())

    def _mask(self) -> int:
        """Return the mask over a prefix and what follows it: truth values, and numbers where attention adds them."""
        positions, prefix = self.prompt.positions, self.prompt.prefix
        numbers = positions * (positions + prefix)
        return numbers * (1 if numbers >= LONG_MASK and positions >= prefix else 1 + SUM)

    def _keys_and_values(self, positions: int) -> int:
        shape = self.sizes.shape
        return 2 * shape.n_layers * shape.n_kv_heads * shape.d_head * positions * self.sizes.itemsize
