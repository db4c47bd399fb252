"""What replaces a corrupted edge: means over other prompts, and the corrupted prompts of other pairs."""

from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch

import circuits
from circuits.behaviours.behaviour import Behaviour, Pair
from circuits.behaviours.pairs import TokenPair
from circuits.errors import PromptError, UsageError
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.patching.recorded_pairs import resampled
from circuits.tracing.replacements import sender_means
from circuits.tracing.runs import record
from circuits.vocabulary import Ablation, Direction, Metric
from tests.reference.hooks import masked_run, replacements, sender_values
from tests.reference.precision import in_float64
from tests.subjects import (
    PAIRS,
    TOKENIZER,
    Subject,
    clean_ids,
    corrupted_ids,
    metric_of,
    random_masks,
    random_pairs,
    subject_of,
)
from tests.zoo import ZOO

MEANS = [Ablation.MEAN, Ablation.MEAN_BY_POSITION, Ablation.MEAN_BY_TEMPLATE]
OTHERS = (*random_pairs(3, 7, seed=8), *random_pairs(2, 9, seed=9))
"""Pairs of two lengths that means are taken over."""


# ------------------------------------------------------------------------------------------------------------- means


@pytest.mark.parametrize(
    ("family", "ablation"),
    [
        *((family, Ablation.MEAN_BY_POSITION) for family in ZOO),
        *((f, Ablation.MEAN) for f in ("gpt2", "gemma2", "bloom")),
    ],
)
def test_circuits_over_means_equal_the_reference_on_every_family(family: str, ablation: Ablation) -> None:
    subject = Subject(family, in_float64(ZOO[family]()).requires_grad_(False))
    masks = [np.zeros(subject.graph.n_edges, dtype=np.bool_), *random_masks(subject.graph.n_edges, (0.3, 0.9))]
    every, of = list(subject.graph.edges()), metric_of(Metric.LOGIT_DIFFERENCE)
    live = [[every[i] for i in np.flatnonzero(mask)] for mask in masks]
    given = subject.module, clean_ids(), corrupted_ids()
    expected = np.stack([of(masked_run(*given, edges, ablation=ablation.value)).numpy() for edges in live])
    experiment = subject.experiment(ablation=ablation)
    np.testing.assert_allclose(experiment.circuits(masks), expected, atol=1e-6)
    np.testing.assert_allclose(experiment.corrupted, expected[0], atol=1e-6)
    assert np.abs(expected - subject.experiment().circuits(masks)).max() > 1e-3


@pytest.mark.parametrize("by_position", [True, False])
def test_means_are_those_of_all_tokens_of_prompts_of_any_length(by_position: bool) -> None:
    subject = subject_of("llama")
    prompts = [pair.corrupted for pair in OTHERS]
    means = sender_means(subject.tracer, prompts, by_position=by_position)
    runs = [record(subject.tracer, torch.tensor([prompt])) for prompt in prompts]
    for name in ("stream", "z", "mlp"):
        found = getattr(means, name)[1] if name != "stream" else means.stream
        each = [getattr(run, name)[0 if name == "stream" else 1][0] for run in runs]
        if not by_position:
            torch.testing.assert_close(found[0].float(), torch.cat(each).mean(0), atol=1e-5, rtol=0)
            continue
        assert len(found) == 9
        for place, mean in enumerate(found):
            there = torch.stack([value[place] for value in each if len(value) > place])
            torch.testing.assert_close(mean.float(), there.mean(0), atol=1e-5, rtol=0)
    assert means.positions == (9 if by_position else None)


def test_means_are_taken_of_each_sender_and_over_corrupted_prompts_only() -> None:
    subject = subject_of("gpt2")
    means = sender_means(subject.tracer, [pair.corrupted for pair in PAIRS], by_position=False)
    of_reference = replacements(sender_values(subject.module, corrupted_ids()), "mean")
    heads = subject.tracer.anatomy.head_outputs(1, means.z[1].float(), [0, 1, 2, 3])[0]
    for node, value in of_reference.items():
        if (str(node), node.layer) in {(f"a1.h{i}", 1) for i in range(4)}:
            torch.testing.assert_close(heads[node.index], value[0, 0], atol=1e-5, rtol=0)
    assert (heads[0] - heads[1]).abs().max() > 0.1


def test_a_mean_needs_reference_pairs_and_positions_need_long_enough_ones() -> None:
    subject = subject_of("llama")
    for ablation in MEANS:
        with pytest.raises(UsageError, match=f"{ablation} ablation takes means over reference pairs.*there are none"):
            PatchingExperiment(subject.tracer, subject.graph, PAIRS, Options(ablation=ablation))
        with pytest.raises(UsageError, match=f"denoising restores .* and {ablation} ablation has no corrupted run"):
            Options(ablation=ablation, direction=Direction.DENOISING)
    by_position, long = Options(ablation=Ablation.MEAN_BY_POSITION), random_pairs(3, 10)
    with pytest.raises(PromptError, match=r"a prompt has 10 tokens, .* have 9 at most. Use --ablation mean"):
        PatchingExperiment(subject.tracer, subject.graph, long, by_position, reference=OTHERS)
    mean = PatchingExperiment(subject.tracer, subject.graph, long, Options(ablation=Ablation.MEAN), reference=OTHERS)
    assert np.isfinite(mean.corrupted).all()
    assert str(mean.prefix_cache) == "off: mean ablation also replaces values at the positions that prompts share"


