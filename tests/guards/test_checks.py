"""The guards pass every supported family, and each has a wrong adapter, model or tokenizer that makes it fire."""

import dataclasses
import functools
import re
from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.architecture import Architecture, Columns, by_group, concatenated, separate
from circuits.adapters.families import (
    ARCHITECTURES,
    BLOOM,
    FALCON_NEW,
    GEMMA2,
    GLM4,
    GPT2,
    GPT_NEOX,
    GRANITE,
    LLAMA,
    MPT,
    OLMO2,
    PHI3,
    architecture_of,
)
from circuits.builder import build_graph
from circuits.errors import GuardError, UnsupportedModelError
from circuits.graph import ModelShape, Slot
from circuits.guards import checks as guards
from circuits.guards.checks import GuardResult, check, require
from circuits.passes.masked import run_masked
from circuits.tracing.prefix import cache_keyword
from circuits.tracing.runs import record
from circuits.tracing.tracer import Tracer
from tests.subjects import TOKENIZER, Subject
from tests.tiny import VOCABULARY, tiny_gpt2, tiny_llama
from tests.zoo import ZOO

NAMES = [
    *(
        "finite",
        "additivity",
        "causality",
        "nothing live",
        "wiring",
        "everything live",
        "restart",
        "head isolation",
        "tokenizer",
    ),
]


def results_of(
    module: PreTrainedModel, architecture: Architecture | None = None, tokenizer: object = TOKENIZER
) -> tuple[GuardResult, ...]:
    tracer = Tracer(Anatomy(module, architecture))
    return check(tracer, build_graph(tracer.anatomy.shape), tokenizer)


def failed(results: tuple[GuardResult, ...]) -> list[str]:
    return [result.name for result in results if not result.passed]


def test_every_guard_passes_every_family(subject: Subject) -> None:
    results = check(subject.tracer, subject.graph, TOKENIZER)
    assert [result.name for result in results] == NAMES
    assert failed(results) == []
    assert max(result.error for result in results) < 1e-4
    require(results, "tiny")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_tolerance_follows_the_dtype(subject: Subject, dtype: torch.dtype) -> None:
    copy = subject.changed(lambda module: None)
    copy.module.to(dtype)
    results = check(copy.tracer, copy.graph, TOKENIZER)
    assert failed(results) == []
    coarse = max(result.error for result in results)
    if dtype.itemsize == 2:
        assert coarse > 1e-3  # these would have failed by the tolerance of float32


def test_guards_see_a_model_with_one_head() -> None:
    assert failed(results_of(tiny_gpt2(n_head=1))) == []


# --------------------------------------------------------------------------------------------------- wrong adapters


def layout(family: Architecture, change: Callable[[ModelShape, Slot], Columns]) -> Architecture:
    return dataclasses.replace(family, layout=change)


def exchanged(one: Slot, other: Slot) -> Callable[[ModelShape, Slot], Columns]:
    """A fused projection in which two slots are taken for each other."""
    names = {slot: slot for slot in Slot} | {one: other, other: one}
    return lambda shape, slot: concatenated(shape, names[slot])


def interleaved(shape: ModelShape, slot: Slot) -> Columns:
    """Columns of heads that take turns: dimension 0 of every head, then dimension 1, …"""
    return np.ascontiguousarray(separate(shape, slot).reshape(shape.d_head, -1).T)


def backwards(*slots: Slot) -> Callable[[ModelShape, Slot], Columns]:
    """Units of some slots numbered from the last to the first."""
    return lambda shape, slot: separate(shape, slot)[:: -1 if slot in slots else 1].copy()


def llama(**changes: object) -> Architecture:
    return dataclasses.replace(LLAMA, **changes)


SLICED_WRONGLY = {
    "q as k": (tiny_gpt2, layout(GPT2, exchanged(Slot.Q, Slot.K))),
    "q as v": (tiny_gpt2, layout(GPT2, exchanged(Slot.Q, Slot.V))),
    "k as v": (tiny_gpt2, layout(GPT2, exchanged(Slot.K, Slot.V))),
    "heads cut across": (tiny_llama, layout(LLAMA, interleaved)),
    "queries backwards": (tiny_llama, layout(LLAMA, backwards(Slot.Q))),
    "keys backwards": (tiny_llama, layout(LLAMA, backwards(Slot.K))),
    "values backwards": (tiny_llama, layout(LLAMA, backwards(Slot.V))),
}


