"""One layer taken apart by intervention: its own code is run with its attention or its MLP replaced.

No formula of any family is written down here. What the MLP reads, whether there are norms before or after, which
multiplier applies and how projections are laid out is never stated but follows from running the layer's ``forward``:

- a query is what passes into attention when the layer is run on the receiver's stream;
- what an attention output adds to the stream is what the layer makes of a stream of zeros when attention gives that
  output and the MLP gives zero;
- what an MLP computes from a stream is what it gives when the layer is run on that stream and attention gives zero.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuits.graph import Node, NodeKind, Slot
from tests.reference.seams import VisitInputs, VisitOutputs, replaced, visited

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one layer, (pair, head or group, pos, d_head) each."""


@dataclass(frozen=True)
class Rest:
    """Everything a layer is called with besides the stream: masks, positions and the like."""

    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] | None = None


class Found(Exception):  # noqa: N818 -- it is no error
    """Carries a value out of a forward pass whose remainder is of no interest."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class Part:
    """The attention or the MLP of a layer, as something that can be overheard or replaced.

    BLOOM and MPT hand a part the stream as ``residual`` and get output + stream back: only the former is overheard or
    given. OPT's MLP has no module of its own: its part is the last linear map, which sees no axis of pairs.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._forward = functools.partial(type(module).forward, module)  # past whatever wraps the instance's
        self._adds = "residual" in inspect.signature(type(module).forward).parameters
        self._tuple = False

    def watch(self) -> Any:
        """Note, from a plain run, whether the module gives a tuple; returns the hook's handle."""

        def note(_: nn.Module, __: Any, output: Any) -> None:
            self._tuple = isinstance(output, tuple)

        return self.module.register_forward_hook(note)

    def overheard(self, give: Callable[[Tensor, Tensor], None]) -> Callable[..., Any]:
        """Give a ``forward`` that computes the part's output and hands on (input, output)."""

        def forward(*args: Any, **options: Any) -> Any:
            if self._adds:
                args = (args[0], torch.zeros_like(args[1]), *args[2:])
            output = self._forward(*args, **options)
            give(args[0] if args else options["hidden_states"], output[0] if self._tuple else output)
            return output

        return forward

    def giving(self, value: Tensor) -> Callable[..., Any]:
        """Give a ``forward`` that computes nothing and returns this value."""

        def forward(*args: Any, **options: Any) -> Any:
            x = args[0] if args else options["hidden_states"]
            output = value.reshape(*x.shape[:-1], -1).clone()  # Falcon adds to what its MLP returned, in place
            if self._adds:
                output = output + args[1]
            return (output, None) if self._tuple else output

        return forward