@pytest.mark.parametrize("tag", ["template", "cluster"])
def test_means_by_template_are_those_by_position_over_the_pairs_of_the_same_template(tag: str) -> None:
    subject = subject_of("gpt2")
    pairs = tuple(replace(pair, tags={tag: "AB"[place % 2]}) for place, pair in enumerate(random_pairs(6, 7, seed=8)))
    others = tuple(replace(pair, tags={tag: "AB"[place % 2]}) for place, pair in enumerate(random_pairs(6, 8, seed=5)))

    def measured(chosen: tuple[TokenPair, ...], ablation: Ablation, reference: tuple[TokenPair, ...]) -> np.ndarray:
        options = Options(ablation=ablation)
        experiment = PatchingExperiment(subject.tracer, subject.graph, chosen, options, reference=reference)
        return experiment.circuits(random_masks(subject.graph.n_edges, (0.0, 0.5)))

    found = measured(pairs, Ablation.MEAN_BY_TEMPLATE, others)
    for part in (slice(0, None, 2), slice(1, None, 2)):
        expected = measured(pairs[part], Ablation.MEAN_BY_POSITION, others[part])
        np.testing.assert_allclose(found[:, part], expected, atol=1e-5)
    assert np.abs(found - measured(pairs, Ablation.MEAN_BY_POSITION, others)).max() > 0.01
    with pytest.raises(PromptError, match=r"no reference pair has the template 'B'.*--ablation mean-by-position"):
        measured(pairs, Ablation.MEAN_BY_TEMPLATE, others[::2])


# ---------------------------------------------------------------------------------------------------------- resample


def test_each_pair_gets_the_corrupted_prompt_of_another_of_its_length_each_once() -> None:
    pairs = (*random_pairs(5, 7), *random_pairs(4, 9))
    made = resampled(pairs)
    assert Counter(pair.corrupted for pair in made) == Counter(pair.corrupted for pair in pairs)
    for before, after in zip(pairs, made, strict=True):
        assert after.corrupted != before.corrupted
        assert len(after.corrupted) == len(before.corrupted)
        assert replace(after, corrupted=before.corrupted, corrupted_text=before.corrupted_text) == before
    assert resampled(pairs) == made
    assert resampled(pairs, seed=1) != made
    with pytest.raises(UsageError, match=r"only one pair has 9 tokens .*--pairs"):
        resampled((*random_pairs(3, 7), *random_pairs(1, 9)))


def test_to_resample_is_to_measure_the_resampled_pairs(tiny_folder: Path) -> None:
    tiny_model = circuits.load_model(tiny_folder)
    options = Options(ablation=Ablation.RESAMPLE)
    found = tiny_model.experiment(PAIRS, options)
    plain = tiny_model.experiment(resampled(PAIRS))
    edges = np.arange(0, tiny_model.graph.n_edges, 9)
    np.testing.assert_array_equal(found.edge_effects(edges), plain.edge_effects(edges))
    np.testing.assert_allclose(found.clean, tiny_model.experiment(PAIRS).clean, atol=1e-5)
    assert np.abs(found.corrupted - tiny_model.experiment(PAIRS).corrupted).max() > 0.01


# -------------------------------------------------------------------------------------------- which pairs means are of


def letters(count: int) -> Behaviour:
    """Pairs of four letters each."""
    words = ["".join(four) for four in islice(permutations("BCDFGH", 4), 2 * count)]
    pairs = [Pair(here, there, answer_ids=(1,), wrong_ids=(2,)) for here, there in pairwise(words[: count + 1])]
    return Behaviour("letters", "", lambda _: pairs)


def test_reference_pairs_were_not_drawn_and_are_the_same_however_many_are() -> None:
    behaviour = letters(300)
    sets = [behaviour.prompts(TOKENIZER, discovery=n, heldout=8) for n in (0, 8, 16)]
    for prompts in sets:
        used = {pair.clean_text for pair in (*prompts.discovery, *prompts.heldout)}
        assert len(prompts.reference) == 64
        assert not used & {pair.clean_text for pair in prompts.reference}
        assert prompts.reference == sets[0].reference
    sample = behaviour.sample(TOKENIZER, 90)
    assert len(sample.reference) == 10  # of 100 discovery pairs
    assert not {pair.clean_text for pair in sample.reference} & {pair.clean_text for pair in sample.discovery}
    assert letters(300).prompts(TOKENIZER, discovery=100, heldout=8).reference == ()
