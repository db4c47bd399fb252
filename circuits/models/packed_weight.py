"""A weight that stays in blocks of few bits and is expanded whenever it is used: a tensor like any other, but small.

Numbers are never calculated with blocks: whatever an operation reads is expanded first, so its results are those of
the expanded weight, to the last bit. What only rearranges a weight is noted and done after expanding, so that autograd
keeps blocks for its way back too, and of rows that are picked (embeddings, the unembedding of some tokens, heads) only
these are expanded. Each expansion is freed with the operation that asked for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self, cast

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from circuits.errors import UsageError

_AT_ONCE = 2**18
"""So many numbers are expanded at a time: numpy makes several arrays of them on the way."""


@dataclass(frozen=True)
class Blocks:
    """Rows of numbers in blocks, ``(*row, byte)``, of a type that GGUF has."""

    data: NDArray[np.uint8]
    kind: GGMLQuantizationType

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape when expanded."""
        numbers, size = GGML_QUANT_SIZES[self.kind]
        return (*self.data.shape[:-1], self.data.shape[-1] // size * numbers)

    def expanded(self) -> NDArray[np.float32]:
        """Return the numbers that the blocks stand for."""
        shape, rows = self.shape, self.data.reshape(-1, self.data.shape[-1])
        found = np.empty((len(rows), shape[-1]), dtype=np.float32)
        step = max(1, _AT_ONCE // shape[-1])
        for start in range(0, len(rows), step):
            found[start : start + step] = dequantize(rows[start : start + step], self.kind)
        return found.reshape(shape)

    def rows(self, which: Tensor) -> "Blocks":
        """Return some rows, in the shape of their numbers."""
        return Blocks(self.data[which.numpy(force=True)], self.kind)


_Step = tuple[str, tuple[Any, ...], Mapping[str, Any]]
_OPERATIONS: Any = torch.ops.aten
_SAME = (_OPERATIONS.detach.default, _OPERATIONS.alias.default)
_REARRANGING = {
    f"{operation}": operation
    for operation in (
        *(_OPERATIONS.t.default, _OPERATIONS.transpose.int, _OPERATIONS.permute.default),
        *(_OPERATIONS.view.default, _OPERATIONS._unsafe_view.default, _OPERATIONS._reshape_alias.default),
        *(_OPERATIONS.clone.default, _OPERATIONS.unsqueeze.default, _OPERATIONS.expand.default),
        *(_OPERATIONS.slice.Tensor, _OPERATIONS.select.int),
    )
}
"""Operations of one tensor that change none of its numbers."""


class PackedWeight(Tensor):
    """A tensor whose numbers are in :class:`Blocks`, rearranged by ``steps``; it cannot be changed."""

    # Otherwise what is calculated from it would become of this type.
    __torch_function__: Any = cast(Any, torch)._C._disabled_torch_function_impl

    blocks: Blocks
    steps: tuple[_Step, ...]
    like: Tensor

    def __new__(cls, blocks: Blocks, like: Tensor, device: torch.device, steps: tuple[_Step, ...] = ()) -> Self:
        """Make one; ``like`` has its type and, after the steps, its shape, on the device ``meta``."""
        made = cast(Any, Tensor)._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device, requires_grad=False
        )
        made.blocks, made.steps, made.like = blocks, steps, like
        return made

    @classmethod
    def of(cls, blocks: Blocks, dtype: torch.dtype, device: torch.device) -> Self:
        """Return blocks as a tensor of a type on a device; the blocks stay on the host."""
        return cls(blocks, torch.empty(blocks.shape, dtype=dtype, device="meta"), device)

    def expanded(self) -> Tensor:
        """Return the numbers, as an ordinary tensor."""
        value = torch.as_tensor(self.blocks.expanded()).to(device=self.device, dtype=self.dtype)
        for name, args, named in self.steps:
            value = _REARRANGING[name](value, *args, **named)
        return value

    def then(self, *steps: _Step) -> Self:
        """Return the tensor after more steps."""
        like = self.like
        for name, args, named in steps:
            like = _REARRANGING[name](like, *args, **named)
        return type(self)(self.blocks, like, self.device, (*self.steps, *steps))

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself: nothing can change it."""
        return self

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"PackedWeight({tuple(self.shape)}, {self.blocks.kind.name}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Rearrange a weight without expanding it, and expand it for everything else."""
        named = kwargs or {}
        _require_unchanged(operation, args, named)
        first = args[0] if args else None
        if isinstance(first, cls):
            if operation in _SAME:
                return first.then()
            if f"{operation}" in _REARRANGING:
                return first.then((f"{operation}", args[1:], named))
            if operation is _OPERATIONS.embedding.default and not first.steps:
                return first._picked(args[1]).expanded()
            if operation is _OPERATIONS.index.Tensor and not first.steps and _picks_rows(args[1]):
                return first._picked(args[1][0])
        args, named = tree_map_only(cls, cls.expanded, (args, named))
        return operation(*args, **named)

    def _picked(self, which: Tensor) -> Self:
        return type(self).of(self.blocks.rows(which), self.dtype, self.device)


def _picks_rows(indices: Sequence[Tensor | None]) -> bool:
    return len(indices) == 1 and indices[0] is not None and indices[0].dtype in (torch.int64, torch.int32)


def _require_unchanged(operation: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    declared = {each.name: each.alias_info for each in operation._schema.arguments}
    for name, given in (*zip(declared, args, strict=False), *named.items()):
        if isinstance(given, PackedWeight) and declared[name] is not None and declared[name].is_write:
            raise UsageError(
                f"a packed weight cannot be changed in place ({operation}). Load the model without `packed`, or "
                "replace the weight: `module.weight = nn.Parameter(weight.expanded(), requires_grad=False)`."
            )


@dataclass(frozen=True)
class Packing:
    """How much of a model is packed: numbers packed and in all, bytes now and expanded, bytes of the largest weight."""

    packed: int
    numbers: int
    bytes: int
    expanded: int
    largest: int

    @classmethod
    def of(cls, module: nn.Module) -> "Packing | None":
        """Count the weights of a model; None where none is packed."""
        weights = list(module.parameters())
        packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
        if not packed:
            return None
        plain = sum(weight.nbytes for weight in weights if not isinstance(weight, PackedWeight))
        whole = [prod(weight.shape) * weight.itemsize for weight in packed]
        return cls(
            packed=sum(prod(weight.shape) for weight in packed),
            numbers=sum(weight.numel() for weight in weights),
            bytes=plain + sum(weight.blocks.data.nbytes for weight in packed),
            expanded=plain + sum(whole),
            largest=max(whole),
        )

    def describe(self) -> str:
        """Return how much is packed, in words."""
        return (
            f"packed: {self.packed / self.numbers:.0%} of the weights, {self.bytes / 1e6:,.0f} MB for "
            f"{self.expanded / 1e6:,.0f} MB; one matrix is expanded at a time, of up to {self.largest / 1e6:,.0f} MB"
        )
