"""What is trusted at the length of the guards is checked at the length of the prompts: positions that depend on it."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from circuits.errors import GuardError
from circuits.metrics import AnswerTokens, measure
from circuits.tracing.prefix import PrefixCache, cache_keyword
from circuits.vocabulary import Ablation, Metric
from tests.reference.hooks import exact_edge_effects
from tests.subjects import Subject, clean_ids, corrupted_ids, metric_of, random_pairs, relative
from tests.tiny import tiny_llama

ORIGINAL = 10
"""Tokens up to which the models' positions are those they were made for."""
ROPE: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 6,
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0],
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "linear": {"rope_type": "linear", "factor": 2.0},
}
LENGTHS = {"below": 8, "at": ORIGINAL, "just beyond": ORIGINAL + 1, "beyond": 14}
OFF = {("dynamic", "just beyond"), ("dynamic", "beyond"), ("longrope", "just beyond"), ("longrope", "beyond")}
"""Where the frequencies of the whole prompt are not those of its first tokens."""


def rope_model(kind: str, *, layers: int = 2) -> PreTrainedModel:
    limit = 4 * ORIGINAL if kind in ("longrope", "yarn") else ORIGINAL
    parameters = {"rope_theta": 10000.0, **ROPE[kind]}
    return tiny_llama(num_hidden_layers=layers, max_position_embeddings=limit, rope_parameters=parameters)


def alone(kind: str, ids: Tensor) -> Tensor:
    """Logits of a new model that has never seen another prompt."""
    with torch.no_grad():
        return rope_model(kind)(ids, use_cache=False).logits[:, -1]


@pytest.mark.parametrize("kind", ROPE)
@pytest.mark.parametrize("where", LENGTHS)
def test_metric_and_exact_edges_are_those_of_the_model_run_whole(kind: str, where: str) -> None:
    subject, length = Subject(kind, rope_model(kind)), LENGTHS[where]
    pairs = random_pairs(3, length, shared=length - 4)
    experiment = subject.experiment(pairs)
    answers = AnswerTokens.of(pairs)
    for values, ids in ((experiment.clean, clean_ids(pairs)), (experiment.corrupted, corrupted_ids(pairs))):
        expected = measure(Metric.LOGIT_DIFFERENCE, alone(kind, ids), answers).double().numpy()
        np.testing.assert_allclose(values, expected, atol=1e-4)
    edges = subject.some_edges(5)
    whole = subject.experiment(pairs, prefix_cache=False)
    assert relative(experiment.edge_effects(edges), whole.edge_effects(edges)) < 1e-4
    assert relative(experiment.attributions([0.5, 1.0]), whole.attributions([0.5, 1.0])) < 1e-4
    by_hooks = exact_edge_effects(
        subject.module,
        clean_ids(pairs),
        corrupted_ids(pairs),
        [subject.graph.edge(int(edge)) for edge in edges[::3]],
        metric_of(Metric.LOGIT_DIFFERENCE, pairs=pairs),
    ).numpy()
    assert relative(experiment.edge_effects(edges[::3]), by_hooks) < 1e-3
    assert experiment.prefix_cache.on is ((kind, where) not in OFF)
    if not experiment.prefix_cache.on:
        assert f"in prompts of {length} tokens" in experiment.prefix_cache.why_off
        assert "depends on the length" in experiment.prefix_cache.why_off


def test_the_reported_model_has_the_metric_and_the_edge_of_a_plain_pass() -> None:
    """One layer, dynamic frequencies, 12 tokens of which 8 are shared, 10 positions: was 2.036 for 1.788."""
    subject = Subject("dynamic", rope_model("dynamic", layers=1))
    (pair,) = random_pairs(1, 12, shared=8)
    experiment = subject.experiment([pair])
    with torch.no_grad():
        fresh = rope_model("dynamic", layers=1)(clean_ids([pair]), use_cache=False).logits[:, -1]
    expected = float(measure(Metric.LOGIT_DIFFERENCE, fresh, AnswerTokens.of([pair])))
    assert experiment.clean[0] == pytest.approx(expected, abs=1e-5)
    cached = subject.tracer.prefix_of(clean_ids([pair])[:, :8])
    assert cached.length == 8  # the model takes a prefix, and on short prompts rightly
    assert subject.tracer.prefix_cache.on


