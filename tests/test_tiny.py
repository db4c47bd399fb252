"""The tiny models are what their description promises."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from tests.tiny import FAMILIES, VOCABULARY, tiny_gpt2, tiny_llama, tiny_tokenizer

Factory = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("factory", FAMILIES.values(), ids=FAMILIES)
def test_logits_vary_by_a_few_units_and_attention_is_far_from_uniform(factory: Factory) -> None:
    model = factory(attn_implementation="eager")
    ids = torch.randint(VOCABULARY, (8, 10), generator=torch.Generator().manual_seed(1))
    out = model(ids, output_attentions=True)
    assert 1.0 < out.logits.std(dim=-1).mean() < 10.0
    for pattern in out.attentions:
        entropy = -(pattern[:, :, -1] * pattern[:, :, -1].clamp_min(1e-12).log()).sum(-1)
        assert entropy.mean() < 0.9 * torch.tensor(10.0).log()


@pytest.mark.parametrize("factory", FAMILIES.values(), ids=FAMILIES)
def test_a_tiny_model_depends_on_its_seed_only(factory: Factory) -> None:
    ids = torch.arange(6)[None]
    torch.manual_seed(1)
    first = factory(seed=3)(ids).logits
    torch.manual_seed(2)
    assert torch.equal(first, factory(seed=3)(ids).logits)
    assert not torch.allclose(first, factory(seed=4)(ids).logits)


@pytest.mark.parametrize("factory", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_tied_when_asked(factory: Factory, tied: bool) -> None:
    model = factory(tied=tied)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied


def test_a_tiny_llama_has_grouped_keys_and_heads_of_their_own_width() -> None:
    config = tiny_llama().config
    assert (config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers) == (4, 2, 3)
    assert config.head_dim != config.hidden_size // config.num_attention_heads
    assert tiny_gpt2().config.n_layer == 3


def test_the_tiny_tokenizer_has_single_tokens_for_frequent_words_and_spells_the_rest() -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) <= VOCABULARY
    assert len(tokenizer.encode(" gave")) == 1
    assert len(tokenizer.encode(" zebra")) > 1
    text = "When Mary gave a zebra ü"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
