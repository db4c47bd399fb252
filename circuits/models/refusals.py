"""Models that cannot be measured, known from class and configuration alone: each is refused with the reason.

The same rules serve folders and hub ids, where they run before any weights are read, and models in memory. What the
configuration does not tell is left to the architectures and the guards.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from circuits.errors import UnsupportedModelError

_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", "attention")
"""Kinds of layers in which every head has queries, keys and values of the tokens themselves."""
_DECODER_ONLY = "Use a decoder-only model, such as Llama or GPT-2."
_PLAIN_ATTENTION = "Use a model with plain or grouped-query attention in every layer, such as Llama."
_PRE_NORM = "Use a model that normalises what a block reads, as all other sizes of this family do."


def require_measurable(config: Any, classes: Sequence[str], name: str) -> None:
    """Raise :class:`UnsupportedModelError` if the configuration says that a model's edges cannot be measured.

    ``classes`` are the names of the model's class and its bases, or what the configuration says of it (empty: unknown);
    ``name`` is what the user called the model.
    """
    what = (
        f"'{name}' is a {classes[0]} ({config.model_type})" if classes else f"'{name}' is of type {config.model_type}"
    )
    decoder = config.text_config if _parts(config, "text_config") else config
    reason = _two_stacks(config) or _quantised(config)
    # What is wrong with the language model inside a wrapper comes first: taking it out of the wrapper would not help.
    for rule in _OF_THE_DECODER:
        reason = reason or rule(decoder)
    reason = reason or _wrapper(config) or _other_class(config, classes)
    if reason:
        raise UnsupportedModelError(f"{what}: {reason}")


def _two_stacks(config: Any) -> str | None:
    if not config.is_encoder_decoder:
        return None
    return (
        "it reads its input with a separate encoder, to which the decoder attends, so no single residual stream leads "
        f"from the prompt to the answer. {_DECODER_ONLY}"
    )


def _quantised(config: Any) -> str | None:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    found: Any = cast("dict[str, Any]", settings) if isinstance(settings, dict) else settings.to_dict()
    method = str(found.get("quant_method", "an unknown method")).rpartition(".")[2].lower()
    if method == "gguf":  # transformers expands these as it reads them
        return None
    return (
        f"its weights are quantised ({method}), and quantised layers round what they compute, so that parts do not add "
        "up to the whole. Use the unquantised weights or a GGUF file, which is expanded when loaded; or expand them "
        "yourself, where the method allows: `load_model(model.dequantize(), tokenizer=tokenizer)`."
    )


def _both_directions(config: Any) -> str | None:
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not encoder or getattr(config, "is_decoder", False):
        return None
    return (
        "it is an encoder, in which every position attends to later ones too, so none predicts the next token. "
        f"{_DECODER_ONLY}"
    )


def _layers_without_attention(config: Any) -> str | None:
    # Some older configurations of transformers (recurrent_gemma's) have only the second name.
    kinds = cast("list[str] | None", _fact(config, "layer_types") or _fact(config, "layers_block_type"))
    others = [kind for kind in kinds or () if kind not in _ATTENTION]
    if not kinds or not others:
        return None
    return (
        f"{len(others)} of its {len(kinds)} layers are of the kind {_listed(others)}, which passes earlier tokens on "
        "by other means than heads with queries, keys and values (a recurrent state, a convolution, or both beside "
        f"attention). {_PLAIN_ATTENTION}"
    )


def _no_heads(config: Any) -> str | None:
    if _fact(config, "num_attention_heads") is not None:
        return None
    return (
        "its configuration has no attention heads: it passes earlier tokens on by other means, such as a recurrent "
        f"state. {_PLAIN_ATTENTION}"
    )


def _latent_attention(config: Any) -> str | None:
    if _fact(config, "kv_lora_rank") is None:
        return None
    return (
        "it has multi-head latent attention: the keys and values of all heads are read from one narrow vector "
        f"(kv_lora_rank), not from the residual stream. {_PLAIN_ATTENTION}"
    )


def _heads_that_vary(config: Any) -> str | None:
    varied = [key for key in ("num_attention_heads", "num_key_value_heads") if _varies(config, key)]
    if not varied:
        return None
    return f"{varied[0]} differs from layer to layer; expected the same number of heads in all. {_PLAIN_ATTENTION}"


def _several_streams(config: Any) -> str | None:
    count = _fact(config, "altup_num_inputs") or _fact(config, "hc_mult")
    if not isinstance(count, int) or count < 2:
        return None
    return f"it has {count} residual streams that exchange what they hold; expected a single one. {_PLAIN_ATTENTION}"


def _shared_keys(config: Any) -> str | None:
    count = _fact(config, "num_kv_shared_layers")
    if not isinstance(count, int) or count < 1:
        return None
    return (
        f"its last {count} layers take keys and values from earlier layers instead of making their own. "
        f"{_PLAIN_ATTENTION}"
    )


def _norm_after_sum(config: Any) -> str | None:
    if getattr(config, "do_layer_norm_before", True) is False:
        setting = "do_layer_norm_before=False"
    elif getattr(config, "apply_residual_connection_post_layernorm", False) is True:
        setting = "apply_residual_connection_post_layernorm=True"
    else:
        return None
    return (
        f"it normalises the residual stream itself after every block ({setting}), so what a block writes does not stay "
        f"in the stream for later ones to read. {_PRE_NORM}"
    )


def _wrapper(config: Any) -> str | None:
    others = _parts(config, "vision_config", "audio_config", "audio_encoder_config", "vq_config")
    if not _parts(config, "text_config"):
        return None if not others else f"it reads more than text ({_listed(others)}). Use a text-only model."
    kind = str(config.text_config.model_type)
    inner = _as_tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, ("AutoModelForCausalLM",)))[0]
    return (
        f"it is a language model inside a wrapper for other input ({_listed(others or ['text_config'])}). Use a "
        f"text-only model, or take the language model out: `text = {inner}(model.config.text_config)`, `text.model = "
        "model.model.language_model`, `text.lm_head = model.lm_head`, `load_model(text.eval(), tokenizer=tokenizer)`."
    )


def _other_class(config: Any, classes: Sequence[str]) -> str | None:
    causal = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _as_tuple(names)}
    if not classes or causal & set(classes):
        return None
    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    advice = f"Load the language model of this type, {_as_tuple(own)[0]}." if own else _DECODER_ONLY
    return f"it does not predict the next token; expected a decoder-only language model. {advice}"


_OF_THE_DECODER: tuple[Callable[[Any], str | None], ...] = (
    _both_directions,
    _latent_attention,
    _layers_without_attention,
    _several_streams,
    _shared_keys,
    _heads_that_vary,
    _no_heads,
    _norm_after_sum,
)


def _parts(config: Any, *names: str) -> list[str]:
    """Return those of these parts that a configuration made of several has."""
    return [name for name in names if name in config.sub_configs and getattr(config, name, None) is not None]


def _fact(config: Any, key: str) -> Any:
    return "varied" if _varies(config, key) else getattr(config, key, None)


def _varies(config: Any, key: str) -> bool:
    """Return whether a number is not the same in all layers."""
    try:
        getattr(config, key, None)
    except RuntimeError:  # transformers' word for "depends on the layer"
        return True
    return False


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in dict.fromkeys(names))


def _as_tuple(names: object) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else cast("tuple[str, ...]", names)
