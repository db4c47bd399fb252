"""What attention patterns become when one layer's queries, or single keys of it, are those of another run: exactly."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.surrogates import Surrogates
from circuits.errors import UnsupportedModelError
from circuits.graph import Slot
from circuits.passes.estimate import Given
from circuits.tracing.plan import LayerSite, Plan, Visit

_LARGEST = 600.0
"""Beyond this, exponentials are as good as infinite, and would be."""
_OTHERS = 1e-10
"""Where all other weights together are no more than this, they are lost in rounding: a key is taken as alone."""


@dataclass(frozen=True)
class PatternChanges:
    """One layer's pattern as torch made it, with the head outputs that follow from it, and its changes.

    ``queries`` is what the pattern changes by when every query is replaced; ``keys[i, j]`` what the weight of key ``j``
    changes by for query ``i`` when this key alone is, over ``1 - weight``: the others shrink by as much together.
    """

    layer: int
    pattern: Float[Tensor, "row head query key"]
    z: Float[Tensor, "row pos heads_times_d_head"]
    queries: Float[Tensor, "pair head query key"]
    keys: Float[Tensor, "pair head query key"]
    first_key: int
    heads_per_group: int

    def effects(
        self, gradient: Float[Tensor, "pair pos heads_times_d_head"]
    ) -> dict[Slot, Float[Tensor, "pair pos _"]]:
        """Return what the replacements change a metric by, to first order behind the pattern, by slot: for each unit.

        ``gradient`` is the metric's at the head outputs.
        """
        pairs, positions = gradient.shape[:2]
        at_z = torch.zeros_like(self.z)
        at_z[:pairs] = gradient
        (at_pattern,) = torch.autograd.grad(self.z, self.pattern, at_z, retain_graph=True)
        at_pattern = at_pattern[:pairs, :, -positions:].double()
        own = self.pattern.detach()[:pairs, :, -positions:].double()
        beyond = at_pattern - (own * at_pattern).sum(-1, keepdim=True)
        queries = (self.queries * at_pattern).sum(-1)
        keys = (self.keys * beyond).sum(2)[..., self.first_key : self.first_key + positions]
        by_group = keys.reshape(pairs, -1, self.heads_per_group, positions).sum(2)
        return {Slot.Q: queries.mT, Slot.K: by_group.mT}


class _Seen(Surrogates):
    """Writes attention out, and keeps the scores and the weights of every softmax in it."""

    def __init__(self) -> None:
        super().__init__()
        self.softmaxes: list[tuple[Tensor, Tensor]] = []

    @property
    def in_attention(self) -> bool:
        """Whether functions inside attention are replaced."""
        return True

    def _tempered(self, func: Callable[..., Any], args: Sequence[Any], given: dict[str, Any]) -> Tensor:
        scores = cast("Tensor", args[0] if args else given["input"])
        pattern = cast("Tensor", func(*args, **given)).detach().requires_grad_(True)
        self.softmaxes.append((scores.detach(), pattern))
        return pattern


def pattern_changes(given: Given, layer: int) -> PatternChanges:
    """Return what replacing queries and keys does to one layer's pattern.

    Cost: the layer's attention, for three times the pairs. Raises :class:`UnsupportedModelError` where its softmax
    cannot be told.
    """
    here = given.ends[0]
    anatomy, positions = given.tracer.anatomy, here.ids.shape[1]
    scores, pattern, z = _attended(given, layer)
    _require_heads(anatomy, layer, pattern, positions)
    plain, _, by_keys = scores.double()[..., -positions:, :].chunk(3)
    weights, by_queries, _ = pattern.detach().double()[..., -positions:, :].chunk(3)
    moved = _moved(plain, by_keys, here.length, _name(given, layer))
    logs = plain.log_softmax(-1)
    grown = (logs + moved).clamp(max=_LARGEST).exp() - logs.exp()
    keys = torch.where(1 - logs.exp() > _OTHERS, grown / (1 + grown), 0.0)
    return PatternChanges(
        layer,
        pattern,
        z,
        queries=by_queries - weights,
        keys=keys,
        first_key=here.length - positions,
        heads_per_group=anatomy.shape.heads_per_group,
    )


def _moved(
    plain: Float[Tensor, "pair head query key"],
    other: Float[Tensor, "pair head query key"],
    keys: int,
    name: str,
) -> Float[Tensor, "pair head query key"]:
    """Return what replacing keys changes scores by, 0 where they are hidden.

    What stands behind the keys (a sink) does not change with them: where it does, rows of scores were shifted.
    """
    moved = torch.where(plain.isfinite(), other - plain, 0.0)
    if plain.shape[-1] > keys:
        return moved - (other - plain)[..., -1:]
    if not plain.amax(-1).any():
        raise UnsupportedModelError(
            f"{name} shifts the scores of every query, the largest to 0, so what a key changes them by cannot be told. "
            "Let it hand scores to the softmax as they are, or use a scorer other than atp-star, such as eap-ig."
        )
    return moved


def _name(given: Given, layer: int) -> str:
    names = given.tracer.anatomy.architecture
    return f"'{names.layers}.{layer}.{names.attention}'"


def _attended(given: Given, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run a layer's attention as it is, with other queries, and with other keys; return scores, pattern and outputs."""
    (here, there), tracer = given.ends, given.tracer
    names, found = tracer.anatomy.architecture, list[Tensor]()
    visits: dict[tuple[int, LayerSite], Visit] = {
        (layer, site): partial(_replaced, tracer.anatomy, path, there.projections[layer][path])
        for path, site in names.slot_sites.items()
    }
    visits[layer, LayerSite.Z] = found.append
    end = (layer, LayerSite.Z)
    plan = Plan(start=layer, stop=end, stream=here.stream[layer].repeat(3, 1, 1), visits=visits)
    module = tracer.anatomy.module.get_submodule(names.layers).get_submodule(f"{layer}.{names.attention}")
    with ExitStack() as stack:
        seen = stack.enter_context(_Seen())

        def begin(_: nn.Module, __: object) -> None:
            seen.enter("attention")

        stack.callback(module.register_forward_pre_hook(begin).remove)
        tracer.run(here.ids.repeat(3, 1), plan, prefix=here.prefix, gradients=True)
    if len(seen.softmaxes) != 1:
        raise UnsupportedModelError(
            f"{_name(given, layer)} ({type(module).__name__}) has {len(seen.softmaxes)} softmaxes "
            "of torch, alone or in scaled_dot_product_attention; atp-star recomputes the one that makes the pattern. "
            "Use a scorer without it, such as eap-ig."
        )
    return *seen.softmaxes[0], found[0]


def _replaced(anatomy: Anatomy, path: str, other: Tensor, value: Tensor) -> Tensor:
    """Return three times the outputs of a projection: in the second its queries replaced, in the third its keys."""
    made = value.clone()
    pairs = len(other)
    for part, slot in ((1, Slot.Q), (2, Slot.K)):
        if anatomy.architecture.slot_modules[slot] == path:
            columns = anatomy.columns[slot].flatten()
            rows = made[part * pairs : (part + 1) * pairs]
            rows[..., columns] = other[..., columns].to(made.device)
    return made


def _require_heads(anatomy: Anatomy, layer: int, pattern: Tensor, positions: int) -> None:
    if pattern.ndim == 4 and pattern.shape[1] == anatomy.shape.n_heads and pattern.shape[2] >= positions:
        return
    raise UnsupportedModelError(
        f"the softmax of layer {layer}'s attention has the shape {tuple(pattern.shape)}; atp-star needs (row, head, "
        f"query, key), with {anatomy.shape.n_heads} heads. Use a scorer without it, such as eap-ig."
    )
