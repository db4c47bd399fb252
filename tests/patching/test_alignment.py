"""Pairs whose sides differ in length: every corrupted value is that of the counterpart, held against plain hooks."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from circuits.behaviours.pairs import TokenPair
from circuits.errors import UsageError
from circuits.graph import Edge, Node
from circuits.metrics import AnswerTokens, measure
from circuits.neurons.neuron_experiment import NeuronExperiment
from circuits.patching.node_sets import interchange_effects
from circuits.patching.recorded_pairs import first_difference, resampled
from circuits.patching.sites import patch_sites, position_labels
from circuits.vocabulary import Ablation, Direction, Metric
from tests.reference.anatomy import anatomy_of
from tests.reference.hooks import hooked, last_logits, live_run, rewired, sender_values
from tests.reference.precision import in_float64
from tests.subjects import TOKENIZER, Floats, Subject, double_of, random_masks, random_pairs, relative, subject_of
from tests.zoo import ZOO


def unequal(pair: TokenPair, corrupted: Sequence[int], alignment: Sequence[int]) -> TokenPair:
    """The pair with another corrupted side of another length."""
    return replace(pair, corrupted=tuple(corrupted), alignment=tuple(alignment), corrupted_text=str(corrupted))


def aligned_pairs() -> tuple[TokenPair, ...]:
    """Three tokens for one, two for four, one pair position by position, and two tokens of the corrupted side alone."""
    shorter, longer, equal, more = random_pairs(4, 7, seed=8)
    c, d = shorter.clean, longer.clean
    return (
        unequal(shorter, (*c[:3], 19, *c[6:]), (0, 1, 2, 3, 3, 3, 4)),
        unequal(longer, (*d[:4], 21, 22, 23, 24, *d[6:]), (0, 1, 2, 3, 6, 7, 8)),
        equal,
        unequal(more, (*more.clean[:2], 25, 26, *more.clean[2:]), (0, 1, 4, 5, 6, 7, 8)),
    )


PAIRS = aligned_pairs()


def own_ids(pair: TokenPair, side: str) -> Tensor:
    return torch.tensor([getattr(pair, side)])


def base_of(module: nn.Module, pair: TokenPair) -> dict[Node, Tensor]:
    """What every sender writes in the corrupted prompt's own run, at the counterparts."""
    values = sender_values(module, own_ids(pair, "corrupted"))
    return {node: value[:, list(pair.counterparts)] for node, value in values.items()}


def value_of(pair: TokenPair, logits: Tensor) -> float:
    return float(measure(Metric.LOGIT_DIFFERENCE, logits, AnswerTokens.of([pair])))


def by_hooks(module: nn.Module, live: Sequence[Sequence[Edge]]) -> Floats:
    """Circuits, pair by pair, with hooks."""
    rows: list[list[float]] = []
    for pair in PAIRS:
        base = base_of(module, pair)
        runs = (live_run(module, own_ids(pair, "clean"), base=base, live=edges) for edges in live)
        rows.append([value_of(pair, logits) for logits in runs])
    return np.array(rows).T


def edges_by_hooks(module: nn.Module, edges: Sequence[Edge]) -> Floats:
    """Effects of single edges: a plain clean run in which one receiver reads the counterpart's value of one sender."""
    anatomy, found = anatomy_of(module), list[list[float]]()
    for pair in PAIRS:
        ids, base = own_ids(pair, "clean"), base_of(module, pair)
        clean, row = sender_values(module, ids), list[float]()
        for edge in edges:
            change = anatomy.stream_change(clean, edge.sender, base[edge.sender])
            with torch.no_grad(), rewired(anatomy, lambda r, s, e=edge, c=change: s + c if r == e.receiver else s):
                row.append(value_of(pair, last_logits(module, ids)))
        with torch.no_grad():
            plain = value_of(pair, last_logits(module, ids))
        found.append([plain - value for value in row])
    return np.array(found).T


