"""Writes tiny models as ``.gguf`` files, their matrices in blocks of few bits: the inverse of transformers' reader."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from transformers import PreTrainedModel, modeling_gguf_pytorch_utils

ARCHITECTURES = {"gemma3_text": "gemma3", "qwen2_moe": "qwen2moe"}
"""GGUF's names of types of models, where they are others."""
_READER: Any = modeling_gguf_pytorch_utils


def write_gguf(module: PreTrainedModel, path: Path, kind: str = "Q8_0") -> Path:
    """Write a model; rows are in the order of the model, so that a reader that reorders them reads another one."""
    config: Any = module.config
    architecture = str(ARCHITECTURES.get(config.model_type, config.model_type))
    writer = GGUFWriter(path, architecture)
    writer.add_name(config.model_type)
    writer.add_token_list([f"<{token}>" for token in range(config.vocab_size)])
    writer.add_pad_token_id(0)
    for key, name in _READER.GGUF_CONFIG_MAPPING[config.model_type.removesuffix("_text")].items():
        _add(writer, f"{architecture}.{key}", None if name in (None, -1) else getattr(config, name, None))
    processor = _READER.TENSOR_PROCESSORS.get(architecture, _READER.TensorProcessor)
    names = _READER.get_gguf_hf_weights_map(module, processor(config={}))
    weights = module.state_dict()
    for theirs, ours in names.items():
        if theirs == "output.weight" and config.tie_word_embeddings:
            continue
        values = weights[ours].float().numpy()
        if "ffn_gate_inp_shexp" in theirs:
            values = values[0]
        if "_exps" in theirs:
            values = values if "down" in theirs else np.array_split(values, 2, axis=1)["up" in theirs]
        if config.model_type == "gpt2" and theirs.startswith("blk.") and values.ndim == 2:
            values = values.T
        name = f"{theirs}.weight" if "_exps" in theirs else theirs
        values = np.ascontiguousarray(values)
        if values.ndim == 2 and values.shape[1] % 32 == 0 and "position" not in theirs:
            into = GGMLQuantizationType[kind]
            writer.add_tensor(name, quantize(values, into), raw_dtype=into)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
