"""Load a ``.gguf`` file without expanding it: its matrices of 8 bits and fewer stay as they are in the file.

Names and arrangements of tensors are those of transformers' own reader. One matrix at a time is expanded while loading,
and what is kept is held against what that reader makes of it, number by number.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from accelerate import init_empty_weights
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, modeling_gguf_pytorch_utils

from circuits.errors import UnsupportedModelError, UsageError
from circuits.models.folders import WeightFiles
from circuits.models.packed_weight import Blocks, PackedWeight, Packing

_READER: Any = modeling_gguf_pytorch_utils
_PLAIN = ("F64", "F32", "F16", "BF16")


def load_packed(
    config: Any, weights: WeightFiles, dtype: torch.dtype, attention: str, device: torch.device
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model whose matrices stay as they are in its file, and the names of weights missing and unexpected.

    Raises :class:`UsageError` for a file in which nothing is packed, and :class:`UnsupportedModelError` for matrices
    that would have to be expanded.
    """
    with init_empty_weights(include_buffers=False):
        module: Any = cast(Any, AutoModelForCausalLM).from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    path = str(weights.paths[0])
    state = dict(_weights(_File(path, module), dtype, device))
    missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    module.tie_weights(missing_keys=set(missing))
    for part in module.modules():
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)
    lacking = [name for name, weight in module.named_parameters() if weight.is_meta]
    if Packing.of(module) is None:
        raise UsageError(
            f"no matrix in '{path}' is packed; expected a file of 8 bits or fewer. Leave packed out: nothing is saved."
        )
    return module, {"missing_keys": lacking, "unexpected_keys": unexpected}


class _File:
    """A GGUF file as transformers reads it for one model."""

    def __init__(self, path: str, module: PreTrainedModel) -> None:
        self.path, self.reader = path, GGUFReader(path)
        architecture = _READER.read_field(self.reader, "general.architecture")[0]
        config = _READER.load_gguf_checkpoint(path, return_tensors=False)["config"]
        self.processor = _READER.TENSOR_PROCESSORS.get(architecture, _READER.TensorProcessor)(config=config)
        self.names: dict[str, str] = _READER.get_gguf_hf_weights_map(module, self.processor)

    def arranged(self, name: str, values: NDArray[Any]) -> tuple[str, NDArray[Any]] | None:
        """Return the model's name for a tensor, and its values as the model has them; None if it has no such weight.

        Raises :class:`UnsupportedModelError` for a tensor that is put together with others.
        """
        apart: dict[str, dict[str, Tensor]] = {"tensors": {}}
        found = self.processor.process(
            weights=values, name=name, tensor_key_mapping=self.names, parsed_parameters=apart
        )
        if found.name is not None:
            return (self.names[found.name], found.weights) if found.name in self.names else None
        if len(apart["tensors"]) != 1 or values.ndim > 2:
            raise UnsupportedModelError(
                f"'{self.path}' holds experts ('{name}'), which are put together from several tensors when they are "
                "read, so they cannot stay packed. Leave packed out."
            )
        ((own, kept),) = apart["tensors"].items()
        return own, kept.numpy()


def _weights(file: _File, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights by their names in the model, packed where they are matrices in blocks."""
    for tensor in file.reader.tensors:
        plain = tensor.tensor_type.name in _PLAIN or tensor.data.ndim != 2
        blocks = Blocks(tensor.data, tensor.tensor_type)
        found = file.arranged(tensor.name, dequantize(tensor.data, tensor.tensor_type) if plain else blocks.expanded())
        if found is None:
            continue
        name, values = found
        weight = torch.as_tensor(np.copy(values) if plain else values).to(device=device, dtype=dtype)
        yield name, weight if plain else _packed(file, tensor.name, blocks, weight)


def _packed(file: _File, name: str, blocks: Blocks, expected: Tensor) -> PackedWeight:
    """Pack a matrix of the file whose rows the reader puts into another order, or makes columns of.

    Where each row goes is found by having the reader arrange their numbers; ``expected`` is what it makes of it all.
    """
    numbers = np.broadcast_to(np.arange(blocks.shape[0], dtype=np.float32)[:, None], blocks.shape)
    arranged = cast(Any, file.arranged(name, numbers))[1]
    for order, transposed in ((arranged[:, 0], False), (arranged[0], True)):
        if len(order) != blocks.shape[0]:
            continue
        rows = blocks.rows(torch.as_tensor(order.astype(np.int64)))
        weight = PackedWeight.of(rows, expected.dtype, expected.device)
        weight = cast(PackedWeight, weight.t()) if transposed else weight
        if weight.shape == expected.shape and torch.equal(weight.expanded(), expected):
            return weight
    raise UnsupportedModelError(
        f"'{file.path}' holds '{name}', of which more than the order of its rows is changed when it is read, so it "
        "cannot stay packed. Leave packed out."
    )
