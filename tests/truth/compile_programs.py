"""Compile six RASP programs into transformers with tracr, and write their weights where the tests find them.

``python -m tests.truth.compile_programs`` needs ``pip install tracr-pypi jax dm-haiku`` (tests need none of them). The
weights are tracr's own; only the names are changed to those of :class:`tests.truth.compiled.Compiled`. Beside them are
some prompts with what tracr's own forward pass puts out for them, to which the tests hold the copy.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import haiku as hk
import jax
import numpy as np
from safetensors.numpy import save_file
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

HERE = Path(__file__).parent
LENGTH = 4
"""The longest prompt, without the token that begins it."""


def programs() -> dict[str, tuple[Any, Sequence[Any]]]:
    """Return the programs and their words."""
    return {
        "reverse": (lib.make_reverse(rasp.tokens), "abcd"),
        "fraction of previous": (lib.make_frac_prevs(rasp.tokens == "x"), "xyz"),
        "pair balance": (lib.make_pair_balance(rasp.tokens, "(", ")"), "()a"),
        "sort": (lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=LENGTH, min_key=1), (1, 2, 3, 4)),
        "histogram": (lib.make_hist(), "abc"),
        "dyck": (lib.make_shuffle_dyck(["()"]), "()"),
    }


def compiled(name: str, program: Any, words: Sequence[Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the weights of a program's transformer, and what is known about it."""
    made = compiling.compile_rasp_to_model(
        program, vocab=set(words), max_seq_len=LENGTH, compiler_bos="BOS", causal=True
    )
    config, given = made.model_config, {key: dict(value) for key, value in made.params.items()}
    weights = {
        "tokens": given["token_embed"]["embeddings"],
        "positions": given["pos_embed"]["embeddings"],
        "unembed": unembedding(made, len(made.residual_labels)),
    }
    names = {"query": "q", "key": "k", "value": "v", "linear": "out"}
    for layer in range(config.num_layers):
        for theirs, ours in names.items():
            weights[f"{layer}.{ours}"] = given[f"transformer/layer_{layer}/attn/{theirs}"]["w"].T
        for theirs, ours in (("linear_1", "read"), ("linear_2", "write")):
            weights[f"{layer}.{ours}"] = given[f"transformer/layer_{layer}/mlp/{theirs}"]["w"].T
            weights[f"{layer}.{ours}.bias"] = given[f"transformer/layer_{layer}/mlp/{theirs}"]["b"]
    encoder = made.input_encoder
    drawn = np.random.default_rng(0)
    prompts = [[words[i] for i in drawn.integers(len(words), size=LENGTH)] for _ in range(8)]
    ids = [encoder.encode(["BOS", *prompt]) for prompt in prompts]
    outputs = np.stack([made.forward(made.params, np.array([row])).transformer_output.output[0] for row in ids])
    about = {
        "layers": config.num_layers,
        "heads": config.num_heads,
        "words": encoder.encode(["BOS", *words])[1:],
        "begin": encoder.encode(["BOS"])[0],
        "labels": made.residual_labels,
        "prompts": ids,
    }
    kept = {f"{name}/{key}": np.ascontiguousarray(value, np.float32) for key, value in weights.items()}
    return kept | {f"{name}/outputs": outputs.astype(np.float32)}, about


def unembedding(made: Any, width: int) -> np.ndarray:
    """Return the matrix (d_vocab, d_model) by which tracr reads a program's result off the stream."""
    read = hk.without_apply_rng(hk.transform(lambda x: made.get_compiled_model().unembed(x, use_unembed_argmax=False)))
    matrix = np.asarray(read.apply({}, jax.numpy.eye(width)[None]))[0].reshape(width, -1).T
    return matrix if len(matrix) > 1 else np.concatenate([matrix, 0 * matrix])


def main() -> None:
    """Write ``programs.safetensors`` and ``programs.json``."""
    weights, about = dict[str, np.ndarray](), dict[str, Any]()
    for name, (program, words) in programs().items():
        tensors, about[name] = compiled(name, program, words)
        weights |= tensors
    save_file(weights, HERE / "programs.safetensors")
    (HERE / "programs.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
