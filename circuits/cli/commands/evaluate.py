"""``circuits evaluate``: how well a circuit works on held-out prompts."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.behaviours.behaviour import Behaviour
from circuits.circuit import Circuit
from circuits.cli.arguments import CircuitArgument, Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.output import Output
from circuits.cli.places import prepared_file
from circuits.cli.resuming import ResumeOption, kept_beside
from circuits.cli.session import circuit_behaviour_name, fitted, imported, require_same_prompts
from circuits.cli.tables import evaluation_rows, facts, size_rows
from circuits.errors import UsageError
from circuits.interchange.foreign import Imported
from circuits.interchange.sidecars import scores_beside
from circuits.progress import PLANS
from circuits.vocabulary import Universe

if TYPE_CHECKING:
    from circuits.evaluation.circuit_evaluation import CircuitEvaluation


UniverseOption = Annotated[
    str,
    typer.Option(
        metavar="query-head|group|both",
        help="Whose edges CPR and CMD take shares of: MIB's, with keys and values per query head, or the model's.",
        rich_help_panel="Measurement",
    ),
]


@command
def evaluate(
    circuit: CircuitArgument,
    *,
    behaviour: Annotated[
        str | None,
        typer.Option("--behaviour", "-b", help="Another behaviour, or the prompt file (default: the circuit's own)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the circuit with this evaluation.", rich_help_panel="Output"),
    ] = None,
    universe: UniverseOption = Universe.QUERY_HEAD,
    resume: ResumeOption = False,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Measure a circuit on held-out prompts: faithfulness, necessity, random circuits of the same size."""
    output = output_options.output()
    universes = tuple(Universe) if universe == "both" else (Universe.parse(universe),)
    read = _read(circuit, model_options, output)
    found, name = read.circuit, circuit_behaviour_name(read.circuit, behaviour, "--behaviour", file=circuit)
    chosen = measurement.behaviour(name, recorded=found.behaviour)
    if out is not None and not read.anonymous:
        _require_own(found, chosen)
    options, resources = measurement.options(chosen, ablation=found.method.ablation), model_options.resources()
    file = prepared_file(out, (".json",), "circuit.json") if out else None

    from circuits.evaluation.circuit_evaluation import evaluate_circuit
    from circuits.files.atomic import write

    line = output.progress(plan=PLANS["evaluate"])
    with kept_beside(circuit, "evaluate", file, output, resume=resume) as journal, line as progress:
        model = measurement.led(
            model_options.load(progress, output, default=found.model.id), beside=circuit, target=found.model.target
        )
        read = fitted(read, model.info, output)
        require_same_prompts(chosen, name, read.circuit, model)
        chosen = measurement.with_openings(chosen, model, output)
        judged = evaluate_circuit(
            model,
            read.circuit,
            chosen,
            options=options,
            resources=resources,
            pairs=measurement.pairs,
            seed=measurement.seed,
            scores=read.scores or scores_beside(read.circuit, circuit),
            universes=universes,
            progress=progress,
            journal=journal,
        )
        for remark in judged.remarks:
            output.warn(remark)
        output.recorder.drew(judged.prompts)
        measurement.list_unusable(judged.prompts.unusable, (file or circuit).parent, output)
        if file is not None:
            write(file, judged.circuit.to_json(), make_folder=True)
    _show(judged, chosen, model.info.id, output, read_from=circuit, file=file)


def _read(circuit: Path, model_options: ModelOptions, output: Output) -> Imported:
    read = imported(circuit, output)
    if read.anonymous and model_options.model is None:
        raise UsageError(f"{circuit} does not say of which model it is; give the model with --model.")
    return read


def _require_own(found: Circuit, chosen: Behaviour) -> None:
    """Raise :class:`UsageError` where an evaluation would be kept with a circuit of another behaviour or metric."""
    own = found.behaviour
    if (chosen.name, chosen.metric, chosen.variant) != (own.name, own.metric, own.variant):
        raise UsageError(
            f"--out keeps an evaluation with its circuit, which is of {own.name} by {own.metric}; this one is of "
            f"{chosen.name} by {chosen.metric}. Leave out --out, or redirect --json."
        )


def _show(
    judged: "CircuitEvaluation", chosen: Behaviour, model: str, output: Output, *, read_from: Path, file: Path | None
) -> None:
    found, evaluation = judged.circuit, judged.evaluation
    rows = size_rows(found) + evaluation_rows(evaluation, metric=chosen.metric, unit=chosen.metric.unit)
    if file is not None:
        rows.append(("written to", str(file)))
    output.show(facts(f"circuit of {found.behaviour.name} on {chosen.name} in {model}", rows))
    output.leave(
        {
            "model": model,
            "circuit": str(read_from),
            "behaviour": chosen.name,
            "metric": chosen.metric,
            "edges": len(found),
            "prefix_cache": judged.prefix_cache,
            "evaluation": asdict(evaluation),
            "file": str(file) if file else None,
        },
        (file or read_from).parent,
        [file] if file else [],
    )
