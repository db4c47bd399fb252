"""Tiny random models of realistic scale: logits of a few units, attention that is not uniform, biases that matter."""

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from circuits.graph import Edge
from tests.reference.anatomy import anatomy_of

VOCABULARY = 61


def small_llama() -> LlamaForCausalLM:
    """Three layers, 4 heads in 2 key/value groups, and head outputs wider than d_model / n_heads."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return _randomised(LlamaForCausalLM(config), seed=11)


def small_gpt2() -> GPT2LMHeadModel:
    """Three layers, 4 heads, tied embeddings, and biases everywhere."""
    config = GPT2Config(
        n_embd=32, n_layer=3, n_head=4, vocab_size=VOCABULARY, n_positions=32, attn_implementation="sdpa"
    )
    return _randomised(GPT2LMHeadModel(config), seed=12)


def _randomised(model: nn.Module, *, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or "ln_" in name:
                parameter.copy_((0.0 if name.endswith("bias") else 1.0) + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name or "wte" in name or "wpe" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(0.25 * noise)
    return model.eval()


def pairs(n: int = 3, length: int = 6, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clean and corrupted token ids, (pair, pos) each; the first token of each pair is the same."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(VOCABULARY, (n, length), generator=generator)
    corrupted = torch.randint(VOCABULARY, (n, length), generator=generator)
    corrupted[:, 0] = clean[:, 0]
    return clean, corrupted


def logit_difference(logits: Tensor) -> Tensor:
    """Logit of token 3 minus logit of token 5."""
    return logits[:, 3] - logits[:, 5]


def some_edges(model: nn.Module) -> list[Edge]:
    """Edges of every slot, sender kind and receiver kind, early and late."""
    return list(anatomy_of(model).graph.edges())[::7]


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Assert that two tensors agree to an absolute or relative tolerance."""
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
