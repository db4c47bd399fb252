"""Content digests that say whether two runs used the same weights and the same tokenizer."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor


def weights_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of weight files' contents in the given order; their names and places do not matter."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names in alphabetical order, each with type, shape and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu").contiguous()
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(cast(Any, value.reshape(-1).view(torch.uint8).numpy()))
    return total.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of what decides a tokenizer's output: vocabulary, rules, special tokens and chat template.

    Padding and truncation, which are set in use, do not count. Empty for one that does not tell its vocabulary.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and not hasattr(tokenizer, "get_vocab"):
        return ""
    rules: Any = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items())
    if backend is not None:
        rules.pop("padding", None)
        rules.pop("truncation", None)
    content = [rules, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
