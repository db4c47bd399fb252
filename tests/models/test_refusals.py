"""Models that cannot be measured are refused before their weights are read, each with the reason."""

from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from circuits.errors import UnsupportedModelError
from circuits.models.in_memory import weights_in_memory
from circuits.models.loading import load_weights
from circuits.models.refusals import require_measurable
from tests.tiny import tiny_gpt2, tiny_llama
from tests.zoo import ZOO

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
VISION = SIZES | {"image_size": 28, "patch_size": 14, "num_hidden_layers": 1}
LAYERS = "layers are of the kind 'linear_attention', which passes earlier tokens on by other means"

RECURRENT = LAYERS.replace(
    "'linear_attention'", "'(linear_attention|recurrent)'"
)  # as transformers names them by version

REFUSED = {
    "bert": (hf.BertConfig(), "BertLMHeadModel", "it is an encoder, in which every position attends to later ones too"),
    "t5": (hf.T5Config(), "T5ForConditionalGeneration", "it reads its input with a separate encoder"),
    "bart": (hf.BartConfig(), "BartForConditionalGeneration", "it reads its input with a separate encoder"),
    "mamba": (hf.MambaConfig(), "MambaForCausalLM", f"32 of its 32 {LAYERS}"),
    "mamba2": (hf.Mamba2Config(), "Mamba2ForCausalLM", f"64 of its 64 {LAYERS}"),
    "falcon_mamba": (hf.FalconMambaConfig(), "FalconMambaForCausalLM", f"32 of its 32 {LAYERS}"),
    "rwkv": (hf.RwkvConfig(), "RwkvForCausalLM", "its configuration has no attention heads"),
    "jamba": (hf.JambaConfig(), "JambaForCausalLM", f"28 of its 32 {LAYERS}"),
    "recurrent_gemma": (hf.RecurrentGemmaConfig(), "RecurrentGemmaForCausalLM", f"18 of its 26 {RECURRENT}"),
    "zamba2": (hf.Zamba2Config(), "Zamba2ForCausalLM", "are of the kind 'linear_attention' and 'hybrid'"),
    "qwen3_next": (hf.Qwen3NextConfig(), "Qwen3NextForCausalLM", f"36 of its 48 {LAYERS}"),
    "lfm2": (hf.Lfm2Config(full_attn_idxs=[0, 2], num_hidden_layers=4), "Lfm2ForCausalLM", "of the kind 'conv'"),
    "deepseek_v3": (hf.DeepseekV3Config(), "DeepseekV3ForCausalLM", "multi-head latent attention"),
    "deepseek_v2": (hf.DeepseekV2Config(), "DeepseekV2ForCausalLM", "multi-head latent attention"),
    "gemma3n_text": (hf.Gemma3nTextConfig(), "Gemma3nForCausalLM", "it has 4 residual streams"),
    "gemma3": (
        hf.Gemma3Config(),
        "Gemma3ForConditionalGeneration",
        "inside a wrapper for other input .'vision_config'",
    ),
    "llava": (hf.LlavaConfig(), "LlavaForConditionalGeneration", "inside a wrapper for other input .'vision_config'"),
    "qwen3_5": (hf.Qwen3_5Config(), "Qwen3_5ForConditionalGeneration", f"24 of its 32 {LAYERS}"),
    "opt": (hf.OPTConfig(do_layer_norm_before=False), "OPTForCausalLM", "do_layer_norm_before=False"),
    "bloom": (
        hf.BloomConfig(apply_residual_connection_post_layernorm=True),
        "BloomForCausalLM",
        "apply_residual_connection_post_layernorm=True",
    ),
    "llama": (
        hf.LlamaConfig(),
        "LlamaForSequenceClassification",
        "Load the language model of this type, LlamaForCausalLM",
    ),
    "llama-4bit": (
        hf.LlamaConfig(quantization_config={"quant_method": "awq"}),
        "LlamaForCausalLM",
        "its weights are quantised .awq.*GGUF file.*dequantize",
    ),
    "heads": (
        hf.LlamaConfig(num_hidden_layers=2, per_layer_config={0: {"num_key_value_heads": 8}}),
        "LlamaForCausalLM",
        "num_key_value_heads differs from layer",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_is_refused_with_the_reason_before_its_weights_are_read(kind: str, tmp_path: Path) -> None:
    config, name, reason = REFUSED[kind]
    config.architectures = [name]
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UnsupportedModelError, match=rf"is a {name} \({config.model_type}\): .*{reason}"):
        load_weights(str(tmp_path), device="cpu")


@pytest.mark.parametrize("kind", REFUSED)
def test_every_refusal_says_what_to_use_instead(kind: str) -> None:
    config, name, _ = REFUSED[kind]
    with pytest.raises(UnsupportedModelError, match=r"\. (Use a|Use the|Load the) .*\.$"):
        require_measurable(config, [name], "it")


@pytest.mark.parametrize("family", ZOO)
def test_no_supported_family_is_refused(family: str) -> None:
    module = ZOO[family]()
    require_measurable(module.config, [type(module).__name__], family)


def test_a_decoder_made_of_an_encoder_is_left_to_the_architectures() -> None:
    require_measurable(hf.BertConfig(is_decoder=True), ["BertLMHeadModel"], "decoder")


def test_every_decoder_of_transformers_is_judged_without_an_accident() -> None:
    names = hf.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    verdicts: dict[str, bool] = {}
    for kind, name in names.items():
        if kind == "gemma4_assistant":  # cannot be made without arguments
            continue
        try:
            require_measurable(CONFIG_MAPPING[kind](), [name] if isinstance(name, str) else [*name], kind)
            verdicts[kind] = True
        except UnsupportedModelError:
            verdicts[kind] = False
    assert all(
        verdicts[kind] for kind in ("llama", "gemma3_text", "gpt_oss", "mpt", "falcon", "glm4", "olmo3", "llama4_text")
    )
    assert not any(verdicts[kind] for kind in ("mamba", "xlstm", "bamba", "kimi_linear", "whisper", "fuyu", "roberta"))


def tiny(model: type[PreTrainedModel], config: PreTrainedConfig) -> Any:
    return model(config).eval()


IN_MEMORY = {
    "bert": lambda: tiny(hf.BertLMHeadModel, hf.BertConfig(**SIZES)),
    "t5": lambda: tiny(hf.T5ForConditionalGeneration, hf.T5Config(d_model=32, d_ff=40, num_layers=2, num_heads=4)),
    "mamba": lambda: tiny(hf.MambaForCausalLM, hf.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64)),
    "gemma3": lambda: gemma3(),
    "llava": lambda: llava(),
    "llama": lambda: tiny(hf.LlamaForSequenceClassification, hf.LlamaConfig(**SIZES)),
}