@pytest.mark.parametrize("family", ZOO)
def test_circuits_equal_the_reference_on_every_family(family: str) -> None:
    subject = Subject(family, in_float64(ZOO[family]()).requires_grad_(False))
    none, every = (np.full(subject.graph.n_edges, live) for live in (False, True))
    masks = [none, *random_masks(subject.graph.n_edges, (0.3, 0.9)), every]
    all_edges = list(subject.graph.edges())
    expected = by_hooks(subject.module, [[all_edges[i] for i in np.flatnonzero(mask)] for mask in masks])
    experiment = subject.experiment(PAIRS)
    np.testing.assert_allclose(experiment.circuits(masks), expected, atol=1e-6)
    sides = [[value_of(pair, subject.logits(own_ids(pair, side))) for pair in PAIRS] for side in ("corrupted", "clean")]
    np.testing.assert_allclose(expected[[0, -1]], sides, atol=1e-6)  # no edge: the corrupted run; all: the clean one
    np.testing.assert_allclose([experiment.corrupted, experiment.clean], sides, atol=1e-6)
    assert np.abs(expected[1] - expected[0]).max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_exact_edges_equal_one_run_with_hooks_each(family: str) -> None:
    subject = double_of(family) if family in ("llama", "gpt2") else Subject(family, in_float64(ZOO[family]()))
    edges = subject.some_edges(41)
    expected = edges_by_hooks(subject.module, list(subject.graph.edges(edges)))
    found = subject.experiment(PAIRS).edge_effects(edges)
    assert relative(found, expected) < 1e-6
    assert np.abs(expected[:, :2]).max() > 1e-2
    whole = subject.experiment(PAIRS, prefix_cache=False)
    assert relative(found, whole.edge_effects(edges)) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_attributions_are_slopes_of_measured_circuits_that_carry_a_little_less_of_an_edge(family: str) -> None:
    subject = double_of(family)
    experiment = subject.experiment(PAIRS[:2])
    estimates = experiment.attributions([1.0])[0]
    for edge in subject.some_edges(101):
        weights = np.ones(subject.graph.n_edges)
        weights[edge] -= 1e-4
        less, _ = experiment.circuit_gradient(weights)
        change = float((experiment.clean - less).mean()) / 1e-4
        assert change == pytest.approx(estimates[edge], abs=1e-4, rel=1e-2)
    assert np.abs(estimates[subject.some_edges(101)]).max() > 0.01


def test_a_pair_of_equal_lengths_aligned_position_by_position_is_measured_as_without() -> None:
    subject = subject_of("llama")
    plain = random_pairs(3, 7)
    same = tuple(replace(pair, alignment=tuple(range(7))) for pair in plain)
    masks, edges = random_masks(subject.graph.n_edges, (0.2, 0.7)), subject.some_edges(9)
    one, other = subject.experiment(plain), subject.experiment(same)
    np.testing.assert_allclose(one.circuits(masks), other.circuits(masks), atol=1e-4)
    np.testing.assert_allclose(one.edge_effects(edges), other.edge_effects(edges), atol=1e-5)
    np.testing.assert_allclose(one.attributions([0.5]), other.attributions([0.5]), atol=1e-5)


def test_pairs_of_any_lengths_together_are_measured_as_alone() -> None:
    subject = subject_of("gpt2")
    masks, edges = random_masks(subject.graph.n_edges, (0.3, 0.8)), subject.some_edges(17)
    together = subject.experiment(PAIRS)
    for place, pair in enumerate(PAIRS):
        alone = subject.experiment([pair])
        np.testing.assert_allclose(together.circuits(masks)[:, [place]], alone.circuits(masks), atol=1e-4)
        np.testing.assert_allclose(together.edge_effects(edges)[:, [place]], alone.edge_effects(edges), atol=1e-5)
    part = together.part(1, 3)
    np.testing.assert_allclose(part.circuits(masks), together.circuits(masks)[:, 1:3], atol=1e-5)


