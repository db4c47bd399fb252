"""The only module that knows nnsight: carries out a :class:`~circuits.tracing.plan.Plan` in one trace."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from nnsight import NNsight
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.architecture import Architecture
from circuits.adapters.forms import forms_of, keywords_of, logits_of, rewrap, unwrap
from circuits.adapters.mlp_parts import down_projections
from circuits.adapters.rules import BackwardRules
from circuits.errors import GuardError, UsageError
from circuits.models.in_memory import second_view
from circuits.tracing.after_prefix import AttentionAfterPrefix, has_long_mask
from circuits.tracing.backward import RulesAtWork
from circuits.tracing.layer_places import LayerPlaces, TracedPlace, Unembedding, follow
from circuits.tracing.plan import LayerSite, Plan, Visit
from circuits.tracing.prefix import Prefix, PrefixCache, cache_keyword, prefix_in
from circuits.tracing.requirements import trial_length
from circuits.tracing.state import PositionState, foreign_hooks, require_ordinary_weights, require_own_state

_TRIED, _SHARED = 5, 2
"""How many tokens the prefix cache is tried on, and how many of them are the prefix."""
_CLOSE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative difference that is put down to rounding; float64 models may normalise in float32."""


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the largest relative difference of logits that is put down to rounding in a type of weights."""
    return _CLOSE.get(dtype, 1e-1)


class Tracer:
    """Runs plans on one model. Nothing stays on the model after a run, whether it ends, stops early or raises."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        module = anatomy.module
        require_ordinary_weights(module)
        self.foreign_hooks = foreign_hooks(module)
        self._positions = PositionState(module)
        # Not the wrapper for models of transformers: with ids it makes an attention mask, of their length only, which
        # would have to cover the positions of a prefix as well. Nothing here is padded, so models need none.
        self._model: Any = NNsight(module)
        self._keywords = keywords_of(module)
        self._cache_keyword = cache_keyword(module)
        names = anatomy.architecture
        envoys, devices = follow(self._model, names.layers), anatomy.devices
        self._layers = [
            LayerPlaces(layer, anatomy, forms, device)
            for layer, forms, device in zip(envoys, forms_of(anatomy), devices, strict=False)
        ]
        self._reader = follow(self._model, anatomy.reader)
        self._normed = "input" if names.final_norm is None else "output"
        linear = anatomy.linear_unembedding
        self._unembedding = None
        if linear is not None and anatomy.unembedding is not None:
            self._unembedding = Unembedding(follow(self._model, anatomy.unembedding), linear)
        self._directions: Tensor | None = None
        self._attention_alone = False
        self.rules: RulesAtWork | None = None
        self.prefix_cache = self._tried_prefix_cache()

    def __copy__(self) -> "Tracer":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy deeply, and send to other processes, the model itself: what traces it is made anew around the copy."""
        kept = self._directions, self._attention_alone
        return _tracer_of, (untraced(self.anatomy.module), self.anatomy.architecture, *kept)

    @property
    def selects_columns(self) -> bool:
        """Whether logits of some tokens only can be computed."""
        return self._unembedding is not None and self._directions is None

    @cached_property
    def down_projections(self) -> tuple[str, ...]:
        """The path, within each layer, of what reads its neurons; see :func:`circuits.adapters.mlp_parts`."""
        with self._positions.kept():
            return down_projections(self.anatomy)

    def reading(self, directions: Float[Tensor, "direction d_model"]) -> "Tracer":
        """Return a tracer in whose runs the logits are lengths along directions of the final stream, after its norm.

        They take the place of the whole unembedding, with its bias, scale and cap.
        """
        other = copy(self)
        other._directions = directions
        return other

    def of_attention_alone(self) -> "Tracer":
        """Return a tracer in whose runs the final stream is what the last layer's attention writes, and nothing else.

        A run that begins behind that layer has the final stream that it is given.
        """
        other = copy(self)
        other._attention_alone = True
        return other

    def ruled(self, rules: BackwardRules) -> "Tracer":
        """Return a tracer whose runs with gradients pull them back by other rules; ``rules`` counts what was changed.

        Raises :class:`UnsupportedModelError` for a model that the rules cannot be applied to.
        """
        if rules.plain:
            return self
        other = copy(self)
        other.anatomy = self.anatomy.ruled(rules)
        other.rules = RulesAtWork(other.anatomy)
        other._layers = [layer.seen_through(other.anatomy) for layer in self._layers]
        return other

    def run(
        self,
        ids: Int[Tensor, "row pos"],
        plan: Plan,
        *,
        prefix: Prefix | None = None,
        gradients: bool = False,
    ) -> None:
        """Run token ids through the model as the plan says; results leave through the plan's visits.

        The ids continue ``prefix``, of which a row is given for every pair (rows are ``(anything, pair)``). Logits are
        computed at the last position only, where the model can. Cost: the layers that are neither before
        ``plan.start`` nor idle.
        """
        cache = None if prefix is None else prefix.cache(len(ids), plan.start)
        self._traced(ids, plan, cache, gradients=gradients)

    def _traced(self, ids: Int[Tensor, "row pos"], plan: Plan, cache: DynamicCache | None, *, gradients: bool) -> None:
        require_own_state()
        keywords = dict(self._keywords)
        inner = self.down_projections if any(site is LayerSite.NEURONS for _, site in plan.visits) else ()
        if cache is not None and self._cache_keyword is not None:
            keywords |= {self._cache_keyword: cache, "use_cache": True}
        try:
            with (
                self._positions.kept(),
                torch.set_grad_enabled(gradients),
                AttentionAfterPrefix() if has_long_mask(ids, cache) else nullcontext(),
                self.rules.on() if self.rules is not None and gradients else nullcontext(),
                self._model.trace(ids, **keywords) as trace,
            ):
                self._play(plan, trace, len(ids), inner)
        except OutOfOrderError as error:
            raise GuardError(
                f"{type(self.anatomy.module).__name__} does not reach its modules in the order that the adapter "
                f"'{self.anatomy.architecture.name}' declares: query, key and value projections, the output "
                f"projection, then the norm of the MLP and the MLP ({error}). Correct the paths; a model that computes "
                "them in another order cannot be measured. See: circuits guide models"
            ) from error
        finally:
            if plan.stop is not None:
                # A stop is an exception, which nnsight makes part of a reference cycle with the frames' tensors.
                gc.collect(1)

    @torch.no_grad()
    def plain_logits(self, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row d_vocab"]:
        """Return what :meth:`run` gives as logits, computed by the model alone, without tracing and cache.

        Cost: one forward pass.
        """
        module, last = self.anatomy.module, list[Tensor]()
        reader, normed = module.get_submodule(self.anatomy.reader), self._normed == "output"

        def keep(_: Any, given: tuple[Any, ...], output: Any) -> None:
            last.append(unwrap(output if normed else given[0], len(ids))[:, -1])

        hooks = [*(self._attention_hooks(reader, len(ids)) if self._attention_alone else ())]
        hooks.append(reader.register_forward_hook(keep))
        try:
            with self._positions.kept():
                logits = logits_of(module(ids, **self._keywords))[:, -1]
        finally:
            for hook in hooks:
                hook.remove()
        if self._directions is None:
            return logits.to(ids.device)
        return functional.linear(last[0].to(self._directions), self._directions)

    def _attention_hooks(self, reader: nn.Module, rows: int) -> Iterator[Any]:
        """Let what reads the final stream read what the last layer's attention writes; returns the hooks' handles."""
        written = list[Tensor]()
        names, layers = self.anatomy.architecture, self.anatomy.module.get_submodule(self.anatomy.architecture.layers)
        output = list(layers.children())[-1].get_submodule(names.output)
        yield output.register_forward_hook(lambda _, __, made: written.append(unwrap(made, rows)))

        def instead(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return rewrap(written[-1] * self.anatomy.residual_scale, given[0]), *given[1:]

        yield reader.register_forward_pre_hook(instead)

    def run_on(self, ids: Int[Tensor, "row pos"], plan: Plan, cache: DynamicCache) -> None:
        """Run tokens that follow what a cache holds, as :meth:`run` does; their keys and values are added to it."""
        self._traced(ids, plan, cache, gradients=False)

    def prefix_of(
        self, ids: Int[Tensor, "pair pos"], visits: Mapping[tuple[int, LayerSite], Visit] | None = None
    ) -> Prefix:
        """Run the positions that clean and corrupted prompts share, once for all prompts that begin alike.

        ``visits`` act on that run as those of a plan do. Cost: a forward pass of the distinct beginnings, up to the
        last layer's attention; nothing is unembedded.
        """
        if self._cache_keyword is None:
            raise UsageError(f"the prefix cache is {self.prefix_cache}; leave it out (--no-prefix-cache).")
        untyped: Any = ids
        distinct, of = untyped.unique(dim=0, return_inverse=True)
        cache, end = DynamicCache(), (len(self._layers) - 1, LayerSite.Z)
        acting: dict[tuple[int, LayerSite], Visit] = {end: lambda _: None, **(visits or {})}
        self._traced(distinct, Plan(stop=end, visits=acting), cache, gradients=False)
        return prefix_in(cache, of)

    def _tried_prefix_cache(self) -> PrefixCache:
        """Try, the way it is measured, whether the model goes on from cached keys and values as if it had run them."""
        if self._cache_keyword is None:
            return PrefixCache("the model's forward pass takes no cached keys and values")
        anatomy, found = self.anatomy, list[Tensor]()
        length = trial_length(anatomy, _TRIED, _SHARED + 1)
        ids = torch.arange(2 * length, device=anatomy.device).reshape(2, length) % anatomy.vocabulary
        self.run(ids[:, _SHARED:], Plan(logits=found.append), prefix=self.prefix_of(ids[:, :_SHARED]))
        whole, cached = self.plain_logits(ids).float(), found[0].float()
        error = float((whole - cached).abs().max() / whole.abs().max())
        if error <= tolerance_of(anatomy.dtype):
            return PrefixCache()
        return PrefixCache(f"logits that follow from cached keys and values differ by {error:.2g} of their size")

    def _play(self, plan: Plan, trace: Any, rows: int, inner: tuple[str, ...]) -> None:
        if self._attention_alone and plan.start < len(self._layers):
            plan = self._ending_in_attention(plan)
        for number, layer in enumerate(self._layers):
            if number < plan.start:
                layer.pass_over(plan.stream)
            elif number in plan.idle:
                layer.pass_over(plan.idle[number])
            else:
                layer.play(number, plan, trace, rows, inner[number] if inner else None)
        if plan.final is not None:
            TracedPlace(self._reader, "input", self.anatomy.devices[-1]).visit(plan.final, rows)
        if plan.logits is None:
            return
        if self._directions is not None:
            last = unwrap(getattr(self._reader, self._normed), rows)[:, -1].to(self._directions)
            plan.logits(functional.linear(last, self._directions))
            if self._unembedding is not None:
                self._unembedding.unembed(torch.zeros(1, dtype=torch.long, device=last.device))  # as good as none
            return
        if self._unembedding is not None:
            self._unembedding.unembed(plan.columns)
        plan.logits(logits_of(self._model.output)[:, -1].to(self.anatomy.device))

    def _ending_in_attention(self, plan: Plan) -> Plan:
        """Return a plan in which what reads the final stream sees what the last layer's attention writes to it."""
        last, written = len(self._layers) - 1, list[Tensor]()
        place, visits = (last, LayerSite.ATTENTION), dict(plan.visits)
        if last in plan.attention:
            written.append(plan.attention[last])
        else:
            visits[place] = partial(_keep_seen, written, visits.get(place))
        final, scale = plan.final, self.anatomy.residual_scale

        def read(_: Tensor) -> Tensor:
            value = written[0] * scale
            changed = None if final is None else final(value)
            return value if changed is None else changed

        return replace(plan, visits=visits, final=read if final is not None or plan.logits is not None else None)


def _keep_seen(kept: list[Tensor], visit: Visit | None, value: Tensor) -> Tensor | None:
    """Visit, and keep what goes on from there."""
    changed = None if visit is None else visit(value)
    kept.append(value if changed is None else changed)
    return changed


def _tracer_of(module: nn.Module, architecture: Architecture, directions: Tensor | None, alone: bool) -> Tracer:
    tracer = Tracer(Anatomy(module, architecture))
    tracer = tracer.of_attention_alone() if alone else tracer
    return tracer if directions is None else tracer.reading(directions)


def untraced(module: nn.Module) -> nn.Module:
    """Return second module objects around the same weights, without what nnsight leaves on those that it traces."""
    plain = second_view(module, type(module).__name__)
    for part in plain.modules():
        for name in ("__nnsight__", "_persistent_id", "forward"):
            own = part.__dict__.get(name)
            if own is not None and (name != "forward" or type(own).__module__.startswith("nnsight")):
                del part.__dict__[name]
    return plain