class Layer:
    """One layer; every method runs the layer's own code, with ``rest`` from a run of the same shape."""

    def __init__(self, index: int, block: nn.Module, attention: nn.Module, mlp: nn.Module) -> None:
        self.index = index
        self.block = block
        self.attention = Part(attention)
        self.mlp = Part(mlp)
        self._forward = functools.partial(type(block).forward, block)
        self.gives_tuple = False
        self.rest = Rest()
        """How the layer was called in the run from which the anatomy was read; see :meth:`added`."""

    def _run(self, x: Tensor, rest: Rest, **parts: Callable[..., Any]) -> Tensor:
        with ExitStack() as stack:
            for name, forward in parts.items():
                stack.enter_context(replaced(getattr(self, name).module, "forward", forward))
            output = self._forward(x, *rest.args, **(rest.options or {}))
        return output[0] if isinstance(output, tuple) else output

    # ---------------------------------------------------------------------------------------------------- attention

    def heads(self, x: Tensor, rest: Rest) -> Heads:
        """Give the queries, keys and values of a layer that reads ``x``."""

        def stop(q: Tensor, k: Tensor, v: Tensor) -> Heads:
            raise Found((q, k, v))

        with visited(self.attention.module, stop, lambda mixed: mixed):
            return _found(lambda: self._run(x, rest))

    def columns(self, like: Tensor, slot: Slot, unit: int) -> tuple[nn.Module, list[int]]:
        """Find the projection, and those of its outputs, on which one head's queries (or keys, or values) depend.

        Found by differentiating. With a norm over the full width of a projection these are all of its outputs.
        """
        outputs: dict[nn.Module, Tensor] = {}

        def cut(module: nn.Module) -> Callable[[Tensor], Tensor]:
            project = module.forward

            def forward(x: Tensor) -> Tensor:
                outputs[module] = (1e-3 * project(x)).detach().requires_grad_()  # so small that nothing is clipped
                return outputs[module].clone()  # OLMo clips in place

            return forward

        with ExitStack() as stack, torch.enable_grad():
            for module in self.attention.module.modules():
                if isinstance(module, nn.Linear | Conv1D):
                    stack.enter_context(replaced(module, "forward", cut(module)))
            value = self.heads(like, self.rest)[list(Slot).index(slot)][:, unit]
            total = (value * torch.linspace(1, 2, value.shape[-1]).to(value)).sum()
            found = torch.autograd.grad(total, list(outputs.values()), allow_unused=True)
        used = {m: g.flatten(0, -2).any(0) for m, g in zip(outputs, found, strict=True) if g is not None and g.any()}
        module, columns = used.popitem()
        return module, columns.nonzero().flatten().tolist()

    def _attention(self, like: Tensor, rest: Rest, inputs: VisitInputs, outputs: VisitOutputs) -> Tensor:
        def stop(_: Tensor, output: Tensor) -> None:
            raise Found(output)

        with visited(self.attention.module, inputs, outputs):
            return _found(lambda: self._run(torch.zeros_like(like), rest, attention=self.attention.overheard(stop)))

    def attend(self, like: Tensor, rest: Rest, heads: Heads) -> tuple[Tensor, Tensor]:
        """Give the head outputs, (pair, head, pos, d_head), and the attention output that follow from queries, ..."""
        mixed: list[Tensor] = []

        def remember(z: Tensor) -> Tensor:
            mixed.append(z)
            return z

        output = self._attention(like, rest, lambda *_: heads, remember)
        return mixed[0], output

    def silent(self, like: Tensor, rest: Rest) -> Tensor:
        """Give the attention output when every head gives zero: the bias of the output projection."""
        return self._attention(like, rest, lambda *qkv: qkv, torch.zeros_like)

    def head_outputs(self, like: Tensor, rest: Rest, mixed: Tensor, silent: Tensor) -> dict[Node, Tensor]:
        """Split head outputs into what each head adds to the attention output: z_h W_O,h, no bias."""
        outputs = {}
        for h in range(mixed.shape[1]):
            alone = torch.zeros_like(mixed)
            alone[:, h] = mixed[:, h]
            output = self._attention(like, rest, lambda *qkv: qkv, lambda _, alone=alone: alone)
            outputs[Node(NodeKind.HEAD, self.index, h)] = output - silent
        return outputs

    def added(self, output: Tensor) -> Tensor:
        """Give what the layer adds to the stream when its attention gives ``output`` and its MLP nothing."""
        zero = torch.zeros_like(output)
        return self._run(zero, self.rest, attention=self.attention.giving(output), mlp=self.mlp.giving(zero))

    # ---------------------------------------------------------------------------------------------------------- MLP

    def mlp_output(self, x: Tensor, rest: Rest) -> Tensor:
        """Give what the layer's MLP adds to the stream when it reads ``x``, which no attention output changed."""

        def stop(_: Tensor, output: Tensor) -> None:
            raise Found(output)

        zero = torch.zeros_like(x)
        nothing = self.attention.giving(zero)
        output = _found(lambda: self._run(x, rest, attention=nothing, mlp=self.mlp.overheard(stop)))
        return self._run(zero, rest, attention=nothing, mlp=self.mlp.giving(output))

    def mlp_input(self, x: Tensor, output: Tensor) -> Tensor:
        """Give what arrives at the MLP when the layer reads ``x`` and attention gives ``output``."""

        def stop(seen: Tensor, _: Tensor) -> None:
            raise Found(seen)

        return _found(
            lambda: self._run(x, self.rest, attention=self.attention.giving(output), mlp=self.mlp.overheard(stop))
        )


def _found(run: Callable[[], Any]) -> Any:
    try:
        run()
    except Found as found:
        return found.value
    raise RuntimeError("the forward pass never came to the place where it was to be stopped.")