def test_prompts_of_several_lengths_do_not_change_each_others_positions() -> None:
    """Dynamic frequencies follow the longest prompt that a model has seen."""
    subject = Subject("dynamic", rope_model("dynamic"))
    short, long = random_pairs(2, 12, shared=2), random_pairs(2, 20, shared=2)
    together, apart = subject.experiment([*long, *short]), subject.experiment(short)
    np.testing.assert_allclose(together.clean[2:], apart.clean, atol=1e-6)
    edges = subject.some_edges(11)
    np.testing.assert_allclose(together.edge_effects(edges)[:, 2:], apart.edge_effects(edges), atol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_measuring_leaves_a_models_positions_as_they_were(kind: str) -> None:
    module = rope_model(kind)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        module(ids, use_cache=False)  # has seen more tokens than it was made for
        before = {name: value.clone() for name, value in module.named_buffers()}
        expected = module(ids[:, :11], use_cache=False).logits
    Subject(kind, module).experiment(random_pairs(2, 20)).attributions([1.0])
    for name, value in module.named_buffers():
        torch.testing.assert_close(value, before[name], msg=name)
    with torch.no_grad():
        torch.testing.assert_close(module(ids[:, :11], use_cache=False).logits, expected)


def test_a_model_that_goes_wrong_only_in_long_prompts_is_refused_with_the_length() -> None:
    """Unlike positions this is no matter of the prefix: what was recorded is not what the model computes."""
    subject = Subject("changed", tiny_llama())
    plain = subject.tracer.plain_logits
    subject.tracer.plain_logits = lambda ids: plain(ids) * (1.1 if ids.shape[1] > 9 else 1.0)
    assert subject.experiment(random_pairs(2, 9)).prefix_cache == PrefixCache()
    with pytest.raises(GuardError, match=r"a recorded run of 12 tokens differs by 0\.09\d* of the size of its logits"):
        subject.experiment(random_pairs(2, 12))


def test_runs_are_checked_at_every_token_length_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, checked = Subject("llama", tiny_llama()), list[tuple[int, ...]]()
    plain = subject.tracer.plain_logits
    subject.tracer.plain_logits = lambda ids: checked.append(tuple(ids.shape)) or plain(ids)
    subject.experiment([*random_pairs(6, 9), *random_pairs(3, 7)], batch_size=2)
    assert sorted(checked) == [(4, 7), (4, 9)]


def test_the_cache_has_its_present_name_in_every_version_of_transformers() -> None:
    assert cache_keyword(tiny_llama()) in ("cache", "past_key_values")
    assert cache_keyword(torch.nn.Linear(1, 1)) is None


def test_an_experiment_says_why_the_prefix_cache_is_off(caplog: pytest.LogCaptureFixture) -> None:
    subject = Subject("llama", tiny_llama())
    pairs = random_pairs(2, 8)
    assert str(subject.experiment(pairs).prefix_cache) == "on"
    assert str(subject.experiment(pairs, prefix_cache=False).prefix_cache) == "off: not wanted"
    zero = subject.experiment(pairs, ablation=Ablation.ZERO).prefix_cache
    assert str(zero) == "off: zero ablation also replaces values at the positions that prompts share"
    with caplog.at_level(logging.WARNING, logger="circuits"):
        Subject("dynamic", rope_model("dynamic")).experiment(random_pairs(2, 14, shared=9))
    assert "the prefix cache is off: in prompts of 14 tokens" in caplog.text
