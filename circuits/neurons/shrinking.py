"""Few neurons that carry a behaviour: dropped in rounds by what each pair loses without them.

The search of :mod:`circuits.pruning.closest` with neurons for edges. It begins with the best by score, takes the slope
of every fit pair's metric along the weight of every neuron inside the set (one forward and one backward pass, however
many neurons there are), drops those by which the loss is predicted to be least, and goes on down to one neuron. What
the sets on the way are worth is measured on other pairs.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from circuits.adapters.rules import GIM, PLAIN, RELP, BackwardRules
from circuits.errors import UsageError
from circuits.neurons.neuron_experiment import Floats, NeuronExperiment, Places
from circuits.pruning.residuals import Residuals, greedily
from circuits.pruning.steps import RIDGE
from circuits.statistics import error
from circuits.vocabulary import ScorerName

START = 2400
"""With how many neurons the search begins, and twice as many where they do not carry the behaviour."""
_SHARE = 0.2
"""Which share of the neurons goes in a round."""
_RULES: dict[ScorerName, BackwardRules] = {
    ScorerName.EAP: PLAIN,
    ScorerName.RELP: RELP,
    ScorerName.GIM: GIM,
}
SCORERS = (ScorerName.EAP_IG, *_RULES)
"""The scorers that neurons have."""


def neuron_scores(
    whole: NeuronExperiment, inside: NeuronExperiment, scorer: ScorerName | str, *, steps: int = 5
) -> Floats:
    """Return a score for each neuron, the mean over pairs: positive where replacing it hurts the behaviour.

    ``eap`` is the slope along its weight where all neurons are as they are; ``eap-ig`` the mean of the slopes on the
    way there from no neuron, at the midpoints of ``steps`` intervals; ``relp`` and ``gim`` as eap by other derivatives,
    in the whole model also where the others are measured ``inside`` a circuit. Cost: one forward and one backward pass
    (for each step). Raises :class:`UsageError` for other scorers.
    """
    name = ScorerName.parse(scorer)
    sign = inside.experiment.metric.sign
    if name is ScorerName.EAP_IG:
        shares = [(step + 0.5) / steps for step in range(steps)]
        parts = [inside.slopes(inside.everything, share=share)[1].mean(0) for share in shares]
        return sign * np.stack(parts).mean(axis=0, dtype=np.float64)
    if name not in _RULES:
        raise UsageError(f"neurons are scored by {', '.join(SCORERS)}; {name} scores edges. Use --scorer eap-ig.")
    if inside.experiment.metric.against_clean:
        raise UsageError(
            f"the divergence from the clean run has zero gradient at the clean run, so {name} would score every neuron "
            "0. Use --scorer eap-ig, or --metric logit-difference."
        )
    rules = _RULES[name]
    experiment = inside if rules.plain else whole
    return sign * experiment.slopes(experiment.everything, rules=rules)[1].mean(0, dtype=np.float64)


def ranked(scores: Floats) -> Places:
    """Return neurons by |score|, the largest first; ties by place."""
    return np.argsort(-np.abs(scores), kind="stable")


def shrinking_sets(
    fit: NeuronExperiment,
    scores: Floats,
    *,
    target: float,
    start: int = START,
    sizes: Sequence[int] = (),
    report: Callable[[int, int], None] = lambda _, __: None,
) -> list[Places]:
    """Return ever smaller sets of neurons, from those that the search begins with down to one.

    Args:
        fit: The pairs that neurons are dropped for.
        scores: Which neurons to begin with, the largest |score| first.
        target: The fidelity looked for; the search begins with so many neurons that the first set is closer than that.
        start: With how many neurons it begins.
        sizes: Sizes that the search is to come by.
        report: Called with (neurons dropped, neurons at the start).

    Cost: about 40 forward and backward passes of the fit pairs.
    """
    order, residuals = ranked(scores), Residuals(fit)
    size = max(start, *sizes, 1)
    while size < fit.n_neurons and not _close(fit, order[:size], target):
        size *= 2
    sets = [np.sort(order[:size])]
    first = len(sets[0])
    while len(sets[-1]) > 1:
        places = sets[-1]
        values, slopes = fit.slopes(places)
        count = len(places) - _next(len(places), sizes)
        effects: NDArray[np.float64] = -residuals.rows(slopes[:, places].astype(np.float64))
        gone, _ = greedily(residuals.of(values), effects, count, ridge=RIDGE)
        sets.append(np.delete(places, gone))
        report(first - len(sets[-1]), first)
    return sets


def _close(fit: NeuronExperiment, places: Places, target: float) -> bool:
    return float(error(fit, fit.sets([np.sort(places)])[0])) < math.sqrt(1 - target) / 2


def _next(size: int, sizes: Sequence[int]) -> int:
    """Return the size after this one: a share less, but none of the wanted sizes is passed over."""
    smaller = min(size - 1, round(size * (1 - _SHARE)))
    return max([smaller, *(wanted for wanted in sizes if wanted < size)])