@pytest.mark.parametrize("name", SLICED_WRONGLY)
def test_wrong_columns_fire_head_isolation_alone(name: str) -> None:
    """Every other guard is blind to them: the projections as wholes are right."""
    make, architecture = SLICED_WRONGLY[name]
    results = results_of(make(), architecture)
    assert failed(results) == ["head isolation"]
    with pytest.raises(
        GuardError, match=r"tiny fails the guard 'head isolation'.*sliced wrongly.*circuits guide models"
    ):
        require(results, "tiny")


def changed(family: Architecture, **changes: object) -> Architecture:
    return dataclasses.replace(family, **changes)


READ_WRONGLY = {
    "a norm that is not its own": ("llama", llama(attention_norm="post_attention_layernorm"), "queries of layer 0"),
    "a forgotten norm": ("llama", llama(attention_norm=None), "queries of layer 0"),
    "a sequential block as parallel": ("llama", llama(parallel=True), "outputs of m0"),
    "a parallel block as sequential": ("gpt_neox", changed(GPT_NEOX, parallel=False), "outputs of m0"),
    "a shared norm where there are two": ("falcon_new", changed(FALCON_NEW, mlp_norm="ln_attn"), "outputs of m0"),
}


@pytest.mark.parametrize("name", READ_WRONGLY)
def test_reading_the_stream_at_the_wrong_place_fires_wiring_with_the_first_place_that_differs(name: str) -> None:
    family, architecture, first = READ_WRONGLY[name]
    results = results_of(ZOO[family](), architecture)
    assert failed(results) == ["wiring", "everything live"]
    with pytest.raises(
        GuardError, match=rf"'wiring'.*does not read what the graph says.*The first to differ are the {first}\."
    ):
        require(results, "tiny")


WRITTEN_WRONGLY = {
    "a norm after the attention": ("gemma2", changed(GEMMA2, attention_post_norm=None)),
    "a norm after the mlp": ("gemma2", changed(GEMMA2, mlp_post_norm=None)),
    "glm-4's norm after the attention": ("glm4", changed(GLM4, attention_post_norm=None)),
    "olmo-2's norm after the mlp": ("olmo2", changed(OLMO2, mlp_post_norm=None)),
    "a multiplier": ("granite", changed(GRANITE, residual_scale=None)),
    "that an mlp adds the stream": ("mpt", changed(MPT, mlp="ffn", mlp_output=None)),
}


@pytest.mark.parametrize("name", WRITTEN_WRONGLY)
def test_forgetting_what_stands_between_a_block_and_the_stream_fires_additivity(name: str) -> None:
    family, architecture = WRITTEN_WRONGLY[name]
    results = results_of(ZOO[family](), architecture)
    assert failed(results)[0] == "additivity"
    with pytest.raises(GuardError, match=r"'additivity'.*a norm or factor between a block and the stream"):
        require(results, "tiny")


def test_forgetting_that_an_attention_adds_the_stream_fires_restart_alone() -> None:
    results = results_of(ZOO["bloom"](), changed(BLOOM, attention_adds_stream=False))
    assert failed(results) == ["restart"]
    with pytest.raises(GuardError, match=r"'restart'.*the attention, or what it adds to, is declared wrongly"):
        require(results, "tiny")


def test_a_norm_over_all_heads_that_is_not_declared_fires_head_isolation_alone() -> None:
    results = results_of(ZOO["olmoe"](), LLAMA)
    assert failed(results) == ["head isolation"]


FUSED_WRONGLY = {
    "by group as concatenated": ("falcon_new", changed(FALCON_NEW, layout=concatenated)),
    "concatenated as by group": ("phi3", changed(PHI3, layout=by_group)),
    "by head as concatenated": ("gpt_neox", changed(GPT_NEOX, layout=concatenated)),
}


@pytest.mark.parametrize("name", FUSED_WRONGLY)
def test_a_fused_projection_cut_in_another_families_way_fires_head_isolation_alone(name: str) -> None:
    family, architecture = FUSED_WRONGLY[name]
    assert failed(results_of(ZOO[family](), architecture)) == ["head isolation"]


