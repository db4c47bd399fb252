"""Answers of several tokens: exact by causality, per pair, whatever is measured."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.ablation.edges import measure_edge_ablation
from circuits.behaviours import Behaviour, TokenPair
from circuits.behaviours.lint import check_pair
from circuits.behaviours.pairs import Pair
from circuits.discovery import discover
from circuits.discovery_settings import DiscoverySettings
from circuits.errors import PromptError, UsageError
from circuits.heads import head_roles
from circuits.metrics import AnswerTokens
from circuits.model import load_model
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options
from circuits.patching.paths import path_effects
from circuits.patching.sequences import SequenceExperiment, rows_of
from circuits.patching.sites import patch_sites
from circuits.pruning import top
from circuits.scoring import score
from circuits.vocabulary import Direction, Metric, PrunerName, ScorerName
from tests.ablation.conftest import circuit_of
from tests.reference.gradients import gradient_edge_scores
from tests.reference.hooks import exact_edge_effects, masked_run
from tests.subjects import Subject, double_of, random_masks, random_pairs, relative
from tests.tiny import tiny_llama, tiny_tokenizer

RIGHT = ((5, 6, 7), (5, 6, 9), (11,))
WRONG = ((5, 8), (12, 13))
FAMILIES = ("llama", "gpt2")


def with_sequences(pair: TokenPair) -> TokenPair:
    return replace(pair, answers=(11,), wrong_answers=(12,), sequences=RIGHT, wrong_sequences=WRONG)


PAIRS = [with_sequences(pair) for pair in (*random_pairs(2, 7), *random_pairs(2, 5, seed=8))]


@cache
def subject(family: str) -> Subject:
    return double_of(family)


def experiment(family: str, pairs: list[TokenPair] = PAIRS, **options: object) -> SequenceExperiment:
    given = {"metric": Metric.SEQUENCE, **options}
    return SequenceExperiment(pairs, lambda rows: subject(family).experiment(rows, **given))


def by_token(measure: Callable[[Tensor, Tensor, int], Tensor], pair: TokenPair) -> Tensor:
    """Add up what is measured of each token of each answer: the definition, row by row, nothing merged."""
    total = torch.tensor(0.0, dtype=torch.float64)
    for sequences, sign in ((pair.sequences, 1), (pair.wrong_sequences, -1)):
        for sequence in sequences:
            for place, token in enumerate(sequence):
                sides = [torch.tensor([(*side, *sequence[:place])]) for side in (pair.clean, pair.corrupted)]
                total = total + sign / len(sequences) * measure(*sides, token)
    return total


def log_probability(token: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits.log_softmax(-1)[:, token]


# --------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_the_tokens_of_all_answers_and_shared_ones_are_merged():
    rows = {(row.clean[7:], row.answers[0]): row.weight for row in rows_of(PAIRS[0])}
    third, half = pytest.approx(1 / 3), pytest.approx(-1 / 2)
    assert rows == {
        ((), 5): pytest.approx(2 / 3 - 1 / 2),
        ((5,), 6): pytest.approx(2 / 3),
        ((5, 6), 7): third,
        ((5, 6), 9): third,
        ((), 11): third,
        ((5,), 8): half,
        ((), 12): half,
        ((12,), 13): half,
    }
    assert all(row.clean[7:] == row.corrupted[7:] for row in rows_of(PAIRS[0]))
    assert all(row.clean[:7] == PAIRS[0].clean for row in rows_of(PAIRS[0]))


def test_rows_that_cancel_are_left_out_and_a_pair_without_rows_is_refused():
    shared = replace(PAIRS[0], sequences=((5, 6),), wrong_sequences=((5, 7),))
    assert [(row.clean[7:], row.answers) for row in rows_of(shared)] == [((5,), (6,)), ((5,), (7,))]
    for same in ({"sequences": ((5,),), "wrong_sequences": ((5,),)}, {"sequences": (), "wrong_sequences": ()}):
        with pytest.raises(PromptError, match="has no answers by the metric sequence"):
            rows_of(replace(PAIRS[0], **same))


# -------------------------------------------------------------------------------------------------------- measurements


@pytest.mark.parametrize("family", FAMILIES)
def test_both_runs_equal_the_teacher_forced_log_probability_of_whole_answers(family):
    """One plain forward pass per answer, and the log probabilities read at every position of it."""
    module, found = subject(family).module, experiment(family)
    for side, values in (("clean", found.clean), ("corrupted", found.corrupted)):
        for pair, value in zip(PAIRS, values, strict=True):
            means = []
            for sequences in (pair.sequences, pair.wrong_sequences):
                sums = []
                for sequence in sequences:
                    prompt = getattr(pair, side)
                    with torch.no_grad():
                        logits = module(torch.tensor([(*prompt, *sequence)])).logits[0].log_softmax(-1)
                    positions = range(len(prompt) - 1, len(prompt) + len(sequence) - 1)
                    sums.append(sum(float(logits[p, t]) for p, t in zip(positions, sequence, strict=True)))
                means.append(sum(sums) / len(sums))
            assert value == pytest.approx(means[0] - means[1], abs=1e-9)
            assert abs(value) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_circuits_equal_the_slow_reference_token_by_token(family):
    graph, module = subject(family).graph, subject(family).module
    masks = random_masks(graph.n_edges, (0.1, 0.5, 0.9))
    found = experiment(family).circuits(masks)
    every = list(graph.edges())
    for mask, values in zip(masks, found, strict=True):
        live = [every[i] for i in np.flatnonzero(mask)]

        def measure(clean: Tensor, corrupted: Tensor, token: int, live: list = live) -> Tensor:
            return log_probability(token)(masked_run(module, clean, corrupted, live))[0]

        expected = np.array([float(by_token(measure, pair)) for pair in PAIRS])
        assert relative(values, expected) < 1e-8
    assert relative(found, found.mean(1, keepdims=True).repeat(len(PAIRS), 1)) > 0.01


@pytest.mark.parametrize("direction", list(Direction))
def test_edge_effects_equal_the_slow_reference(direction):
    graph, module = subject("llama").graph, subject("llama").module
    edges = np.arange(0, graph.n_edges, 61)
    chosen = list(graph.edges(edges))

    def measure(clean: Tensor, corrupted: Tensor, token: int) -> Tensor:
        options = {"direction": direction.value}
        return exact_edge_effects(module, clean, corrupted, chosen, log_probability(token), **options)[:, 0]

    expected = torch.stack([by_token(measure, pair) for pair in PAIRS], dim=1).numpy()
    found = experiment("llama", direction=direction).edge_effects(edges)
    assert relative(found, expected) < 1e-8
    assert relative(-found, expected) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_are_the_gradients_of_the_sum_with_the_spread_over_pairs(family):
    module = subject(family).module

    def measure(clean: Tensor, corrupted: Tensor, token: int) -> Tensor:
        return gradient_edge_scores(module, clean, corrupted, log_probability(token), points=(0.4,))[0]

    expected = torch.stack([by_token(measure, pair) for pair in PAIRS]).detach().numpy()
    mean, spread = experiment(family).attributions((0.4,))
    assert relative(mean, expected.mean(0)) < 1e-6
    assert relative(spread, expected.std(0, ddof=1)) < 1e-6


def test_the_slopes_of_a_circuit_are_those_of_each_pair():
    found = experiment("llama")
    mask = random_masks(found.graph.n_edges, (0.6,))[0]
    values, slopes = found.circuit_gradient(mask.astype(float))
    assert relative(values, found.circuits([mask])[0]) < 1e-9
    for edge in np.argsort(-np.abs(slopes).max(0))[:2]:
        here, there = (mask.astype(float) for _ in range(2))
        here[edge] += 1e-4
        there[edge] -= 1e-4
        change = found.circuit_gradient(here)[0] - found.circuit_gradient(there)[0]
        assert slopes[:, edge] == pytest.approx(change / 2e-4, rel=1e-4)


def test_a_part_is_the_same_measured_on_those_pairs_alone():
    whole, part = experiment("llama"), experiment("llama").part(1, 3)
    alone = experiment("llama", PAIRS[1:3])
    masks = random_masks(whole.graph.n_edges, (0.3, 0.8))
    assert part.n_pairs == 2
    for values, expected in (
        (part.clean, alone.clean),
        (part.corrupted, whole.corrupted[1:3]),
        (part.circuits(masks), alone.circuits(masks)),
        (part.attributions((0.5,)), alone.attributions((0.5,))),
    ):
        assert relative(values, expected) < 1e-9


def test_answers_of_one_token_give_the_mean_difference_of_log_probabilities():
    pairs = [replace(pair, sequences=((3,), (4,)), wrong_sequences=((9,),)) for pair in PAIRS]
    module = subject("llama").module
    with torch.no_grad():
        logits = torch.cat([module(torch.tensor([pair.clean])).logits[:, -1].log_softmax(-1) for pair in pairs])
    expected = (logits[:, [3, 4]].mean(-1) - logits[:, 9]).numpy()
    assert relative(experiment("llama", pairs).clean, expected) < 1e-9


# --------------------------------------------------------------------------------------------- behaviours and discovery


@cache
def model():
    return load_model(tiny_llama(), tokenizer=tiny_tokenizer(), name="tiny")


GOOD = Pair("When Mary and John", "When Mary and Paul", (" went to", "Sorry"), (" gave",), source="a pair")


def test_answers_of_several_tokens_are_kept_whole_for_this_metric_only():
    tokenizer = model().tokenizer
    tokens = check_pair(GOOD, tokenizer, Metric.SEQUENCE)
    assert [tokenizer.decode(list(sequence)) for sequence in tokens.sequences] == [" went to", "Sorry"]
    assert [tokenizer.decode(list(sequence)) for sequence in tokens.wrong_sequences] == [" gave"]
    assert tokens.answers == tuple(sequence[0] for sequence in tokens.sequences)
    with pytest.raises(PromptError, match="only the next token is measured"):
        check_pair(GOOD, tokenizer, Metric.LOGIT_DIFFERENCE)
    ids = check_pair(replace(GOOD, answers=(), answer_ids=(5, 6)), tokenizer, Metric.SEQUENCE)
    assert ids.sequences == ((5,), (6,))


def test_first_tokens_that_both_kinds_share_tell_nothing_and_equal_answers_are_refused():
    tokenizer = model().tokenizer
    tokens = check_pair(replace(GOOD, wrong_answers=(" went the",)), tokenizer, Metric.SEQUENCE)
    assert [tokenizer.decode([token]) for token in tokens.answers] == [tokenizer.decode([tokens.sequences[1][0]])]
    assert tokens.wrong_answers == ()
    with pytest.raises(PromptError, match="' went to' is an answer and a wrong answer at once"):
        check_pair(replace(GOOD, wrong_answers=(" went to",)), tokenizer, Metric.SEQUENCE)
    with pytest.raises(PromptError, match="there is no answer; the metric sequence needs at least one"):
        check_pair(replace(GOOD, answers=()), tokenizer, Metric.SEQUENCE)
    assert check_pair(replace(GOOD, wrong_answers=()), tokenizer, Metric.SEQUENCE).wrong_sequences == ()


def test_measuring_sequences_as_if_they_were_one_token_is_refused():
    with pytest.raises(UsageError, match="answers of several tokens are measured token by token: by the metric seq"):
        AnswerTokens.of(PAIRS)
    with pytest.raises(UsageError, match=r"`model\.experiment` in Python"):
        model().experiment(PAIRS)


def test_only_sequences_get_an_experiment_of_their_own():
    plain = random_pairs()
    assert isinstance(model().experiment(plain), PatchingExperiment)
    assert isinstance(model().experiment(PAIRS, Options(Metric.SEQUENCE)), SequenceExperiment)


def test_what_reads_one_token_says_so_of_answers_of_several():
    options = Options(Metric.SEQUENCE)
    several = model().experiment(PAIRS[:1], options)
    for act in (lambda: patch_sites(several, "resid", ["a"]), lambda: path_effects(several, ["m0->logits"])):
        with pytest.raises(
            UsageError, match=r"measures answers of several tokens, and (path|activation) patching needs one"
        ):
            act()
    circuit = circuit_of(model(), ["a0.h0->logits"])
    with pytest.raises(UsageError, match="what heads write and copy is told from the logits of one token, and the met"):
        head_roles(model(), circuit, PAIRS, options=options)
    with pytest.raises(UsageError, match="the metric projection is the length along a direction, which discover"):
        measure_edge_ablation(model(), circuit.edges, PAIRS, metric="projection")


def test_the_digest_tells_sequences_apart():
    pairs = [replace(GOOD, clean=f"When {a} and John", corrupted=f"When {a} and Paul") for a in "abcdefghij"]
    mine = Behaviour("mine", "a test", lambda _: pairs, metric=Metric.SEQUENCE)
    digests = [
        each.prompts(model().tokenizer, discovery=4, heldout=4).digest
        for each in (mine, mine.varied(answers=[" went to"]), mine.varied(answers=[" went the"]))
    ]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("scorer", [ScorerName.EAP, ScorerName.EAP_IG, ScorerName.EXACT, ScorerName.CLEAN_CORRUPTED])
def test_scorers_and_pruners_work_on_pairs(scorer):
    found = model().experiment(PAIRS, Options(Metric.SEQUENCE))
    scores = score(found, scorer)
    assert len(scores.scored) == found.graph.n_edges
    selection = top(found, scores, 40)
    mask = np.isin(np.arange(found.graph.n_edges), selection.edges)
    gap = found.clean.mean() - found.corrupted.mean()
    expected = (found.circuits([mask])[0].mean() - found.corrupted.mean()) / gap
    assert selection.faithfulness == pytest.approx(expected, abs=1e-6)


def test_a_circuit_is_discovered_on_sequences():
    """Tokens that the model itself prefers on one side, so that it shows the behaviour; wiring, not accuracy."""
    words = [f"{a}{b}" for a in "abcdef" for b in "xyz"]
    texts = [(f"When {word} and John", f"When {word} and Paul") for word in words]
    tokenizer, module = model().tokenizer, model().tracer.anatomy.module
    with torch.no_grad():
        sides = [
            torch.cat([module(torch.tensor([tokenizer.encode(pair[side])])).logits[:, -1] for pair in texts])
            for side in (0, 1)
        ]
    change = (sides[0] - sides[1]).mean(0)
    ids = {"answer_ids": (int(change.argmax()),), "wrong_ids": (int(change.argmin()),)}
    pairs = [Pair(clean, corrupted, **ids) for clean, corrupted in texts]
    behaviour = Behaviour("mine", "a test", lambda _: pairs, metric=Metric.SEQUENCE)
    settings = DiscoverySettings(pairs=4, heldout=4, pruner=PrunerName.TOP, size=60, sample=8)
    circuit = discover(model(), behaviour, settings).circuit
    assert circuit.behaviour.metric == "sequence"
    assert circuit.evaluation is not None
    assert circuit.evaluation.n == 4
    assert circuit.evaluation.accuracy_clean is None
