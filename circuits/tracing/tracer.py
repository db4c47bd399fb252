"""The only module that knows nnsight: carries out a :class:`~circuits.tracing.plan.Plan` in one trace."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
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
from circuits.adapters.forms import Form, forms_of, keywords_of, logits_of, rewrap, unwrap
from circuits.adapters.mlp_parts import down_projections
from circuits.adapters.rules import BackwardRules
from circuits.errors import GuardError, UsageError
from circuits.models.in_memory import second_view
from circuits.tracing.after_prefix import AttentionAfterPrefix, has_long_mask
from circuits.tracing.backward import RulesAtWork
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
        envoys, devices = _follow(self._model, names.layers), anatomy.devices
        self._layers = [
            _LayerEnvoys(layer, anatomy, forms, device)
            for layer, forms, device in zip(envoys, forms_of(anatomy), devices, strict=False)
        ]
        self._reader = _follow(self._model, anatomy.reader)
        self._normed = "input" if names.final_norm is None else "output"
        linear = anatomy.linear_unembedding
        self._unembedding = None
        if linear is not None and anatomy.unembedding is not None:
            self._unembedding = _Unembedding(_follow(self._model, anatomy.unembedding), linear)
        self._directions: Tensor | None = None
        self.rules: RulesAtWork | None = None
        self.prefix_cache = self._tried_prefix_cache()

    def __copy__(self) -> "Tracer":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy deeply, and send to other processes, the model itself: what traces it is made anew around the copy."""
        return _tracer_of, (untraced(self.anatomy.module), self.anatomy.architecture, self._directions)

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

        hook = reader.register_forward_hook(keep)
        try:
            with self._positions.kept():
                logits = logits_of(module(ids, **self._keywords))[:, -1]
        finally:
            hook.remove()
        if self._directions is None:
            return logits.to(ids.device)
        return functional.linear(last[0].to(self._directions), self._directions)

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
        for number, layer in enumerate(self._layers):
            if number < plan.start:
                layer.pass_over(plan.stream)
            elif number in plan.idle:
                layer.pass_over(plan.idle[number])
            else:
                layer.play(number, plan, trace, rows, inner[number] if inner else None)
        if plan.final is not None:
            _Place(self._reader, "input", self.anatomy.devices[-1]).visit(plan.final, rows)
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


@dataclass(frozen=True)
class _Place:
    """Where a visit reads, and how what it returns is put back: by default at the same place.

    Values are seen, and put back, on the device of the weights there.
    """

    envoy: Any
    attribute: str
    device: torch.device
    scale: float = 1.0

    def visit(self, visit: Visit, rows: int) -> None:
        """Show the value to a visit, and replace it by what that returns."""
        found = getattr(self.envoy, self.attribute)
        value = unwrap(found, rows).to(self.device)
        replacement = visit(value if self.scale == 1.0 else value * self.scale)
        if replacement is not None:
            replacement = replacement.to(self.device)
            setattr(
                self.envoy,
                self.attribute,
                rewrap(replacement if self.scale == 1.0 else replacement / self.scale, found),
            )


@dataclass(frozen=True)
class _ParallelRead:
    """What the MLP of a parallel block reads: the layer's own input, replaced behind the norm (which may be shared)."""

    mlp: Any
    norm: Callable[[Tensor], Tensor]
    stream: Tensor

    def visit(self, visit: Visit, rows: int) -> None:
        """Show the stream to a visit, and let the MLP read what that returns."""
        del rows
        replacement = visit(self.stream)
        if replacement is not None:
            self.mlp.input = self.norm(replacement)


@dataclass(frozen=True)
class _Unembedding:
    """The model's last linear layer."""

    envoy: Any
    module: Any

    def unembed(self, columns: Tensor | None) -> None:
        """Compute the logits of the last position only, of all tokens or of some.

        As one matrix product: of a slice with gaps, torch makes one product per row, several times slower.
        """
        weight, bias = self.module.weight, self.module.bias
        if columns is not None:
            columns = columns.to(weight.device)
            weight, bias = weight[columns], None if bias is None else bias[columns]
        last = self.envoy.input[:, -1].contiguous().to(weight.device)
        self.envoy.skip(functional.linear(last, weight, bias).unsqueeze(1))


