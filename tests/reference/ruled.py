"""Two small decoders written out, LLaMA and GPT-2, whose backward passes follow relp's and gim's rules from the papers.

Nothing of the package's adapters or tracer is used: rules are written where they act, as ``detach`` in the formulas.
Every receiver reads a copy of the stream of its own, at which autograd gives the gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from circuits.builder import build_graph
from circuits.graph import ModelShape, Node, NodeKind, Receiver, Slot


@dataclass(frozen=True)
class Rules:
    """Which derivatives are not the plain ones."""

    norm: bool = False
    pattern: bool = False
    ratio: bool = False
    halves: bool = False
    softmax: bool = False


RELP = Rules(norm=True, pattern=True, ratio=True, halves=True)
GIM = Rules(norm=True, halves=True, softmax=True)
FROZEN_NORMS, FROZEN_PATTERNS = Rules(norm=True), Rules(pattern=True)


class _FlatSoftmax(torch.autograd.Function):
    """Softmax whose Jacobian is that at half the scores: diag(t) - t t', t = softmax(s / 2)."""

    @staticmethod
    def forward(context: Any, scores: Tensor) -> Tensor:
        context.save_for_backward(scores)
        return scores.softmax(-1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        flat = (context.saved_tensors[0] / 2).softmax(-1)
        return flat * (gradient - (flat * gradient).sum(-1, keepdim=True))


def product(left: Tensor, right: Tensor, multiply: Callable[[Tensor, Tensor], Tensor], *, halves: bool) -> Tensor:
    """Multiply; with ``halves`` each factor gets half of its gradient."""
    if not halves:
        return multiply(left, right)
    return 0.5 * multiply(left, right.detach()) + 0.5 * multiply(left.detach(), right)


def attend(query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
    """Attend causally, (pair, pos, d_head) each."""
    scores = product(query, key, lambda q, k: q @ k.mT, halves=rules.softmax) / math.sqrt(query.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    scores = scores.masked_fill(hidden, -math.inf)
    pattern = _FlatSoftmax.apply(scores) if rules.softmax else scores.softmax(-1)
    if rules.pattern:
        return pattern.detach() @ value
    return product(pattern, value, torch.matmul, halves=rules.softmax)


def activate(read: Tensor, function: Callable[[Tensor], Tensor], rules: Rules) -> Tensor:
    made = function(read)
    return read * (made / read).detach() if rules.ratio else made


def rotated(value: Tensor, theta: float = 10000.0) -> Tensor:
    """Turn by position (Su et al. 2021), halves as LLaMA pairs them."""
    width, length = value.shape[-1], value.shape[-2]
    angles = torch.arange(length)[:, None] / theta ** (torch.arange(0, width, 2) / width)
    cos, sin = (torch.cat([turn(angles.to(value))] * 2, -1) for turn in (torch.cos, torch.sin))
    first, second = value.chunk(2, -1)
    return value * cos + torch.cat([-second, first], -1) * sin


class Llama:
    """What the decoder below needs of a LLaMA."""

    def __init__(self, module: nn.Module, rules: Rules) -> None:
        self.model, self.rules = module.model, rules
        self.head = module.lm_head.weight
        heads, groups = module.config.num_attention_heads, module.config.num_key_value_heads
        self.width = self.model.layers[0].self_attn.o_proj.weight.shape[1] // heads
        self.shape = ModelShape(len(self.model.layers), heads, groups, self.head.shape[1], self.width)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embed_tokens.weight[ids]

    def norm(self, which: nn.Module, x: Tensor) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + which.variance_epsilon).sqrt()
        return which.weight * x / (scale.detach() if self.rules.norm else scale)

    def unit(self, layer: int, slot: Slot, number: int, x: Tensor) -> Tensor:
        attention = self.model.layers[layer].self_attn
        linear = {Slot.Q: attention.q_proj, Slot.K: attention.k_proj, Slot.V: attention.v_proj}[slot]
        rows = slice(number * self.width, (number + 1) * self.width)
        made = self.norm(self.model.layers[layer].input_layernorm, x) @ linear.weight[rows].T
        made = made if linear.bias is None else made + linear.bias[rows]
        return made if slot is Slot.V else rotated(made)

    def output(self, layer: int, head: int) -> tuple[Tensor, Tensor]:
        linear = self.model.layers[layer].self_attn.o_proj
        silent = torch.zeros(len(linear.weight)) if linear.bias is None else linear.bias
        return linear.weight[:, head * self.width : (head + 1) * self.width], silent

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        mlp = self.model.layers[layer].mlp
        normed = self.norm(self.model.layers[layer].post_attention_layernorm, x)
        gate = activate(normed @ mlp.gate_proj.weight.T, functional.silu, self.rules)
        return (
            product(gate, normed @ mlp.up_proj.weight.T, torch.mul, halves=self.rules.halves) @ mlp.down_proj.weight.T
        )

    def logits(self, x: Tensor) -> Tensor:
        return self.norm(self.model.norm, x)[:, -1] @ self.head.T


class Gpt2:
    """What the decoder below needs of a GPT-2."""

    def __init__(self, module: nn.Module, rules: Rules) -> None:
        self.model, self.rules, self.head = module.transformer, rules, module.lm_head.weight
        heads, self.d_model = module.config.n_head, module.config.n_embd
        self.width = self.d_model // heads
        self.shape = ModelShape(len(self.model.h), heads, heads, self.d_model, self.width)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.wte.weight[ids] + self.model.wpe.weight[: ids.shape[1]]

    def norm(self, which: nn.Module, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + which.eps).sqrt()
        return which.weight * centred / (scale.detach() if self.rules.norm else scale) + which.bias

    def unit(self, layer: int, slot: Slot, number: int, x: Tensor) -> Tensor:
        linear = self.model.h[layer].attn.c_attn
        first = list(Slot).index(slot) * self.d_model + number * self.width
        columns = slice(first, first + self.width)
        return self.norm(self.model.h[layer].ln_1, x) @ linear.weight[:, columns] + linear.bias[columns]

    def output(self, layer: int, head: int) -> tuple[Tensor, Tensor]:
        linear = self.model.h[layer].attn.c_proj
        return linear.weight[head * self.width : (head + 1) * self.width].T, linear.bias

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        mlp = self.model.h[layer].mlp
        read = self.norm(self.model.h[layer].ln_2, x) @ mlp.c_fc.weight + mlp.c_fc.bias
        made = activate(read, lambda value: functional.gelu(value, approximate="tanh"), self.rules)
        return made @ mlp.c_proj.weight + mlp.c_proj.bias

    def logits(self, x: Tensor) -> Tensor:
        return self.norm(self.model.ln_f, x)[:, -1] @ self.head.T


DECODERS = {"llama": Llama, "gpt2": Gpt2}


def run(decoder: Llama | Gpt2, ids: Tensor) -> tuple[Tensor, dict[Node, Tensor], dict[Receiver, Tensor]]:
    """Return the logits, what every sender wrote, and the copy that every receiver read."""
    shape, rules = decoder.shape, decoder.rules
    written = {Node(NodeKind.INPUT): decoder.embed(ids).detach().requires_grad_()}
    stream, copies = written[Node(NodeKind.INPUT)], dict[Receiver, Tensor]()

    def read(receiver: Receiver) -> Tensor:
        copies[receiver] = stream.clone()
        return copies[receiver]

    for layer in range(shape.n_layers):
        kind = NodeKind.KV if shape.grouped else NodeKind.HEAD
        units = [(Slot.Q, NodeKind.HEAD, shape.n_heads), *((s, kind, shape.n_kv_heads) for s in (Slot.K, Slot.V))]
        made = {
            (slot, i): decoder.unit(layer, slot, i, read(Receiver(Node(of, layer, i), slot)))
            for slot, of, count in units
            for i in range(count)
        }
        after = stream
        for head in range(shape.n_heads):
            group = head // shape.heads_per_group
            z = attend(made[Slot.Q, head], made[Slot.K, group], made[Slot.V, group], rules)
            weight, silent = decoder.output(layer, head)
            written[Node(NodeKind.HEAD, layer, head)] = z @ weight.T
            after = after + z @ weight.T + silent / shape.n_heads
        stream = after
        mlp = Node(NodeKind.MLP, layer)
        written[mlp] = decoder.mlp(layer, read(Receiver(mlp)))
        stream = stream + written[mlp]
    return decoder.logits(read(Receiver(Node(NodeKind.LOGITS)))), written, copies


def ruled_edge_scores(
    family: str,
    module: nn.Module,
    ids: tuple[Tensor, Tensor],
    metric: Callable[[Tensor], Tensor],
    rules: Rules,
    *,
    zero: bool = False,
) -> Tensor:
    """Return every edge's score by the rules at the clean run of ``ids`` (clean, corrupted), (pair, edge)."""
    decoder = DECODERS[family](module, rules)
    with torch.enable_grad():
        logits, clean, copies = run(decoder, ids[0])
        found = torch.autograd.grad(metric(logits).sum(), list(copies.values()), materialize_grads=True)
    gradients = dict(zip(copies, found, strict=True))
    with torch.no_grad():
        other = run(decoder, ids[1])[1]
    edges = build_graph(decoder.shape).edges()
    rows = [
        ((clean[edge.sender] - (0 if zero else other[edge.sender])) * gradients[edge.receiver]).sum((1, 2))
        for edge in edges
    ]
    return torch.stack(rows, 1).detach()