OUT_OF_ORDER = {
    "mlp norm": llama(mlp_norm="input_layernorm"),
    "final norm": llama(final_norm="model.layers.2.input_layernorm"),
    "projections": llama(
        projections=MappingProxyType(
            {Slot.Q: "self_attn.k_proj", Slot.K: "self_attn.q_proj", Slot.V: "self_attn.v_proj"}
        )
    ),
}


@pytest.mark.parametrize("name", OUT_OF_ORDER)
def test_modules_declared_out_of_order_are_refused_with_the_adapters_name(name: str) -> None:
    with pytest.raises(
        (GuardError, UnsupportedModelError), match=r"'llama' declares: query.*norm|cuts the queries from column 47"
    ):
        results_of(tiny_llama(), OUT_OF_ORDER[name])


# ----------------------------------------------------------------------------------------------------- wrong models


class AddsOne(LlamaDecoderLayer):
    """A layer that writes something that no node wrote."""

    def forward(self, *args: object, **options: object) -> Tensor:
        return super().forward(*args, **options) + 1


def test_a_write_of_no_node_fires_additivity_alone() -> None:
    module = tiny_llama()
    module.model.layers[-1].__class__ = AddsOne
    results = results_of(module)
    assert failed(results) == ["additivity"]
    with pytest.raises(GuardError, match=r"'additivity'.*does not add up to the residual stream that the logits read"):
        require(results, "tiny")


def test_heads_that_share_keys_and_values_in_another_order_fire_head_isolation_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Head h of 4 reads group h % 2 here, not group h // 2."""
    monkeypatch.setattr(modeling_llama, "repeat_kv", lambda states, times: states.repeat(1, times, 1, 1))
    results = results_of(ZOO["llama"](attn_implementation="eager"))
    assert failed(results) == ["head isolation"]
    with pytest.raises(GuardError, match=r"heads or slots are sliced wrongly, or heads belong to other groups"):
        require(results, "tiny")


def test_a_model_that_sees_later_tokens_fires_causality() -> None:
    module = tiny_llama()
    for layer in module.model.layers:
        layer.self_attn.is_causal = False
    results = results_of(module)
    assert "causality" in failed(results)
    with pytest.raises(GuardError, match=r"'causality'.*depends on later tokens: this is no decoder"):
        require(tuple(result for result in results if result.name == "causality"), "tiny")


def test_dropout_is_noticed() -> None:
    assert "additivity" in failed(results_of(tiny_gpt2().train()))


def test_weights_that_are_not_numbers_fail_every_measurement() -> None:
    module = tiny_llama()
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    assert failed(results_of(module)) == NAMES[:-1]


# ---------------------------------------------------------------------------------------------------- wrong engines


def test_an_engine_that_takes_an_empty_mask_for_full_fires_nothing_live_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(tracer: Tracer, graph: object, base: object, changes: object, masks: np.ndarray) -> Tensor:
        if changes:
            return run_masked(tracer, graph, base, changes, masks)
        other = record(tracer, base.ids.flip(0))
        return run_masked(tracer, graph, base, {0: other.stream[0] - base.stream[0]}, np.ones_like(masks))

    monkeypatch.setattr(guards, "run_masked", blind)
    results = results_of(tiny_llama())
    assert failed(results) == ["nothing live"]
    with pytest.raises(GuardError, match=r"'nothing live'.*With nothing live a run must equal the corrupted run"):
        require(results, "tiny")


def test_an_engine_that_drops_an_edge_fires_everything_live_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(tracer: Tracer, graph: object, base: object, changes: object, masks: np.ndarray) -> Tensor:
        fewer = masks.copy()
        fewer[:, 0] = False
        return run_masked(tracer, graph, base, changes, fewer)

    monkeypatch.setattr(guards, "run_masked", forgetful)
    results = results_of(tiny_llama())
    assert failed(results) == ["everything live"]
    with pytest.raises(GuardError, match=r"'everything live'.*With everything live a run must equal the clean run"):
        require(results, "tiny")


def uniform(module: PreTrainedModel) -> None:
    """Attention that looks at everything alike, in the first layer: queries and keys are zero."""
    for projection in (module.model.layers[0].self_attn.q_proj, module.model.layers[0].self_attn.k_proj):
        projection.weight.zero_()


