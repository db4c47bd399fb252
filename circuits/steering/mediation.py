"""How much of a behaviour a direction mediates, and what reads it.

The component of the residual stream along the direction is exchanged between the clean and the corrupted run, at the
direction's layer and token, on pairs the direction was not taken from. Beside it the whole stream there, everything but
the component, and as much along random directions: what is not in the component passes beside it. Then every query,
key, value and MLP from that layer on, and the logits, read the exchanged component alone, each exactly, and so are the
paths among those that do most.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.behaviours import clusters_of
from circuits.behaviours.behaviour import Behaviour
from circuits.circuit import Circuit
from circuits.directions.component import AllBut, Along, Part, Place, part_effects, reader_effects, whole
from circuits.directions.stream_direction import StreamDirection
from circuits.drawing.joined import draw_joined
from circuits.errors import UsageError
from circuits.files.documents import json_text
from circuits.files.journal import Journal
from circuits.graph import ComputationalGraph, Edge, Node, NodeKind
from circuits.model import Model
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options, Resources
from circuits.patching.protocol import StageProgress, gaps, no_stages
from circuits.patching.sequences import of_one_token
from circuits.scores import Floats
from circuits.statistics import Estimate, Number, holm, share_of, sign_flips
from circuits.steering.recording import random_like
from circuits.tracing.requirements import require_one_device
from circuits.vocabulary import Ablation, Direction

FORMAT, VERSION = "circuits/mediation", 1
PAIRS, DRAWS, READERS = 64, 5, 10


@dataclass(frozen=True)
class Mediated:
    """What a part of the stream, or an edge behind it, carries: shares of the gap, and p-values (Holm's)."""

    name: str
    necessity: Estimate
    sufficiency: Estimate
    p_necessity: Number
    p_sufficiency: Number

    @property
    def size(self) -> float:
        """The mean of the two shares, by size."""
        return (abs(self.necessity.value) + abs(self.sufficiency.value)) / 2


@dataclass(frozen=True)
class Mediation:
    """What :func:`mediate` found; shares are of ``gap``, in the metric's unit, and can pass 1.

    ``parts`` are the direction's component, the whole stream at its place, and the stream without the component;
    ``random`` as much along random directions. ``readers`` are edges from the direction, those that carry most first,
    ``paths`` the edges among the strongest readers, and from these to the logits.
    """

    model: str
    behaviour: str
    metric: str
    layer: int
    position: int
    n: int
    clusters: int
    gap: float
    parts: tuple[Mediated, ...]
    random: tuple[Mediated, ...]
    readers: tuple[Mediated, ...] = ()
    paths: tuple[Mediated, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def share(self) -> Mediated:
        """What the direction's component carries."""
        return self.parts[0]

    @property
    def drawn(self) -> tuple[tuple[Edge, float], ...]:
        """The readers whose paths were measured, and these paths, with the means of their two shares."""
        senders = {Edge.parse(each.name).sender for each in self.paths}
        found = [each for each in self.readers if any(_reads(Edge.parse(each.name), node) for node in senders)]
        logits = [each for each in self.readers if each.name.endswith("->logits")]
        return tuple(
            (Edge.parse(each.name), (each.necessity.value + each.sufficiency.value) / 2)
            for each in dict.fromkeys((*found, *logits, *self.paths))
        )

    def draw(self, writers: Circuit, path: str | Path) -> None:
        """Draw what reads the direction behind a circuit that leads to it; see :mod:`circuits.drawing.joined`."""
        own = self.parts[0]
        summary = f"the direction carries {_both(own)} of the gap of {self.gap:.2f} ({self.metric}, {self.n} pairs)"
        draw_joined(writers, self.drawn, path, summary=summary)

    def describe(self) -> str:
        """Return in a sentence how much the direction mediates."""
        own, stream, rest = self.parts
        text = (
            f"the component along the direction of layer {self.layer}, token {self.position}, carries "
            f"{_both(own)} of the gap of {self.gap:.2f} ({self.metric}, {self.n} held-out pairs); the whole stream "
            f"there {_both(stream)}, without the component {_both(rest)}"
        )
        if self.random:
            most = max(max(abs(each.sufficiency.value), abs(each.necessity.value)) for each in self.random)
            text += f"; as much along {len(self.random)} random directions {most:.2f} at most"
        return f"{text}."

    def to_document(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {"format": FORMAT, "version": VERSION, **asdict(self), "summary": self.describe()}

    def to_json(self) -> str:
        """Return the text of ``mediation.json``."""
        return json_text(self.to_document())


def mediate(
    model: Model,
    direction: StreamDirection,
    behaviour: Behaviour,
    *,
    options: Options | None = None,
    resources: Resources | None = None,
    pairs: int = PAIRS,
    readers: int = READERS,
    draws: int = DRAWS,
    seed: int = 0,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> Mediation:
    """Measure how much of a behaviour passes through a direction, and what reads it, on held-out prompts.

    Args:
        model: The whole model.
        direction: Whose component is exchanged, at its layer and token.
        behaviour: Whose prompts are run.
        options: What is measured. Default: the behaviour's own metric.
        resources: What measuring may use.
        pairs: How many held-out pairs.
        readers: Of so many of the strongest readers the paths are measured; 0: measure no readers.
        draws: How many random directions are exchanged by as much.
        seed: Draws pairs, random directions and signs.
        progress: Is told about the stages.
        journal: Keeps what is measured.

    Raises :class:`UsageError` for a direction of another model, a model whose circuits lead elsewhere than to the
    logits, another ablation than ``corrupted`` and answers of several tokens. Cost: two forward passes from the layer
    on per part and random direction, and two per reader and path from that on.
    """
    require_one_device(model.tracer.anatomy, "mediation")
    options = options or Options(behaviour.metric)
    direction.require_model(model.info)
    if model.info.target is not None:
        raise UsageError(f"the model's circuits lead to {model.info.target}; give the model as it was loaded.")
    if options.ablation is not Ablation.CORRUPTED:
        raise UsageError("the component is exchanged with the other run of a pair; leave --ablation corrupted.")
    if draws < 0 or readers < 0:
        raise UsageError(f"expected numbers of random directions and readers from 0 up, got {draws} and {readers}.")
    prompts = behaviour.prompts(model.tokenizer, discovery=0, heldout=pairs, seed=seed)
    progress("recording the prompts", 0, 0)
    measured = model.experiment(
        prompts.heldout, options, resources=resources, reference=prompts.reference, journal=journal
    )
    experiment = of_one_token(measured, "the exchange of a direction")
    test = _Test(experiment, direction, clusters_of(prompts.heldout), seed)
    progress("exchanging parts of the stream", 0, 0)
    parts, random = test.parts(draws)
    read, paths = test.readers(readers, progress) if readers else ((), ())
    return Mediation(
        model=model.info.id,
        behaviour=prompts.behaviour,
        metric=options.metric.value,
        layer=direction.layer,
        position=direction.position,
        n=experiment.n_pairs,
        clusters=int(test.clusters.max()) + 1,
        gap=float(gaps(experiment).mean()),
        parts=parts,
        random=random,
        readers=read,
        paths=paths,
        remarks=prompts.remarks,
    )


@dataclass(frozen=True)
class _Test:
    """Measures parts and readers on one experiment."""

    experiment: PatchingExperiment
    direction: StreamDirection
    clusters: NDArray[np.int64]
    seed: int

    @property
    def place(self) -> Place:
        """Where the direction is."""
        return Place(self.direction.layer, self.direction.position)

    def parts(self, draws: int) -> tuple[tuple[Mediated, ...], tuple[Mediated, ...]]:
        """Exchange the component, the stream, the rest, and as much along random directions."""
        vector, digest = self.direction.vector, self.direction.digest
        others = [random_like(vector, self.seed + draw) for draw in range(draws)]
        named: list[tuple[str, Part, object]] = [
            ("direction", Along(vector), ["along", digest]),
            ("stream", whole, "whole"),
            ("without the direction", AllBut(vector), ["all but", digest]),
            *(
                (f"random direction {self.seed + draw}", Along(vector, other), ["instead", digest, self.seed + draw])
                for draw, other in enumerate(others)
            ),
        ]
        effects = {
            way: np.stack([part_effects(self.experiment, self.place, part, way, name=kept) for _, part, kept in named])
            for way in Direction
        }
        found = self._judged([name for name, _, _ in named], effects)
        return found[:3], found[3:]

    def readers(self, strongest: int, progress: StageProgress) -> tuple[tuple[Mediated, ...], tuple[Mediated, ...]]:
        """Measure every reader of the component, and the paths among the strongest."""
        graph, place = self.experiment.graph, self.place
        progress("measuring readers", 0, 2)
        edges = [place.edge(graph.edge(int(each)).receiver) for each in place.readers(graph)]
        read = sorted(self._carried(edges), key=lambda each: -each.size)
        progress("measuring readers", 1, 2)
        nodes = _senders(graph, [Edge.parse(each.name) for each in read], strongest)
        paths = [edge for edge in _edges_among(graph, nodes) if edge.sender != place.node]
        found = self._carried(paths) if paths else ()
        progress("measuring readers", 2, 2)
        return tuple(read), tuple(sorted(found, key=lambda each: -each.size))

    def _carried(self, edges: Sequence[Edge]) -> tuple[Mediated, ...]:
        place, part = self.place, Along(self.direction.vector)
        indices = place.indices(self.experiment.graph, edges)
        name = ["along", self.direction.digest]
        effects = {way: reader_effects(self.experiment, place, part, indices, way, name=name) for way in Direction}
        return self._judged([str(edge) for edge in edges], effects)

    def _judged(self, names: Sequence[str], effects: dict[Direction, Floats]) -> tuple[Mediated, ...]:
        gap, shares, chances = gaps(self.experiment), dict[Direction, list[Estimate]](), dict[Direction, Floats]()
        for way, rows in effects.items():
            shares[way] = [share_of(row, gap, clusters=self.clusters, seed=self.seed) for row in rows]
            chances[way] = holm(sign_flips(rows, clusters=self.clusters, seed=self.seed))
        needed, enough = (shares[way] for way in (Direction.NOISING, Direction.DENOISING))
        rows = zip(names, needed, enough, chances[Direction.NOISING], chances[Direction.DENOISING], strict=True)
        return tuple(Mediated(name, lost, won, float(p), float(q)) for name, lost, won, p, q in rows)


def _both(found: Mediated) -> str:
    return f"{found.sufficiency.describe(2)} (put into the corrupted run) and {found.necessity.describe(2)} (taken out)"


def _reads(edge: Edge, node: Node) -> bool:
    """Whether an edge leads into a node: a key or value, into the heads of its group."""
    receiver = edge.receiver.node
    return receiver == node or (
        receiver.kind is NodeKind.KV and node.kind is NodeKind.HEAD and receiver.layer == node.layer
    )


def _senders(graph: ComputationalGraph, readers: Sequence[Edge], count: int) -> list[Node]:
    """Return the heads and MLPs that the first ``count`` readers are; of a shared key or value, all its heads."""
    found = list[Node]()
    for edge in readers:
        receiver = edge.receiver.node
        of = [node for node in graph.senders if receiver in (node, graph.shape.group_of(node))]
        found += [node for node in of if node not in found]
        if len(found) >= count:
            break
    return sorted(found[:count], key=graph.sender_index.__getitem__)


def _edges_among(graph: ComputationalGraph, nodes: Sequence[Node]) -> list[Edge]:
    """Return the edges from nodes to each other and to the end of the graph."""
    into = {graph.shape.end, *nodes, *map(graph.shape.group_of, nodes)}
    receivers = [place for place, receiver in enumerate(graph.receivers) if receiver.node in into]
    senders = [graph.sender_index[node] for node in nodes]
    return [
        graph.edge(int(graph.offsets[place]) + sender)
        for place in receivers
        for sender in senders
        if sender < graph.fan_in[place]
    ]
