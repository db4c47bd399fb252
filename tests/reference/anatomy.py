"""The graph and the layers of a Hugging Face decoder, found by trying rather than by a table.

Deliberately shares nothing with the adapters of the package: if both are wrong they are wrong in different ways. The
only names known here are those of a layer's attention and MLP and of the final norm; see :mod:`tests.reference.layers`
and :mod:`tests.reference.seams` for the rest.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from circuits.builder import build_graph
from circuits.graph import ComputationalGraph, ModelShape, Node, NodeKind, Receiver, Slot
from tests.reference.layers import Heads, Layer, Rest

INPUT = Node(NodeKind.INPUT)

Read = Callable[[Receiver, Tensor], Tensor]
"""Gets a receiver and the stream that the model would show it, and gives the stream that it is to read."""

Send = Callable[[Mapping[Node, Tensor]], None]
"""Gets what senders send; see :class:`Anatomy` for heads."""

_ATTENTION = ("self_attn", "self_attention", "attention", "attn")
_MLP = ("mlp", "ffn", "block_sparse_moe", "fc2")
_FINAL_NORM = ("norm", "ln_f", "norm_f", "final_layer_norm", "final_layernorm")
_OUTPUT_PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "attention.out_proj")


@dataclass(frozen=True)
class Anatomy:
    """A model's graph and layers.

    ``sandwich`` layers have a norm after attention: there a head's value is what it adds to the *attention output*,
    z_h W_O,h, and the stream gets the norm of the sum. Everywhere else a head's value is what it adds to the stream.
    """

    graph: ComputationalGraph
    layers: tuple[Layer, ...]
    final_norm: nn.Module
    sandwich: tuple[bool, ...]
    silent: tuple[Tensor, ...]
    """Attention output of every layer when all its heads give zero, (d_model,) each."""
    biases: tuple[Tensor, ...]
    """What every layer then adds to the stream, (d_model,) each."""

    @property
    def shape(self) -> ModelShape:
        return self.graph.shape

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        return tuple(layer.block for layer in self.layers)

    @property
    def mlps(self) -> tuple[nn.Module, ...]:
        """The modules that give an MLP's output; BLOOM's and MPT's add the stream to it."""
        return tuple(layer.mlp.module for layer in self.layers)

    @property
    def output_projections(self) -> tuple[nn.Module, ...]:
        """The modules whose input is the concatenation of all head outputs."""
        return tuple(_child(layer.attention.module, _OUTPUT_PROJECTION) for layer in self.layers)

    def receivers(self, layer: int) -> list[Receiver]:
        return [receiver for receiver in self.graph.receivers if receiver.node.layer == layer]

    def projection(self, receiver: Receiver) -> tuple[nn.Module, list[int]]:
        """The module that computes an attention receiver's q, k or v, and the receiver's columns of its output."""
        example = torch.linspace(-1, 1, 2 * self.shape.d_model).reshape(1, 2, -1).to(self.biases[0])
        return self.layers[receiver.node.layer].columns(example, receiver.slot, receiver.node.index)

    def attention_bias(self, layer: int) -> Tensor:
        """What a layer's attention adds to the stream when all its heads give zero; it belongs to no sender."""
        return self.biases[layer]

    def head_values(self, layer: int, like: Tensor, rest: Rest, mixed: Tensor) -> dict[Node, Tensor]:
        """Give the values of a layer's heads from their outputs before the output projection."""
        raw = self.layers[layer].head_outputs(like, rest, mixed, self.silent[layer])
        if self.sandwich[layer]:
            return raw
        return {node: self.layers[layer].added(output) for node, output in raw.items()}

    def attention_added(self, layer: int, value: Callable[[Node], Tensor]) -> Tensor:
        """Add up what a layer's attention adds to the stream when its heads have the given values."""
        heads = [value(Node(NodeKind.HEAD, layer, h)) for h in range(self.shape.n_heads)]
        if self.sandwich[layer]:
            return self.layers[layer].added(sum(heads) + self.silent[layer])
        return sum(heads) + self.biases[layer]

    def stream(self, receiver: Receiver, value: Callable[[Node], Tensor]) -> Tensor:
        """Add up x_v: what every sender before the receiver carries, and the biases, which have no sender."""
        earlier = self.graph.senders[: self.graph.fan_in[self.graph.receiver_index[receiver]]]
        total = value(INPUT)
        for node in earlier[1:]:
            if node.kind is NodeKind.MLP:
                total = total + value(node)
            elif node.index == 0:
                total = total + self.attention_added(node.layer, value)
        return total

    def stream_change(self, values: Mapping[Node, Tensor], sender: Node, new: Tensor) -> Tensor:
        """Give what happens to the stream when, in a run with these values, one sender has a new one."""
        layer = sender.layer
        if sender.kind is not NodeKind.HEAD or not self.sandwich[layer]:
            return new - values[sender]
        changed = {**values, sender: new}
        return self.attention_added(layer, changed.__getitem__) - self.attention_added(layer, values.__getitem__)


