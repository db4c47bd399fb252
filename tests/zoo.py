"""A tiny random model of every supported family: three or four layers, d_model 32, milliseconds per forward pass.

Where its code allows it, a family gets 2 key/value heads for 4 heads, heads of another width than d_model / n_heads,
biases, untied embeddings, both local and global layers with a window of 4 tokens, and multipliers that are not 1.

Weights are drawn so that normalised inputs give queries, keys, values and contributions of about one unit; every
attention block and MLP then matters, and attention is neither uniform nor on one token, unlike after initialisation.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests.tiny import VOCABULARY

WINDOW = 4
"""Tokens that a local layer sees, its own included."""

Options = Mapping[str, Any]

_TOKENS: Options = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_PLAIN = _TOKENS | {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_WIDE = _GROUPED | {"head_dim": 12}
_BIASES = {"attention_bias": True, "mlp_bias": True}
_LOCAL: Options = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_GPT = _TOKENS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_FALCON = {key: value for key, value in _PLAIN.items() if key != "intermediate_size"} | {"bias": True}
_MIXTURE = {"num_experts_per_tok": 2, "intermediate_size": 24, "moe_intermediate_size": 24}
_EXPERTS = _MIXTURE | {"num_experts": 4}
_LOCAL_EXPERTS = _MIXTURE | {"num_local_experts": 4}
_MULTIPLIERS = {
    "embedding_multiplier": 2.5,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.4,
    "logits_scaling": 0.7,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_SQUARED = MappingProxyType({"down_proj": 0.5, "4h_to_h": 0.5})
"""Gains for MLPs with a squared activation, whose outputs are large."""
_SOFTCAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}


@dataclass(frozen=True)
class Family:
    """One row of the table: the model class, its configuration, and how strongly its weights are drawn.

    ``gains`` multiplies the weights of modules whose path contains the key, where a family's own structure would let
    one writer drown the others.
    """

    model: type[PreTrainedModel]
    options: Options
    gains: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def create(self, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
        """Build the model with other configuration values where asked, ready to be measured."""
        config = self.model.config_class(**copy.deepcopy({**self.options, **changes}))
        return randomised(self.model(config), seed, self.gains)


FAMILIES: dict[str, Family] = {
    "gpt2": Family(hf.GPT2LMHeadModel, _GPT),
    "gpt_neo": Family(
        hf.GPTNeoForCausalLM,
        _TOKENS
        | {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "intermediate_size": 40, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
        MappingProxyType({"k_proj": 0.5}),  # Its attention scores are not divided by the root of the head's width.
    ),
    "gptj": Family(hf.GPTJForCausalLM, _GPT | {"rotary_dim": 4}),
    "gpt_neox": Family(hf.GPTNeoXForCausalLM, _PLAIN),
    "gpt_neox_sequential": Family(hf.GPTNeoXForCausalLM, _PLAIN | {"use_parallel_residual": False}),
    "opt": Family(hf.OPTForCausalLM, _PLAIN | {"ffn_dim": 40}),
    "bloom": Family(hf.BloomForCausalLM, _TOKENS | {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": Family(hf.FalconForCausalLM, _FALCON),
    "falcon_new": Family(hf.FalconForCausalLM, _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_new_one_norm": Family(
        hf.FalconForCausalLM,
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon_rw": Family(hf.FalconForCausalLM, _FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False}),
    "mpt": Family(hf.MptForCausalLM, _TOKENS | {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}),
    "phi": Family(hf.PhiForCausalLM, _GROUPED | {"qk_layernorm": True}),
    "phi3": Family(hf.Phi3ForCausalLM, _WIDE | {"sliding_window": WINDOW}),
    "llama": Family(hf.LlamaForCausalLM, _WIDE | _BIASES),
    "mistral": Family(hf.MistralForCausalLM, _WIDE | {"sliding_window": WINDOW}),
    "qwen2": Family(hf.Qwen2ForCausalLM, _WIDE | _LOCAL | {"use_sliding_window": True}),
    "qwen3": Family(hf.Qwen3ForCausalLM, _WIDE | _LOCAL | {"use_sliding_window": True, "attention_bias": True}),
    "gemma": Family(hf.GemmaForCausalLM, _WIDE | {"attention_bias": True}),
    "gemma2": Family(
        hf.Gemma2ForCausalLM, _WIDE | _LOCAL | _SOFTCAPS | {"attention_bias": True, "query_pre_attn_scalar": 20}
    ),
    "gemma3": Family(hf.Gemma3ForCausalLM, _WIDE | _LOCAL | {"attention_bias": True, "query_pre_attn_scalar": 20}),
    "olmo": Family(hf.OlmoForCausalLM, _GROUPED | {"attention_bias": True}),
    "olmo2": Family(hf.Olmo2ForCausalLM, _WIDE | {"attention_bias": True}),
    "olmo3": Family(hf.Olmo3ForCausalLM, _WIDE | _LOCAL | {"attention_bias": True}),
    "stablelm": Family(hf.StableLmForCausalLM, _GROUPED | {"use_qkv_bias": True}),
    "stablelm_parallel": Family(
        hf.StableLmForCausalLM, _GROUPED | {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True}
    ),
    "starcoder2": Family(hf.Starcoder2ForCausalLM, _WIDE | {"sliding_window": WINDOW}),
    "cohere": Family(hf.CohereForCausalLM, _WIDE | {"attention_bias": True, "use_qk_norm": True, "logit_scale": 1.5}),
    "cohere2": Family(hf.Cohere2ForCausalLM, _WIDE | _LOCAL | {"attention_bias": True, "logit_scale": 1.5}),
    "granite": Family(
        hf.GraniteForCausalLM,
        _WIDE | _BIASES | _MULTIPLIERS,
    ),
    "smollm3": Family(hf.SmolLM3ForCausalLM, _WIDE | _BIASES | {"no_rope_layers": [1, 0, 1]}),
    "glm": Family(hf.GlmForCausalLM, _WIDE),
    "glm4": Family(hf.Glm4ForCausalLM, _WIDE),
    "mixtral": Family(hf.MixtralForCausalLM, _WIDE | _LOCAL_EXPERTS),
    "qwen2_moe": Family(
        hf.Qwen2MoeForCausalLM,
        _WIDE | _EXPERTS | {"shared_expert_intermediate_size": 24, "mlp_only_layers": [1], "norm_topk_prob": True},
    ),
    "qwen3_moe": Family(hf.Qwen3MoeForCausalLM, _WIDE | _EXPERTS | {"attention_bias": True}),
    "olmoe": Family(hf.OlmoeForCausalLM, _GROUPED | _EXPERTS | {"attention_bias": True}),
    "gpt_oss": Family(hf.GptOssForCausalLM, _WIDE | _LOCAL | _LOCAL_EXPERTS | {"rope_parameters": _YARN}),
    "helium": Family(hf.HeliumForCausalLM, _GROUPED | _BIASES | {"head_dim": 8}),
    "exaone4": Family(hf.Exaone4ForCausalLM, _WIDE | _LOCAL),
    "arcee": Family(hf.ArceeForCausalLM, _WIDE | _BIASES, _SQUARED),
    "seed_oss": Family(hf.SeedOssForCausalLM, _WIDE | _BIASES | {"attention_out_bias": True}),
    "nemotron": Family(hf.NemotronForCausalLM, _WIDE | _BIASES, _SQUARED),
    "ernie4_5": Family(hf.Ernie4_5ForCausalLM, _WIDE | {"use_bias": True}),
    "ministral": Family(hf.MinistralForCausalLM, _WIDE | _LOCAL),
    "apertus": Family(hf.ApertusForCausalLM, _WIDE | {"attention_bias": True, "rope_parameters": _YARN}, _SQUARED),
    "hunyuan_v1_dense": Family(hf.HunYuanDenseV1ForCausalLM, _WIDE | {"attention_bias": True}),
    "gpt_bigcode": Family(hf.GPTBigCodeForCausalLM, _GPT),
    "gpt_bigcode_multi_head": Family(hf.GPTBigCodeForCausalLM, _GPT | {"multi_query": False}),
    "granitemoe": Family(hf.GraniteMoeForCausalLM, _WIDE | _LOCAL_EXPERTS | {"attention_bias": True} | _MULTIPLIERS),
    "persimmon": Family(hf.PersimmonForCausalLM, _PLAIN, _SQUARED),
    "phimoe": Family(hf.PhimoeForCausalLM, _WIDE | _LOCAL_EXPERTS | {"attention_bias": True, "lm_head_bias": True}),
    "mpt_clipped": Family(
        hf.MptForCausalLM, _TOKENS | {"d_model": 32, "n_layers": 3, "n_heads": 4, "attn_config": {"clip_qkv": 1.5}}
    ),
    "olmo_clipped": Family(hf.OlmoForCausalLM, _GROUPED | {"attention_bias": True, "clip_qkv": 1.5}),
    "olmoe_clipped": Family(hf.OlmoeForCausalLM, _GROUPED | _EXPERTS | {"attention_bias": True, "clip_qkv": 1.5}),
}
"""Every family by the name that tests and tables use."""

ZOO: dict[str, Callable[..., PreTrainedModel]] = {name: family.create for name, family in FAMILIES.items()}
"""A factory for each family: ``ZOO[name](seed=0, **config_changes)``."""


def randomised(model: PreTrainedModel, seed: int, gains: Mapping[str, float] = MappingProxyType({})) -> PreTrainedModel:
    """Overwrite every parameter at a realistic scale that depends on the seed only, and make the model ready.

    Norms and learned activations keep their initial value, around which they are spread: Gemma stores the distance
    of a norm's weights from 1.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for path, module, name, parameter in _parameters(model):
            if id(parameter) in done:
                continue
            done.add(id(parameter))
            noise = torch.randn(parameter.shape, generator=generator)
            gain = math.prod(value for part, value in gains.items() if part in f"{path}.{name}")
            parameter.copy_(_drawn(module, name, parameter, noise, gain))
    return model.eval().requires_grad_(False)


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield path, module, name, parameter


def _drawn(module: nn.Module, name: str, parameter: Tensor, noise: Tensor, gain: float) -> Tensor:
    kind = type(module).__name__
    if "Norm" in kind:
        # Nemotron stores the distance from 1 too, but initialises as if it did not.
        return parameter * (not kind.endswith("LayerNorm1P")) + 0.2 * noise
    if name == "sinks":
        return noise
    if isinstance(module, nn.Embedding):
        return (0.5 if "Scaled" in kind else 1.0) * gain * noise
    if parameter.dim() < 2 or name.endswith("bias"):
        return parameter * (not name.endswith("bias")) + 0.3 * noise
    return 1.4 * gain / math.sqrt(_fan_in(module, parameter)) * noise


def _fan_in(module: nn.Module, parameter: Tensor) -> int:
    """Number of inputs of a linear map; experts hold a stack of maps."""
    transposed = isinstance(module, Conv1D) or getattr(module, "is_transposed", False)
    return parameter.shape[-2 if transposed else -1]