def test_a_prefix_ends_before_the_first_position_that_is_no_longer_its_own() -> None:
    shorter, longer, equal, _ = PAIRS
    assert [first_difference(pair) for pair in PAIRS] == [3, 4, 2, 2]
    moved = replace(shorter, alignment=(0, 1, 1, 3, 3, 3, 4))
    assert first_difference(moved) == 1  # what is read at position 2 stands at 1
    assert first_difference(equal) == 2
    assert longer.opposite == (*longer.clean[:4], 23, 24, longer.clean[6])


def test_sites_take_the_counterparts_values() -> None:
    subject, pair = subject_of("llama"), PAIRS[0]
    labels = position_labels(TOKENIZER, [pair])
    assert ["≠" in label for label in labels] == [False, False, False, True, True, True, False]
    found = patch_sites(subject.experiment([pair]), "resid", labels)
    with torch.no_grad():
        streams = subject.module(own_ids(pair, "corrupted"), output_hidden_states=True).hidden_states
    for layer, block in enumerate(subject.module.model.layers):
        for position, there in enumerate(pair.counterparts):
            with hooked() as handles:
                handles.append(block.register_forward_pre_hook(put_at(position, streams[layer][:, there])))
                expected = value_of(pair, subject.logits(own_ids(pair, "clean")))
            assert found.values[layer, position] == pytest.approx(expected, abs=1e-4)
    assert np.ptp(found.values) > 0.1


def test_neurons_take_the_counterparts_values() -> None:
    subject, pair = subject_of("llama"), PAIRS[0]
    downs = [block.mlp.down_proj for block in subject.module.model.layers]
    seen: list[Tensor] = []
    with hooked() as handles:
        handles.extend(down.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for down in downs)
        subject.logits(own_ids(pair, "corrupted"))
    with hooked() as handles:
        for down, values in zip(downs, [value[:, list(pair.counterparts)] for value in seen], strict=True):
            handles.append(down.register_forward_pre_hook(lambda _, args, new=values: (new, *args[1:])))
        expected = value_of(pair, subject.logits(own_ids(pair, "clean")))
    found = NeuronExperiment(subject.experiment([pair]), range(len(downs)))
    assert found.corrupted[0] == pytest.approx(expected, abs=1e-4)
    assert abs(found.clean[0] - expected) > 0.01


def put_at(position: int, value: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A hook that puts a value into what a module reads."""

    def put(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        changed = args[0].clone()
        changed[:, position] = value
        return (changed, *args[1:])

    return put


def test_what_would_run_the_corrupted_prompt_is_refused() -> None:
    subject = subject_of("llama")
    message = r"denoising restores parts of the corrupted run.*\(5 tokens, not 7\).*--direction noising"
    with pytest.raises(UsageError, match=message):
        subject.experiment(PAIRS, direction=Direction.DENOISING)
    experiment = subject.experiment(PAIRS)
    with pytest.raises(UsageError, match=message):
        interchange_effects(experiment, [[Node.parse("a1.h0")]], Direction.DENOISING)
    assert np.isfinite(interchange_effects(experiment, [[Node.parse("a1.h0")]], Direction.NOISING)).all()


def test_other_ablations_and_resampling_know_of_the_alignment() -> None:
    subject = subject_of("gpt2")
    zero = subject.experiment(PAIRS, ablation=Ablation.ZERO)
    assert str(zero.prefix_cache).startswith("off")
    alone = [subject.experiment([pair], ablation=Ablation.ZERO).corrupted[0] for pair in PAIRS]
    np.testing.assert_allclose(zero.corrupted, alone, atol=1e-5)
    made = resampled(PAIRS)
    assert {(pair.corrupted, pair.alignment) for pair in made} == {(pair.corrupted, pair.alignment) for pair in PAIRS}
    assert np.isfinite(subject.experiment(made).edge_effects(subject.some_edges(31))).all()
