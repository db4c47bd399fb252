"""One loaded model seen through its adapter: modules, weights and the few functions that measuring needs.

Everything here calls a module's own ``forward`` from its class, so that it can be used while the module is being
traced. Of a model over several devices, what a layer's weights are applied to is moved to their device.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from circuits.adapters.architecture import Architecture
from circuits.adapters.families import architecture_of
from circuits.adapters.linear import LinearMap, call, linear_map
from circuits.adapters.rules import PLAIN, BackwardRules
from circuits.adapters.surrogates import frozen
from circuits.errors import DeviceError, UnsupportedModelError
from circuits.graph import ModelShape, Slot


@dataclass(frozen=True)
class LayerModules:
    """The modules of one layer, by role; a norm that the family does not have is None."""

    attention_norm: nn.Module | None
    attention_post_norm: nn.Module | None
    output: LinearMap
    projections: Mapping[str, LinearMap]
    projection_norms: Mapping[Slot, nn.Module]
    mlp_norm: nn.Module | None


class Anatomy:
    """A model's modules by role, and projections by slot; see the functions for shapes.

    ``rules`` say how gradients are pulled back, through norms here and through the whole model in the tracer.
    Raises :class:`UnsupportedModelError` where the architecture does not describe the model.
    """

    def __init__(self, module: nn.Module, architecture: Architecture | None = None) -> None:
        self.module, self.rules = module, PLAIN
        self.architecture = architecture or architecture_of(module)
        names = self.architecture
        _require_whole_mlp(names)
        layers = _follow(module, names.layers, names)
        if not isinstance(layers, nn.ModuleList | nn.Sequential) or not len(layers):
            raise UnsupportedModelError(
                f"'{names.layers}' is a {type(layers).__name__}; expected the list of the model's layers, an "
                "nn.ModuleList or nn.Sequential with at least one. Correct `layers`."
            )
        self.unembedding = names.unembedding or _output_embedding(module)
        if names.final_norm is None and self.unembedding is None:
            raise UnsupportedModelError(
                f"the architecture '{names.name}' has no `final_norm`, and which module makes the logits is not known. "
                "Name it as `unembedding`, or the norm before it as `final_norm`."
            )
        for path in (names.final_norm, names.unembedding):
            if path is not None:
                _follow(module, path, names)
        self.layers = tuple(self._layer(layer) for layer in layers)
        self.shape = _shape(module, names, self.layers)
        self.residual_scale = _residual_scale(module, names)
        for slot, path in names.projections.items():
            width, columns = len(self.layers[0].projections[path].weight), names.layout(self.shape, slot)
            if columns.max() >= width:
                raise UnsupportedModelError(
                    f"the layout '{getattr(names.layout, '__name__', names.layout)}' cuts the {slot.word} from column "
                    f"{columns.max()} of '{path}', which has {width} columns. Correct `layout` or `projections`."
                )

    def _layer(self, layer: nn.Module) -> LayerModules:
        names = self.architecture

        def optional(path: str | None) -> nn.Module | None:
            return None if path is None else _follow(layer, path, names)

        def linear(path: str) -> LinearMap:
            return linear_map(_follow(layer, path, names), path)

        for path in names.layer_paths:
            _follow(layer, path, names)
        return LayerModules(
            attention_norm=optional(names.attention_norm),
            attention_post_norm=optional(names.attention_post_norm),
            output=linear(names.output),
            projections={path: linear(path) for path in dict.fromkeys(names.projections.values())},
            projection_norms={slot: _follow(layer, path, names) for slot, path in names.projection_norms.items()},
            mlp_norm=optional(names.mlp_norm),
        )

    def ruled(self, rules: BackwardRules) -> "Anatomy":
        """Return the same anatomy with other rules for gradients."""
        other = copy(self)
        other.rules = rules
        return other

    def _normed(self, norm: nn.Module | None, value: Tensor) -> Tensor:
        """Apply a norm, where there is one."""
        if norm is None:
            return value
        return frozen(norm, value) if self.rules.norms and torch.is_grad_enabled() else call(norm, value)

    @property
    def reader(self) -> str:
        """The path of what reads the final stream: the final norm, or the output embedding where there is none."""
        return self.architecture.final_norm or self.unembedding or ""

    @property
    def linear_unembedding(self) -> nn.Linear | None:
        """The output embedding where it is a plain linear layer: logits of some tokens can be computed alone."""
        layer = None if self.unembedding is None else self.module.get_submodule(self.unembedding)
        plain = layer is not None and cast(Any, type(layer)).forward is nn.Linear.forward
        return cast(nn.Linear, layer) if plain else None

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.module.parameters()).device

    @cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """Where every layer's weights are, and last those of what reads the final stream.

        Raises :class:`DeviceError` for a layer that lies on several devices.
        """
        layers: Any = self.module.get_submodule(self.architecture.layers)
        places = [dict.fromkeys(weight.device for weight in layer.parameters()) for layer in layers]
        for number, found in enumerate(places):
            if len(found) > 1:
                raise DeviceError(
                    f"layer {number} lies on several devices ({', '.join(map(str, found))}); expected whole layers on "
                    "one each. Use a device map whose entries are whole layers, such as "
                    f"'{self.architecture.layers}.{number}'."
                )
        reader = next(self.module.get_submodule(self.reader).parameters(), None)
        found = [next(iter(place)) for place in places]
        return (*found, found[-1] if reader is None else reader.device)

    @property
    def one_device(self) -> bool:
        """Whether all weights are on one device."""
        return len({weight.device for weight in self.module.parameters()}) == 1

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights."""
        return self.layers[0].output.weight.dtype

    @property
    def vocabulary(self) -> int:
        """How many tokens the embedding has: that of the model, or the first embedding of a plain module."""
        return next(module.num_embeddings for module in self.module.modules() if isinstance(module, nn.Embedding))

    @property
    def additive(self) -> bool:
        """Whether heads add to the stream one by one; false where a norm stands between their sum and the stream."""
        return self.architecture.attention_post_norm is None

    @cached_property
    def columns(self) -> dict[Slot, Int[Tensor, "unit d_head"]]:
        """Which outputs of its projection belong to each unit of a slot.

        On the model's device, or on the host where there are several: indices from there serve them all.
        """
        layout, place = self.architecture.layout, self.device if self.one_device else torch.device("cpu")
        return {slot: torch.as_tensor(layout(self.shape, slot), device=place) for slot in Slot}

    def at(self, layer: int, value: Tensor) -> Tensor:
        """Return a value on the device of a layer, or, after the last one, of what reads the final stream."""
        return value.to(self.devices[layer])

    def attention_norm(self, layer: int, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """Normalise a residual stream as this layer's attention reads it."""
        return self._normed(self.layers[layer].attention_norm, self.at(layer, stream))

    def mlp_norm(self, layer: int, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """Normalise a residual stream as this layer's MLP reads it."""
        return self._normed(self.layers[layer].mlp_norm, self.at(layer, stream))

    def slot_weights(
        self, layer: int, slot: Slot, units: list[int]
    ) -> tuple[Float[Tensor, "unit d_head d_model"], Float[Tensor, "unit d_head"] | None]:
        """Return the rows of the projection, and its bias, that make the queries, keys or values of some units."""
        weight, bias = self.layers[layer].projections[self.architecture.projections[slot]]
        columns = self.columns[slot][units]
        return weight[columns], None if bias is None else bias[columns]

    def project(self, layer: int, slot: Slot, normed: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any width"]:
        """Return all that a slot's module puts out for a normalised stream: the projection, and the norm after it."""
        weight, bias = self.layers[layer].projections[self.architecture.projections[slot]]
        return self.projection_norm(layer, slot, functional.linear(self.at(layer, normed), weight, bias))

    def projection_norm(
        self, layer: int, slot: Slot, value: Float[Tensor, "*any width"]
    ) -> Float[Tensor, "*any width"]:
        """Apply the norm over all heads of a slot, where there is one."""
        return self._normed(self.layers[layer].projection_norms.get(slot), value)

    def unit_outputs(
        self, layer: int, slot: Slot, units: list[int], streams: Float[Tensor, "row unit *any d_model"]
    ) -> Float[Tensor, "row *any unit d_head"]:
        """Return the queries, keys or values of some units, each from the residual stream that it alone reads."""
        normed = self.attention_norm(layer, streams)
        if slot in self.layers[layer].projection_norms:
            whole, columns = self.project(layer, slot, normed), self.columns[slot]
            own = torch.stack([whole[:, place][..., columns[unit]] for place, unit in enumerate(units)])
            return rearrange(own, "u r ... k -> r ... u k")
        weight, bias = self.slot_weights(layer, slot, units)
        made = torch.einsum("ru...d,ukd->r...uk", normed, weight)
        return made if bias is None else made + bias

    def head_outputs(
        self, layer: int, z: Float[Tensor, "*any heads_times_d_head"], heads: list[int]
    ) -> Float[Tensor, "*any head d_model"]:
        """Return some heads' shares of the output projection's output, from its input (no bias)."""
        by_head = rearrange(self.layers[layer].output.weight, "d (h k) -> d h k", h=self.shape.n_heads)[:, heads]
        z = rearrange(self.at(layer, z), "... (h k) -> ... h k", h=self.shape.n_heads)[..., heads, :]
        return torch.einsum("...hk,dhk->...hd", z, by_head)

    def grouped_head_outputs(
        self,
        layer: int,
        slot: Slot,
        z: Float[Tensor, "sender pair pos heads_times_d_head"],
        senders: list[int],
        units: list[int],
    ) -> Float[Tensor, "edge pair pos d_model"]:
        """Return, for each edge, the output projection's share of the heads that read one unit of a slot.

        Edge ``i`` has its own ``z[senders[i]]``; a key or value is read by all heads of its group.
        """
        groups = self.shape.n_heads if slot is Slot.Q else self.shape.n_kv_heads
        by_unit = rearrange(self.layers[layer].output.weight, "d (g k) -> g k d", g=groups)[units]
        chosen = rearrange(z, "s b p (g k) -> s g b p k", g=groups)[senders, units]
        return torch.bmm(chosen.flatten(1, 2), by_unit).reshape(*chosen.shape[:-1], -1)

    def attention_output(
        self, layer: int, z: Float[Tensor, "*any heads_times_d_head"]
    ) -> Float[Tensor, "*any d_model"]:
        """Apply the output projection, with its bias."""
        return functional.linear(self.at(layer, z), *self.layers[layer].output)

    def written(self, layer: int, attention: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """Return what reaches the stream of an output projection's output: normed and scaled, where the family does."""
        normed = self._normed(self.layers[layer].attention_post_norm, self.at(layer, attention))
        return self.residual_scale * normed

    def output_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """Return the bias of the attention's output projection, which belongs to no sender."""
        return self.layers[layer].output.bias


def _require_whole_mlp(names: Architecture) -> None:
    left = [name for name in ("mlp_norm", "mlp_output", "mlp_post_norm") if getattr(names, name) is not None]
    if names.mlp is None and left:
        raise UnsupportedModelError(
            f"the architecture '{names.name}' has no `mlp`, but gives its {left[0]}, '{getattr(names, left[0])}'. Name "
            "the MLP, or leave out what belongs to it."
        )


def _follow(module: nn.Module, path: str, architecture: Architecture) -> nn.Module:
    found = module
    for part in path.split("."):
        children = dict(found.named_children())
        if part not in children:
            raise UnsupportedModelError(
                f"the architecture '{architecture.name}' names '{path}' in {type(module).__name__}, but "
                f"{type(found).__name__} has no module '{part}'; it has {', '.join(children) or 'none'}. Correct the "
                "path."
            )
        found = children[part]
    return found


def _output_embedding(module: nn.Module) -> str | None:
    """Return the path of what a model of transformers says makes its logits; None for others."""
    if not isinstance(module, PreTrainedModel):
        return None
    layer: Any = cast(Any, module).get_output_embeddings()
    return next((path for path, candidate in cast(Any, module).named_modules() if candidate is layer), None)


def _residual_scale(module: nn.Module, names: Architecture) -> float:
    if names.residual_scale is None:
        return 1.0
    scale = getattr(getattr(module, "config", None), names.residual_scale, None)
    if not isinstance(scale, int | float):
        raise UnsupportedModelError(
            f"the architecture '{names.name}' says that the model's configuration has the factor "
            f"'{names.residual_scale}'; found {_brief(scale)}. Correct `residual_scale`."
        )
    return float(scale)


def _shape(module: nn.Module, names: Architecture, layers: tuple[LayerModules, ...]) -> ModelShape:
    """Read the sizes from the modules; the number of heads alone must be told."""
    heads = names.heads if isinstance(names.heads, int) else _attribute(module, names)
    sizes = {
        (layer.output.weight.shape, sum(len(each.weight) for each in layer.projections.values())) for layer in layers
    }
    if len(sizes) > 1:
        raise UnsupportedModelError(
            "the layers have attention of different sizes; expected as many heads of the same size in all. "
            "Such a model cannot be measured yet."
        )
    (d_model, width), projected = sizes.pop()
    if not isinstance(heads, int) or heads < 1:
        raise UnsupportedModelError(
            f"the architecture '{names.name}' gives {_brief(heads)} as the number of heads; expected at least 1. "
            "Correct `heads`."
        )
    d_head, left = divmod(width, heads)
    groups, odd = divmod(projected - width, 2 * max(1, d_head))
    if left or odd or groups < 1 or heads % groups:
        raise UnsupportedModelError(
            f"{heads} heads do not fit the projections of '{names.name}': the output projection reads {width} numbers, "
            f"queries, keys and values are {projected} together. Correct `heads`, `output` or `projections`."
        )
    return ModelShape(len(layers), heads, groups, d_model, d_head, parallel=names.parallel, mlps=names.mlp is not None)


def _brief(value: object) -> str:
    return repr(value) if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"


def _attribute(module: nn.Module, names: Architecture) -> Any:
    path = str(names.heads)
    found: Any = module
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part, None)
        if found is None:
            raise UnsupportedModelError(
                f"the architecture '{names.name}' says that the number of heads is at '{path}', and '{part}' is not "
                "there. Give `heads` as a number, or where the model keeps it."
            )
    return found
