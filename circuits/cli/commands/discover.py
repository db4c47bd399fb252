"""``circuits discover``: from a behaviour to a folder with its circuit."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from circuits.cli.arguments import (
    DISCOVERY_PAIRS,
    BehaviourArgument,
    DirectionOption,
    Machine,
    Measurement,
    Voice,
    command,
)
from circuits.cli.evidence import leave_evidence, leave_prompts
from circuits.cli.output import Output
from circuits.cli.places import RunLog, default_folder, prepared_folder
from circuits.cli.resuming import ResumeOption, kept_in
from circuits.cli.session import Session, command_line, model_name
from circuits.cli.tables import edge_table, evaluation_rows, facts, near_ties, size_rows, strongest
from circuits.cli.verifying import Verifying
from circuits.drawing.pictures import draw
from circuits.errors import RenderError
from circuits.interchange.sidecars import HEADS, PROMPTS, beside
from circuits.vocabulary import Direction, PrunerName, ScorerName

if TYPE_CHECKING:
    from circuits.behaviours.behaviour import Behaviour
    from circuits.discovery import Discovery, DiscoverySettings

CONFIRMED = 0.05
"""Held-out faithfulness may be this much further from 1 than the target without a warning."""
CIRCUIT, SCORES, JOURNAL = "circuit.json", "scores.parquet", "journal"
DRAWN = ("circuit.dot", "circuit.svg", "report.html")


@command
def discover(
    behaviour: BehaviourArgument,
    *,
    scorer: Annotated[
        str, typer.Option(metavar="|".join(ScorerName), help="How edges are ranked.", rich_help_panel="Search")
    ] = ScorerName.EAP_IG,
    pruner: Annotated[
        str, typer.Option(metavar="|".join(PrunerName), help="How edges are chosen.", rich_help_panel="Search")
    ] = PrunerName.MINIMAL,
    target: Annotated[
        float,
        typer.Option(
            help="Fidelity that the circuit must reach; with --pruner minimal, faithfulness.", rich_help_panel="Search"
        ),
    ] = 0.9,
    choose: Annotated[
        int,
        typer.Option(
            help="Pairs by which --pruner closest chooses a circuit, beside the --pairs it fits circuits to.",
            min=4,
            rich_help_panel="Search",
        ),
    ] = 64,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="End the search of --pruner closest after so long, with the best so far.", rich_help_panel="Search"
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Edges of --pruner top.", min=1, rich_help_panel="Search")] = 200,
    prune_limit: Annotated[
        int,
        typer.Option(help="Circuits of more edges are not pruned edge by edge.", min=1, rich_help_panel="Search"),
    ] = 400,
    steps: Annotated[int, typer.Option(help="Steps of --scorer eap-ig.", min=1, rich_help_panel="Search")] = 5,
    heldout: Annotated[int, typer.Option(help="Pairs to judge the circuit on.", rich_help_panel="Measurement")] = 64,
    direction: DirectionOption = Direction.NOISING,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for the results (default: outputs/MODEL/BEHAVIOUR).", rich_help_panel="Output"
        ),
    ] = None,
    resume: ResumeOption = False,
    heads: Annotated[
        bool, typer.Option("--heads/--no-heads", help="Measure what the heads do.", rich_help_panel="Output")
    ] = True,
    verifying: Verifying,
    measurement: Measurement,
    machine: Machine,
    voice: Voice,
) -> None:
    """Find the circuit of a behaviour: the edges that are enough to keep it when everything else is corrupted."""
    output = voice.output()
    names = ScorerName.parse(scorer), PrunerName.parse(pruner)
    chosen = measurement.behaviour(behaviour)
    options = measurement.options(chosen, machine, direction=direction or Direction.NOISING, scorer=names[0])

    from circuits.discovery import DiscoverySettings

    settings = DiscoverySettings(
        scorer=names[0],
        pruner=names[1],
        target=target,
        size=size,
        prune_limit=prune_limit,
        steps=steps,
        choose=choose,
        seconds=seconds,
        verify=verifying.top_k(names[0], limited=True),
        pairs=measurement.pairs or DISCOVERY_PAIRS,
        heldout=heldout,
        seed=measurement.seed or 0,
        options=options,
    )
    folder = prepared_folder(out or default_folder(model_name(machine), chosen.name))
    session = Session(machine, measurement, output)
    found = _found(folder, session, chosen, settings, resume=resume, heads=heads)
    _report(found, folder, output)


def _found(
    folder: Path, session: Session, behaviour: "Behaviour", settings: "DiscoverySettings", *, resume: bool, heads: bool
) -> "Discovery":
    """Run the discovery, with journal and log in its folder, and write the circuit as soon as it is there."""
    from circuits.discovery import discover as search
    from circuits.discovery import prompts_for
    from circuits.experiments import kept_of

    output = session.output
    before = (folder / JOURNAL).is_file(), (folder / CIRCUIT).is_file()
    with (
        kept_in(folder / JOURNAL, output, resume=resume) as journal,
        RunLog(folder, command_line()) as log,
        output.progress(log) as progress,
    ):
        model = session.machine.load(progress)
        behaviour = session.measurement.suited(behaviour, model, output)
        prompts = prompts_for(model, behaviour, settings)
        known = kept_of(
            model, prompts.discovery, settings.options_for(prompts), reference=prompts.reference, journal=journal
        )
        for text in _remarks(folder, *before, resume=resume, resumed=known.filled, problem=journal.problem):
            output.say(text)
        found = search(
            model, behaviour, settings, folder=folder, journal=journal, progress=progress, command=command_line()
        )
        leave_prompts(folder, found, model)
        if heads:
            remarks = leave_evidence(folder, found, model, settings, progress, journal)
            found = replace(found, warnings=(*found.warnings, *remarks))
        if log.problem:
            found = replace(found, warnings=(*found.warnings, log.problem))
        for warning in found.warnings:
            log.warning(warning)
    return found


def _remarks(folder: Path, journal: bool, circuit: bool, *, resume: bool, resumed: bool, problem: str) -> list[str]:
    """Say what becomes of an earlier run in the same folder."""
    if resumed:
        return [f"continuing the run in {folder}."]
    if resume:
        why = (problem or "is of other settings, prompts or weights") if journal else "does not exist"
        return [f"nothing to continue: the journal in {folder} {why}. Starting afresh."]
    if circuit:
        return [f"{folder} holds an earlier circuit, which will be overwritten."]
    if journal:
        return [f"{folder} holds an interrupted run, which is started afresh (--resume would have continued it)."]
    return []


def _report(found: "Discovery", folder: Path, output: Output) -> None:
    """Draw and print what was found; raises :class:`RenderError` at the end if something could not be drawn."""
    undrawn, files = "", [CIRCUIT, SCORES, JOURNAL, "run.log"]
    known = beside(folder / CIRCUIT, found.circuit)
    files += [name for name, there in ((HEADS, known.evidence), (PROMPTS, known.prompts)) if there]
    with output.progress() as progress:
        for name in DRAWN:
            progress("drawing", 0, 0)
            try:
                draw(
                    found.circuit,
                    folder / name,
                    evidence=known.evidence,
                    prompts=known.prompts,
                    intervals=found.scores.intervals(found.circuit.edges),
                )
                files.append(name)
            except RenderError as problem:
                undrawn = str(problem)
    for warning in (*found.warnings, *_unpruned(found), *_doubts(found)):
        output.warn(warning)
    output.show(*_tables(found), "", f"The diagram, a report, scores and a log are in {folder}/")
    output.finish(_document(found, {name: str(folder / name) for name in sorted(files)}))
    if undrawn:
        raise RenderError(f"{undrawn} The circuit itself is in {folder / CIRCUIT}.")


def _unpruned(found: "Discovery") -> list[str]:
    """Say so when a circuit was too large to prune edge by edge."""
    if found.selection.locally_minimal or found.circuit.method.pruner != PrunerName.MINIMAL:
        return []
    return [
        f"the circuit has {len(found.circuit)} edges, too many to prune edge by edge in reasonable time, so it is not "
        "locally minimal. Raise --prune-limit and wait, or lower --target."
    ]


def _doubts(found: "Discovery") -> list[str]:
    """Say so when held-out prompts do not confirm the circuit."""
    evaluation, target = found.circuit.evaluation, found.circuit.method.target
    if not found.selection.reached:
        return [
            f"no circuit reaches a fidelity of {target:g} with a faithfulness within 0.1 of 1 on the pairs that "
            "circuits are chosen by; this is the smallest about as close as the closest. Use more --pairs, or a lower "
            "--target."
        ]
    if evaluation is None or target is None or found.selection.error is not None:
        return []
    if abs(1 - evaluation.faithfulness) <= abs(1 - target) + CONFIRMED:
        return []
    searched, pairs = found.selection.faithfulness, found.circuit.behaviour.n_discovery
    return [
        f"faithfulness is {searched:.2f} on the {pairs} pairs that the circuit was searched on, but "
        f"{evaluation.faithfulness:.2f} on held-out pairs: it fits the former too closely. Use more --pairs."
    ]


def _tables(found: "Discovery") -> list[RenderableType]:
    circuit, selection = found.circuit, found.selection
    rows = size_rows(circuit)
    if changed := circuit.behaviour.variant.describe():
        rows.append(("prompts", changed))
    if circuit.evaluation:
        rows += evaluation_rows(circuit.evaluation, metric=circuit.behaviour.metric, unit=circuit.behaviour.unit)
    minimal = "; locally minimal: no single edge can go" if selection.locally_minimal else "; not locally minimal"
    fidelity = "" if selection.error is None else f"fidelity {1 - selection.error**2:.3f}, "
    pairs = f"on {selection.pairs or circuit.behaviour.n_discovery} pairs"
    rows.append(("while searching", f"{fidelity}faithfulness {selection.faithfulness:.3f} {pairs}{minimal}"))
    if found.scores.verification:
        rows.append(("scores", found.scores.verification.describe()))
    if found.agreement:
        rows.append(("scores", found.agreement.describe(circuit.method.scorer)))
    rows.append(("time", f"{circuit.provenance.wall_seconds:.0f} s on {circuit.provenance.device}"))
    tables: list[RenderableType] = [
        facts(f"{circuit.behaviour.name} in {circuit.model.id}", rows),
        edge_table(circuit, strongest(circuit), "strongest edges"),
    ]
    if circuit.removal is not None:
        tables.append(edge_table(circuit, near_ties(circuit), "near-ties: edges whose removal changes least"))
    return tables


def _document(found: "Discovery", files: dict[str, str]) -> dict[str, Any]:
    circuit = found.circuit
    return {
        "circuit": json.loads(circuit.to_json()),
        "agreement": asdict(found.agreement) if found.agreement else None,
        "verification": asdict(found.scores.verification) if found.scores.verification else None,
        "search": {
            "faithfulness": found.selection.faithfulness,
            "error": found.selection.error,
            "reached": found.selection.reached,
            "proposed": found.selection.proposed,
            "locally_minimal": found.selection.locally_minimal,
        },
        "near_ties": [str(circuit.edge_list[place]) for place in map(int, near_ties(circuit))],
        "warnings": [*found.warnings, *_unpruned(found), *_doubts(found)],
        "files": files,
    }
