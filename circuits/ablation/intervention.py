"""What is done to the output of nodes while a model runs: replaced by a constant, scaled, pushed along a direction.

With ``v`` what a node puts out at one token (a head's ``z``, before the output projection; what an MLP adds to the
stream), ``r`` what it is replaced by (zero, or its mean over all or over the last tokens of reference prompts) and
``d`` its steering direction, the node puts out ``r + scale (v - r) + steer d`` instead, at every token that is read or
generated. A scale of 0 is ablation, 1 leaves ``v``, a negative one turns it around. Whatever comes after is recomputed.

The first token is spared unless asked for: attention looks back only, so what a node puts out there depends on
that token alone and can tell nothing about the prompt; but models use it as a place to attend to when there is
nothing to attend to, with values hundreds of times larger than elsewhere, and break in general without it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.adapters.anatomy import Anatomy
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Tokens
from circuits.errors import UsageError
from circuits.graph import Node, NodeKind
from circuits.memory.batching import by_length
from circuits.settings import settle
from circuits.tracing.plan import LayerSite, Plan, Visit
from circuits.tracing.requirements import require_pairs
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import NodeAblation

Place = tuple[int, LayerSite]
"""A layer, and where in it a kind of node puts out its value."""
ROWS, TOKENS = 32, 1024
"""How many prompts, and tokens of them, run at once."""


@dataclass(frozen=True)
class Intervention:
    """What is done to nodes: see the module for the formula. The default replaces them by their means."""

    ablation: NodeAblation = NodeAblation.MEAN
    scale: float = 0.0
    steer: float = 0.0
    first_token: bool = False

    def __post_init__(self) -> None:
        settle(self)

    @property
    def needs_reference(self) -> bool:
        """Whether reference prompts are needed."""
        return self.steer != 0 or (self.scale != 1 and self.ablation is not NodeAblation.ZERO)

    def describe(self) -> str:
        """Return in words what is done."""
        towards = {
            NodeAblation.MEAN: "mean over the tokens of the corrupted prompts",
            NodeAblation.LAST_MEAN: "mean over the last tokens of the corrupted prompts",
            NodeAblation.ZERO: "zero",
        }[self.ablation]
        parts: list[str] = []
        if self.scale == 0:
            parts.append(f"replaced by {towards}")
        elif self.scale != 1:
            parts.append(f"{self.scale:g} times the value" + (f", from its {towards}" if "mean" in towards else ""))
        if self.steer:
            parts.append(f"{self.steer:g} times the direction from corrupted to clean prompts added")
        return "; ".join(parts) or "unchanged"


@dataclass(frozen=True)
class Reference:
    """What nodes put out on reference prompts, for every place.

    ``mean`` is over the tokens of the corrupted prompts, without the first one and without padding (there is none),
    ``last_mean`` over their last tokens;
    ``direction`` is the mean at the last token of the clean prompts minus that of the corrupted prompts: of refusal,
    harmful minus harmless.
    """

    mean: Mapping[Place, Float[Tensor, " width"]]
    last_mean: Mapping[Place, Float[Tensor, " width"]]
    direction: Mapping[Place, Float[Tensor, " width"]]


def reference_of(tracer: Tracer, pairs: Sequence[TokenPair]) -> Reference:
    """Record reference prompts. Cost: one forward pass of both sides. Raises :class:`UsageError` without pairs."""
    if not pairs:
        raise UsageError("means and directions are taken over reference prompts; expected at least one pair.")
    require_pairs(tracer.anatomy, pairs)
    clean, corrupted = (_Sums(tracer, [getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupted"))
    mean = {place: total / max(1, corrupted.tokens) for place, total in corrupted.all.items()}
    last_mean = {place: total / len(pairs) for place, total in corrupted.last.items()}
    direction = {place: clean.last[place] / len(pairs) - last for place, last in last_mean.items()}
    return Reference(mean, last_mean, direction)


class _Sums:
    """Sums over prompts of what every node puts out: over all tokens but the first, and at the last token."""

    def __init__(self, tracer: Tracer, prompts: Sequence[Tokens]) -> None:
        self.all: dict[Place, Tensor] = {}
        self.last: dict[Place, Tensor] = {}
        self.tokens = sum(len(prompt) - 1 for prompt in prompts)
        layers = range(tracer.anatomy.shape.n_layers)
        sites = (LayerSite.Z, LayerSite.MLP_OUT) if tracer.anatomy.shape.mlps else (LayerSite.Z,)
        places = [(layer, site) for layer in layers for site in sites]
        plan = Plan(visits={place: _Add(self, place) for place in places})
        for _, ids in batches(prompts, tracer.anatomy.device):
            tracer.run(ids, plan)

    def add(self, place: Place, value: Tensor) -> None:
        """Add the values of some prompts of one length."""
        wide = value.double() if value.device.type != "mps" else value.float()
        for sums, part in ((self.all, wide[:, 1:].sum((0, 1))), (self.last, wide[:, -1].sum(0))):
            sums[place] = sums[place] + part if place in sums else part


@dataclass(frozen=True)
class _Add:
    """A visit that adds what it sees."""

    sums: _Sums
    place: Place

    def __call__(self, value: Tensor) -> None:
        """Add the values."""
        self.sums.add(self.place, value)


def batches(prompts: Sequence[Tokens], device: torch.device) -> Iterable[tuple[list[int], Tensor]]:
    """Yield the places and ids of prompts in batches of one length, so that nothing is ever padded."""
    for chosen in portions(prompts):
        yield chosen, torch.tensor([prompts[place] for place in chosen], device=device)


def portions(prompts: Sequence[Tokens]) -> Iterable[list[int]]:
    """Return the places of prompts that run at once: of one length, and few enough to take seconds."""
    return by_length(map(len, prompts), lambda length: min(ROWS, TOKENS // length))


def visits_of(
    anatomy: Anatomy, nodes: Sequence[Node], intervention: Intervention, reference: Reference | None = None
) -> dict[Place, Visit]:
    """Return the visits that act on nodes; nothing where the intervention changes nothing.

    Raises :class:`UsageError` for a node that puts out nothing and where a reference is needed and missing.
    """
    if intervention.needs_reference and reference is None:
        raise UsageError(
            "means and directions are taken over reference prompts; give some, or use zero ablation without steering."
        )
    if intervention.scale == 1 and intervention.steer == 0:
        return {}
    columns: dict[Place, Tensor] = {}
    for node in nodes:
        place, chosen = _columns(anatomy, node)
        columns[place] = columns[place] | chosen if place in columns else chosen
    return {place: _change(anatomy, place, chosen, intervention, reference) for place, chosen in columns.items()}


def _columns(anatomy: Anatomy, node: Node) -> tuple[Place, Bool[Tensor, " width"]]:
    """Return where a node puts out its value, and which of the numbers there are its own."""
    shape = anatomy.shape
    match node.kind:
        case NodeKind.HEAD:
            heads = torch.arange(shape.n_heads, device=anatomy.device).repeat_interleave(shape.d_head)
            return (node.layer, LayerSite.Z), heads == node.index
        case NodeKind.MLP:
            return (node.layer, LayerSite.MLP_OUT), torch.ones(shape.d_model, dtype=torch.bool, device=anatomy.device)
        case _:
            raise UsageError(f"'{node}' cannot be ablated; expected heads and MLPs, such as a3.h5 or m3.")


def _change(
    anatomy: Anatomy, place: Place, columns: Tensor, intervention: Intervention, reference: Reference | None
) -> Visit:
    constant = torch.zeros(len(columns), dtype=torch.float64 if anatomy.device.type != "mps" else torch.float32)
    constant = anatomy.at(place[0], constant)
    if reference is not None and intervention.ablation is not NodeAblation.ZERO and intervention.scale != 1:
        means = reference.mean if intervention.ablation is NodeAblation.MEAN else reference.last_mean
        constant = constant + (1 - intervention.scale) * means[place]
    if reference is not None and intervention.steer:
        constant = constant + intervention.steer * reference.direction[place]
    return _Change(columns, constant, intervention.scale, 0 if intervention.first_token else 1)


@dataclass(frozen=True)
class _Change:
    """A visit that scales some of the numbers and adds a constant to them, from position ``first`` on."""

    columns: Bool[Tensor, " width"]
    constant: Float[Tensor, " width"]
    scale: float
    first: int

    def __call__(self, value: Tensor) -> Tensor:
        """Return the changed value; the one that was seen stays as it is."""
        columns, constant = self.columns.to(value.device), self.constant.to(value)
        changed = torch.where(columns, self.scale * value + constant, value)
        return torch.cat([value[:, : self.first], changed[:, self.first :]], dim=1)
