"""Measure what every head of a circuit does: :func:`head_roles` is the table of contents."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from circuits.behaviours.pairs import TokenPair
from circuits.circuit import Circuit
from circuits.errors import PromptError, UsageError
from circuits.files.journal import Journal
from circuits.graph import Edge, Node, NodeKind
from circuits.heads.evidence import (
    AttentionShare,
    Copying,
    DirectEffect,
    HeadEvidence,
    HeadRoles,
    SequenceScores,
    WrittenTokens,
)
from circuits.heads.labels import Thresholds, labels_of
from circuits.heads.prompted import Prompted, weights_of
from circuits.heads.random_sequences import repeated_sequences, sequence_scores
from circuits.heads.written_logits import Copier
from circuits.metrics import require_logits
from circuits.model import Model
from circuits.patching.measurement import Options, Resources
from circuits.patching.protocol import Progress, gaps, no_progress
from circuits.patching.sequences import AnyExperiment
from circuits.tracing.requirements import require_one_device
from circuits.tracing.runs import record
from circuits.tracing.state import in_own_state
from circuits.vocabulary import Ablation, Direction, Metric

EDGES, COPIED = 3, 64
"""How many edges of each direction are kept, and on how many tokens copying is tried at most."""


@torch.no_grad()
@in_own_state
def head_roles(
    model: Model,
    circuit: Circuit,
    prompts: Sequence[TokenPair],
    *,
    options: Options | None = None,
    resources: Resources | None = None,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    journal: Journal | None = None,
) -> HeadRoles:
    """Measure the evidence on every head of a circuit: attention, output, copying, random sequences, edges.

    Args:
        model: The model that the circuit is of.
        circuit: Its heads are those that send or whose query receives.
        prompts: Pairs of the circuit's behaviour, best held-out ones: ``behaviour.prompts(...).heldout``.
        options: What the direct effect is measured by (default: the circuit's metric, ablation and direction).
        resources: What measuring may use.
        thresholds: What evidence a label needs.
        seed: Draws the random sequences.
        progress: Is told about the steps.
        journal: Keeps what is measured of each head, and gives back what an earlier run has measured of the same.

    Cost: eight forward passes of the prompts, and for every head the unembedding of one position of each prompt and of
    128 tokens. Raises :class:`UsageError` for a circuit without heads or of another shape, :class:`PromptError` without
    prompts, and :class:`GuardError` where attention cannot be told from what heads put out.
    """
    require_one_device(model.tracer.anatomy, "what heads attend to")
    heads = _heads(circuit, model, prompts)
    steps = _Steps(progress, len(heads) + 4)
    require_logits((options := options or _options(circuit)).metric, "what heads write and copy")
    experiment = model.experiment(prompts, options, resources=resources, journal=journal)
    steps.done()
    sequences = repeated_sequences(model.tracer.anatomy, model.tokenizer, prompts[0].clean[0], seed=seed)
    names, kept = [str(head) for head in heads], experiment.kept
    on_sequences = kept.document(
        "attention on sequences", [names, _ids(sequences)], lambda: _on_sequences(model, heads, sequences)
    )
    steps.done()
    prompted = kept.document(
        "heads on prompts", [names, circuit.behaviour.name], lambda: _on_prompts(model, heads, prompts, circuit)
    )
    steps.done()
    direct = _direct(experiment, heads)
    steps.done()
    limits, found = thresholds or Thresholds(), list[HeadEvidence]()
    copiers = _copiers(model, sequences, prompts)
    for place, head in enumerate(heads):
        copying = kept.document(
            "copying", [names[place], _ids(sequences)], lambda head=head: asdict(_copying(copiers, head))
        )
        evidence = HeadEvidence(
            node=head,
            **_read(prompted[place]),
            direct=direct[place],
            copying=Copying(**copying),
            sequences=SequenceScores(**on_sequences[place]),
            incoming=_strongest(circuit, head, incoming=True),
            outgoing=_strongest(circuit, head, incoming=False),
        )
        found.append(replace(evidence, labels=labels_of(evidence, limits)))
        steps.done()
    return HeadRoles(
        circuit_digest=circuit.digest,
        model=model.info.id,
        behaviour=circuit.behaviour.name,
        metric=experiment.metric,
        unit=experiment.metric.unit,
        n_pairs=len(prompts),
        n_sequences=len(sequences),
        sequence_length=sequences.shape[1],
        thresholds=limits.as_dict(),
        heads=tuple(found),
    )


def _ids(sequences: Tensor) -> list[list[int]]:
    return cast(Any, sequences).tolist()


def _on_sequences(model: Model, heads: Sequence[Node], sequences: Tensor) -> list[dict[str, float]]:
    """Measure attention on random sequences: the fields of :class:`SequenceScores` of every head."""
    weights = weights_of(model, heads, record(model.tracer, sequences), checked=True)
    return [asdict(scores) for scores in sequence_scores(torch.as_tensor(weights))]


_SHARES = ("from_last", "from_changed", "on_average")


def _on_prompts(
    model: Model, heads: Sequence[Node], prompts: Sequence[TokenPair], circuit: Circuit
) -> list[dict[str, Any]]:
    """Measure what heads attend to and write on prompts: those fields of :class:`HeadEvidence`, as plain data."""
    prompted = Prompted(model, heads, prompts, circuit.behaviour.name)
    averages = prompted.averages
    return [
        {name: [asdict(share) for share in getattr(averages, name)(place)] for name in _SHARES}
        | {"writes": asdict(prompted.written(place))}
        for place in range(len(heads))
    ]


def _read(plain: dict[str, Any]) -> dict[str, Any]:
    """Turn plain data of :func:`_on_prompts` back into the fields of one head's evidence."""
    writes = plain["writes"] | {"tokens": tuple((text, share) for text, share in plain["writes"]["tokens"])}
    shares = {name: tuple(AttentionShare(**share) for share in plain[name]) for name in _SHARES}
    return {**shares, "writes": WrittenTokens(**writes)}


class _Steps:
    """Counts steps for a progress report."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._count = progress, total, 0

    def done(self) -> None:
        self._count += 1
        self._progress(self._count, self._total)


def _heads(circuit: Circuit, model: Model, prompts: Sequence[TokenPair]) -> list[Node]:
    if replace(circuit.model.shape, roles=()) != model.info.shape:  # heads have no roles
        raise UsageError(
            f"the circuit is of a model with {circuit.model.shape.describe()}, but {model.info.id} has "
            f"{model.info.shape.describe()}; give the circuit's own model."
        )
    heads = [node for node in circuit.nodes if node.kind is NodeKind.HEAD]
    if not heads:
        raise UsageError(f"the circuit has no attention heads, only {', '.join(map(str, circuit.nodes)) or 'nothing'}.")
    if not prompts:
        raise PromptError("there are no prompt pairs to measure heads on; give at least one, better 16 or more.")
    return heads


def _options(circuit: Circuit) -> Options:
    return Options(
        Metric.parse(circuit.behaviour.metric),
        Ablation.parse(circuit.method.ablation),
        Direction.parse(circuit.method.direction),
    )


@dataclass(frozen=True)
class _Copiers:
    random: Copier
    answers: Copier | None


def _copiers(model: Model, sequences: Tensor, prompts: Sequence[TokenPair]) -> _Copiers:
    """Try random tokens, and every answer and wrong answer, up to 64 of each."""
    first, period = prompts[0].clean[0], (sequences.shape[1] - 1) // 2
    drawn: list[int] = cast(Any, sequences[:, 1 : period + 1].flatten()).tolist()
    random = list(dict.fromkeys(drawn))[:COPIED]
    answers = list(dict.fromkeys(token for pair in prompts for token in (*pair.answers, *pair.wrong_answers)))[:COPIED]
    return _Copiers(_copier(model, first, random), _copier(model, first, answers) if answers else None)


def _copier(model: Model, first: int, tokens: list[int]) -> Copier:
    """Put tokens behind a first one, in rows as short as a prompt may be."""
    return Copier(model.tracer, torch.tensor([[first, token] for token in tokens], device=model.tracer.anatomy.device))


def _copying(copiers: _Copiers, head: Node) -> Copying:
    random = [float(found.double().mean()) for found in copiers.random.copied(head)]
    answers = [math.nan] * 2
    if copiers.answers is not None:
        answers = [float(found.double().mean()) for found in copiers.answers.copied(head)]
    return Copying(random[0], answers[0], random[1], answers[1])


def _direct(experiment: AnyExperiment, heads: list[Node]) -> list[DirectEffect]:
    """Measure the edge from every head to the end of the graph, whether or not it is in the circuit."""
    end = experiment.graph.receivers[-1]
    edges = np.array([experiment.graph.index(Edge(head, end)) for head in heads], dtype=np.int64)
    gap = float(gaps(experiment).mean())
    found: list[DirectEffect] = []
    for values in experiment.edge_effects(edges):
        mean, n = float(values.mean()), len(values)
        reach = 1.96 * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        found.append(DirectEffect(mean, mean - reach, mean + reach, mean / gap if gap else math.nan))
    return found


def _strongest(circuit: Circuit, head: Node, *, incoming: bool) -> tuple[tuple[str, float], ...]:
    """Return a head's strongest edges in the circuit; into shared keys and values they are those of its group."""
    group = circuit.model.shape.group_of(head)
    mine = [
        (str(edge), float(score))
        for edge, score in zip(circuit.edge_list, circuit.scores, strict=True)
        if (edge.receiver.node in (head, group) if incoming else edge.sender == head)
    ]
    return tuple(sorted(mine, key=lambda edge: -abs(edge[1]) if math.isfinite(edge[1]) else 0.0)[:EDGES])
