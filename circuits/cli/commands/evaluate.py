"""``circuits evaluate``: how well a circuit works on held-out prompts."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from circuits.behaviours import clusters_of
from circuits.cli.arguments import CircuitArgument, Machine, Measurement, Voice, command
from circuits.cli.places import prepared_file
from circuits.cli.resuming import ResumeOption, kept_beside
from circuits.cli.session import circuit_behaviour_name, fitted, imported, require_same_model, scores_beside
from circuits.cli.tables import evaluation_rows, facts, size_rows
from circuits.errors import UsageError
from circuits.vocabulary import Universe

HELDOUT = 64


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
    universe: Annotated[
        str,
        typer.Option(
            metavar="query-head|group|both",
            help="Whose edges CPR and CMD take shares of: MIB's, with keys and values per query head, or the model's.",
            rich_help_panel="Measurement",
        ),
    ] = Universe.QUERY_HEAD,
    resume: ResumeOption = False,
    measurement: Measurement,
    machine: Machine,
    voice: Voice,
) -> None:
    """Measure a circuit on held-out prompts: faithfulness, necessity, random circuits of the same size."""
    output = voice.output()
    universes = tuple(Universe) if universe == "both" else (Universe.parse(universe),)
    read = imported(circuit, output)
    if read.anonymous and machine.model is None:
        raise UsageError(f"{circuit} does not say of which model it is; give the model with --model.")
    found = read.circuit
    name = circuit_behaviour_name(found, behaviour, "--behaviour")
    chosen = measurement.behaviour(name, recorded=found.behaviour)
    about = found.behaviour
    if (
        out is not None
        and not read.anonymous
        and (chosen.name, chosen.metric, chosen.variant) != (about.name, about.metric, about.variant)
    ):
        raise UsageError(
            f"--out keeps an evaluation with its circuit, which is of {found.behaviour.name} by "
            f"{found.behaviour.metric}; this one is of {chosen.name} by {chosen.metric}. Leave out "
            "--out, or redirect --json."
        )
    options = measurement.options(chosen, machine, ablation=found.method.ablation)
    file = prepared_file(out, (".json",)) if out else None

    from circuits.evaluation import evaluate as judge
    from circuits.experiments import experiment_on
    from circuits.files.atomic import write

    with kept_beside(circuit, "evaluate", file, output, resume=resume) as journal, output.progress() as progress:
        model = machine.load(progress, default=found.model.id)
        read = fitted(read, model.info, output)
        found = read.circuit
        require_same_model(found, model, output)
        chosen = measurement.suited(chosen, model, output)
        seed = found.method.seed if measurement.seed is None else measurement.seed
        count = measurement.pairs or found.behaviour.n_heldout or HELDOUT
        prompts = chosen.prompts(model.tokenizer, discovery=0, heldout=count, seed=seed)
        for remark in prompts.remarks:
            output.warn(remark)
        progress("recording the prompts", 0, 0)
        experiment = experiment_on(model, prompts.heldout, options, reference=prompts.reference, journal=journal)
        told = partial(progress, "evaluating")
        scores = read.scores or scores_beside(found, circuit)
        by_magnitude = found.method.rank_by == "|score|"
        evaluation = judge(
            experiment,
            found.edges,
            scores=scores,
            by_magnitude=by_magnitude,
            universes=universes,
            clusters=clusters_of(prompts.heldout),
            seed=seed,
            progress=told,
        )
        if file is not None:
            write(file, found.with_evaluation(evaluation).to_json(), make_folder=True)
    rows = size_rows(found) + evaluation_rows(evaluation, metric=chosen.metric, unit=chosen.metric.unit)
    if file is not None:
        rows.append(("written to", str(file)))
    output.show(facts(f"circuit of {found.behaviour.name} on {chosen.name} in {model.info.id}", rows))
    output.finish(
        {
            "model": model.info.id,
            "circuit": str(circuit),
            "behaviour": chosen.name,
            "metric": chosen.metric,
            "edges": len(found),
            "prefix_cache": str(experiment.prefix_cache),
            "evaluation": asdict(evaluation),
            "file": str(file) if file else None,
        }
    )
