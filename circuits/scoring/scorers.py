"""The scorers: each turns an experiment into one number per edge."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from circuits.adapters.rules import GIM, PLAIN, RELP, BackwardRules
from circuits.errors import UsageError
from circuits.graph import Edges
from circuits.passes.atp_star import AtpStar
from circuits.passes.block_paths import BlockPaths
from circuits.passes.estimate import EdgeEstimate
from circuits.passes.information_flow import InformationFlow
from circuits.patching.protocol import Experiment, Progress, no_progress
from circuits.patching.shared_experiment import share
from circuits.scores import EdgeScores
from circuits.scoring.learned_masks import learned_masks
from circuits.scoring.recursive_elimination import recursive_elimination
from circuits.scoring.verified import TopK, verify
from circuits.settings import settle
from circuits.vocabulary import ScorerName

SHARED = (ScorerName.EXACT, ScorerName.VERIFIED)
"""Scorers that processes can share."""


@dataclass(frozen=True)
class Settings:
    """What scorers can be told: edges to score (None: all), steps of eap-ig, a seed, what to verify, progress.

    ``freeze_norms`` takes the scales of norms as constants where gradients are taken, ``freeze_patterns`` the attention
    patterns (then edges into queries and keys have a score of 0). ``share`` is the folder in which processes meet that
    measure single edges together, by the scorers exact and verified.
    """

    edges: Edges | None = None
    steps: int = 5
    seed: int = 0
    top: TopK = field(default_factory=TopK)
    progress: Progress = no_progress
    freeze_norms: bool = False
    freeze_patterns: bool = False
    share: Path | None = None

    def __post_init__(self) -> None:
        settle(self, least={"seed": 0})


def score(experiment: Experiment, scorer: ScorerName | str, settings: Settings | None = None) -> EdgeScores:
    """Score edges; positive: corrupting the edge moves the metric away from clean behaviour (``EdgeScores``).

    ``exact`` measures every edge (Goldowsky-Dill et al. 2023, arXiv:2304.05969): about a third of a forward pass per
    edge. ``eap`` is the first-order estimate with gradients at the clean run (Syed et al. 2023, arXiv:2310.10348): one
    forward and one backward pass. ``eap-ig`` averages gradients over inputs interpolated between corrupted and clean
    (Hanna et al. 2024, arXiv:2403.17806), here at the midpoints of ``steps`` equal intervals. ``conductance``
    multiplies the gradient of every interval by what the sender changes in that interval, instead of in all
    (arXiv:2606.16920, after Dhamdhere et al. 2018, arXiv:1805.12233), so that edges into the logits sum to the gap.
    ``clean-corrupted`` averages gradients at the two ends. ``relp`` and ``gim`` are eap with other derivatives
    (:mod:`circuits.adapters.rules`); relp takes attention patterns as constants, so edges into queries and keys score
    0. ``atp-star`` recomputes patterns exactly for other queries and keys, and takes sizes from backward passes that
    leave out one layer each, signs from the corrected estimate (:mod:`circuits.passes.atp_star`); about half as many
    backward passes as there are layers. ``eap-ig-activations`` goes from corrupted to clean with one block's output at
    a time and credits that block's senders; ``eap-ig-activations-published`` credits all edges each time
    (:mod:`circuits.passes.block_paths`); both take ``1 + 2 * layers`` times the passes of eap-ig, the first of them
    half as long ones. ``learned-masks`` is the probability that an edge is open when masks are learned
    (:mod:`circuits.scoring.learned_masks`), with the sign of eap-ig, from which they begin; 100 forward and backward
    passes of whole circuits. ``recursive-elimination`` drops edges in rounds, each by slopes inside what is left, and
    ranks them by when they go (:mod:`circuits.scoring.recursive_elimination`); about 80 forward and backward passes of
    ever smaller circuits. ``ifr`` is no estimate of an effect: the share of a sender in what a receiver reads, from
    one forward pass, never negative, and the same whatever is measured (Ferrando and Voita 2024, arXiv:2403.00824,
    :mod:`circuits.passes.information_flow`). ``verified`` finds the ``top.k`` edges of largest exact effect with a
    stated error probability, and measures only as much as that takes (:mod:`circuits.scoring.verified`). ``random`` is
    the baseline: independent normal numbers.
    """
    settings, name = settings or Settings(), ScorerName.parse(scorer)
    if settings.steps < 1:
        raise UsageError(f"{name} needs at least 1 step, got {settings.steps}.")
    if (settings.freeze_norms or settings.freeze_patterns) and not name.by_gradients:
        raise UsageError(
            f"the scorer {name} takes no gradients of the whole model, so norms and patterns cannot be frozen in them. "
            "Use --scorer eap-ig, or leave --freeze-norms and --freeze-patterns out."
        )
    if settings.share is not None:
        _require_shareable(name, settings.top)
        experiment = share(experiment, settings.share)
    return _SCORERS[name](experiment, settings)


def _require_shareable(name: ScorerName, top: TopK) -> None:
    if name not in SHARED:
        raise UsageError(
            f"processes share the edges of the scorers {' and '.join(SHARED)}, and {name} is not shared. Leave out "
            "--workers and --share."
        )
    if name is ScorerName.VERIFIED and top.budget.seconds is not None:
        raise UsageError(
            "processes that verify together must measure the same edges, and in a given time each measures others; "
            "give a number of edges as the budget, such as --budget 2000, or none."
        )


def score_shared(experiment: Experiment, folder: str | Path, *, edges: Edges | None = None) -> EdgeScores:
    """Score edges exactly, together with other processes that do the same in the same folder; each gets all scores.

    Args:
        experiment: What is measured, made with a journal: by that it is known what belongs together.
        folder: Where processes meet and leave what they measured; all must see it, under a path of their own.
        edges: Which edges; default: all.

    The scores are those of ``score(experiment, "exact")``; anything else is shared by :func:`circuits.share`, such as
    ``score(share(experiment, folder), "verified")``. Raises :class:`UsageError` for an experiment without journal,
    :class:`OutputError` for a folder that cannot be written to, and :class:`DeviceError` for effects that are no
    numbers.
    """
    return score(experiment, ScorerName.EXACT, Settings(edges=edges, share=Path(folder)))


def _exact(experiment: Experiment, settings: Settings) -> EdgeScores:
    graph = experiment.graph
    edges = np.arange(graph.n_edges) if settings.edges is None else np.unique(graph.indices(settings.edges))
    effects = experiment.edge_effects(edges, progress=settings.progress)
    values, sd = np.full(graph.n_edges, np.nan), np.full(graph.n_edges, np.nan)
    values[edges] = effects.mean(axis=1)
    if experiment.n_pairs > 1:
        sd[edges] = effects.std(axis=1, ddof=1)
    return EdgeScores(graph, values, ScorerName.EXACT, measured=True, sd=sd, n=experiment.n_pairs)


def _at_clean(
    experiment: Experiment, settings: Settings, *, name: ScorerName, rules: BackwardRules = PLAIN
) -> EdgeScores:
    """Score with gradients at the clean run."""
    _require_slope_at_clean(experiment, name)
    return _gradient(experiment, settings, name, [1.0], rules=rules)


def _require_slope_at_clean(experiment: Experiment, name: ScorerName) -> None:
    if experiment.metric.against_clean:
        raise UsageError(
            f"the divergence from the clean run has zero gradient at the clean run, so {name} would not tell one edge "
            "from another. Use --scorer eap-ig, or --metric logit-difference."
        )


def _eap_ig(experiment: Experiment, settings: Settings) -> EdgeScores:
    return _gradient(experiment, settings, ScorerName.EAP_IG, _midpoints(settings))


def _conductance(experiment: Experiment, settings: Settings) -> EdgeScores:
    return _gradient(experiment, settings, ScorerName.CONDUCTANCE, _midpoints(settings), stepwise=True)


def _midpoints(settings: Settings) -> list[float]:
    return [(step + 0.5) / settings.steps for step in range(settings.steps)]


def _clean_corrupted(experiment: Experiment, settings: Settings) -> EdgeScores:
    return _gradient(experiment, settings, ScorerName.CLEAN_CORRUPTED, [0.0, 1.0])


def _gradient(
    experiment: Experiment,
    settings: Settings,
    name: ScorerName,
    points: list[float],
    *,
    stepwise: bool = False,
    rules: BackwardRules = PLAIN,
) -> EdgeScores:
    rules = rules.freezing(norms=settings.freeze_norms, patterns=settings.freeze_patterns)
    mean, sd = experiment.attributions(points, stepwise=stepwise, rules=rules, progress=settings.progress)
    return _chosen(EdgeScores(experiment.graph, mean, name, measured=False, sd=sd, n=experiment.n_pairs), settings)


def _verified(experiment: Experiment, settings: Settings) -> EdgeScores:
    return verify(
        experiment,
        _eap_ig(experiment, settings),
        settings.top,
        name=ScorerName.VERIFIED,
        seed=settings.seed,
        progress=settings.progress,
    )


def _estimate(experiment: Experiment, settings: Settings, estimate: EdgeEstimate, name: ScorerName) -> EdgeScores:
    rules = PLAIN.freezing(norms=settings.freeze_norms, patterns=settings.freeze_patterns)
    mean, sd = experiment.estimates(estimate, rules=rules, progress=settings.progress)
    return _chosen(EdgeScores(experiment.graph, mean, name, measured=False, sd=sd, n=experiment.n_pairs), settings)


def _atp_star(experiment: Experiment, settings: Settings) -> EdgeScores:
    """Return sizes by GradDrop, with the signs of the corrected estimates."""
    _require_slope_at_clean(experiment, ScorerName.ATP_STAR)
    sizes, signed = (_estimate(experiment, settings, AtpStar(drops), ScorerName.ATP_STAR) for drops in (True, False))
    return replace(sizes, values=np.copysign(sizes.values, signed.values))


def _block_paths(experiment: Experiment, settings: Settings, *, name: ScorerName, every: bool) -> EdgeScores:
    return _estimate(experiment, settings, BlockPaths(tuple(_midpoints(settings)), every), name)


def _learned_masks(experiment: Experiment, settings: Settings) -> EdgeScores:
    """Return learned probabilities, with the signs of eap-ig, from which they begin."""
    start = _eap_ig(experiment, replace(settings, edges=None)).values
    values = learned_masks(experiment, start, seed=settings.seed, progress=settings.progress)
    signed, name = np.where(start < 0, -values, values), ScorerName.LEARNED_MASKS
    return _chosen(EdgeScores(experiment.graph, signed, name, measured=False, n=experiment.n_pairs), settings)


def _recursive_elimination(experiment: Experiment, settings: Settings) -> EdgeScores:
    name = ScorerName.RECURSIVE_ELIMINATION
    _require_slope_at_clean(experiment, name)
    values = recursive_elimination(experiment, progress=settings.progress)
    return _chosen(EdgeScores(experiment.graph, values, name, measured=False, n=experiment.n_pairs), settings)


def _ifr(experiment: Experiment, settings: Settings) -> EdgeScores:
    return _estimate(experiment, settings, InformationFlow(), ScorerName.IFR)


def _random(experiment: Experiment, settings: Settings) -> EdgeScores:
    values = np.random.default_rng(settings.seed).standard_normal(experiment.graph.n_edges)
    return _chosen(EdgeScores(experiment.graph, values, ScorerName.RANDOM, measured=False), settings)


def _chosen(scores: EdgeScores, settings: Settings) -> EdgeScores:
    """Keep the edges that were asked for."""
    if settings.edges is None:
        return scores
    values = np.full_like(scores.values, np.nan)
    edges = scores.graph.indices(settings.edges)
    values[edges] = scores.values[edges]
    return EdgeScores(scores.graph, values, scores.scorer, measured=False, sd=scores.sd, n=scores.n)


_SCORERS: dict[ScorerName, Callable[[Experiment, Settings], EdgeScores]] = {
    ScorerName.EXACT: _exact,
    ScorerName.VERIFIED: _verified,
    ScorerName.EAP: partial(_at_clean, name=ScorerName.EAP),
    ScorerName.RELP: partial(_at_clean, name=ScorerName.RELP, rules=RELP),
    ScorerName.GIM: partial(_at_clean, name=ScorerName.GIM, rules=GIM),
    ScorerName.EAP_IG: _eap_ig,
    ScorerName.CONDUCTANCE: _conductance,
    ScorerName.CLEAN_CORRUPTED: _clean_corrupted,
    ScorerName.ATP_STAR: _atp_star,
    ScorerName.EAP_IG_ACTIVATIONS: partial(_block_paths, name=ScorerName.EAP_IG_ACTIVATIONS, every=False),
    ScorerName.EAP_IG_ACTIVATIONS_PUBLISHED: partial(
        _block_paths, name=ScorerName.EAP_IG_ACTIVATIONS_PUBLISHED, every=True
    ),
    ScorerName.LEARNED_MASKS: _learned_masks,
    ScorerName.RECURSIVE_ELIMINATION: _recursive_elimination,
    ScorerName.IFR: _ifr,
    ScorerName.RANDOM: _random,
}
