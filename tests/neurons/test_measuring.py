"""Sets of neurons against a model with plain hooks on its down projections, on every family."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from circuits.adapters.rules import PLAIN, RELP, BackwardRules
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Tokens
from circuits.errors import FormatError, PromptError, UnsupportedModelError, UsageError
from circuits.neurons.neuron_experiment import NeuronExperiment
from circuits.neurons.neuron_names import Neuron
from circuits.numbering import mlp_sender
from circuits.passes.neuron_constants import NeuronFit, optimal_neurons
from circuits.passes.neuron_runs import neuron_means
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Ablation, Metric
from tests.passes.test_rules import EXPERTS
from tests.reference.precision import in_float64
from tests.subjects import PAIRS, Subject, clean_ids, corrupted_ids, metric_of, random_pairs, relative
from tests.zoo import ZOO

LOSS = metric_of(Metric.LOGIT_DIFFERENCE)
DENSE = [name for name in ZOO if name not in EXPERTS]
Edit = Callable[[Tensor], Tensor]


@cache
def double(family: str) -> Subject:
    return Subject(family, in_float64(ZOO[family]()).requires_grad_(False))


def measured(subject: Subject, layers: tuple[int, ...] | None = None, **settings: Any) -> NeuronExperiment:
    experiment = subject.experiment(**settings)
    reference = experiment.pairs if experiment.options.ablation.by_means else ()
    return NeuronExperiment(experiment, layers or range(subject.graph.shape.n_layers), reference=reference)


def down(subject: Subject, layer: int) -> nn.Module:
    """The last projection of an MLP, found by its name."""
    names = ("down_proj", "c_proj", "fc_out", "dense_4h_to_h", "fc2")
    inside = subject.module.get_submodule(f"{subject.tracer.anatomy.architecture.layers}.{layer}")
    paths = [path for path, _ in inside.named_modules() if path.endswith(names) and "attn" not in path]
    (path,) = paths
    return inside.get_submodule(path)


@contextmanager
def edited(subject: Subject, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Change what down projections read, with plain hooks."""

    def hook(layer: int) -> Any:
        return lambda _, given: (edits[layer](given[0]), *given[1:])

    handles = [down(subject, layer).register_forward_pre_hook(hook(layer)) for layer in edits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def values_at(subject: Subject, ids: Tensor) -> dict[int, Tensor]:
    """What down projections read in a plain run."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Edit:
        return lambda value: found.setdefault(layer, value.clone())

    with edited(subject, {layer: keep(layer) for layer in range(subject.graph.shape.n_layers)}):
        subject.logits(ids)
    return found


def by_hooks(subject: Subject, kept: Mapping[int, Tensor], base: Mapping[int, Tensor]) -> Tensor:
    """The metric of the clean prompts where neurons that are not kept have base values."""

    def edit(layer: int) -> Edit:
        return lambda value: torch.where(kept[layer], value, base[layer].expand_as(value))

    with edited(subject, {layer: edit(layer) for layer in kept}):
        return LOSS(subject.logits(clean_ids()))


def random_sets(found: NeuronExperiment, shares: tuple[float, ...] = (0.3, 0.9)) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [np.flatnonzero(generator.random(found.n_neurons) < share) for share in shares]


def masks_of(found: NeuronExperiment, places: np.ndarray) -> dict[int, Tensor]:
    whole = torch.zeros(found.n_neurons, dtype=torch.bool)
    whole[torch.as_tensor(places)] = True
    return dict(zip(found.layers, whole.split(list(found.widths)), strict=True))


@pytest.mark.parametrize("family", DENSE)
def test_sets_and_single_neurons_equal_a_model_with_plain_hooks(family: str) -> None:
    subject = double(family)
    found, base = measured(subject), values_at(subject, corrupted_ids())
    sets = random_sets(found)
    expected = torch.stack([by_hooks(subject, masks_of(found, places), base) for places in sets])
    assert relative(found.sets(sets), expected.numpy()) < 1e-9
    assert np.array_equal(found.sets([found.everything])[0], found.experiment.clean)
    places = np.array([1, found.offsets[1] + 7, found.n_neurons - 1])
    without = [np.setdiff1d(found.everything, [place]) for place in places]
    plain = LOSS(subject.logits(clean_ids()))
    lost = torch.stack([plain - by_hooks(subject, masks_of(found, rest), base) for rest in without])
    assert relative(found.effects(places), lost.numpy(), at_least=1e-6) < 1e-6


@pytest.mark.parametrize("family", EXPERTS)
def test_mixtures_of_experts_are_refused_by_name(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\..*(Moe|GptOssMLP).*has the parts.*neurons"):
        measured(Subject(family, ZOO[family]()))


@pytest.mark.parametrize("ablation", [Ablation.MEAN, Ablation.ZERO])
def test_other_neurons_carry_means_over_unpadded_tokens_or_nothing(ablation: Ablation) -> None:
    subject = double("llama")
    found, zero = measured(subject, ablation=ablation), ablation is Ablation.ZERO
    base = {layer: values.mean((0, 1)) * (not zero) for layer, values in values_at(subject, corrupted_ids()).items()}
    (places,) = random_sets(found, (0.5,))
    assert relative(found.sets([places])[0], by_hooks(subject, masks_of(found, places), base).numpy()) < 1e-9


def test_other_neurons_carry_the_means_of_their_position() -> None:
    subject = double("llama")
    found = measured(subject, ablation=Ablation.MEAN_BY_POSITION)
    base = {layer: values.mean(0) for layer, values in values_at(subject, corrupted_ids()).items()}
    (places,) = random_sets(found, (0.5,))
    assert relative(found.sets([places])[0], by_hooks(subject, masks_of(found, places), base).numpy()) < 1e-9


def with_templates(names: str) -> tuple[TokenPair, ...]:
    return tuple(replace(pair, tags={"template": name}) for pair, name in zip(PAIRS, names, strict=True))


def test_other_neurons_carry_the_means_of_their_template() -> None:
    subject, names = double("gpt2"), "abab"
    found = measured(subject, pairs=with_templates(names), ablation=Ablation.MEAN_BY_TEMPLATE)
    base = dict[int, Tensor]()
    for layer, values in values_at(subject, corrupted_ids()).items():
        means = {name: values[[place for place, other in enumerate(names) if other == name]].mean(0) for name in "ab"}
        base[layer] = torch.stack([means[name] for name in names])
    (places,) = random_sets(found, (0.5,))
    assert relative(found.sets([places])[0], by_hooks(subject, masks_of(found, places), base).numpy()) < 1e-9


def test_a_template_without_reference_pairs_is_named() -> None:
    subject, pairs = double("llama"), with_templates("abab")
    experiment = subject.experiment(pairs, ablation=Ablation.MEAN_BY_TEMPLATE)
    with pytest.raises(PromptError, match="no reference pair has the template 'b'"):
        NeuronExperiment(experiment, [0], reference=pairs[:1])


@pytest.mark.parametrize("ablation", [each for each in Ablation if each.by_means])
def test_means_without_reference_pairs_are_refused(ablation: Ablation) -> None:
    with pytest.raises(UsageError, match=f"^{ablation} ablation .* there are none.*--ablation corrupted"):
        NeuronExperiment(double("llama").experiment(ablation=ablation), [0])


def divergence_by_hooks(subject: Subject, fit: NeuronFit, constants: Mapping[int, Tensor]) -> float:
    ((ids, _, kept),) = fit.groups

    def edit(layer: int) -> Edit:
        return lambda value: torch.where(kept[layer], value, constants[layer].to(value))

    own = subject.logits(ids).log_softmax(-1)
    with edited(subject, {layer: edit(layer) for layer in constants}):
        found = subject.logits(ids).log_softmax(-1)
    return float((own.exp() * (own - found)).sum(-1).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_optimal_constants_of_neurons_disturb_the_model_less_than_means(family: str) -> None:
    subject = double(family)
    start = neuron_means(subject.tracer, [pair.corrupted for pair in PAIRS], range(subject.graph.shape.n_layers))
    widths = {layer: each.shape[-1] for layer, each in start.items()}
    fit = NeuronFit.of(subject.tracer, [pair.clean for pair in PAIRS], widths)
    found = optimal_neurons(fit, start)
    for each in (start, found):
        assert float(fit.loss(each)) == pytest.approx(divergence_by_hooks(subject, fit, each), rel=1e-4)
    assert float(fit.loss(found)) < 0.9 * float(fit.loss(start))


@pytest.mark.parametrize("circuit", [False, True])
def test_other_neurons_carry_optimal_constants_which_are_fitted_once(
    monkeypatch: pytest.MonkeyPatch, *, circuit: bool
) -> None:
    subject, fits, usual = Subject("gpt2", double("gpt2").module), list[int](), NeuronFit.of

    def counted(tracer: Tracer, prompts: Sequence[Tokens], widths: Mapping[int, int]) -> NeuronFit:
        fits.append(len(prompts))
        return usual(tracer, prompts, widths)

    monkeypatch.setattr(NeuronFit, "of", counted)
    layers = range(subject.graph.shape.n_layers)
    edges = np.flatnonzero(np.random.default_rng(0).random(subject.graph.n_edges) < 0.8) if circuit else None
    reference = random_pairs(5, 7, seed=31 + circuit)
    experiment = subject.experiment(ablation=Ablation.OPTIMAL)
    first, again = (NeuronExperiment(experiment, layers, edges=edges, reference=reference) for _ in range(2))
    assert fits == [5]
    NeuronExperiment(experiment, layers, edges=edges, reference=reference[:4])
    assert fits == [5, 4]
    (places,) = random_sets(first, (0.5,))
    np.testing.assert_array_equal(first.sets([places]), again.sets([places]))
    if not circuit:
        base = {layer: values[0, 0] for layer, values in first._base[0].items()}
        assert all(bool((first._base[0][layer] == base[layer]).all()) for layer in layers)
        expected = by_hooks(subject, masks_of(first, places), base).numpy()
        assert relative(first.sets([places])[0], expected) < 1e-6
    else:
        others = np.setdiff1d(first.everything, places)
        assert relative(first.sets([places, others]), np.stack([first.clean, first.clean])) > 1e-3
        np.testing.assert_allclose(first.clean, experiment.circuits([subject.graph.mask(edges)])[0], rtol=1e-6)


SOME = ["llama", "gpt2", "gemma2", "olmo2", "granite", "falcon", "opt", "bloom"]


@pytest.mark.parametrize("circuit", [False, True])
@pytest.mark.parametrize("family", SOME)
def test_slopes_are_the_derivatives_of_what_is_measured(family: str, circuit: bool) -> None:
    subject = double(family)
    edges = np.flatnonzero(np.random.default_rng(0).random(subject.graph.n_edges) < 0.8) if circuit else None
    found = NeuronExperiment(subject.experiment(), range(subject.graph.shape.n_layers), edges=edges)
    (places,) = random_sets(found, (0.6,))
    values, slopes = found.slopes(places, share=0.5)
    step = 1e-4
    for chosen, along in ((places, slopes[:, places].sum(1)), (places[3:5], slopes[:, places[3:5]].sum(1))):
        ends = [found.slopes_of_weights(weights_with(found, places, chosen, 0.5 + by))[0] for by in (step, -step)]
        assert relative(along.astype(np.float64), (ends[0] - ends[1]) / (2 * step), at_least=1e-6) < 1e-4
    assert values.shape == (len(PAIRS),)
    np.testing.assert_allclose(found.slopes(places)[0], found.sets([places])[0], rtol=1e-9)


def weights_with(found: NeuronExperiment, places: np.ndarray, moved: np.ndarray, weight: float) -> np.ndarray:
    weights = np.zeros(found.n_neurons)
    weights[places] = 0.5
    weights[moved] = weight
    return weights


@pytest.mark.parametrize("rules", [PLAIN, RELP])
@pytest.mark.parametrize("family", ["llama", "gpt2", "granite", "falcon", "opt", "bloom", "glm", "phi"])
def test_neurons_of_an_mlp_share_what_its_edges_score_together(family: str, rules: BackwardRules) -> None:
    """The gradient at what an MLP writes is the sum of those at what its readers read, by any rules."""
    subject = double(family)
    found, graph = measured(subject), subject.graph
    edges = found.experiment.attributions([1.0], rules=rules)[0]
    slopes = found.slopes(found.everything, rules=rules)[1].mean(0)
    for layer in found.layers:
        own = edges[graph.edge_senders == mlp_sender(graph.shape, layer)].sum()
        assert slopes[found.offsets[layer] : found.offsets[layer + 1]].sum() == pytest.approx(own, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("family", SOME)
def test_in_a_circuit_all_neurons_are_the_circuit_and_none_is_the_circuit_without_what_mlps_send(family: str) -> None:
    subject = double(family)
    experiment, graph = subject.experiment(), subject.graph
    mask, whole = np.random.default_rng(1).random(graph.n_edges) < 0.6, np.ones(graph.n_edges, dtype=np.bool_)
    from_mlps = np.isin(graph.edge_senders, [mlp_sender(graph.shape, layer) for layer in range(graph.shape.n_layers)])
    found = NeuronExperiment(experiment, range(graph.shape.n_layers), edges=np.flatnonzero(mask))
    expected = experiment.circuits([mask, mask & ~from_mlps])
    assert relative(np.stack([found.clean, found.corrupted]), expected) < 1e-9
    everywhere = NeuronExperiment(experiment, range(graph.shape.n_layers), edges=np.flatnonzero(whole))
    sets, plain = random_sets(found), NeuronExperiment(experiment, range(graph.shape.n_layers))
    assert relative(everywhere.sets(sets), plain.sets(sets)) < 1e-6
    places = np.array([2, found.n_neurons - 3])
    assert relative(everywhere.effects(places), plain.effects(places), at_least=1e-6) < 1e-5


def test_rules_of_a_backward_pass_are_refused_in_a_circuit() -> None:
    subject = double("llama")
    found = NeuronExperiment(subject.experiment(), [0, 2], edges=np.arange(subject.graph.n_edges))
    with pytest.raises(UsageError, match="whole model"):
        found.slopes(found.everything, rules=RELP)


def test_neither_batches_nor_the_prefix_nor_lengths_matter() -> None:
    subject, pairs = double("llama"), (*random_pairs(3, 6), *random_pairs(3, 8))
    layers = range(subject.graph.shape.n_layers)
    plain = NeuronExperiment(subject.experiment(pairs), layers)
    sets, places = random_sets(plain), np.array([5, 60, 100])
    for changes in ({"batch_size": 2}, {"prefix_cache": False}):
        other = NeuronExperiment(subject.experiment(pairs, **changes), layers)
        assert relative(other.sets(sets), plain.sets(sets)) < 1e-6, changes
        assert relative(other.effects(places), plain.effects(places), at_least=1e-6) < 1e-6, changes
        assert relative(other.slopes(sets[0])[1].astype(float), plain.slopes(sets[0])[1].astype(float)) < 1e-5, changes


def test_names_and_places_of_neurons_agree() -> None:
    found = measured(double("llama"), (0, 2))
    assert found.n_neurons == 80
    assert [str(found.neuron(place)) for place in (0, 39, 40, 79)] == ["m0.n0", "m0.n39", "m2.n0", "m2.n39"]
    assert Neuron.parse("m2.n39") == found.neuron(79)
    with pytest.raises(FormatError, match=r"'m2' is not the name of a neuron.*m14\.n1203"):
        Neuron.parse("m2")
