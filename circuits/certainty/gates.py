"""Gates and amplifiers: nodes that act through others, and nodes that write what is measured themselves.

What exchanging a node does (its *total*, :mod:`circuits.patching.node_sets`) is parted in two, pair by pair, exactly.
*Direct*: what is left of it when every other node keeps what it sends, so that only the node's own edge into the end of
the graph carries the exchange. *Rest*: all that passes through other nodes. An **amplifier** does more directly than by
the rest. The rest is parted again: what vanishes when the amplifiers keep what they send has passed *through* them. A
**gate** has a total that is needed and enough, and does more through the amplifiers than directly. Both names are given
only where every one of these holds on each half of the pairs, by permuting signs, with Holm's correction over nodes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.behaviours import clusters_of
from circuits.behaviours.behaviour import Behaviour
from circuits.certainty.node_tests import ALPHA, HALF, exchanged, require_exchanged
from circuits.errors import UsageError
from circuits.files.documents import json_text
from circuits.files.journal import Journal
from circuits.graph import Node
from circuits.model import Model
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options, Resources
from circuits.patching.node_sets import interchange_effects
from circuits.patching.protocol import StageProgress, gaps, no_stages, of_stage
from circuits.patching.shared_experiment import SharedExperiment
from circuits.scores import Floats
from circuits.statistics import Estimate, Number, holm, share_of, sign_flips
from circuits.vocabulary import Direction

FORMAT, VERSION = "circuits/gates", 1
PAIRS = 64
GATE, AMPLIFIER = "gate", "amplifier"


@dataclass(frozen=True)
class GateShares:
    """What a node does in one way, necessity or sufficiency, on some pairs: shares of the gap, and p-values (Holm).

    ``p_total``: that exchanging it has no sign; ``p_direct``: that direct and rest are equal; ``p_through``: that what
    passes through the amplifiers is no more than what is direct; ``larger`` says which of direct and rest is larger,
    and ``gated`` whether more passes through the amplifiers than directly, with the sign of the total.
    """

    total: Estimate
    direct: Estimate
    rest: Estimate
    through: Estimate
    p_total: Number
    p_direct: Number
    p_through: Number
    larger: str
    gated: bool

    @property
    def amplifies(self) -> bool:
        """Whether the node itself does more than half of what it does, beyond chance."""
        return max(self.p_total, self.p_direct) < ALPHA and self.larger == "direct"

    @property
    def gates(self) -> bool:
        """Whether it acts, and more through the amplifiers than directly, beyond chance."""
        return max(self.p_total, self.p_through) < ALPHA and self.gated


@dataclass(frozen=True)
class GateTest:
    """One node: shares on all pairs and on ``halves``, necessity and sufficiency each; its ``name``, if it has one."""

    node: str
    whole: tuple[GateShares, GateShares]
    halves: tuple[tuple[GateShares, GateShares], ...]
    name: str = ""


@dataclass(frozen=True)
class GateTests:
    """What :func:`find_gates` found; shares are of ``gap``, in the metric's unit."""

    model: str
    behaviour: str
    metric: str
    towards: str
    n: int
    clusters: int
    gap: float
    amplifiers: tuple[str, ...]
    tests: tuple[GateTest, ...]
    remarks: tuple[str, ...] = ()

    @property
    def gates(self) -> tuple[str, ...]:
        """The nodes that are named gates."""
        return tuple(test.node for test in self.tests if test.name == GATE)

    def describe(self) -> str:
        """Return in a sentence which nodes are what."""
        named = [
            f"{'amplifiers (they write most of what they do themselves)' if kind == AMPLIFIER else 'gates'}: "
            f"{', '.join(names) or 'none'}"
            for kind, names in ((AMPLIFIER, self.amplifiers), (GATE, self.gates))
        ]
        return f"On both halves of {self.n} pairs, of {len(self.tests)} nodes that were tested: {'; '.join(named)}."

    def to_document(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {"format": FORMAT, "version": VERSION, **asdict(self), "gates": self.gates, "summary": self.describe()}

    def to_json(self) -> str:
        """Return the text of ``gates.json``."""
        return json_text(self.to_document())


def find_gates(
    model: Model,
    behaviour: Behaviour,
    nodes: Sequence[Node | str],
    *,
    options: Options | None = None,
    resources: Resources | None = None,
    pairs: int = PAIRS,
    seed: int = 0,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
    folder: str | Path | None = None,
) -> GateTests:
    """Part what nodes do into what they write themselves and what passes through amplifiers; name gates by tests.

    Args:
        model: The model, or one whose circuits lead to a direction (:func:`circuits.leading_to`).
        behaviour: Whose prompts are run.
        nodes: The heads and MLPs that are tested, each alone; amplifiers are found among them.
        options: What is measured. Default: the behaviour's own metric.
        resources: What measuring may use.
        pairs: How many held-out pairs; no name is given on fewer than 16 independent ones.
        seed: Draws pairs and signs.
        progress: Is told about the stages.
        journal: Keeps what is measured.
        folder: Where processes meet that share the exchanges, as of :func:`circuits.interchange_nodes`.

    Raises :class:`UsageError` as :func:`circuits.interchange_nodes`, and for fewer than two nodes. Cost: per node four
    forward passes at most, and the final one of its own edge.
    """
    options = options or Options(behaviour.metric)
    require_exchanged(options)
    wanted = list(dict.fromkeys(node if isinstance(node, Node) else Node.parse(node) for node in nodes))
    if len(wanted) < 2:
        raise UsageError("a gate acts through other nodes; name at least two heads or MLPs, such as a10.h12 and m15.")
    prompts = behaviour.prompts(model.tokenizer, discovery=0, heldout=pairs, seed=seed)
    progress("recording the prompts", 0, 0)
    measured = model.experiment(
        prompts.heldout, options, resources=resources, reference=prompts.reference, journal=journal
    )
    test = _Test(exchanged(measured, folder), wanted, clusters_of(prompts.heldout), seed, progress)
    tests, amplifiers = test.run()
    return GateTests(
        model=model.info.id,
        behaviour=prompts.behaviour,
        metric=options.metric.value,
        towards=str(model.info.target or "logits"),
        n=test.experiment.n_pairs,
        clusters=int(test.clusters.max()) + 1,
        gap=float(gaps(test.experiment).mean()),
        amplifiers=amplifiers,
        tests=tests,
        remarks=prompts.remarks,
    )


@dataclass(frozen=True)
class _Effects:
    """What each node does in one way, ``(node, pair)``: in all, directly, and through the amplifiers."""

    total: Floats
    direct: Floats
    through: Floats


@dataclass(frozen=True)
class _Test:
    experiment: PatchingExperiment | SharedExperiment
    nodes: Sequence[Node]
    clusters: NDArray[np.int64]
    seed: int
    progress: StageProgress

    def run(self) -> tuple[tuple[GateTest, ...], tuple[str, ...]]:
        """Find the amplifiers, hold them, and give names."""
        total, direct = ({way: made(way) for way in Direction} for made in (self._exchanged, self._direct))
        effects = {way: _Effects(total[way], direct[way], np.zeros_like(total[way])) for way in Direction}
        halves = self._halves()
        parts = [self._shares(effects, half) for half in halves]
        places = range(len(self.nodes))
        writing = [place for place in places if parts and all(_both(part[place], "amplifies") for part in parts)]
        held = tuple(self.nodes[place] for place in writing)
        if held:
            kept = {way: self._exchanged(way, held) for way in Direction}
            effects = {way: _Effects(total[way], direct[way], total[way] - kept[way]) for way in Direction}
            parts = [self._shares(effects, half) for half in halves]
        whole = self._shares(effects, np.ones(len(self.clusters), dtype=np.bool_))
        names = dict.fromkeys(writing, AMPLIFIER)
        if held:
            gating = [place for place in places if all(_both(part[place], "gates") for part in parts)]
            names = dict.fromkeys(gating, GATE) | names
        tests = tuple(
            GateTest(str(self.nodes[place]), whole[place], tuple(part[place] for part in parts), names.get(place, ""))
            for place in places
        )
        return tests, tuple(map(str, held))

    def _exchanged(self, way: Direction, held: tuple[Node, ...] = ()) -> Floats:
        stage = f"exchanging nodes, {way}" + (", amplifiers held" if held else "")
        sets = [(node,) for node in self.nodes]
        return interchange_effects(self.experiment, sets, way, held=held, progress=of_stage(self.progress, stage))

    def _direct(self, way: Direction) -> Floats:
        sets, told = [(node,) for node in self.nodes], of_stage(self.progress, f"nodes' own edges, {way}")
        return interchange_effects(self.experiment, sets, way, directly=True, progress=told)

    def _halves(self) -> list[NDArray[np.bool_]]:
        if int(self.clusters.max()) + 1 < 2 * HALF:
            return []
        return [self.clusters % 2 == 0, self.clusters % 2 == 1]

    def _shares(
        self, effects: dict[Direction, _Effects], chosen: NDArray[np.bool_]
    ) -> list[tuple[GateShares, GateShares]]:
        gap, clusters = gaps(self.experiment)[chosen], np.unique(self.clusters[chosen], return_inverse=True)[1]
        both = [self._one_way(effects[way], chosen, gap, clusters) for way in (Direction.NOISING, Direction.DENOISING)]
        return list(zip(*both, strict=True))

    def _one_way(
        self, effects: _Effects, chosen: NDArray[np.bool_], gap: Floats, clusters: NDArray[np.int64]
    ) -> list[GateShares]:
        total, direct, through = (each[:, chosen] for each in (effects.total, effects.direct, effects.through))
        rest = total - direct
        own = direct * np.sign(direct.mean(1, keepdims=True))
        more = own - rest * np.sign(rest.mean(1, keepdims=True))
        gated = through * np.sign(total.mean(1, keepdims=True)) - own
        chances = [holm(sign_flips(rows, clusters=clusters, seed=self.seed)) for rows in (total, more, gated)]

        def share(rows: Floats, place: int) -> Estimate:
            return share_of(rows[place], gap, clusters=clusters, seed=self.seed)

        return [
            GateShares(
                total=share(total, place),
                direct=share(direct, place),
                rest=share(rest, place),
                through=share(through, place),
                p_total=float(chances[0][place]),
                p_direct=float(chances[1][place]),
                p_through=float(chances[2][place]),
                larger="direct" if more[place].mean() > 0 else "rest",
                gated=bool(gated[place].mean() > 0),
            )
            for place in range(len(self.nodes))
        ]


def _both(shares: tuple[GateShares, GateShares], what: str) -> bool:
    """Return whether something holds of necessity and of sufficiency, with one sign of the total."""
    signs = {each.total.value > 0 for each in shares}
    return len(signs) == 1 and all(getattr(each, what) for each in shares)
