"""``circuits ablate``: act on a circuit while the model generates, and measure what that changes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType

from circuits.ablation.nodes import acting_nodes
from circuits.behaviours import load_behaviour
from circuits.behaviours.behaviour import Behaviour
from circuits.circuit import Circuit
from circuits.cli.acting import Acting
from circuits.cli.arguments import ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.commands.direction import Steering
from circuits.cli.output import Output
from circuits.cli.places import prepared_file
from circuits.cli.resuming import ResumeOption, kept_beside
from circuits.cli.session import circuit_behaviour_name, require_same_model
from circuits.cli.skipping import SkipOptions
from circuits.cli.tables import facts, table
from circuits.errors import UsageError
from circuits.files.atomic import write
from circuits.files.documents import json_text
from circuits.graph import NodeKind
from circuits.interchange.foreign import read_circuit
from circuits.progress import PLANS
from circuits.vocabulary import ActedOn, Metric

if TYPE_CHECKING:
    from circuits.ablation.circuit_ablation import CircuitAblation
    from circuits.ablation.edges import EdgeAblationReport
    from circuits.ablation.estimates import Quantity
    from circuits.ablation.intervention import Intervention
    from circuits.ablation.measuring import AblationReport
    from circuits.model import Model

HELDOUT = 32
SHOWN = 6
"""How many answers whose beginning changed the table shows."""


@dataclass(frozen=True)
class AblationDraws:
    """What is drawn and measured: prompt pairs, random ablations, tokens of answers."""

    pairs: Annotated[
        int, typer.Option(min=4, help="How many held-out prompt pairs.", rich_help_panel="Measurement")
    ] = HELDOUT
    random: Annotated[
        int,
        typer.Option(min=0, help="How many random ablations of the same size.", rich_help_panel="Measurement"),
    ] = 5
    tokens: Annotated[
        int,
        typer.Option(min=1, max=8, help="How many tokens of an answer to generate.", rich_help_panel="Measurement"),
    ] = 5
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Draws prompts (default: the circuit's) and nodes.", rich_help_panel="Measurement"),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(Metric), help="Default: the metric of the circuit.", rich_help_panel="Measurement"
        ),
    ] = None


@command
def ablate(
    circuit: Annotated[
        Path | None, typer.Argument(metavar="CIRCUIT.json", help="A circuit that discover wrote.")
    ] = None,
    *,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", "-p", help="A behaviour or prompt file to measure on (default: the circuit's own behaviour)."
        ),
    ] = None,
    drawing: AblationDraws,
    skipping: SkipOptions,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write all of it as JSON.", rich_help_panel="Output")
    ] = None,
    resume: ResumeOption = False,
    acting: Acting,
    steering: Steering,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Generate with a circuit's heads and MLPs ablated, scaled or steered: what changes, against random ablations?

    A node that puts out v (a head before the output projection; what an MLP adds) puts out r + scale * (v - r) +
    steer * d instead, at every token that is read or generated but the first: r is its mean over reference prompts, or
    zero; d the difference of means of clean (harmful) and corrupted (harmless) prompts. Everything after it is
    recomputed.

    Edges (--what edges) carry corrupted values instead. Such values exist for pairs of prompts and not for what is
    generated, so edges are ablated at the first token of the answer only.

    A direction of the residual stream (--direction) is taken out of all that reads it, at every layer and token, or
    added at its layer (--add 1). --weights FOLDER writes a model that does not have it.

    Measured on held-out pairs: how answers begin (the refusal rate on harmful and over-refusal on harmless requests),
    the metric, log-odds, and perplexity on neutral sentences. At most 8 tokens are generated. Intervals are 95 %.
    """
    output, resources = output_options.output(), model_options.resources()
    acting.check()
    if steering.direction is not None:
        steering.require_alone(circuit, acting, drawing.metric)
        numbers: dict[str, Any] = {"pairs": drawing.pairs, "draws": drawing.random, "seed": drawing.seed}
        numbers["skipping"] = skipping
        steering.act(model_options, output, out=out, resume=resume, prompts=prompts, **numbers)
        return
    if circuit is None or steering != Steering():
        raise UsageError(
            "expected a circuit (CIRCUIT.json), or a direction (--direction FILE, and with it --add TIMES or --weights "
            "FOLDER)."
        )
    found = read_circuit(circuit).circuit
    chosen, intervention = _behaviour(found, prompts, drawing.metric, skipping), acting.intervention
    if acting.target is ActedOn.NODES:
        acting_nodes(acting.part(found), acting.which)  # none of a kind: said before the model is loaded
    file = prepared_file(out, (".json",), "ablation.json") if out else None
    with (
        kept_beside(circuit, "ablate", file, output, resume=resume) as journal,
        output.progress(plan=PLANS["ablate"]) as progress,
    ):
        model = model_options.load(progress, output, default=found.model.id)
        require_same_model(found, model, output, nodes=acting.target is ActedOn.NODES)
        kept: dict[str, Any] = {"resources": resources, "progress": progress, "journal": journal}
        measured = _measured(model, found, chosen, (acting, intervention), drawing, **kept)
        output.recorder.drew(measured.prompts)
        skipping.list_unusable(measured.prompts.unusable, (file or circuit).parent, output)
        document = measured.to_dict() | {"circuit": str(circuit)}
        if file is not None:
            write(file, json_text(document, sort_keys=True), make_folder=True)
    _show(measured, found.behaviour.name, output, file)
    files = [file] if file else []
    output.leave(document | {"file": str(file) if file else None}, (file or circuit).parent, files)


