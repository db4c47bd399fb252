"""Ablating a circuit, its nodes while text is generated or its edges at the first token, and measuring what changes."""

from dataclasses import dataclass, replace
from typing import Any

from circuits.ablation.edges import EdgeAblationReport, measure_edge_ablation
from circuits.ablation.intervention import Intervention
from circuits.ablation.measuring import AblationReport, measure_ablation
from circuits.ablation.nodes import acting_nodes
from circuits.behaviours.behaviour import Behaviour, PromptSet
from circuits.circuit import Circuit
from circuits.files.journal import Journal
from circuits.model import Model
from circuits.openings import finds_openings, with_openings
from circuits.patching.measurement import Resources
from circuits.patching.protocol import StageProgress, no_stages
from circuits.vocabulary import ActedOn, Metric, NodeChoice

REFERENCE = 32
"""Discovery pairs that means and directions are taken from."""
FORMAT, VERSION = "circuits/ablation", 1


@dataclass(frozen=True)
class CircuitAblation:
    """What :func:`ablate_circuit` measured, in which model, on which prompts."""

    report: AblationReport | EdgeAblationReport
    model: str
    what: ActedOn
    prompts: PromptSet
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the nodes or edges as plain JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "what": self.what,
            "behaviour": self.prompts.behaviour,
            "metric": self.prompts.metric,
            "pairs": self.prompts.n_heldout,
            "reference_pairs": self.prompts.n_discovery,
            "prompts_digest": self.prompts.digest,
            "summary": self.report.describe(),
            "seed": self.seed,
            **self.report.to_dict(),
        }


def ablate_circuit(
    model: Model,
    circuit: Circuit,
    behaviour: Behaviour,
    intervention: Intervention | None = None,
    *,
    what: ActedOn | str = ActedOn.NODES,
    which: NodeChoice | str = NodeChoice.ALL,
    metric: Metric | str | None = None,
    pairs: int = 32,
    draws: int = 5,
    new_tokens: int = 5,
    seed: int | None = None,
    resources: Resources | None = None,
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> CircuitAblation:
    """Ablate, scale or steer a circuit, and measure what changes on held-out prompts, against random ablations.

    Args:
        model: The circuit's own model, or another of its shape; the whole one also where the circuit leads to a
            direction, of which nodes alone can be acted on.
        circuit: The circuit, or its strongest edges (:meth:`Circuit.strongest`).
        behaviour: Whose prompts are run.
        intervention: What is done to nodes; by default they put out their means over discovery prompts.
        what: ``nodes``, at every token read or generated, or ``edges``, which carry corrupted values at the first
            token of the answer.
        which: Which nodes of the circuit.
        metric: Default: the behaviour's.
        pairs: How many held-out pairs.
        draws: How many random ablations of the same size.
        new_tokens: How many tokens of an answer are generated.
        seed: Draws prompts, nodes and circuits. Default: the circuit's.
        resources: What measuring edges may use.
        progress: Is told about the stages.
        journal: Keeps what is measured.

    Raises :class:`UsageError` for a model of another shape. Cost: as :func:`circuits.measure_ablation`.
    """
    what, seed = ActedOn.parse(what), circuit.method.seed if seed is None else seed
    circuit.remark_on(model.info, nodes=what is ActedOn.NODES)
    if circuit.model.target is not None and finds_openings(model, behaviour):
        behaviour, _ = with_openings(model, behaviour)  # the circuit leads to a direction, and has none of its own
    nodes = acting_nodes(circuit, NodeChoice.parse(which)) if what is ActedOn.NODES else ()
    behaviour = behaviour if metric is None else replace(behaviour, metric=Metric.parse(metric))
    drawn = behaviour.prompts(model.tokenizer, discovery=REFERENCE, heldout=pairs, seed=seed)
    progress("recording the reference prompts", 0, 0)
    common: dict[str, Any] = {
        "metric": drawn.metric,
        "draws": draws,
        "seed": seed,
        "progress": progress,
        "journal": journal,
    }
    if what is ActedOn.EDGES:
        report = measure_edge_ablation(model, circuit.edges, drawn.heldout, resources=resources, **common)
    else:
        report = measure_ablation(
            model, nodes, drawn.heldout, intervention, reference=drawn.discovery, new_tokens=new_tokens, **common
        )
    return CircuitAblation(report, model.info.id, what, drawn, seed)
