"""Which nodes a behaviour needs and which are enough for it: interchange of nodes, tested.

*Necessity*: what the clean run loses when a set of nodes alone sends what it sends in the corrupted run.
*Sufficiency*: what the corrupted run gains when the set alone sends what it sends in the clean run. Both are shares of
the gap between the two runs. At scale, ablating single heads finds less than exchanging them (arXiv:2604.04385).

Against chance: for every set, that its effect has no sign (effects of pairs, or of clusters of pairs, with signs at
random; two-sided, Holm's correction over sets). A set of several nodes is also held against random sets of equally
many heads and MLPs of the same thirds of the layers; single nodes are not, since a layer has too few others.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.ablation.nodes import acting_nodes, control_nodes
from circuits.behaviours import clusters_of
from circuits.behaviours.behaviour import Behaviour
from circuits.circuit import Circuit
from circuits.errors import UsageError
from circuits.files.documents import json_text
from circuits.files.journal import Journal
from circuits.graph import Node, NodeKind
from circuits.model import Model
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options, Resources
from circuits.patching.node_sets import NodeSet, interchange_effects
from circuits.patching.protocol import Experiment, StageProgress, gaps, no_stages, of_stage
from circuits.patching.sequences import AnyExperiment, of_one_token
from circuits.patching.shared_experiment import SharedExperiment, share
from circuits.scores import Floats
from circuits.statistics import Estimate, Number, holm, share_of, sign_flips
from circuits.vocabulary import Ablation, Direction

RANDOM_SETS = 99
"""So many random sets are drawn: their least p-value is 0.01."""
PAIRS = 64
HALF, ALPHA = 8, 0.05
"""Of fewer clusters half the pairs are not tested: their least p-value, before Holm's correction, is 0.008."""
Sets = Circuit | Sequence[Node | str | Sequence[Node | str]] | None


@dataclass(frozen=True)
class NodeTest:
    """One set of nodes: both shares of the gap, and p-values, Holm's over all sets that were tested with it."""

    nodes: tuple[str, ...]
    necessity: Estimate
    sufficiency: Estimate
    p_necessity: Number
    p_sufficiency: Number


@dataclass(frozen=True)
class RandomSets:
    """What random sets of equal size, kinds and thirds of the layers do: medians, 95 % quantiles, and p-values.

    ``p`` is the share of the set and its random ones that do as much as it or more, so at least ``1 / (n + 1)``.
    """

    n: int
    necessity: tuple[float, float]
    sufficiency: tuple[float, float]
    p_necessity: float
    p_sufficiency: float


@dataclass(frozen=True)
class NodeTests:
    """What :func:`interchange_nodes` found, in the order of the sets; shares are of ``gap``, in the metric's unit.

    ``halves`` are the same tests on every other cluster of pairs, and on the rest; empty where either has fewer than 8.
    """

    model: str
    behaviour: str
    metric: str
    n: int
    clusters: int
    gap: float
    tests: tuple[NodeTest, ...]
    random: RandomSets | None = None
    remarks: tuple[str, ...] = ()
    halves: tuple[tuple[NodeTest, ...], ...] = ()

    @property
    def replicated(self) -> tuple[tuple[str, ...], ...]:
        """The sets whose two effects have one sign and p below 0.05, by Holm, on both halves of the pairs."""
        return tuple(each[0].nodes for each in zip(*self.halves, strict=True) if _alike(each))

    def to_json(self) -> str:
        """Return the text of ``interchange.json``."""
        return json_text(self.to_document())

    def to_document(self) -> dict[str, Any]:
        """Return what ``interchange.json`` holds."""
        return {**asdict(self), "replicated": self.replicated}


def interchange_nodes(
    model: Model,
    behaviour: Behaviour,
    sets: Sets = None,
    *,
    options: Options | None = None,
    resources: Resources | None = None,
    pairs: int = PAIRS,
    random_sets: int = RANDOM_SETS,
    seed: int = 0,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
    folder: str | Path | None = None,
) -> NodeTests:
    """Test nodes by exchanging what they send between the clean and the corrupted run, on held-out prompts.

    Args:
        model: The model.
        behaviour: Whose prompts are run.
        sets: What is exchanged: nodes (``"a3.h5"``, ``"L3H5"``, ``"m3"``) each alone, or sequences of nodes together; a
            circuit's heads and MLPs together; None: every head and MLP of the model, each alone.
        options: What is measured. Default: the behaviour's own metric.
        resources: What measuring may use.
        pairs: How many held-out pairs.
        random_sets: How many random sets a single set of several nodes is held against.
        seed: Draws pairs, random sets and signs.
        progress: Is told about the stages.
        journal: Keeps what is measured.
        folder: Where processes meet that do the same and share the exchanges (:func:`circuits.share`); this needs a
            journal.

    Raises :class:`UsageError` for another ablation than ``corrupted`` and for answers of several tokens. Cost: two
    forward passes at most per set and random set.
    """
    options = options or Options(behaviour.metric)
    require_exchanged(options)
    prompts = behaviour.prompts(model.tokenizer, discovery=0, heldout=pairs, seed=seed)
    progress("recording the prompts", 0, 0)
    measured = model.experiment(
        prompts.heldout, options, resources=resources, reference=prompts.reference, journal=journal
    )
    experiment = exchanged(measured, folder)
    wanted = _node_sets(model, sets)
    clusters = clusters_of(prompts.heldout)
    random = random_sets if len(wanted) == 1 and len(wanted[0]) > 1 else 0
    controls = _controls(experiment, wanted[0], random, seed)
    gap = gaps(experiment)
    effects = {
        direction: interchange_effects(
            experiment, [*wanted, *controls], direction, progress=of_stage(progress, f"exchanging nodes, {direction}")
        )
        for direction in (Direction.NOISING, Direction.DENOISING)
    }
    own = {direction: found[: len(wanted)] for direction, found in effects.items()}
    return NodeTests(
        model=model.info.id,
        behaviour=prompts.behaviour,
        metric=options.metric.value,
        n=experiment.n_pairs,
        clusters=int(clusters.max()) + 1,
        gap=float(gap.mean()),
        tests=_tests(wanted, own, gap, clusters, seed),
        random=_random({each: row.mean(1) / gap.mean() for each, row in effects.items()}) if controls else None,
        remarks=prompts.remarks,
        halves=_halves(wanted, own, gap, clusters, seed),
    )


