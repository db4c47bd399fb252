"""What is recorded about a circuit: its model and behaviour, how it was found, how good it is."""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Self

from circuits.elements import Node, NodeKind, Receiver, Slot, require_role
from circuits.errors import UsageError
from circuits.graph import ModelShape
from circuits.statistics import Likeness, Number

_NEURON = r"m([0-9]{1,9})\.n([0-9]{1,9})"
_FROM_END = r"-[1-9][0-9]{0,8}"
LAST = "last"
"""The last token of a prompt, as a place that a circuit leads to."""


@dataclass(frozen=True)
class Target:
    """What a circuit leads to instead of the logits: one number that is read in the residual stream.

    Attributes:
        layer: The stream that enters this layer; the number of layers of the model is the stream the final norm reads.
        digest: SHA-256 of the direction that the stream is read along.
        position: The token that it is read at: ``last``, counted from the end of the prompt (``-5``), or a token role
            of the pairs (``subject``; of several tokens the last).
        site: What reads the stream there: a head's query, key or value (``a14.h5<q>``), a neuron (``m14.n123``);
            or a head (``a14.h5``): what it writes to the stream, alone, is read along a direction. Empty: the stream
            itself is read, along a direction.
    """

    layer: int
    digest: str = ""
    position: str = LAST
    site: str = ""

    def __str__(self) -> str:
        return f"{self.site}:{self.position}" if self.site else f"resid:{self.layer}:{self.position}"

    @property
    def neuron(self) -> int | None:
        """Which neuron of the layer's MLP is read, if one is."""
        found = re.fullmatch(_NEURON, self.site)
        return int(found[2]) if found else None

    @property
    def head(self) -> Node | None:
        """Whose output is read, if one's is."""
        return self.receiver.node if self.receiver is not None and self.receiver.slot is None else None

    @property
    def receiver(self) -> Receiver | None:
        """Which query, key or value is read, if one is; without a slot: which head's output."""
        return Receiver.parse(self.site) if self.site and self.neuron is None else None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a target from its text form; raises :class:`UsageError` for any other."""
        place, position = text, LAST
        if found := re.fullmatch(r"(resid:[0-9]+|(?!resid:)[^:]+):([^:]+)", text):
            place, position = found[1], LAST if found[2] == "-1" else found[2]
            cls._require_position(position)
        if found := re.fullmatch(r"resid:([0-9]{1,9})", place):
            return cls(int(found[1]), position=position)
        if found := re.fullmatch(_NEURON, place):
            return cls(int(found[1]), site=f"m{int(found[1])}.n{int(found[2])}", position=position)
        try:
            receiver = Receiver.parse(place)
        except UsageError:
            receiver = None
        if receiver is None or receiver.role or receiver.node.kind not in (NodeKind.HEAD, NodeKind.KV):
            raise UsageError(
                f"'{text}' is no place that a circuit can lead to; expected resid:LAYER:TOKEN, the stream that enters "
                "a layer, such as resid:16:last, resid:16:-5 or resid:16:subject; the input of a head, such as "
                "'a14.h5<q>'; its output, such as a14.h5; or a neuron, such as m14.n123. These are of the last token, "
                "or as well of another one ('a14.h5<q>:-5')."
            )
        if receiver.slot is None and receiver.node.kind is not NodeKind.HEAD:
            inputs = ", ".join(f"'{receiver.node}<{slot}>'" for slot in Slot)
            raise UsageError(
                f"'{text}' does not say which input of its heads a circuit shall lead to; expected one of {inputs}."
            )
        return cls(receiver.node.layer, site=str(receiver), position=position)

    @staticmethod
    def _require_position(position: str) -> None:
        if not re.fullmatch(_FROM_END, position):
            try:
                require_role(position)
            except UsageError as error:
                raise UsageError(
                    f"'{position}' is no token of a prompt; expected last, one counted from the end (-5), or a token "
                    "role of the prompts, such as subject."
                ) from error


@dataclass(frozen=True)
class ModelInfo:
    """Which model a circuit belongs to, and the numbers its graph follows from.

    ``n_layers`` are those of the whole model, also where a ``target`` says that the graph ends before. With ``roles``
    of token positions every place where the stream is read is there once for each.
    """

    id: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    parallel: bool = False
    architecture: str = ""
    revision: str = ""
    digest: str = ""
    tokenizer_digest: str = ""
    mlps: bool = True
    target: Target | None = None
    roles: tuple[str, ...] = ()

    @property
    def shape(self) -> ModelShape:
        """The shape from which the graph is built."""
        target = self.target
        head = None if target is None else target.head
        half = head is not None or (target is not None and target.neuron is not None and not self.parallel)
        layers = self.n_layers if target is None else target.layer + half
        sizes = layers, self.n_heads, self.n_kv_heads, self.d_model, self.d_head
        kind = {"parallel": self.parallel, "mlps": self.mlps}
        kind |= {"to_stream": target is not None, "half": half}
        return ModelShape(*sizes, **kind, only=None if head is None else head.index, roles=self.roles)

    def remark_on(self, model: "ModelInfo", *, nodes: bool = False) -> str:
        """Return a remark on a circuit of this model where it is run on another; empty where that is this one.

        With ``nodes`` nothing but the circuit's nodes is acted on: a whole model has them wherever the circuit leads,
        and at all positions. Raises :class:`UsageError` for a model of another shape, on which the circuit cannot be
        run.
        """
        whole = replace(self, target=None, roles=()).shape == replace(model, roles=()).shape
        if whole and self.target is not None and not nodes:
            raise UsageError(
                f"the circuit leads to {self.target} and not to the logits, so what its edges and heads do is "
                "measured along that direction: use evaluate, path, interchange or compare with it (--to FILE); "
                "ablate acts on its nodes."
            )
        if whole and self.roles != model.roles and not nodes:
            roles = ", ".join(self.roles) or "none"
            raise UsageError(
                f"the token roles of the circuit's edges are {roles}, and those of the model's "
                f"{', '.join(model.roles) or 'none'}. Circuits with roles are for evaluate, compare and draw; in "
                "Python their model is model.by_role(circuit.model.roles)."
            )
        if model.shape != self.shape and not (whole and nodes):
            raise UsageError(
                f"the circuit is of {self.id} with {self.shape.describe()}, but {model.id} has "
                f"{model.shape.describe()}; give the circuit's own model with --model."
            )
        if model.digest == self.digest:
            return ""
        return (
            f"the circuit was found on other weights ({self.id}, {self.digest[:12] or 'unknown'}) "
            f"than those of {model.id} ({model.digest[:12]}); its numbers are not those of its evaluation."
        )


@dataclass(frozen=True)
class Variant:
    """What is changed about a behaviour's own prompts and answers.

    ``system`` is the system message of every chat, ``prefill`` how the answer begins already; None: the behaviour's
    own. With ``attack`` the corrupted side asks for what the clean side asks, and has this system message in place of
    the other, so that a pair differs by the attack alone; with ``attack_prefill`` its answer begins so. ``answers`` and
    ``wrong_answers``, where there are any, take the place of the behaviour's. ``align`` says by what pairs are aligned
    whose sides differ in length; None: not at all.
    """

    system: str | None = None
    prefill: str | None = None
    answers: tuple[str, ...] = ()
    wrong_answers: tuple[str, ...] = ()
    attack: str | None = None
    attack_prefill: str | None = None
    align: str | None = None

    @property
    def attacked(self) -> bool:
        """Whether both sides of a pair ask for the same."""
        return self.attack is not None or self.attack_prefill is not None

    def describe(self) -> str:
        """Return in a few words what is changed; empty where nothing is."""
        texts = {name: getattr(self, name) for name in ("system", "attack", "prefill", "attack_prefill")}
        parts = [f"{name.replace('_', ' ')} {text!r}" for name, text in texts.items() if text is not None]
        for name, texts in (("answers", self.answers), ("wrong answers", self.wrong_answers)):
            parts += [f"{name} {', '.join(map(repr, texts))}"] if texts else []
        parts += [f"sides of different lengths aligned by {self.align}"] if self.align else []
        return "; ".join(parts)


UNCHANGED = Variant()
"""A behaviour as it is."""


@dataclass(frozen=True)
class BehaviourInfo:
    """Which behaviour, on how many prompt pairs, by which metric."""

    name: str
    metric: str
    unit: str
    n_discovery: int = 0
    n_heldout: int = 0
    digest: str = ""
    variant: Variant = UNCHANGED


@dataclass(frozen=True)
class Method:
    """How the edges were scored and chosen.

    ``attention`` is the attention implementation the model ran with; empty where it is not known.
    """

    scorer: str
    pruner: str
    ablation: str = "corrupted"
    direction: str = "noising"
    target: float | None = None
    seed: int = 0
    dtype: str = "float32"
    attention: str = ""
    rank_by: str = "score"


MOST_RESAMPLED, FEWEST_RESAMPLED = 400, 8
"""Of circuits of more edges, or fitted to fewer independent pairs, nothing is resampled: it would take long, or tell
nothing."""


@dataclass(frozen=True)
class Stability:
    """How much of a circuit other pairs would have chosen; see :mod:`circuits.certainty.stability`.

    ``jaccard_edges`` and ``jaccard_nodes`` are the mean overlap of the selections on ``resamples`` of the pairs, from
    ``candidates`` edges; ``reproduced`` is that of the circuit with the selection on the pairs themselves. ``left_out``
    are edges that most resamples select and the circuit does not have. Certificates are of ``subsamples`` of
    ``subsample`` of the ``pairs`` (clusters of pairs), all together wrong with a chance of at most ``error``.
    """

    resamples: int
    candidates: int
    reproduced: float
    jaccard_edges: float
    jaccard_nodes: float
    left_out: tuple[str, ...]
    pairs: int
    subsample: int
    subsamples: int
    error: float


@dataclass(frozen=True)
class CurvePoint:
    """Faithfulness and error of the best ``edges`` edges; ``requested`` is the share of all edges asked for."""

    edges: int
    faithfulness: Number
    requested: float | None = None
    error: float | None = None

    @property
    def fidelity(self) -> float | None:
        """The share of what the empty circuit gets wrong that these edges get right; see :mod:`circuits.statistics`."""
        return None if self.error is None else 1 - self.error**2


@dataclass(frozen=True)
class Areas:
    """The areas of MIB (arXiv:2504.13151), by its rule, over shares of ``edges`` edges.

    ``universe`` says how these are counted (:class:`~circuits.vocabulary.Universe`). ``cpr`` is the area under f of the
    ranking by score, ``cmd`` that under |1 - f| of the ranking by |score|; None where that ranking was not measured.
    """

    universe: str
    edges: int
    cpr: float | None = None
    cmd: float | None = None


@dataclass(frozen=True)
class RandomBaseline:
    """Faithfulness of random circuits of the same size and wiring, as quantiles.

    ``heads`` says that they have the circuit's layers and MLPs, and other heads of the same layers (else: nodes of
    other layers). ``fidelities`` are the 5 %, 50 % and 95 % quantiles of their fidelity.
    """

    n: int
    median: Number
    q05: Number
    q95: Number
    heads: bool = False
    fidelities: tuple[Number, Number, Number] | None = None


@dataclass(frozen=True)
class Evaluation:
    """How well a circuit works on prompts that discovery did not see.

    ``likeness`` compares circuit and model pair by pair: fidelity, error and more. ``faithfulness`` is the ratio of
    means (m(circuit) - m(corrupted)) / (m(clean) - m(corrupted)); ``necessity`` is the same for all edges but the
    circuit's (0: nothing of the behaviour is left). ``areas`` has an entry for each way of counting edges.
    """

    n: int
    metric_clean: Number
    metric_corrupted: Number
    metric_circuit: Number
    faithfulness: Number
    faithfulness_ci: tuple[Number, Number]
    necessity: float | None = None
    random_baseline: RandomBaseline | None = None
    curve: tuple[CurvePoint, ...] = ()
    areas: tuple[Areas, ...] = ()
    accuracy_clean: float | None = None
    accuracy_circuit: float | None = None
    likeness: Likeness | None = None

    def interval(self, digits: int = 3) -> str:
        """Return the interval of the faithfulness in words; a single pair has none."""
        low, high = self.faithfulness_ci
        if math.isnan(low) or math.isnan(high):
            return "no interval (more pairs are needed)"
        return f"interval [{low:.{digits}f}, {high:.{digits}f}]"

    @property
    def overshoot(self) -> float | None:
        """The largest faithfulness on the ranking's curve, where that was measured; above 1.1 it is worth a word."""
        return max((point.faithfulness for point in self.curve), default=None)


@dataclass(frozen=True)
class SearchOutcome:
    """What the search says of its circuit.

    ``reached`` is whether it has what was aimed at on the pairs it was chosen by, ``locally_minimal`` whether no single
    edge can go without missing that; ``doubts`` are sentences on what speaks against the circuit, held-out pairs
    included.
    """

    reached: bool
    locally_minimal: bool
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """Enough to run it again; ``made_of`` says which circuits' edges these are, of parts that a comparison made.

    ``prefix_cache`` says whether positions that prompts share were run once (``on``), or why not (``off: …``).
    """

    command: str = ""
    device: str = ""
    wall_seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict[str, str])
    made_of: str = ""
    prefix_cache: str = ""


@dataclass(frozen=True)
class Example:
    """One prompt pair as text; ``split`` is ``discovery`` or ``heldout``.

    ``answer_ids`` and ``wrong_ids`` are the tokens that were measured: not every token is what its own text gives.
    ``roles`` are the positions of the pair's own token roles, ``alignment`` the counterpart of every position where the
    sides differ in length.
    """

    clean: str
    corrupted: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    split: str
    answer_ids: tuple[int, ...] = ()
    wrong_ids: tuple[int, ...] = ()
    roles: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    alignment: tuple[int, ...] = ()
