"""``circuits compare``: what two circuits share, and whether one does the other's work."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.circuit import Circuit
from circuits.cli.options import Machine, Voice, command
from circuits.cli.output import Output, Told
from circuits.cli.places import default_folder, prepared_folder
from circuits.cli.session import circuit_behaviour_name, require_same_model, scores_beside
from circuits.cli.tables import facts
from circuits.comparison import CircuitDiff, Transfer, Transferred
from circuits.comparison import compare as compare_circuits
from circuits.errors import ModelUnavailableError
from circuits.export.draw import draw_difference
from circuits.export.files import write
from circuits.vocabulary import Ablation, Metric

if TYPE_CHECKING:
    from circuits.model import Model
    from circuits.tracing.experiment import PatchingExperiment

HELDOUT = 64
FILES = ("comparison.json", "difference.dot", "difference.svg")


@command
def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="A circuit.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Another circuit of a model of the same shape.")],
    *,
    transfer: Annotated[
        bool, typer.Option("--transfer/--no-transfer", help="Also run each circuit on the other's held-out prompts.")
    ] = True,
    behaviour_a: Annotated[
        str | None, typer.Option(help="The prompt file of A's behaviour, if it is not built in.")
    ] = None,
    behaviour_b: Annotated[
        str | None, typer.Option(help="The prompt file of B's behaviour, if it is not built in.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Held-out pairs of each behaviour.", min=4)] = HELDOUT,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder (default: outputs/MODEL/A-and-B).", rich_help_panel="Output"),
    ] = None,
    machine: Machine,
    voice: Voice,
) -> None:
    """Compare two circuits: overlap against chance, transfer both ways, and a diagram of the differences."""
    output = voice.output()
    first, second = Circuit.load(a), Circuit.load(b)
    diff = compare_circuits(first, second, scores_a=scores_beside(first, a), scores_b=scores_beside(second, b))
    names = tuple(
        circuit_behaviour_name(circuit, given, option) if transfer and _one_model(diff) else ""
        for circuit, given, option in ((first, behaviour_a, "--behaviour-a"), (second, behaviour_b, "--behaviour-b"))
    )
    machine_rows = machine.rows
    folder = prepared_folder(
        out or default_folder(first.model.id, f"{first.behaviour.name}-and-{second.behaviour.name}")
    )
    if transfer and not _one_model(diff):
        output.say("the circuits are of different models, so cross-transfer is not measured.")
    elif transfer:
        with output.progress() as progress:
            run = _Transfers(machine, machine_rows, pairs, progress, output)
            diff = diff.with_transfer(run.both_ways(diff, names[0], names[1]))
    _write(diff, folder)
    output.show(facts(f"A: {a}\nB: {b}", _rows(diff)), "", diff.describe(), "", f"The diagram is {folder / FILES[2]}")
    output.finish(diff.to_dict() | {"files": {name: str(folder / name) for name in FILES}})


def _one_model(diff: CircuitDiff) -> bool:
    return diff.a.model.digest == diff.b.model.digest and (bool(diff.a.model.digest) or diff.a.model == diff.b.model)


class _Transfers:
    """Runs each of two circuits on the other's behaviour."""

    def __init__(self, machine: Machine, rows: int | None, pairs: int, progress: Told, output: Output) -> None:
        self._machine, self._rows, self._pairs = machine, rows, pairs
        self._progress, self._output = progress, output

    def both_ways(self, diff: CircuitDiff, name_a: str, name_b: str) -> Transfer:
        """Measure A's circuit on B's held-out prompts, and the reverse."""
        try:
            model = self._machine.load(self._progress, default=diff.a.model.id)
        except ModelUnavailableError as error:
            raise ModelUnavailableError(f"{error} To compare without running the model, add --no-transfer.") from error
        require_same_model(diff.a, model, self._output)
        on_b = self._transferred(model, diff.a, diff.b, name_b)
        return Transfer(a_on_b=on_b, b_on_a=self._transferred(model, diff.b, diff.a, name_a))

    def _transferred(self, model: "Model", circuit: Circuit, other: Circuit, name: str) -> Transferred:
        """Judge a circuit on the prompts of another circuit's behaviour, by that one's metric."""
        from circuits.evaluation import evaluate

        experiment = self._experiment(model, other, name)
        stage = f"{circuit.behaviour.name}'s circuit on {other.behaviour.name}"
        self._progress(stage, 0, 0)
        found = evaluate(experiment, circuit.edges, seed=other.method.seed)
        return Transferred(found.faithfulness, found.faithfulness_ci, found.n, found.random_baseline)

    def _experiment(self, model: "Model", circuit: Circuit, name: str) -> "PatchingExperiment":
        from dataclasses import replace

        from circuits.behaviours import load_behaviour
        from circuits.tracing.experiment import Options

        metric = Metric.parse(circuit.behaviour.metric)
        behaviour = replace(load_behaviour(name), metric=metric)
        prompts = behaviour.prompts(model.tokenizer, discovery=0, heldout=self._pairs, seed=circuit.method.seed)
        self._progress(f"recording the prompts of {circuit.behaviour.name}", 0, 0)
        ablation = Ablation.parse(circuit.method.ablation)
        return model.experiment(
            prompts.heldout, Options(metric, ablation, batch_size=self._rows, memory=self._machine.limit)
        )


def _write(diff: CircuitDiff, folder: Path) -> None:
    text = json.dumps(diff.to_dict(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write(folder / FILES[0], text + "\n")
    for name in FILES[1:]:
        draw_difference(diff, folder / name)


def _rows(diff: CircuitDiff) -> list[tuple[str, str]]:
    edges, nodes = diff.edge_overlap, diff.node_overlap
    rows = [
        ("edges", f"A {edges.size_a}, B {edges.size_b}, shared {edges.shared} (by chance {edges.expected_shared:.2g})"),
        ("Jaccard of edges", f"{edges.jaccard:.3f}, by |score| {diff.weighted_jaccard:.3f}, p = {edges.p_value:.2g}"),
        ("nodes", f"A {nodes.size_a}, B {nodes.size_b}, shared {nodes.shared} (by chance {nodes.expected_shared:.2g})"),
        ("Jaccard of nodes", f"{nodes.jaccard:.3f}, p = {nodes.p_value:.2g}"),
        ("ranks", f"Spearman {diff.rank_correlation:.3f} over {diff.rank_edges} edges"),
    ]
    if diff.transfer:
        rows += [("A on B", _in_numbers(diff.transfer.a_on_b)), ("B on A", _in_numbers(diff.transfer.b_on_a))]
    return rows


def _in_numbers(found: Transferred) -> str:
    low, high = found.faithfulness_ci
    text = f"faithfulness {found.faithfulness:.3f} [{low:.3f}, {high:.3f}]"
    return text + (f", random {found.random_baseline.median:.3f}" if found.random_baseline else "")