def exchanged(experiment: AnyExperiment, folder: str | Path | None) -> PatchingExperiment | SharedExperiment:
    """Return an experiment on which nodes can be exchanged, shared with the processes that meet in a folder, if any.

    Raises :class:`UsageError` for answers of several tokens.
    """
    alone = of_one_token(experiment, "the exchange of nodes")
    return alone if folder is None else share(alone, folder)


def require_exchanged(options: Options) -> None:
    """Raise :class:`UsageError` for another ablation than ``corrupted``."""
    if options.ablation is not Ablation.CORRUPTED:
        raise UsageError("interchange takes values from the other run of a pair; leave --ablation corrupted.")


def _halves(
    sets: list[NodeSet], effects: dict[Direction, Floats], gap: Floats, clusters: NDArray[np.int64], seed: int
) -> tuple[tuple[NodeTest, ...], ...]:
    """Test on every other cluster of pairs and on the rest; nothing where these are too few to tell."""
    if int(clusters.max()) + 1 < 2 * HALF:
        return ()
    found: list[tuple[NodeTest, ...]] = []
    for half in (clusters % 2 == 0, clusters % 2 == 1):
        part = {direction: rows[:, half] for direction, rows in effects.items()}
        found.append(_tests(sets, part, gap[half], clusters[half], seed))
    return tuple(found)


def _alike(tests: tuple[NodeTest, ...]) -> bool:
    values = [value for each in tests for value in (each.necessity.value, each.sufficiency.value)]
    chances = [chance for each in tests for chance in (each.p_necessity, each.p_sufficiency)]
    return max(chances) < ALPHA and (min(values) > 0 or max(values) < 0)


def _node_sets(model: Model, sets: Sets) -> list[NodeSet]:
    """Return what is exchanged as sets of nodes."""
    if sets is None:
        return [(node,) for node in model.graph.senders if node.kind in (NodeKind.HEAD, NodeKind.MLP)]
    if isinstance(sets, Circuit):
        sets.remark_on(model.info)
        return [acting_nodes(sets)]
    given = [
        (each,) if isinstance(each, str | Node) else tuple(each) for each in ([sets] if isinstance(sets, str) else sets)
    ]
    found = [tuple(node if isinstance(node, Node) else Node.parse(node) for node in each) for each in given]
    if not found:
        raise UsageError("no nodes to exchange were named; give some, such as a3.h5 and m3, or None for all.")
    return found


def _controls(experiment: Experiment, nodes: NodeSet, count: int, seed: int) -> list[NodeSet]:
    """Draw random sets of equal size, kinds and thirds of the layers; none where only the set itself can be drawn."""
    generator = np.random.default_rng(seed)
    drawn = [control_nodes(experiment.graph, nodes, generator) for _ in range(count)]
    return [each for each in drawn if set(each) != set(nodes)]


def _tests(
    sets: list[NodeSet], effects: dict[Direction, Floats], gap: Floats, clusters: NDArray[np.int64], seed: int
) -> tuple[NodeTest, ...]:
    shares, chances = dict[Direction, list[Estimate]](), dict[Direction, Floats]()
    for direction, found in effects.items():
        shares[direction] = [share_of(row, gap, clusters=clusters, seed=seed) for row in found]
        chances[direction] = holm(sign_flips(found, clusters=clusters, seed=seed))
    first, second = effects
    rows = zip(sets, shares[first], shares[second], chances[first], chances[second], strict=True)
    return tuple(
        NodeTest(tuple(map(str, nodes)), needed, enough, float(p_needed), float(p_enough))
        for nodes, needed, enough, p_needed, p_enough in rows
    )


def _random(shares: dict[Direction, Floats]) -> RandomSets:
    """Sum up what random sets do, from the mean shares of ``(the set, random sets…)``."""
    spreads = [(float(np.median(found[1:])), float(np.quantile(found[1:], 0.95))) for found in shares.values()]
    chances = [float((found >= found[0]).mean()) for found in shares.values()]
    return RandomSets(len(shares[Direction.NOISING]) - 1, spreads[0], spreads[1], chances[0], chances[1])