class _LayerEnvoys:
    """The places of one layer that plans can visit, in forward order."""

    def __init__(self, layer: Any, anatomy: Anatomy, forms: dict[str, Form], device: torch.device) -> None:
        names = anatomy.architecture
        self.device = device
        self.layer, self.anatomy, self.forms = layer, anatomy, forms
        self.attention = _follow(layer, names.attention)
        if names.mlp is not None:
            self.mlp = _follow(layer, names.mlp)
            self.mlp_end = _follow(layer, names.mlp_output or names.mlp)
            self.mlp_read = self.mlp if names.mlp_norm is None else _follow(layer, names.mlp_norm)
            self.mlp_written = self.mlp_end if names.mlp_post_norm is None else _follow(layer, names.mlp_post_norm)
        self.output = _follow(layer, names.output)
        self.projections = [(site, _follow(layer, path)) for path, site in names.slot_sites.items()]

    def seen_through(self, anatomy: Anatomy) -> "_LayerEnvoys":
        """Return the same places with another anatomy of the same model."""
        other = copy(self)
        other.anatomy = anatomy
        return other

    def pass_over(self, stream: Tensor | None) -> None:
        """Skip the layer: it puts out a given stream."""
        self.layer.skip(None if stream is None else self.forms[""].wrap(stream))

    def play(self, number: int, plan: Plan, trace: Any, rows: int, down: str | None) -> None:
        """Visit the layer's places, and skip the blocks that the plan replaces; ``down`` reads its neurons."""
        if number == plan.start and plan.stream is not None and number == 0:
            self.layer.input = plan.stream
        for site, place in self._places(number, plan, rows, down):
            visit = plan.visits.get((number, site))
            if visit is not None:
                place.visit(visit, rows)
            if plan.stop == (number, site):
                trace.stop()

    def _places(
        self, number: int, plan: Plan, rows: int, down: str | None
    ) -> Iterator[tuple[LayerSite, _Place | _ParallelRead]]:
        names = self.anatomy.architecture
        yield LayerSite.STREAM, _Place(self.layer, "input", self.device)
        stream = self._entering(rows) if names.parallel or names.attention_adds_stream else None
        if number in plan.attention:
            given = plan.attention[number].to(self.device)
            whole = given if stream is None or not names.attention_adds_stream else stream + given
            self.attention.skip(self.forms[names.attention].wrap(whole))
        else:
            for site, projection in self.projections:
                yield site, _Place(projection, "output", self.device)
            yield LayerSite.Z, _Place(self.output, "input", self.device)
            yield LayerSite.ATTENTION, _Place(self.output, "output", self.device)
        if names.mlp is None:
            return
        if number in plan.mlp:
            self._skip_mlp(names.mlp, plan.mlp[number].to(self.device))
            return
        if stream is not None and names.parallel:
            yield LayerSite.MLP_IN, _ParallelRead(self.mlp, partial(self.anatomy.mlp_norm, number), stream)
        else:
            yield LayerSite.MLP_IN, _Place(self.mlp_read, "input", self.device)
        if down is not None:
            yield LayerSite.NEURONS, _Place(_follow(self.layer, down), "input", self.device)
        yield LayerSite.MLP_OUT, _Place(self.mlp_written, "output", self.device, self.anatomy.residual_scale)

    def _entering(self, rows: int) -> Tensor:
        return unwrap(self.layer.input, rows).to(self.device)

    def _skip_mlp(self, path: str, value: Tensor) -> None:
        names = self.anatomy.architecture
        if names.mlp_output is not None:
            # What the first module puts out goes through activations only, and is then thrown away.
            self.mlp.skip(self.forms[path].wrap(value))
        self.mlp_end.skip(self.forms[names.mlp_output or path].wrap(value))


def _follow(envoy: Any, path: str) -> Any:
    for name in path.split("."):
        envoy = getattr(envoy, name)
    return envoy


def _tracer_of(module: nn.Module, architecture: Architecture, directions: Tensor | None) -> Tracer:
    tracer = Tracer(Anatomy(module, architecture))
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
