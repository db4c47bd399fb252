"""Where a Hugging Face Llama-family or GPT-2 model reads and writes its residual stream.

Deliberately shares nothing with the adapters of the package: if both are wrong they are wrong in different ways.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from circuits.builder import build_graph
from circuits.graph import ComputationalGraph, ModelShape, Node, NodeKind, Receiver, Slot

INPUT = Node(NodeKind.INPUT)


@dataclass(frozen=True)
class Anatomy:
    """The modules of one model, layer by layer."""

    graph: ComputationalGraph
    blocks: tuple[nn.Module, ...]
    attention_norms: tuple[nn.Module, ...]
    mlp_norms: tuple[nn.Module, ...]
    mlps: tuple[nn.Module, ...]
    output_projections: tuple[nn.Module, ...]
    final_norm: nn.Module

    @property
    def shape(self) -> ModelShape:
        return self.graph.shape

    def norm(self, receiver: Receiver) -> nn.Module:
        """The norm through which a receiver reads the residual stream."""
        match receiver.node.kind:
            case NodeKind.LOGITS:
                return self.final_norm
            case NodeKind.MLP:
                return self.mlp_norms[receiver.node.layer]
            case _:
                return self.attention_norms[receiver.node.layer]

    def projection(self, receiver: Receiver) -> tuple[nn.Module, slice]:
        """The module that computes an attention receiver's q, k or v, and the receiver's columns of its output."""
        d, index = self.shape.d_head, receiver.node.index
        columns = slice(index * d, (index + 1) * d)
        block = self.blocks[receiver.node.layer]
        if hasattr(block, "self_attn"):
            names = {Slot.Q: "q_proj", Slot.K: "k_proj", Slot.V: "v_proj"}
            return getattr(block.self_attn, names[receiver.slot]), columns
        start = {Slot.Q: 0, Slot.K: 1, Slot.V: 2}[receiver.slot] * self.shape.n_heads * d
        return block.attn.c_attn, slice(start + columns.start, start + columns.stop)

    def attention_bias(self, layer: int) -> Tensor:
        """The output projection's bias, which belongs to no sender."""
        bias = getattr(self.output_projections[layer], "bias", None)
        return torch.zeros(()) if bias is None else bias

    def head_outputs(self, layer: int, z: Tensor) -> dict[Node, Tensor]:
        """Split the input of an output projection into what each head adds to the stream: z_h W_O,h, no bias."""
        module, d = self.output_projections[layer], self.shape.d_head
        rows = module.weight.T if isinstance(module, nn.Linear) else module.weight  # Conv1D stores (in, out)
        return {
            Node(NodeKind.HEAD, layer, h): z[..., h * d : (h + 1) * d] @ rows[h * d : (h + 1) * d]
            for h in range(self.shape.n_heads)
        }


def anatomy_of(model: nn.Module) -> Anatomy:
    """Look up the modules; the model must be in evaluation mode, because dropout would make every run different."""
    if model.training:
        raise ValueError("call model.eval() first.")
    config = model.config
    if hasattr(model, "transformer"):
        blocks = tuple(model.transformer.h)
        d_head = config.n_embd // config.n_head
        return Anatomy(
            graph=build_graph(ModelShape(config.n_layer, config.n_head, config.n_head, config.n_embd, d_head)),
            blocks=blocks,
            attention_norms=tuple(block.ln_1 for block in blocks),
            mlp_norms=tuple(block.ln_2 for block in blocks),
            mlps=tuple(block.mlp for block in blocks),
            output_projections=tuple(block.attn.c_proj for block in blocks),
            final_norm=model.transformer.ln_f,
        )
    blocks = tuple(model.model.layers)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    d_head = blocks[0].self_attn.head_dim
    return Anatomy(
        graph=build_graph(ModelShape(len(blocks), heads, groups, config.hidden_size, d_head)),
        blocks=blocks,
        attention_norms=tuple(block.input_layernorm for block in blocks),
        mlp_norms=tuple(block.post_attention_layernorm for block in blocks),
        mlps=tuple(block.mlp for block in blocks),
        output_projections=tuple(block.self_attn.o_proj for block in blocks),
        final_norm=model.model.norm,
    )