def gemma3() -> Any:
    return tiny(hf.Gemma3ForConditionalGeneration, hf.Gemma3Config(text_config=SIZES, vision_config=VISION))


def llava() -> Any:
    parts = {"text_config": hf.LlamaConfig(**SIZES), "vision_config": hf.CLIPVisionConfig(**VISION)}
    return tiny(hf.LlavaForConditionalGeneration, hf.LlavaConfig(**parts))


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_a_model_in_memory_is_refused_with_the_same_reason_as_its_folder(kind: str) -> None:
    module, (_, _, reason) = IN_MEMORY[kind](), REFUSED[kind]
    with pytest.raises(UnsupportedModelError, match=r"of its .* 'linear_attention'" if kind == "mamba" else reason):
        weights_in_memory(module)


def test_a_model_without_its_unembedding_is_refused_with_the_class_to_load() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'LlamaModel' is a LlamaModel .*Load .* LlamaForCausalLM"):
        weights_in_memory(tiny_llama().model)
    with pytest.raises(UnsupportedModelError, match=r"'mine' is a GPT2Model .*GPT2LMHeadModel"):
        weights_in_memory(tiny_gpt2().transformer, name="mine")


@pytest.mark.parametrize(("make", "inner"), [(gemma3, hf.Gemma3ForCausalLM), (llava, hf.LlamaForCausalLM)])
def test_the_language_model_can_be_taken_out_of_its_wrapper_as_the_refusal_says(make: Any, inner: Any) -> None:
    import torch

    model = make()
    with pytest.raises(
        UnsupportedModelError, match=rf"`text = {inner.__name__}\(model.config.text_config\)`, `text.model"
    ):
        weights_in_memory(model)
    text = inner(model.config.text_config)
    text.model = model.model.language_model
    text.lm_head = model.lm_head
    loaded = weights_in_memory(text.eval())
    ids = torch.arange(9)[None]
    assert torch.equal(loaded.module(ids).logits, model(ids).logits)