def _measured(
    model: "Model",
    found: Circuit,
    chosen: Behaviour,
    done: tuple[Acting, "Intervention | None"],
    drawing: AblationDraws,
    **kept: Any,
) -> "CircuitAblation":
    acting, intervention = done
    from circuits.ablation.circuit_ablation import ablate_circuit

    return ablate_circuit(
        model,
        acting.part(found),
        chosen,
        intervention,
        what=acting.target,
        which=acting.which,
        pairs=drawing.pairs,
        draws=drawing.random,
        new_tokens=drawing.tokens,
        seed=drawing.seed,
        **kept,
    )


def _show(measured: "CircuitAblation", name: str, output: Output, file: Path | None) -> None:
    report = measured.report
    title = f"{name} circuit in {measured.model}, on {measured.prompts.behaviour}"
    rows = [("written to", str(file))] if file else []
    output.show(facts(title, [*_done(report), *rows]), *_tables(report), report.describe())


def _behaviour(found: Circuit, prompts: str | None, metric: str | None, skipping: SkipOptions) -> Behaviour:
    name, skips = circuit_behaviour_name(found, prompts, "--prompts"), skipping.skip_unusable
    behaviour = load_behaviour(name, recorded=found.behaviour, skip_unusable=skips)
    own = behaviour.name == found.behaviour.name and found.model.target is None
    chosen = metric or (found.behaviour.metric if own else None)
    return replace(behaviour, metric=Metric.parse(chosen)) if chosen else behaviour


def _done(report: "AblationReport | EdgeAblationReport") -> list[tuple[str, str]]:
    from circuits.ablation.edges import EdgeAblationReport

    if isinstance(report, EdgeAblationReport):
        return [
            ("acted on", f"{len(report.edges)} edges, which carry corrupted values; first token of the answer only"),
            ("random", f"{report.draws} circuits with as many edges and the same wiring on other nodes"),
        ]
    heads = sum(node.kind is NodeKind.HEAD for node in report.nodes)
    return [
        ("acted on", f"{heads} heads and {len(report.nodes) - heads} MLPs of the circuit"),
        ("done", report.intervention.describe()),
        ("random", f"{report.draws} ablations of as many heads and MLPs of the same depth"),
    ]


def _tables(report: "AblationReport | EdgeAblationReport") -> list[RenderableType]:
    from circuits.ablation.measuring import AblationReport

    quantities = _quantities(report.quantities)
    return [quantities, _openings(report)] if isinstance(report, AblationReport) else [quantities]


def _quantities(quantities: "Sequence[Quantity]") -> Group:
    rows = [
        [each.name, str(each.n), each.before.describe(), each.after.describe(), each.describe_random()]
        for each in quantities
    ]
    title = "before and after, with 95 % intervals; random: median [smallest, largest]"
    return table(title, ["", "n", "before", "after", "random"], rows, numbers=(1, 2, 3, 4))


def _openings(report: "AblationReport") -> Group:
    changed = [asdict(each) for each in report.openings if each.before_class != each.after_class]
    rows = [
        [each["side"], repr(each["before"]), f"{each['before_class']} → {each['after_class']}", repr(each["after"])]
        for each in changed[:SHOWN]
    ]
    title = f"{len(changed)} of {len(report.openings)} answers begin otherwise" + (
        f"; the first {SHOWN}" if len(changed) > SHOWN else ""
    )
    return table(title, ["side", "before", "class", "after"], rows)