def empty(module: PreTrainedModel) -> None:
    """A last layer that does nothing."""
    for weight in module.model.layers[-1].parameters():
        weight.zero_()


def saturated(module: PreTrainedModel) -> None:
    """Attention that looks at one position only, in the first layer."""
    module.model.layers[0].self_attn.q_proj.weight.mul_(1e4)


@pytest.mark.parametrize(
    ("change", "untested"),
    [
        (uniform, "the queries of layer 0, the keys of layer 0"),
        (empty, "the queries of layer 2, the keys of layer 2"),
        (saturated, ""),
    ],
)
def test_slots_that_change_nothing_are_no_reason_to_refuse_a_model(
    change: Callable[[PreTrainedModel], None], untested: str
) -> None:
    module = tiny_llama()
    with torch.no_grad():
        change(module)
    results = results_of(module)
    assert failed(results) == []
    meaning = next(each.meaning for each in results if each.name == "head isolation")
    assert untested in meaning
    assert ("Not tested, since they change nothing" in meaning) is bool(untested)


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize(("layer", "columns"), [(0, slice(32)), (0, slice(64)), (2, slice(96))])
def test_slots_that_are_sliced_wrongly_are_noticed_beside_those_that_change_nothing(
    scale: float, layer: int, columns: slice
) -> None:
    """Queries taken for keys, where those of one layer are zero or saturated, as all of another may be."""
    module = tiny_gpt2()
    with torch.no_grad():
        module.transformer.h[layer].attn.c_attn.weight[:, columns] *= scale
        module.transformer.h[layer].attn.c_attn.bias[columns] *= scale
    assert failed(results_of(module)) == []
    assert "head isolation" in failed(results_of(module, layout(GPT2, exchanged(Slot.Q, Slot.K))))


class CachesBadly(LlamaForCausalLM):
    """Gives logits that are 1 % too large where it goes on from cached keys and values."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: object, **options: object) -> object:
        cache = options.get(str(cache_keyword(self)))
        continues = isinstance(cache, DynamicCache) and cache.get_seq_length() > 0
        output = super().forward(*args, **options)
        output.logits = output.logits * (1.01 if continues else 1.0)
        return output


def test_a_model_that_goes_on_wrongly_from_cached_positions_runs_all_of_them() -> None:
    assert Tracer(Anatomy(tiny_llama())).prefix_cache.on
    module = tiny_llama()
    module.__class__ = CachesBadly
    tracer = Tracer(Anatomy(module))
    expected = r"off: logits that follow from cached keys and values differ by 0\.0\d+ of their size"
    assert re.fullmatch(expected, str(tracer.prefix_cache))
    assert failed(check(tracer, build_graph(tracer.anatomy.shape), TOKENIZER)) == []


# ------------------------------------------------------------------------------------------------------------- costs


def test_guards_cost_two_forward_passes_of_four_prompts_and_the_attention_of_two_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted in prompts through attention and MLP modules, of which the model has four here."""
    prompts = {"attention": 0, "mlp": 0}
    for kind, name in (("attention", LlamaAttention), ("mlp", LlamaMLP)):
        plain = name.forward

        def counted(self: object, *args: object, kind: str = kind, plain: object = plain, **options: object) -> object:
            prompts[kind] += len([*args, *options.values()][0])
            return plain(self, *args, **options)

        monkeypatch.setattr(name, "forward", counted)
    tracer = Tracer(Anatomy(tiny_llama(num_hidden_layers=4)))
    graph = build_graph(tracer.anatomy.shape)
    prompts.update(attention=0, mlp=0)
    check(tracer, graph, TOKENIZER)
    units = 4 + 2 * 2
    recorded, everything_live, recomputed, restarted = 4, 2, 2, 2
    assert prompts["attention"] == 4 * (recorded + everything_live) + 2 * units * 2
    assert prompts["mlp"] == 4 * (recorded + everything_live + recomputed) + restarted


# ------------------------------------------------------------------------------------------------- wrong tokenizers


