"""The tiny models of every family are what their description promises: small, lively, every variant present."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.tiny import VOCABULARY
from tests.zoo import FAMILIES, WINDOW, ZOO

LENGTH = 7
IDS = torch.randint(1, VOCABULARY, (6, LENGTH), generator=torch.Generator().manual_seed(1))

MAY_LACK_SDPA = {"gpt_neo", "gptj", "bloom", "mpt", "mpt_clipped", "gemma2", "gpt_oss"}
KERNELS_DIFFER = {"falcon_rw"}
"""Transformers adds Falcon's ALiBi twice in eager attention."""
GROUPED = {name for name, family in FAMILIES.items() if family.options.get("num_key_value_heads") == 2} | {"falcon_new"}
WIDE = {name for name, family in FAMILIES.items() if family.options.get("head_dim") == 12}

_ATTENTION = ("self_attn", "self_attention", "attention", "attn")
_ATTENTION_MAPS = ("o_proj", "out_proj", "dense", "c_proj")
_MLP = ("mlp", "ffn", "block_sparse_moe", "fc2")
_MLP_MAPS = ("down_proj", "c_proj", "fc_out", "dense_4h_to_h", "fc2")

_LOCAL_FAMILIES = (
    "phi3 mistral qwen2 qwen3 gemma2 gemma3 olmo3 starcoder2 cohere2 gpt_oss exaone4 ministral".split()  # noqa: SIM905
)
_MULTIPLIERS = {"embedding_multiplier": 2.0, "residual_multiplier": 1.0, "attention_multiplier": 0.3}
CHANGES: list[tuple[str, str, Any]] = [
    *[(name, "sliding_window", 64) for name in _LOCAL_FAMILIES],
    *[(name, "layer_types", ["full_attention"] * 3) for name in ("qwen2", "gemma2", "gemma3", "cohere2", "gpt_oss")],
    *[(name, *change) for name in ("granite", "granitemoe") for change in _MULTIPLIERS.items()],
    ("granite", "logits_scaling", 1.0),
    ("granitemoe", "logits_scaling", 1.0),
    ("gemma2", "attn_logit_softcapping", None),
    ("gemma2", "final_logit_softcapping", None),
    ("gemma2", "query_pre_attn_scalar", 12),
    ("gemma3", "query_pre_attn_scalar", 12),
    ("cohere", "logit_scale", 1.0),
    ("cohere2", "logit_scale", 1.0),
    ("gpt_neo", "window_size", 64),
    ("gpt_neox", "use_parallel_residual", False),
    ("smollm3", "no_rope_layers", [1, 1, 1]),
    ("qwen2_moe", "norm_topk_prob", False),
    ("mpt_clipped", "attn_config", {"clip_qkv": None}),
    ("olmo_clipped", "clip_qkv", None),
    ("olmoe_clipped", "clip_qkv", None),
]

families = pytest.mark.parametrize("name", FAMILIES)


@cache
def model_of(name: str) -> PreTrainedModel:
    return FAMILIES[name].create()


def logits_of(name: str, ids: Tensor = IDS, **changes: Any) -> Tensor:
    return (FAMILIES[name].create(**changes) if changes else model_of(name))(ids).logits


def layers_of(model: nn.Module) -> list[nn.Module]:
    return list(next(module for module in model.modules() if isinstance(module, nn.ModuleList)))


