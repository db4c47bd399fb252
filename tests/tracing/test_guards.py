"""The guards pass every supported family, and each has a wrong adapter, model or tokenizer that makes it fire."""

import dataclasses
from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from circuits.builder import build_graph
from circuits.errors import GuardError, UnsupportedModelError
from circuits.graph import ModelShape, Slot
from circuits.tracing import guards
from circuits.tracing.anatomy import Anatomy
from circuits.tracing.architectures import GPT2, LLAMA, Architecture, Columns, architecture_of, concatenated, separate
from circuits.tracing.guards import GuardResult, check, require
from circuits.tracing.masked import run_masked
from circuits.tracing.tracer import Tracer
from tests.tiny import VOCABULARY, tiny_gpt2, tiny_llama
from tests.tracing.subjects import TOKENIZER, Subject

NAMES = ["additivity", "wiring", "nothing live", "everything live", "head isolation", "tokenizer"]


def results_of(
    module: PreTrainedModel, architecture: Architecture | None = None, tokenizer: object = TOKENIZER
) -> tuple[GuardResult, ...]:
    tracer = Tracer(Anatomy(module, architecture), TOKENIZER)
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
    with pytest.raises(GuardError, match=r"tiny fails the guard 'head isolation'.*sliced wrongly.*architectures\.py"):
        require(results, "tiny")


READ_WRONGLY = {
    "a norm that is not its own": llama(attention_norm="post_attention_layernorm"),
    "parallel": llama(parallel=True),
}


@pytest.mark.parametrize("name", READ_WRONGLY)
def test_reading_the_stream_at_the_wrong_place_fires_wiring(name: str) -> None:
    results = results_of(tiny_llama(), READ_WRONGLY[name])
    assert failed(results) == ["wiring", "everything live"]
    with pytest.raises(
        GuardError, match=r"'wiring'.*A receiver does not read what the graph says: a block order, a norm"
    ):
        require(results, "tiny")


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
    with pytest.raises(GuardError, match=r"order that the adapter 'llama' declares: .*norm|proj.*architectures\.py"):
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


def test_an_mlp_that_computes_something_else_than_its_class_fires_wiring_alone() -> None:
    module = tiny_llama()
    mlp = module.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: 2 * plain(x)
    assert failed(results_of(module)) == ["wiring"]


def test_dropout_is_noticed() -> None:
    assert "additivity" in failed(results_of(tiny_gpt2().train()))


def test_weights_that_are_not_numbers_fail_every_measurement() -> None:
    module = tiny_llama()
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    assert failed(results_of(module)) == NAMES[:-1]


# ---------------------------------------------------------------------------------------------------- wrong engines


@pytest.mark.parametrize(("live", "name"), [(False, "nothing live"), (True, "everything live")])
def test_an_engine_that_takes_every_mask_for_the_same_fires_the_other_end_point(
    live: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(tracer: Tracer, graph: object, base: object, changes: object, masks: np.ndarray) -> Tensor:
        return run_masked(tracer, graph, base, changes, np.full_like(masks, not live))

    monkeypatch.setattr(guards, "run_masked", blind)
    results = results_of(tiny_llama())
    assert failed(results) == [name]
    kind = "clean" if live else "corrupted"
    with pytest.raises(GuardError, match=f"'{name}'.*With {name} a run must equal the {kind} run"):
        require(results, "tiny")


# ------------------------------------------------------------------------------------------------- wrong tokenizers


class FakeTokenizer:
    """Gives some ids and decodes them to some text."""

    def __init__(self, ids: list[int], text: str) -> None:
        self.ids, self.text = ids, text

    def __call__(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self.ids)

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


def test_a_family_without_an_adapter_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'falcon' have no adapter.*llama, mistral, qwen2, gpt2.*guards"):
        architecture_of("falcon")


def test_a_configuration_that_counts_other_layers_than_the_model_has_is_refused() -> None:
    module = tiny_llama()
    module.config.num_hidden_layers = 4
    with pytest.raises(GuardError, match=r"the configuration says 4 layers, the model has 3"):
        Anatomy(module)


def test_require_names_the_first_failure_with_its_numbers() -> None:
    good = GuardResult("one", 0.1, 0.2, "Fine.")
    bad = GuardResult("two", 0.5, 0.2, "Broken.")
    with pytest.raises(GuardError, match=r"gpt fails the guard 'two': error 0.5, tolerance 0.2. Broken."):
        require((good, bad, GuardResult("three", float("nan"), 1, "")), "gpt")
    assert not GuardResult("nan", float("nan"), 1, "").passed
