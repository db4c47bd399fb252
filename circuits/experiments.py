"""Setting up an experiment on prompt pairs, by whatever metric."""

from collections.abc import Sequence

from circuits.behaviours.behaviour import digest_of
from circuits.behaviours.pairs import TokenPair
from circuits.directions import direction_of
from circuits.files.journal import Journal, Shelf
from circuits.model import Model
from circuits.patching.experiment import Options, PatchingExperiment
from circuits.patching.keeping import shelf_of_pairs
from circuits.patching.sequences import SequenceExperiment, rows_of

AnyExperiment = PatchingExperiment | SequenceExperiment


def experiment_on(
    model: Model,
    pairs: Sequence[TokenPair],
    options: Options | None = None,
    *,
    reference: Sequence[TokenPair] = (),
    journal: Journal | None = None,
) -> AnyExperiment:
    """Set up measurements on prompt pairs.

    Args:
        model: The model.
        pairs: What is measured.
        options: How. With the metric ``sequence`` answers may be of several tokens.
        reference: Of the metric ``projection``, the pairs that its direction is taken from
            (``behaviour.prompts(...).reference``); never those it is judged on. Not needed where the model's circuits
            lead to a direction (:func:`circuits.directions.leading_to`).
        journal: Keeps what is measured, and gives back what an earlier run has measured of the same.

    Cost: two forward passes of the pairs; of answers of several tokens, of all their rows; of ``projection``, one of
    both sides of the reference pairs beside. Raises :class:`UsageError` for a projection without reference pairs.
    """
    options = options or Options()
    if options.metric.whole_answers:
        return SequenceExperiment(pairs, lambda rows: model.experiment(rows, options, journal=journal))
    if options.metric.along_direction and model.info.target is None:
        tracer = model.tracer.reading(direction_of(model, reference)[None])
        return PatchingExperiment(tracer, model.graph, pairs, options, _shelf(model, options, reference, journal))
    return model.experiment(pairs, options, journal=journal)


def kept_of(
    model: Model, pairs: Sequence[TokenPair], options: Options, *, reference: Sequence[TokenPair], journal: Journal
) -> Shelf:
    """Return where the journal keeps what :func:`experiment_on` with the same arguments measures."""
    if options.metric.whole_answers:
        pairs = [row for pair in pairs for row in rows_of(pair)]
    return shelf_of_pairs(_shelf(model, options, reference, journal), pairs, options.metric, options.ablation)


def _shelf(model: Model, options: Options, reference: Sequence[TokenPair], journal: Journal | None) -> Shelf:
    shelf = model.shelf(journal)
    found_here = options.metric.along_direction and model.info.target is None
    return shelf.under(reference=digest_of(reference)) if found_here else shelf
