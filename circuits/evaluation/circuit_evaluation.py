"""Judging a circuit on held-out prompts, from its file's worth of facts: the circuit, a model and a behaviour."""

from collections.abc import Sequence
from dataclasses import dataclass

from circuits.behaviours import clusters_of
from circuits.behaviours.behaviour import Behaviour, PromptSet
from circuits.circuit import Circuit
from circuits.evaluation.evaluating import evaluate
from circuits.files.journal import Journal
from circuits.model import Model
from circuits.patching.measurement import Options, Resources
from circuits.patching.protocol import StageProgress, no_stages, of_stage
from circuits.records import Evaluation
from circuits.scores import EdgeScores
from circuits.vocabulary import Ablation, Universe

HELDOUT = 64
"""Held-out pairs of a circuit that does not say how many it was judged on."""


@dataclass(frozen=True)
class CircuitEvaluation:
    """What :func:`evaluate_circuit` found: the circuit with its evaluation, remarks, and the prompts judged on."""

    circuit: Circuit
    evaluation: Evaluation
    remarks: tuple[str, ...]
    prefix_cache: str
    prompts: PromptSet


def evaluate_circuit(
    model: Model,
    circuit: Circuit,
    behaviour: Behaviour,
    *,
    options: Options | None = None,
    resources: Resources | None = None,
    pairs: int | None = None,
    seed: int | None = None,
    scores: EdgeScores | None = None,
    universes: Sequence[Universe] = (),
    progress: StageProgress = no_stages,
    journal: Journal | None = None,
) -> CircuitEvaluation:
    """Judge a circuit on held-out prompts of a behaviour, drawn as those it was found with were.

    Args:
        model: The circuit's own model, or another of its shape.
        circuit: The circuit.
        behaviour: Whose prompts are run; its own, or another.
        options: What is measured. Default: the behaviour's metric, the circuit's ablation.
        resources: What measuring may use.
        pairs: How many held-out pairs. Default: as many as the circuit was judged on before, else 64.
        seed: Draws the pairs and random circuits. Default: the circuit's.
        scores: Of all edges, for the curve and the areas under it.
        universes: Whose edges the areas CPR and CMD take shares of.
        progress: Is told about the stages.
        journal: Keeps what is measured.

    Raises :class:`UsageError` for a model of another shape. Cost: as :func:`circuits.evaluate`.
    """
    model = model.with_roles_of(circuit.model)
    remark = circuit.remark_on(model.info)
    options = options or Options(behaviour.metric, Ablation.parse(circuit.method.ablation))
    seed = circuit.method.seed if seed is None else seed
    count = pairs or circuit.behaviour.n_heldout or HELDOUT
    prompts = behaviour.prompts(model.tokenizer, discovery=0, heldout=count, seed=seed)
    progress("recording the prompts", 0, 0)
    experiment = model.experiment(
        prompts.heldout, options, resources=resources, reference=prompts.reference, journal=journal
    )
    evaluation = evaluate(
        experiment,
        circuit.edges,
        scores=scores,
        by_magnitude=circuit.method.rank_by == "|score|",
        universes=universes,
        clusters=clusters_of(prompts.heldout),
        seed=seed,
        progress=of_stage(progress, "evaluating"),
    )
    remarks = (*([remark] if remark else []), *prompts.remarks)
    judged = circuit.with_evaluation(evaluation)
    return CircuitEvaluation(judged, evaluation, remarks, str(experiment.prefix_cache), prompts)
