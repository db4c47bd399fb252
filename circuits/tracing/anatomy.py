"""One loaded model seen through its adapter: modules, weights and the few functions that measuring needs.

Everything here calls a module's own ``forward`` from its class, so that it can be used while the module is being
traced.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from circuits.errors import GuardError
from circuits.graph import ModelShape, Slot
from circuits.tracing.architectures import Architecture, architecture_of


def call(module: nn.Module, value: Tensor) -> Tensor:
    """Apply a module by its class's ``forward``, past any hook or wrapper on the instance."""
    return cast("Tensor", type(module).forward(module, value))


def weight_and_bias(module: nn.Module) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """Give the weight (output features first) and bias of a linear layer or of GPT-2's transposed ``Conv1D``."""
    weight = cast("Tensor", module.weight)
    if not isinstance(module, nn.Linear):
        weight = weight.T
    return weight, cast("Tensor | None", getattr(module, "bias", None))


@dataclass(frozen=True)
class LayerModules:
    """The modules of one layer, by role."""

    attention_norm: nn.Module
    mlp_norm: nn.Module
    mlp: nn.Module
    output: nn.Module
    projections: Mapping[str, nn.Module]


class Anatomy:
    """A model's modules by role, and projections by slot; see the functions for shapes."""

    def __init__(self, module: PreTrainedModel, architecture: Architecture | None = None) -> None:
        config: Any = module.config
        self.module = module
        self.architecture = architecture or architecture_of(str(config.model_type))
        self.shape = _shape(config, self.architecture)
        names = self.architecture
        self.layers = tuple(
            LayerModules(
                attention_norm=layer.get_submodule(names.attention_norm),
                mlp_norm=layer.get_submodule(names.mlp_norm),
                mlp=layer.get_submodule(names.mlp),
                output=layer.get_submodule(names.output),
                projections={path: layer.get_submodule(path) for path in dict.fromkeys(names.projections.values())},
            )
            for layer in cast("nn.ModuleList", module.get_submodule(names.layers))
        )
        if len(self.layers) != self.shape.n_layers:
            raise GuardError(f"the configuration says {self.shape.n_layers} layers, the model has {len(self.layers)}.")

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights."""
        return next(self.module.parameters()).dtype

    @property
    def vocabulary(self) -> int:
        """How many tokens the embedding has."""
        embedding: Any = self.module.get_input_embeddings()
        return int(embedding.num_embeddings)

    @cached_property
    def columns(self) -> dict[Slot, Int[Tensor, "unit d_head"]]:
        """Which outputs of its projection belong to each unit of a slot."""
        layout = self.architecture.layout
        return {slot: torch.as_tensor(layout(self.shape, slot), device=self.device) for slot in Slot}

    def attention_norm(self, layer: int, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """Normalise a residual stream as this layer's attention reads it."""
        return call(self.layers[layer].attention_norm, stream)

    def slot_weights(
        self, layer: int, slot: Slot, units: list[int]
    ) -> tuple[Float[Tensor, "unit d_head d_model"], Float[Tensor, "unit d_head"] | None]:
        """Give the rows of the projection, and its bias, that make the queries, keys or values of some units."""
        weight, bias = weight_and_bias(self.layers[layer].projections[self.architecture.projections[slot]])
        columns = self.columns[slot][units]
        return weight[columns], None if bias is None else bias[columns]

    def project(self, layer: int, path: str, normed: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any width"]:
        """Apply one whole projection to a normalised stream."""
        weight, bias = weight_and_bias(self.layers[layer].projections[path])
        return functional.linear(normed, weight, bias)

    def head_contributions(
        self, layer: int, z: Float[Tensor, "*any heads_times_d_head"], heads: list[int]
    ) -> Float[Tensor, "*any head d_model"]:
        """Give what some heads add to the residual stream, from the input of the output projection (no bias)."""
        weight, _ = weight_and_bias(self.layers[layer].output)
        by_head = rearrange(weight, "d (h k) -> d h k", h=self.shape.n_heads)[:, heads]
        z = rearrange(z, "... (h k) -> ... h k", h=self.shape.n_heads)[..., heads, :]
        return torch.einsum("...hk,dhk->...hd", z, by_head)

    def output_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """Give the bias of the attention's output projection, which belongs to no sender."""
        return weight_and_bias(self.layers[layer].output)[1]


def _shape(config: Any, architecture: Architecture) -> ModelShape:
    heads, width = int(config.num_attention_heads), int(config.hidden_size)
    return ModelShape(
        n_layers=int(config.num_hidden_layers),
        n_heads=heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        d_model=width,
        d_head=int(getattr(config, "head_dim", None) or width // heads),
        parallel=architecture.parallel,
    )