def run_layer(anatomy: Anatomy, index: int, x: Tensor, rest: Rest, read: Read, send: Send | None) -> Tensor:
    """Run one layer with a stream of its own for every receiver; returns the stream after it.

    ``x`` is the stream at the layer's input. Each receiver is asked once, and shown what the model would show it.
    """
    layer = anatomy.layers[index]
    units: dict[Slot, list[Tensor]] = {slot: [] for slot in Slot}
    plain: list[Heads] = []
    for receiver in anatomy.receivers(index):
        if receiver.slot is not None:
            stream = read(receiver, x)
            if stream is x and not plain:
                plain.append(layer.heads(x, rest))
            heads = plain[0] if stream is x else layer.heads(stream, rest)
            units[receiver.slot].append(heads[list(Slot).index(receiver.slot)][:, receiver.node.index])
    q, k, v = (torch.stack(units[slot], dim=1) for slot in Slot)
    mixed, output = layer.attend(x, rest, (q, k, v))
    if send is not None:
        send(anatomy.head_values(index, x, rest, mixed))
    after = x + layer.added(output)
    mlp = Receiver(Node(NodeKind.MLP, index))
    written = layer.mlp_output(read(mlp, x if anatomy.shape.parallel else after), rest)
    if send is not None:
        send({mlp.node: written})
    return after + written


def anatomy_of(model: nn.Module) -> Anatomy:
    """Take a model apart; it must be in evaluation mode, because dropout would make every run different."""
    if model.training:
        raise ValueError("call model.eval() first.")
    stack = _stack(model)
    blocks = next(child for child in stack.children() if isinstance(child, nn.ModuleList))
    layers = tuple(Layer(i, block, _child(block, _ATTENTION), _child(block, _MLP)) for i, block in enumerate(blocks))
    with torch.no_grad(), _unhooked(model):
        x = _watch_one_run(model, layers)
        q, k, _ = layers[0].heads(x, layers[0].rest)
        a, b = (torch.linspace(start, 1, x.numel()).reshape(x.shape).to(x) for start in (-2, 0.5))
        parallel = {bool(torch.equal(layer.mlp_input(x, a), layer.mlp_input(x, b))) for layer in layers}
        sandwich = tuple(not torch.allclose(layer.added(2 * a), 2 * layer.added(a), rtol=1e-4) for layer in layers)
        silent = tuple(layer.silent(x, layer.rest)[0, 0] for layer in layers)
        biases = tuple(layer.added(bias[None, None])[0, 0] for layer, bias in zip(layers, silent, strict=True))
    if len(parallel) != 1:
        raise ValueError("some layers are parallel, others sequential.")
    shape = ModelShape(len(layers), q.shape[1], k.shape[1], x.shape[-1], q.shape[-1], parallel.pop())
    return Anatomy(build_graph(shape), layers, _child(stack, _FINAL_NORM), sandwich, silent, biases)


def _stack(model: nn.Module) -> nn.Module:
    """Find the module that holds the layers."""
    for module in model.modules():
        lists = [child for child in module.children() if isinstance(child, nn.ModuleList) and len(child)]
        if lists and any(hasattr(lists[0][0], name) for name in _ATTENTION):
            return module
    raise ValueError("this model has no list of layers with attention.")


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
    children = dict(module.named_modules())
    found = next((children[name] for name in names if name in children), None)
    if found is None:
        raise ValueError(f"{type(module).__name__} has none of {', '.join(names)}.")
    return found


@contextmanager
def _unhooked(model: nn.Module) -> Iterator[None]:
    """Take all hooks off a model for a while: what it is does not depend on who is changing it."""
    kept = [(module, module._forward_hooks, module._forward_pre_hooks) for module in model.modules()]
    for module in model.modules():
        module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, hooks, pre_hooks in kept:
            module._forward_hooks, module._forward_pre_hooks = hooks, pre_hooks


def _watch_one_run(model: nn.Module, layers: tuple[Layer, ...]) -> Tensor:
    """Run two tokens to learn how every layer is called; returns the input of the first."""
    seen: list[Tensor] = []

    def note(layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, object]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], options: dict[str, object]) -> None:
            seen.append(args[0])
            layer.rest = Rest(args[1:], options)

        return hook

    def note_output(layer: Layer) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            layer.gives_tuple = isinstance(output, tuple)

        return hook

    handles = [layer.block.register_forward_pre_hook(note(layer), with_kwargs=True) for layer in layers]
    handles += [layer.block.register_forward_hook(note_output(layer)) for layer in layers]
    handles += [part.watch() for layer in layers for part in (layer.attention, layer.mlp)]
    try:
        model(torch.tensor([[1, 2]], device=next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0]
