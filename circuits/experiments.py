"""Setting up an experiment on prompt pairs, by whatever metric."""

from collections.abc import Sequence

from circuits.behaviours.pairs import TokenPair
from circuits.directions import direction_of
from circuits.model import Model
from circuits.sequences import SequenceExperiment
from circuits.tracing.experiment import Options, PatchingExperiment
from circuits.vocabulary import Metric

AnyExperiment = PatchingExperiment | SequenceExperiment


def experiment_on(
    model: Model,
    pairs: Sequence[TokenPair],
    options: Options | None = None,
    *,
    reference: Sequence[TokenPair] = (),
) -> AnyExperiment:
    """Set up measurements on prompt pairs.

    Args:
        model: The model.
        pairs: What is measured.
        options: How. With the metric ``sequence`` answers may be of several tokens.
        reference: Of the metric ``projection``, the pairs that its direction is taken from
            (``behaviour.prompts(...).reference``); never those it is judged on.

    Cost: two forward passes of the pairs; of answers of several tokens, of all their rows; of ``projection``, one of
    both sides of the reference pairs beside. Raises :class:`UsageError` for a projection without reference pairs.
    """
    options = options or Options()
    if options.metric is Metric.SEQUENCE:
        return SequenceExperiment(pairs, lambda rows: model.experiment(rows, options))
    if options.metric is Metric.PROJECTION:
        tracer = model.tracer.reading(direction_of(model, reference)[None])
        return PatchingExperiment(tracer, model.graph, pairs, options)
    return model.experiment(pairs, options)
