"""What a head writes is what the logits lose without it."""

import pytest
import torch

from circuits.adapters.anatomy import Anatomy
from circuits.graph import Node
from circuits.heads.random_sequences import repeated_sequences, sequence_scores
from circuits.heads.written_logits import Copier, among_top, head_logits, value_output
from circuits.tracing.runs import record
from circuits.tracing.tracer import Tracer
from tests.tiny import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.zoo import ZOO

IDS = torch.randint(2, 320, (3, 7), generator=torch.Generator().manual_seed(1))


def test_of_the_last_layer_it_is_the_change_when_the_heads_output_is_zeroed_there() -> None:
    """In a parallel block nothing else reads the last attention, so zeroing it in the model is the direct effect."""
    module = ZOO["gpt_neox"]()
    tracer = Tracer(Anatomy(module))
    found = head_logits(tracer, record(tracer, IDS), 1 + 2 * 5 + 3)
    with torch.no_grad():
        before = module(IDS).logits[:, -1]
        module.gpt_neox.layers[2].attention.dense.weight[:, 24:].zero_()
        change = before - module(IDS).logits[:, -1]
    torch.testing.assert_close(found, change - change.mean(-1, keepdim=True), atol=1e-4, rtol=1e-4)


def test_through_a_norm_behind_the_attention_it_is_the_change_of_the_normed_sum() -> None:
    module = ZOO["gemma2"]()
    anatomy = Anatomy(module)
    tracer = Tracer(anatomy)
    run = record(tracer, IDS)
    found = head_logits(tracer, run, 1 + 2 * 5 + 1)
    own = anatomy.head_outputs(2, run.z[2], [1])[:, -1, 0]
    attention = run.attention[2][:, -1]
    stream = run.stream[-1][:, -1] - (anatomy.written(2, attention) - anatomy.written(2, attention - own))
    with torch.no_grad():
        without = module.lm_head(module.model.norm(stream))
        without = 8.0 * torch.tanh(without / 8.0)
    change = run.logits - without
    torch.testing.assert_close(found, change - change.mean(-1, keepdim=True), atol=1e-4, rtol=1e-4)


def test_a_token_is_among_the_top_only_if_at_most_four_others_are_as_high() -> None:
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [0.0] * 7])
    assert among_top(logits, torch.tensor([[4, -1], [0, 1]])).tolist() == [True, False]
    assert among_top(logits, torch.tensor([[5, -1], [0, 1]])).tolist() == [False, False]
    assert among_top(logits, torch.tensor([[5, 0], [0, 1]])).tolist() == [True, False]
    assert among_top(logits, torch.tensor([[2], [0]]), lowest=True).tolist() == [True, False]
    assert among_top(logits, torch.tensor([[1], [0]]), lowest=True).tolist() == [False, False]
    assert among_top(logits, torch.tensor([[-1], [-1]])).tolist() == [False, False]


@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
def test_the_value_output_is_what_a_head_writes_when_it_attends_to_one_position_only(family) -> None:
    """At position 0 every head does."""
    module = family()
    anatomy = Anatomy(module)
    run = record(Tracer(anatomy), IDS)
    for head in (Node.parse("a1.h0"), Node.parse("a1.h3")):
        found = value_output(anatomy, head, run.stream[1][:, 0])
        torch.testing.assert_close(found, anatomy.head_outputs(1, run.z[1], [head.index])[:, 0, 0])


def test_copying_reads_the_embedding_and_layer_0s_mlp_of_it() -> None:
    module = tiny_llama()
    tracer = Tracer(Anatomy(module))
    first, later = Copier(tracer, IDS)._streams
    ids = IDS[:, 1:].flatten()
    embedded = module.model.embed_tokens(ids)
    layer = module.model.layers[0]
    torch.testing.assert_close(first, embedded)
    torch.testing.assert_close(later, embedded + layer.mlp(layer.post_attention_layernorm(embedded)))


def test_sequences_are_a_first_token_and_ordinary_tokens_twice() -> None:
    tokenizer = tiny_tokenizer()
    ids = repeated_sequences(Anatomy(tiny_llama()), tokenizer, 5, seed=0)
    assert ids.shape == (8, 51)
    assert (ids[:, 0] == 5).all()
    assert (ids[:, 1:26] == ids[:, 26:]).all()
    assert all(len(set(row[1:26].tolist())) == 25 for row in ids)
    assert not set(ids[:, 1:].flatten().tolist()) & {5, *tokenizer.all_special_ids}
    assert (ids != repeated_sequences(Anatomy(tiny_llama()), tokenizer, 5, seed=1)).any()


def test_sequences_fit_into_few_positions() -> None:
    assert repeated_sequences(Anatomy(tiny_gpt2(n_positions=16)), None, 5, seed=0).shape == (8, 15)


def test_scores_are_read_at_the_right_places() -> None:
    weights = torch.zeros(1, 3, 9, 9)  # one token, then four tokens twice
    query = torch.arange(9)
    weights[:, 0, query[1:], query[1:] - 1] = 1
    weights[:, 1, query[5:], query[5:] - 4] = 1
    weights[:, 2, query[5:], query[5:] - 3] = 1
    rows = [(s.previous_token, s.duplicate_token, s.induction) for s in sequence_scores(weights)]
    assert rows == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
