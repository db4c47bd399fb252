"""The k edges of largest exact effect, found with a stated error probability at a fraction of the full sweep.

1. *Rank* all edges by ``|attribution|`` (eap-ig), and cut the ranking into strata: the first 2k edges, the next 2k,
   then 4k, 8k, ... edges.
2. *Race* (:mod:`circuits.scoring.race`): the first stratum enters; edges that are too small for the top k stop getting
   prompt pairs, all others get more until they had all and are exact.
3. *Search*: the other strata enter in random order, so that what was measured of a stratum is a random sample of it: 64
   edges of each, then the sample of the stratum with the highest rate of hits is doubled, again and again.

Without a budget every edge enters, on 2 pairs at least: the top k is then that of the full sweep, unless a bound of the
race failed (probability ``error``, split evenly between race and search). With a budget, part of some strata is never
measured. How many of the exact top k may be hidden there is bounded by what the samples held, without any assumption
about effects (:func:`~circuits.scoring.bounds.missed_at_most`, corrected for strata and for looking again after each
doubling). Such a bound shrinks only as 1 / sample: certifying that *none* is missing takes nearly every edge, which is
why two pairs of all edges are the better bargain where the budget allows it.

This is about single effects, and single effects do not compose: ``discover`` keeps eap-ig as its default. On ioi in
SmolLM2-135M (64 pairs, k = 200, a budget of 400 edges) eap-ig had 142 of the verified top 200; yet from verified scores
the pruner ended with 100 edges and a held-out faithfulness of 0.88 [0.78, 0.98], from the mean of both with 81 edges
and 0.90 [0.79, 1.02], from eap-ig alone with 60 edges and 0.91 [0.79, 1.04].

The race assumes that pairs are in random order, and that the edges it should find are no more irregular over pairs than
those it has found (see :mod:`circuits.scoring.bounds`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from circuits.errors import UsageError
from circuits.graph import EdgeIndices
from circuits.patching.protocol import Experiment, Progress, no_progress
from circuits.scores import EdgeScores, Verification
from circuits.scoring.bounds import missed_at_most
from circuits.scoring.budget import Budget, Meter
from circuits.scoring.measurements import Measurements
from circuits.scoring.race import Race
from circuits.settings import settle

_FIRST_SAMPLE = 64
_SAMPLE_SHARE = 0.1
"""The first samples of all strata take no more than this share of a budget."""


@dataclass(frozen=True)
class TopK:
    """What is to be found: the ``k`` largest effects, within a budget, with a probability of error below ``error``."""

    k: int = 200
    budget: Budget = field(default_factory=Budget)
    error: float = 0.05

    def __post_init__(self) -> None:
        settle(self)
        if self.k < 1:
            raise UsageError(f"the number of edges to find must be at least 1, got {self.k}.")
        if not 0 < self.error < 1:
            raise UsageError(f"the error probability must be between 0 and 1, got {self.error}.")
        if self.budget.edges is not None and self.budget.edges < self.k:
            raise UsageError(
                f"to find the top {self.k} edges, these at least must be measured, but the budget is "
                f"{self.budget.edges} edges. Give a larger --budget or a smaller --top."
            )


@dataclass
class _Stratum:
    """Edges of neighbouring rank, of which ``entered`` were measured: a random sample, in all but the first stratum."""

    edges: EdgeIndices
    random: bool
    entered: int = 0
    looks: int = 0
    hits: int = 0
    undecided: int = 0

    @property
    def rate(self) -> float:
        return (self.hits + 0.5) / (self.entered + 1)

    @property
    def likely(self) -> float:
        """Estimate the hits not measured from the rate of those that were; not a number without any."""
        rest = len(self.edges) - self.entered
        return rest * self.hits / self.entered if self.entered else (np.nan if rest else 0.0)

    def missed(self, error: float) -> int:
        """Bound the hits not measured, taking the undecided for hits, which only raises the bound.

        Looking again and again is paid for with ``error / (j (j + 1))`` at look j.
        """
        if not self.random or not self.entered:
            return len(self.edges) - self.entered
        level = error / max(1, self.looks * (self.looks + 1))
        return missed_at_most(len(self.edges), self.entered, self.hits + self.undecided, level)


def verify(
    experiment: Experiment,
    attribution: EdgeScores,
    wanted: TopK,
    *,
    name: str = "verified",
    seed: int = 0,
    progress: Progress = no_progress,
) -> EdgeScores:
    """Find the edges of largest ``|exact effect|`` among those with an attribution.

    Edges measured on all pairs, the top k among them, get their exact effect, and ``measured_edges`` says which these
    are. All others keep their attribution, cut off below the threshold, so that by ``|score|`` none comes before an
    edge of the top k: attribution over all pairs is a better estimate than a mean over the few pairs that sufficed to
    tell that an edge is not among them. ``verification`` says what was measured and how sure it is.
    Cost: an attribution; k edges on all pairs; without a budget, all edges on 2 pairs and uncertain ones on more.
    """
    ranked = attribution.ranked(by_magnitude=True)
    top = min(wanted.k, len(ranked))
    meter = Meter(wanted.budget, experiment.n_pairs)
    planned = min(2, experiment.n_pairs) * (len(ranked) - top) + experiment.n_pairs * top
    measured = Measurements(experiment, meter, planned=planned, progress=progress)
    prior = attribution.sd if attribution.sd is not None else np.abs(attribution.values)
    race = Race(measured, prior, top=top, error=wanted.error / 2, seed=seed)
    strata = list(_strata(ranked, 2 * top, seed))
    _search(race, measured, strata)
    progress(max(1, meter.spent), max(1, meter.spent))
    share = wanted.error / 2 / max(1, len(strata) - 1)
    return _scores(attribution, measured, race, name, _record(wanted, race, measured, strata, share))


def _strata(ranked: EdgeIndices, first: int, seed: int) -> Iterator[_Stratum]:
    """Cut a ranking: the first edges as they are, then strata that double, each in random order."""
    begin, end = 0, first
    while begin < len(ranked):
        edges = ranked[begin:end]
        if begin == 0:
            yield _Stratum(edges, random=False)
        else:
            yield _Stratum(np.random.default_rng([seed, begin]).permutation(edges), random=True)
        begin, end = end, 2 * end


def _search(race: Race, measured: Measurements, strata: list[_Stratum]) -> None:
    """Let strata enter the race: whole ones without a limit, growing samples within one."""
    whole, sample = not measured.meter.limited, _FIRST_SAMPLE
    if measured.meter.limit is not None:
        affordable = _SAMPLE_SHARE * measured.meter.limit / (race.first_pairs * len(strata))
        sample = min(sample, max(1, int(affordable)))
    first = [each.edges if whole or not each.random else each.edges[:sample] for each in strata]
    measured.measure(np.concatenate(first), race.first_pairs)  # every stratum, before the race may spend the budget
    for edges in first:
        race.run(edges)
    _look(race, measured, strata)
    while True:
        unfinished = [each for each in strata if 0 < each.entered < len(each.edges)]
        if not unfinished:
            return
        stratum = max(unfinished, key=lambda each: each.rate)
        race.run(stratum.edges[stratum.entered : 2 * stratum.entered])
        if not _look(race, measured, strata):
            return


def _look(race: Race, measured: Measurements, strata: list[_Stratum]) -> bool:
    """Count what was measured of each stratum, and the hits among it; say whether there is anything new."""
    new = False
    for stratum in strata:
        entered = int(np.count_nonzero(measured.counts[stratum.edges]))
        if entered > stratum.entered:
            stratum.entered, stratum.looks, new = entered, stratum.looks + 1, True
        stratum.hits = int(np.isin(stratum.edges, race.best).sum())  # a higher threshold unseats hits of other strata
        stratum.undecided = int(np.isin(stratum.edges, race.undecided).sum())
    return new


def _record(wanted: TopK, race: Race, measured: Measurements, strata: list[_Stratum], share: float) -> Verification:
    candidates = sum(len(stratum.edges) for stratum in strata)
    return Verification(
        top=len(race.best),
        wanted=min(wanted.k, candidates),
        threshold=race.threshold,
        edges=candidates,
        edges_measured=int(np.count_nonzero(measured.counts)),
        edges_exact=len(race.exact),
        share_of_sweep=measured.meter.spent / (candidates * measured.n_pairs),
        error=wanted.error,
        uncertain=len(race.undecided),
        missed_at_most=sum(stratum.missed(share) for stratum in strata),
        missed_likely=sum(stratum.likely for stratum in strata),
    )


def _scores(attribution: EdgeScores, measured: Measurements, race: Race, name: str, record: Verification) -> EdgeScores:
    exact, cap = race.exact, np.nextafter(race.threshold, 0)
    values = np.clip(attribution.values, -cap, cap) if race.threshold else attribution.values.copy()
    values[exact] = measured.means(exact)
    spread = np.full(len(values), np.nan) if attribution.sd is None else attribution.sd.copy()
    spread[exact] = measured.effects[exact].std(axis=1, ddof=1) if measured.n_pairs > 1 else np.nan
    which = np.zeros(len(values), dtype=np.bool_)
    which[exact] = True
    return EdgeScores(
        attribution.graph,
        values,
        name,
        measured=len(exact) == len(attribution.scored),
        sd=spread,
        n=measured.n_pairs,
        measured_edges=which,
        verification=record,
    )
