"""``circuits ablate``: act on a circuit's nodes while the model generates, and measure what that changes."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group

from circuits.behaviours import load_behaviour
from circuits.behaviours.behaviour import Behaviour
from circuits.circuit import Circuit
from circuits.cli.options import CircuitArgument, Machine, Voice, command
from circuits.cli.output import Output, finite
from circuits.cli.places import prepared_file
from circuits.cli.session import circuit_behaviour_name, require_same_model
from circuits.cli.tables import facts, table
from circuits.errors import UsageError
from circuits.graph import Node, NodeKind
from circuits.vocabulary import Metric, NodeAblation, NodeChoice

if TYPE_CHECKING:
    from circuits.ablation.intervention import Intervention
    from circuits.ablation.measuring import AblationReport

HELDOUT, REFERENCE = 32, 32
SHOWN = 6
"""How many answers whose beginning changed the table shows."""
FORMAT, VERSION = "circuits/ablation", 1


@command
def ablate(
    circuit: CircuitArgument,
    *,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", "-p", help="A behaviour or prompt file to measure on (default: the circuit's own behaviour)."
        ),
    ] = None,
    ablation: Annotated[
        str,
        typer.Option(
            metavar="|".join(NodeAblation),
            help="What a node's output is replaced by: its mean over the tokens of the corrupted (harmless) discovery "
            "prompts, or zero.",
        ),
    ] = NodeAblation.MEAN,
    scale: Annotated[
        float | None,
        typer.Option(
            help="How much of a node's own output is left: 0 none (default), 1 all of it, below 0 turned around.",
            show_default=False,
        ),
    ] = None,
    steer: Annotated[
        float,
        typer.Option(
            help="Add this many times a node's difference of means, clean (harmful) minus corrupted (harmless) at the "
            "last token. Alone, it leaves the node's own output (--scale 1).",
        ),
    ] = 0.0,
    nodes: Annotated[
        str, typer.Option(metavar="|".join(NodeChoice), help="Which nodes of the circuit.")
    ] = NodeChoice.ALL,
    strongest: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only nodes of the N edges with the largest |score|.")
    ] = None,
    first_token: Annotated[
        bool, typer.Option("--first-token", help="Act at the first token too, which is spared otherwise.")
    ] = False,
    pairs: Annotated[
        int, typer.Option(min=4, help="How many held-out prompt pairs.", rich_help_panel="Measurement")
    ] = HELDOUT,
    random: Annotated[
        int,
        typer.Option(min=0, help="How many random ablations of the same size.", rich_help_panel="Measurement"),
    ] = 5,
    tokens: Annotated[
        int,
        typer.Option(min=1, max=8, help="How many tokens of an answer to generate.", rich_help_panel="Measurement"),
    ] = 5,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Draws prompts (default: the circuit's) and nodes.", rich_help_panel="Measurement"),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(Metric), help="Default: the metric of the circuit.", rich_help_panel="Measurement"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write all of it as JSON.", rich_help_panel="Output")
    ] = None,
    machine: Machine,
    voice: Voice,
) -> None:
    """Generate with a circuit's heads and MLPs ablated, scaled or steered: what changes, against random ablations?

    A node that puts out v (a head before the output projection; what an MLP adds) puts out r + scale * (v - r) +
    steer * d instead, at every token that is read or generated but the first: r is its mean over reference prompts, or
    zero; d the difference of means of clean (harmful) and corrupted (harmless) prompts. Everything after it is
    recomputed. Edges are not ablated one by one: outside a pair of prompts there is no corrupted value for them to
    carry; see evaluate (necessity) for what is left of a behaviour without them.

    Measured on held-out pairs: how answers begin (the refusal rate on harmful and over-refusal on harmless requests),
    the metric, log-odds, and perplexity on neutral sentences. At most 8 tokens are generated. Intervals are 95 %.
    """
    output = voice.output()
    act = NodeAblation.parse(ablation), _scale(scale, steer), steer, first_token
    which = NodeChoice.parse(nodes)
    found = Circuit.load(circuit)
    chosen = _behaviour(found, prompts, metric)
    acted_on = _nodes(found.strongest(strongest) if strongest else found, which)
    file = prepared_file(out, (".json",)) if out else None

    from circuits.ablation.intervention import Intervention
    from circuits.ablation.measuring import measure_ablation
    from circuits.export.files import write

    intervention = Intervention(*act)
    with output.progress() as progress:
        model = machine.load(progress, default=found.model.id)
        require_same_model(found, model, output)
        seed = found.method.seed if seed is None else seed
        drawn = chosen.prompts(model.tokenizer, discovery=REFERENCE, heldout=pairs, seed=seed)
        progress("recording the reference prompts", 0, 0)
        report = measure_ablation(
            model,
            acted_on,
            drawn.heldout,
            intervention,
            reference=drawn.discovery,
            metric=drawn.metric,
            draws=random,
            new_tokens=tokens,
            seed=seed,
            progress=partial(progress),
        )
    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": model.info.id,
        "circuit": str(circuit),
        "behaviour": drawn.behaviour,
        "metric": drawn.metric,
        "pairs": drawn.n_heldout,
        "reference_pairs": drawn.n_discovery,
        "prompts_digest": drawn.digest,
        "seed": seed,
        "summary": report.describe(),
        **report.to_dict(),
    }
    if file is not None:
        write(file, _text(document))
    _show(output, report, intervention, f"{found.behaviour.name} circuit in {model.info.id}, on {chosen.name}", file)
    output.finish(document | {"file": str(file) if file else None})


def _scale(given: float | None, steer: float) -> float:
    """Give what was asked for; steering alone leaves the nodes' own values."""
    if given is not None:
        return given
    return 1.0 if steer else 0.0


