"""Tiny random models of every supported family, and a tokenizer: quick, yet with the proportions of real ones.

Their weights are drawn so that normalised inputs give queries, keys, values and logits of a few units. Attention is
then far from uniform and every edge matters, which freshly initialised models do not offer.
"""

import math
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

Model = TypeVar("Model", bound=PreTrainedModel)

VOCABULARY = 320
GAIN = 1.4

_SENTENCES = (
    "When Mary and John went to the store, John gave a drink to",
    "When Anna and Paul went to the park, Paul gave a book to",
    "The capital of France is the city of Paris",
    "The capital of Italy is the city of Rome",
    "I think that the cats are here and the dog is there",
)
_CHAT = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tiny_llama(*, seed: int = 0, tied: bool = False, **changes: Any) -> LlamaForCausalLM:
    """Three layers, 4 heads in 2 key/value groups, and heads wider than d_model / n_heads."""
    return _randomised(LlamaForCausalLM(LlamaConfig(**_grouped(tied) | changes)), seed)


def tiny_mistral(*, seed: int = 0, tied: bool = False, **changes: Any) -> MistralForCausalLM:
    """As :func:`tiny_llama`, without a sliding window."""
    return _randomised(MistralForCausalLM(MistralConfig(sliding_window=None, **_grouped(tied) | changes)), seed)


def tiny_qwen2(*, seed: int = 0, tied: bool = True, **changes: Any) -> Qwen2ForCausalLM:
    """As :func:`tiny_llama`, with biases on queries, keys and values."""
    return _randomised(Qwen2ForCausalLM(Qwen2Config(**_grouped(tied) | changes)), seed)


def tiny_gpt2(*, seed: int = 0, tied: bool = True, **changes: Any) -> GPT2LMHeadModel:
    """Three layers, 4 heads, learned positions, and biases everywhere."""
    options = {
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "vocab_size": VOCABULARY,
        "n_positions": 64,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return _randomised(GPT2LMHeadModel(GPT2Config(**options | changes)), seed)


FAMILIES = {"llama": tiny_llama, "mistral": tiny_mistral, "qwen2": tiny_qwen2, "gpt2": tiny_gpt2}
"""A factory for each supported family."""


def tiny_tokenizer(words: tuple[str, ...] = _SENTENCES) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 320 tokens with a chat template.

    The sentences' most frequent words are single tokens, so far as they fit; everything else is spelt in bytes.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(words, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = _CHAT
    return tokenizer


def _grouped(tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def _randomised(model: Model, seed: int) -> Model:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or "ln_" in name:
                parameter.copy_((0.0 if name.endswith("bias") else 1.0) + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            elif any(part in name for part in ("embed_tokens", "wte", "wpe")):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(GAIN / math.sqrt(parameter.shape[0 if "transformer.h" in name else 1]) * noise)
    return model.eval().requires_grad_(False)
