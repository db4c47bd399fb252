"""What neurons outside a set carry: values of the corrupted run, means over reference pairs, fitted constants, or 0."""

from collections.abc import Sequence

import torch
from torch import Tensor

from circuits.behaviours.behaviour import digest_of
from circuits.behaviours.pairs import TokenPair, template_of
from circuits.errors import UsageError
from circuits.passes.neuron_constants import NeuronFit, optimal_neurons
from circuits.passes.neuron_runs import Neurons, neuron_means, record_neurons
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.fitted_constants import fitted_once
from circuits.patching.recorded_pairs import of_pairs
from circuits.tracing.optimal_constants import PROMPTS, ROUNDS
from circuits.vocabulary import Ablation

Means = Neurons
"""Means by layer, ``(pos, neuron)``; of one position where it serves for all."""


def neuron_replacements(
    experiment: PatchingExperiment, layers: Sequence[int], reference: Sequence[TokenPair]
) -> list[dict[int, Tensor]]:
    """Return the replacement values of some layers' neurons for each batch of an experiment, ``(pair, pos, neuron)``.

    Cost: one forward pass of the corrupted prompts, or of the clean ones and the reference pairs; with optimal ablation
    a fit, once. Raises :class:`UsageError` for means without reference pairs.
    """
    tracer, ablation = experiment.tracer, experiment.options.ablation
    if ablation.by_runs:
        runs = ((batch, record_neurons(tracer, batch.corrupted, layers)) for batch in experiment.batches)
        return [{layer: batch.at_counterparts(values) for layer, values in run.items()} for batch, run in runs]
    if ablation.by_means and not reference:
        raise UsageError(
            f"{ablation} ablation takes the values of neurons outside the set from reference pairs, and there are "
            "none; give some with `reference=`, or use --ablation corrupted."
        )
    runs = [record_neurons(tracer, batch.clean, layers) for batch in experiment.batches]
    if not ablation.by_means:
        return [{layer: torch.zeros_like(values) for layer, values in run.items()} for run in runs]
    means = _optimal(experiment, layers, reference) if ablation is Ablation.OPTIMAL else None
    by_name = {"": means} if means is not None else _means(experiment, layers, reference)
    return [
        _of_batch(of_pairs([experiment.pairs[int(place)] for place in batch.index], by_name, ablation), run)
        for batch, run in zip(experiment.batches, runs, strict=True)
    ]


def _of_batch(means: Sequence[Means], like: Neurons) -> dict[int, Tensor]:
    """Return each pair's means at the positions of its prompt; where all have the same, they are held once."""
    means = means[:1] if all(each is means[0] for each in means) else means
    return {
        layer: torch.stack([each[layer][: values.shape[1]] for each in means]).to(values).expand_as(values)
        for layer, values in like.items()
    }


def _means(experiment: PatchingExperiment, layers: Sequence[int], reference: Sequence[TokenPair]) -> dict[str, Means]:
    ablation, groups = experiment.options.ablation, dict[str, list[tuple[int, ...]]]()
    for pair in reference:
        groups.setdefault(template_of(pair) if ablation is Ablation.MEAN_BY_TEMPLATE else "", []).append(pair.corrupted)
    by_position, tracer = ablation is not Ablation.MEAN, experiment.tracer
    return {name: neuron_means(tracer, each, layers, by_position=by_position) for name, each in groups.items()}


def _optimal(experiment: PatchingExperiment, layers: Sequence[int], reference: Sequence[TokenPair]) -> Means:
    """Return the constants that disturb the model least; they are the same for a circuit, which is made of it."""
    tracer = experiment.tracer

    def fit() -> dict[str, Tensor]:
        start = neuron_means(tracer, [pair.corrupted for pair in reference], layers)
        widths = {layer: each.shape[-1] for layer, each in start.items()}
        found = optimal_neurons(NeuronFit.of(tracer, [pair.clean for pair in reference], widths), start)
        return {str(layer): each for layer, each in found.items()}

    made = fitted_once(tracer, ["neurons", list(layers), digest_of(reference), PROMPTS, ROUNDS], experiment.kept, fit)
    return {layer: torch.as_tensor(made[str(layer)], device=tracer.anatomy.device) for layer in layers}