def _behaviour(found: Circuit, prompts: str | None, metric: str | None) -> Behaviour:
    behaviour = load_behaviour(circuit_behaviour_name(found, prompts, "--prompts"))
    own = found.behaviour.metric if prompts is None else None
    chosen = metric or own
    return replace(behaviour, metric=Metric.parse(chosen)) if chosen else behaviour


def _nodes(circuit: Circuit, which: NodeChoice) -> tuple[Node, ...]:
    kinds = {NodeChoice.HEADS: (NodeKind.HEAD,), NodeChoice.MLPS: (NodeKind.MLP,)}
    wanted = kinds.get(which, (NodeKind.HEAD, NodeKind.MLP))
    found = tuple(node for node in circuit.nodes if node.kind in wanted)
    if not found:
        what = "heads or MLPs" if which is NodeChoice.ALL else str(which)
        raise UsageError(f"there are no {what} among the circuit's nodes to act on; choose others with --nodes.")
    return found


def _text(document: Mapping[str, Any]) -> str:
    import json

    return json.dumps(finite(dict(document)), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _show(
    output: Output, report: "AblationReport", intervention: "Intervention", title: str, file: Path | None
) -> None:
    heads = sum(node.kind is NodeKind.HEAD for node in report.nodes)
    rows = [
        ("acted on", f"{heads} heads and {len(report.nodes) - heads} MLPs of the circuit"),
        ("done", intervention.describe()),
        ("random", f"{report.draws} ablations of as many heads and MLPs of the same depth"),
    ]
    if file is not None:
        rows.append(("written to", str(file)))
    output.show(facts(title, rows), _quantities(report), _openings(report), report.describe())


def _quantities(report: "AblationReport") -> Group:
    rows = [
        [quantity.name, str(quantity.n), quantity.before.describe(), quantity.after.describe(), random]
        for quantity in report.quantities
        for random in (quantity.describe_random(),)
    ]
    return table(
        "before and after, with 95 % intervals; random: median [smallest, largest]",
        ["", "n", "before", "after", "random"],
        rows,
        numbers=(1, 2, 3, 4),
    )


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