def child(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The one child among these names; the module itself where it has none of them."""
    children = dict(module.named_children())
    return next((children[name] for name in names if name in children), module)


def writers(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The last maps of attention and MLP."""
    return child(child(child(layer, _ATTENTION), _ATTENTION), _ATTENTION_MAPS), child(child(layer, _MLP), _MLP_MAPS)


def stream(model: nn.Module, layer: nn.Module, silent: tuple[nn.Module, ...] = ()) -> tuple[Tensor, Tensor]:
    """The residual stream before and after a layer, with the output of some modules set to zero."""
    seen: list[Tensor] = []

    def silence(module: nn.Module, args: object, output: Any) -> Any:
        return torch.zeros_like(output) if isinstance(output, Tensor) else (output[0] * 0.0, *output[1:])

    def see(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        seen.extend([args[0].clone(), (output if isinstance(output, Tensor) else output[0]).clone()])

    handles = [module.register_forward_hook(silence) for module in silent] + [layer.register_forward_hook(see)]
    try:
        model(IDS)
    finally:
        for handle in handles:
            handle.remove()
    before, after = seen
    return before, after


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def test_the_zoo_has_every_family_of_the_table() -> None:
    assert list(ZOO) == list(FAMILIES)
    model = ZOO["llama"](seed=3, num_hidden_layers=4)
    assert len(layers_of(model)) == 4
    assert torch.equal(model(IDS).logits, FAMILIES["llama"].create(seed=3, num_hidden_layers=4)(IDS).logits)


@families
def test_a_model_is_small_deep_enough_frozen_and_untied(name: str) -> None:
    model = model_of(name)
    assert len(layers_of(model)) >= 3
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


@families
def test_no_parameter_is_left_as_initialised(name: str) -> None:
    for path, parameter in model_of(name).named_parameters():
        if parameter.numel() > 1:
            assert parameter.std() > 0.05, path
            assert parameter.abs().max() < 8.0, path


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_keys_are_shared_by_groups_of_heads_where_the_family_allows_it(name: str) -> None:
    shapes = {path.rsplit(".", 2)[-2]: parameter.shape[0] for path, parameter in model_of(name).named_parameters()}
    d_head = 12 if name in WIDE else 8
    if "k_proj" in shapes:
        assert (shapes["q_proj"], shapes["k_proj"], shapes["v_proj"]) == (4 * d_head, 2 * d_head, 2 * d_head)
    else:
        assert shapes.get("qkv_proj", shapes.get("query_key_value")) == 8 * d_head


@families
def test_a_model_depends_on_its_seed_only(name: str) -> None:
    torch.manual_seed(5)
    assert torch.equal(logits_of(name, seed=0), logits_of(name))
    assert relative(logits_of(name, seed=1), logits_of(name)) > 0.3


@families
def test_logits_vary_by_a_few_units_and_depend_on_the_prompt(name: str) -> None:
    last = logits_of(name)[:, -1]
    assert 1.0 < last.std(dim=-1).mean() < 5.0
    assert last.std(dim=0).mean() > 0.5


@families
def test_attention_is_neither_uniform_nor_on_one_token(name: str) -> None:
    out = FAMILIES[name].create(attn_implementation="eager")(IDS, output_attentions=True)
    assert len(out.attentions) == len(layers_of(model_of(name)))
    for pattern in out.attentions:
        row = pattern[:, :, -1]
        seen = int(row[0, 0].count_nonzero())
        assert seen in {WINDOW, LENGTH}
        entropy = -(row * row.clamp_min(1e-12).log()).sum(-1).mean()
        assert 0.3 < entropy < 0.95 * math.log(seen)


@families
def test_attention_and_mlp_of_every_layer_contribute_and_nothing_else_does(name: str) -> None:
    model = model_of(name)
    for layer in layers_of(model):
        attention, mlp = writers(layer)
        before, after = stream(model, layer)
        with_attention = stream(model, layer, (mlp,))[1]
        alone = stream(model, layer, (attention, mlp))[1]
        assert torch.equal(alone, before)
        assert 0.1 < (with_attention - alone).norm() / before.norm() < 3.0
        assert 0.1 < (after - with_attention).norm() / before.norm() < 3.0


@families
def test_the_first_token_reaches_the_last_position_and_never_the_reverse(name: str) -> None:
    first, last = IDS.clone(), IDS.clone()
    first[:, 0] = (first[:, 0] + 7) % VOCABULARY
    last[:, -1] = (last[:, -1] + 7) % VOCABULARY
    expected = logits_of(name)
    assert relative(logits_of(name, first)[:, -1], expected[:, -1]) > 0.01
    torch.testing.assert_close(logits_of(name, last)[:, :-1], expected[:, :-1], rtol=1e-5, atol=1e-5)
    assert relative(logits_of(name, last)[:, -1], expected[:, -1]) > 0.3


@families
def test_a_model_runs_in_float64_and_bfloat16(name: str) -> None:
    """Mixtures need ``experts_implementation="eager"`` in float64: torch's grouped multiplication refuses it."""
    expected = logits_of(name)
    double = FAMILIES[name].create(experts_implementation="eager").double()(IDS).logits
    assert double.dtype == torch.float64
    assert relative(double, expected) < 5e-6
    half = FAMILIES[name].create().bfloat16()(IDS).logits
    assert half.dtype == torch.bfloat16
    # A rounded router may choose another expert, which moves some positions far: compare the typical one.
    errors = (half.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 1e-4 < errors.median() < 0.03


def has_sdpa(name: str) -> bool:
    """Whether the installed transformers has this kernel for a family (of GPT-J since 5.24)."""
    return bool(FAMILIES[name].model._supports_sdpa)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - KERNELS_DIFFER))
def test_attention_kernels_agree_or_the_family_has_eager_attention_only(name: str) -> None:
    eager = logits_of(name, attn_implementation="eager")
    if has_sdpa(name):
        assert relative(eager, logits_of(name, attn_implementation="sdpa")) < 2e-6
    else:
        assert name in MAY_LACK_SDPA
        with pytest.raises(ValueError, match="does not support an attention implementation"):
            logits_of(name, attn_implementation="sdpa")
    assert FAMILIES[name].create(attn_implementation="eager").config._attn_implementation == "eager"


@families
def test_a_saved_model_is_loaded_the_same(name: str, tmp_path: Path) -> None:
    model_of(name).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).requires_grad_(False)
    assert type(loaded) is type(model_of(name))
    assert relative(loaded(IDS).logits, logits_of(name)) < 1e-6


@pytest.mark.parametrize(("name", "option", "value"), CHANGES, ids=[f"{name}-{option}" for name, option, _ in CHANGES])
def test_every_multiplier_cap_and_window_matters(name: str, option: str, value: object) -> None:
    changed = FAMILIES[name].create(**{option: value})
    for (path, parameter), other in zip(model_of(name).named_parameters(), changed.parameters(), strict=True):
        assert torch.equal(parameter, other), path
    assert relative(changed(IDS).logits, logits_of(name)) > 0.01


def test_gemma_embeds_its_tokens_scaled_and_its_norms_store_the_distance_from_one() -> None:
    model = model_of("gemma")
    embedding, norm = model.get_input_embeddings(), layers_of(model)[0].input_layernorm
    torch.testing.assert_close(embedding(IDS), embedding.weight[IDS] * 32**0.5)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x), x / x.pow(2).mean(-1, keepdim=True).sqrt() * (1 + norm.weight))


def test_one_mixture_has_a_dense_layer() -> None:
    kinds = [type(layer.mlp).__name__ for layer in layers_of(model_of("qwen2_moe"))]
    assert kinds == ["Qwen2MoeSparseMoeBlock", "Qwen2MoeMLP", "Qwen2MoeSparseMoeBlock"]


def test_the_attention_sinks_of_gpt_oss_take_part_of_the_attention() -> None:
    out = FAMILIES["gpt_oss"].create(attn_implementation="eager")(IDS, output_attentions=True)
    for pattern in out.attentions:
        assert 0.05 < (1 - pattern.sum(-1)).mean() < 0.7
