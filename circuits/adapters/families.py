"""The families of decoders that are known, one entry each; to add one, add an entry.

An entry is a claim; the guards (:mod:`circuits.guards.checks`) test it on every model that is loaded. A model type
that no entry names is taken for the first family whose modules it has, all of them and no others; the guards decide.
"""

from dataclasses import replace
from typing import Any, cast

from torch import nn

from circuits.adapters.architecture import Architecture, by_group, concatenated, each_slot
from circuits.errors import UnsupportedModelError
from circuits.graph import Slot

LLAMA = Architecture(
    name="llama",
    model_types=(
        *("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo", "starcoder2", "smollm3", "glm"),
        *("helium", "arcee", "seed_oss", "nemotron", "ernie4_5", "ministral", "hunyuan_v1_dense"),
    ),
    layers="model.layers",
    final_norm="model.norm",
    attention="self_attn",
    projections=each_slot("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    attention_norm="input_layernorm",
    mlp="mlp",
    mlp_norm="post_attention_layernorm",
)

MIXTURE_OF_EXPERTS = replace(
    LLAMA, name="mixture-of-experts", model_types=("mixtral", "qwen2_moe", "qwen3_moe", "phimoe", "gpt_oss")
)
"""The experts and their router are one node."""

PHI3 = replace(
    LLAMA, name="phi3", model_types=("phi3",), projections=each_slot("self_attn.qkv_proj"), layout=concatenated
)

GRANITE = replace(LLAMA, name="granite", model_types=("granite",), residual_scale="residual_multiplier")

GRANITE_MOE = replace(GRANITE, name="granitemoe", model_types=("granitemoe",), mlp="block_sparse_moe")

GEMMA2 = replace(
    LLAMA,
    name="gemma2",
    model_types=("gemma2", "gemma3_text"),
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

GLM4 = replace(
    LLAMA,
    name="glm4",
    model_types=("glm4",),
    attention_post_norm="post_self_attn_layernorm",
    mlp_post_norm="post_mlp_layernorm",
)

APERTUS = replace(
    LLAMA,
    name="apertus",
    model_types=("apertus",),
    attention_norm="attention_layernorm",
    mlp_norm="feedforward_layernorm",
)

_NORMED_QUERIES_AND_KEYS = {Slot.Q: "self_attn.q_norm", Slot.K: "self_attn.k_norm"}

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    model_types=("olmo2", "olmo3"),
    attention_norm=None,
    mlp_norm=None,
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    projection_norms=_NORMED_QUERIES_AND_KEYS,
)

EXAONE4 = replace(OLMO2, name="exaone4", model_types=("exaone4",), projection_norms={})

OLMOE = replace(LLAMA, name="olmoe", model_types=("olmoe",), projection_norms=_NORMED_QUERIES_AND_KEYS)

COHERE = replace(LLAMA, name="cohere", model_types=("cohere", "cohere2"), mlp_norm="input_layernorm", parallel=True)

STABLELM = replace(LLAMA, name="stablelm", model_types=("stablelm",), when={"use_parallel_residual": False})

STABLELM_PARALLEL = replace(
    COHERE, name="stablelm-parallel", model_types=("stablelm",), when={"use_parallel_residual": True}
)

PHI = replace(COHERE, name="phi", model_types=("phi",), output="self_attn.dense", final_norm="model.final_layernorm")

GPT2 = Architecture(
    name="gpt2",
    model_types=("gpt2",),
    when={"add_cross_attention": False},
    layers="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    projections=each_slot("attn.c_attn"),
    layout=concatenated,
    output="attn.c_proj",
    attention_norm="ln_1",
    mlp="mlp",
    mlp_norm="ln_2",
)

GPT_BIGCODE = replace(GPT2, name="gpt_bigcode", model_types=("gpt_bigcode",), when={"multi_query": True})

GPT_BIGCODE_MULTI_HEAD = replace(
    GPT_BIGCODE, name="gpt_bigcode-multi-head", when={"multi_query": False}, layout=by_group
)

GPT_NEO = replace(
    GPT2,
    name="gpt_neo",
    model_types=("gpt_neo",),
    when={},
    projections=each_slot("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    layout=LLAMA.layout,
    output="attn.attention.out_proj",
)

GPTJ = replace(
    GPT_NEO,
    name="gptj",
    model_types=("gptj",),
    projections=each_slot("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    output="attn.out_proj",
    mlp_norm="ln_1",
    parallel=True,
)

GPT_NEOX = Architecture(
    name="gpt_neox",
    model_types=("gpt_neox",),
    when={"use_parallel_residual": True},
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attention="attention",
    projections=each_slot("attention.query_key_value"),
    layout=by_group,
    output="attention.dense",
    attention_norm="input_layernorm",
    mlp="mlp",
    mlp_norm="post_attention_layernorm",
    parallel=True,
)

GPT_NEOX_SEQUENTIAL = replace(
    GPT_NEOX, name="gpt_neox-sequential", when={"use_parallel_residual": False}, parallel=False
)

FALCON = Architecture(
    name="falcon",
    model_types=("falcon",),
    when={"new_decoder_architecture": False, "parallel_attn": True},
    layers="transformer.h",
    final_norm="transformer.ln_f",
    attention="self_attention",
    projections=each_slot("self_attention.query_key_value"),
    layout=by_group,
    output="self_attention.dense",
    attention_norm="input_layernorm",
    mlp="mlp",
    mlp_norm="input_layernorm",
    parallel=True,
)

FALCON_NEW = replace(
    FALCON,
    name="falcon-new",
    when={"new_decoder_architecture": True, "parallel_attn": True, "num_ln_in_parallel_attn": 2},
    attention_norm="ln_attn",
    mlp_norm="ln_mlp",
)

FALCON_NEW_ONE_NORM = replace(
    FALCON,
    name="falcon-new-one-norm",
    when={"new_decoder_architecture": True, "parallel_attn": True, "num_ln_in_parallel_attn": 1},
)

FALCON_RW = replace(
    FALCON,
    name="falcon-rw",
    when={"new_decoder_architecture": False, "parallel_attn": False},
    mlp_norm="post_attention_layernorm",
    parallel=False,
)

PERSIMMON = replace(
    FALCON_RW,
    name="persimmon",
    model_types=("persimmon",),
    when={},
    layers="model.layers",
    final_norm="model.final_layernorm",
    attention="self_attn",
    projections=each_slot("self_attn.query_key_value"),
    output="self_attn.dense",
)

BLOOM = replace(
    FALCON_RW,
    name="bloom",
    model_types=("bloom",),
    when={"apply_residual_connection_post_layernorm": False},
    mlp="mlp.dense_h_to_4h",
    mlp_output="mlp.dense_4h_to_h",
    attention_adds_stream=True,
)

MPT = Architecture(
    name="mpt",
    model_types=("mpt",),
    layers="transformer.blocks",
    final_norm="transformer.norm_f",
    attention="attn",
    projections=each_slot("attn.Wqkv"),
    layout=concatenated,
    output="attn.out_proj",
    attention_norm="norm_1",
    mlp="ffn.up_proj",
    mlp_norm="norm_2",
    mlp_output="ffn.down_proj",
)

OPT = Architecture(
    name="opt",
    model_types=("opt",),
    when={"do_layer_norm_before": True, "_remove_final_layer_norm": False},
    layers="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    attention="self_attn",
    projections=each_slot("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.out_proj",
    attention_norm="self_attn_layer_norm",
    mlp="fc1",
    mlp_norm="final_layer_norm",
    mlp_output="fc2",
)

ARCHITECTURES: tuple[Architecture, ...] = (
    LLAMA,
    MIXTURE_OF_EXPERTS,
    PHI3,
    GRANITE,
    GRANITE_MOE,
    GEMMA2,
    GLM4,
    APERTUS,
    OLMO2,
    EXAONE4,
    OLMOE,
    COHERE,
    STABLELM,
    STABLELM_PARALLEL,
    PHI,
    GPT2,
    GPT_BIGCODE,
    GPT_BIGCODE_MULTI_HEAD,
    GPT_NEO,
    GPTJ,
    GPT_NEOX,
    GPT_NEOX_SEQUENTIAL,
    FALCON,
    FALCON_NEW,
    FALCON_NEW_ONE_NORM,
    FALCON_RW,
    PERSIMMON,
    BLOOM,
    MPT,
    OPT,
)


def architecture_of(module: nn.Module) -> Architecture:
    """Find a model's adapter by its ``config.model_type``, or else by its modules.

    Raises :class:`UnsupportedModelError` where there is none.
    """
    config: Any = getattr(module, "config", None)
    model_type = str(getattr(config, "model_type", type(module).__name__))
    named = [architecture for architecture in ARCHITECTURES if model_type in architecture.model_types]
    for architecture in named:
        if all(getattr(config, key, None) == value for key, value in architecture.when.items()):
            return architecture
    if named:
        keys = sorted({key for architecture in named for key in architecture.when})
        settings = "; or ".join(_settings(architecture.when) for architecture in named)
        has = _settings({key: getattr(config, key, None) for key in keys})
        raise UnsupportedModelError(
            f"this model of type '{model_type}' has {has}, for which there is no adapter; expected {settings}. "
            "Use another model of the family, or describe this one: `circuits guide models` shows how."
        )
    for architecture in ARCHITECTURES:
        if not architecture.when and _has_the_modules(module, architecture):
            return architecture
    known = ", ".join(sorted({kind for architecture in ARCHITECTURES for kind in architecture.model_types}))
    raise UnsupportedModelError(
        f"models of type '{model_type}' have no adapter and do not have the modules of any known family, so their "
        f"edges would be measured at the wrong places. Known types: {known}. Describe this one with an "
        "Architecture: `circuits guide models` shows how, and the guards will check it."
    )


def _settings(values: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in dict(values).items())


def _has_the_modules(module: nn.Module, architecture: Architecture) -> bool:
    """Return whether every declared path is there, and every child of a layer with weights is on one."""
    names: dict[str, nn.Module] = dict(cast(Any, module).named_modules())
    if architecture.layers not in names or architecture.final_norm not in names:
        return False
    explained = {path.split(".")[0] for path in architecture.layer_paths}
    for number, layer in cast("nn.ModuleList", names[architecture.layers]).named_children():
        if any(f"{architecture.layers}.{number}.{path}" not in names for path in architecture.layer_paths):
            return False
        children = {name for name, child in layer.named_children() if any(True for _ in child.parameters())}
        if not children <= explained:
            return False
    return True