class FakeTokenizer:
    """Gives some ids and decodes them to some text."""

    def __init__(self, ids: list[int], text: str) -> None:
        self.ids, self.text = ids, text

    def encode(self, _: str) -> list[int]:
        return self.ids

    def decode(self, _: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return self.text


SENTENCE = "The keys to the cabinet are on the table."


@pytest.mark.parametrize(
    "tokenizer",
    [FakeTokenizer([VOCABULARY], SENTENCE), FakeTokenizer([], SENTENCE), FakeTokenizer([3], "The kiwis")],
    ids=["beyond the embedding", "no tokens", "other text"],
)
def test_a_tokenizer_of_another_model_fires_the_tokenizer_guard_alone(tokenizer: FakeTokenizer) -> None:
    results = results_of(tiny_llama(), tokenizer=tokenizer)
    assert failed(results) == ["tokenizer"]
    with pytest.raises(GuardError, match=r"'tokenizer'.*The tokenizer does not belong to this model"):
        require(results, "tiny")


def test_a_tokenizer_within_the_embedding_passes() -> None:
    assert failed(results_of(tiny_llama(), tokenizer=FakeTokenizer([VOCABULARY - 1], SENTENCE))) == []


# ------------------------------------------------------------------------------------------------------ the adapters


class Unknown(nn.Module):
    """No known family has these modules."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2)])


def test_a_model_of_no_known_family_is_refused_with_those_that_are() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'Unknown' have no adapter.*bloom.*qwen3_moe.*the guards"):
        architecture_of(Unknown())


def test_a_model_type_without_an_entry_is_known_by_its_modules() -> None:
    module = ZOO["gemma2"]()
    module.config.model_type = "gemma9"
    assert architecture_of(module) is GEMMA2
    module.model.layers[1].extra_norm = nn.LayerNorm(32)
    with pytest.raises(UnsupportedModelError, match="'gemma9' have no adapter"):
        architecture_of(module)


def test_a_variant_without_an_entry_is_refused_with_those_that_have_one() -> None:
    module = ZOO["bloom"](apply_residual_connection_post_layernorm=True)
    with pytest.raises(
        UnsupportedModelError,
        match=r"'bloom' has apply_residual_connection_post_layernorm=True.*expected apply_.*=False",
    ):
        architecture_of(module)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            llama(output="self_attn.out"),
            r"names 'self_attn.out' in LlamaDecoderLayer, but LlamaAttention has no module 'out'; it has q_proj",
        ),
        (llama(heads=5), r"5 heads do not fit the projections of 'llama': the output projection reads 48 numbers"),
        (llama(heads=0), r"gives 0 as the number of heads; expected at least 1"),
        (llama(heads="model.layers"), r"gives a ModuleList as the number of heads; expected at least 1"),
        (llama(residual_scale="multiplier"), r"has the factor 'multiplier'; found None. Correct `residual_scale`"),
        (llama(layout=concatenated), r"cuts the keys from column \d+ of 'self_attn.k_proj', which has 24 columns"),
        (llama(heads="config.n_head"), r"the number of heads is at 'config.n_head', and 'n_head' is not there"),
        (
            llama(layers="model.layers.0.self_attn"),
            r"'model.layers.0.self_attn' is a LlamaAttention; expected the list",
        ),
        (llama(output="mlp"), r"'mlp' \(LlamaMLP\) should be a linear projection and does not say its in_features"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_with_what_to_correct(
    architecture: Architecture, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Anatomy(tiny_llama(), architecture)


def test_layers_of_different_sizes_are_refused() -> None:
    module = tiny_llama()
    module.model.layers[1].self_attn.k_proj = nn.Linear(32, 12)
    with pytest.raises(UnsupportedModelError, match=r"attention of different sizes"):
        Anatomy(module)


def test_no_two_families_share_a_name_and_model_types_differ_by_configuration() -> None:
    names = [architecture.name for architecture in ARCHITECTURES]
    assert len(set(names)) == len(names)
    plain = [kind for architecture in ARCHITECTURES if not architecture.when for kind in architecture.model_types]
    assert len(set(plain)) == len(plain)


def test_require_names_the_first_failure_with_its_numbers() -> None:
    good = GuardResult("one", 0.1, 0.2, "Fine.")
    bad = GuardResult("two", 0.5, 0.2, "Broken.")
    with pytest.raises(GuardError, match=r"gpt fails the guard 'two': error 0.5, tolerance 0.2. Broken."):
        require((good, bad, GuardResult("three", float("nan"), 1, "")), "gpt")
    assert not GuardResult("nan", float("nan"), 1, "").passed
