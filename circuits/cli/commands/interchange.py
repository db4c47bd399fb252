"""``circuits interchange``: which nodes a behaviour needs, and which are enough for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from circuits.circuit import Circuit
from circuits.cli.arguments import DEFAULT_MODEL, BehaviourArgument, Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.places import default_folder, prepared_file
from circuits.cli.resuming import ResumeOption, kept_until_done
from circuits.cli.session import model_name
from circuits.cli.tables import facts, table
from circuits.cli.working import Sharing
from circuits.errors import UsageError
from circuits.graph import Node
from circuits.interchange.foreign import read_circuit
from circuits.progress import PLANS

if TYPE_CHECKING:
    from circuits.certainty.gates import GateTests
    from circuits.certainty.node_tests import NodeTest, NodeTests

FILE, GATES = "interchange.json", "gates.json"
SHOWN = 15
"""How many sets the table shows; the file has all."""
GatesOption = Annotated[
    bool,
    typer.Option(
        "--gates",
        help="Also part what each named node does into what it writes itself and what passes through others, and "
        f"name gates and amplifiers that hold on both halves of the pairs ({GATES}).",
    ),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help=f"Where to write everything measured (default: outputs/MODEL/BEHAVIOUR/{FILE}).",
        rich_help_panel="Output",
    ),
]
RandomOption = Annotated[
    int, typer.Option(min=0, help="How many random sets nodes that are exchanged together are held against.")
]


@command
def interchange(
    behaviour: BehaviourArgument,
    *,
    nodes: Annotated[
        str | None,
        typer.Option(
            "--nodes",
            "-n",
            metavar="NODE,NODE,…|CIRCUIT.json",
            help="Heads and MLPs, each alone (a9.h8 or L9H8, m3); or a circuit's, together. Default: all, each alone.",
        ),
    ] = None,
    gates: GatesOption = False,
    together: Annotated[bool, typer.Option("--together", help="Exchange the nodes all at once.")] = False,
    random: RandomOption = 99,
    out: FileOption = None,
    resume: ResumeOption = False,
    sharing: Sharing,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Test which nodes a behaviour needs and which are enough for it, by exchanging what they send.

    Necessity: what the clean run loses when the nodes alone send what they send in the corrupted run. Sufficiency: what
    the corrupted run gains when they alone send what they send in the clean run. Everything downstream is recomputed.
    """
    output = output_options.output()
    chosen = measurement.behaviour(behaviour)
    options, resources = measurement.options(chosen), model_options.resources()
    sets = _sets(nodes, together=together, gates=gates)
    file = prepared_file(out or default_folder(model_name(model_options), chosen.name) / FILE, (".json",), FILE)

    from circuits.certainty.gates import find_gates
    from circuits.certainty.node_tests import PAIRS, interchange_nodes
    from circuits.files.atomic import write

    line = output.progress(plan=PLANS["interchange"])
    with kept_until_done(file, output, resume=resume) as journal, line as progress:
        sharing.share_out(file, output, progress, resume=resume)
        of = sets.model.id if isinstance(sets, Circuit) else DEFAULT_MODEL
        model = measurement.led(model_options.load(progress, output, default=of))
        chosen = measurement.with_openings(chosen, model, output)
        more: dict[str, Any] = {"options": options, "resources": resources, "pairs": measurement.pairs or PAIRS}
        more |= {"seed": measurement.seed or 0, "progress": progress, "journal": journal}
        more["folder"] = sharing.meeting(file)
        found = interchange_nodes(model, chosen, sets, random_sets=random, **more)
        write(file, found.to_json(), make_folder=True)
        parted = find_gates(model, chosen, [test.nodes[0] for test in found.tests], **more) if gates else None
        if parted is not None:
            write(file.with_name(GATES), parted.to_json())
        sharing.end(file)
    for remark in found.remarks:
        output.warn(remark)
    output.show(*_tables(found, file))
    document, files = {**found.to_document(), "file": str(file)}, [file]
    if parted is not None:
        output.show(_parted(parted), parted.describe())
        document, files = document | {"gates": parted.to_document()}, [file, file.with_name(GATES)]
    output.leave(document, file.parent, files)


def _sets(nodes: str | None, *, together: bool, gates: bool) -> Circuit | list[tuple[Node, ...]] | None:
    """Return what to exchange, checked; raises :class:`UsageError` for names that are no nodes."""
    if gates and (together or nodes is None or nodes.lower().endswith(".json")):
        raise UsageError("--gates parts what single nodes do; name some with --nodes, without --together.")
    if nodes is None:
        if together:
            raise UsageError("--together is for nodes that are named; name them with --nodes.")
        return None
    if nodes.lower().endswith(".json"):
        return read_circuit(Path(nodes)).circuit
    named = tuple(Node.parse(text.strip()) for text in nodes.split(","))
    return [named] if together else [(node,) for node in named]


def _tables(found: "NodeTests", file: Path) -> list[RenderableType]:
    rows = [
        ("prompt pairs", f"{found.n}, held out, {found.clusters} independent"),
        (found.metric, f"the two runs are {found.gap:.3f} apart, on average"),
    ]
    if found.random:
        random = found.random
        for name, (median, high), chance in (
            ("necessity", random.necessity, random.p_necessity),
            ("sufficiency", random.sufficiency, random.p_sufficiency),
        ):
            text = f"{name} {median:.3f}, 95 % below {high:.3f}; as much as these nodes or more: p = {chance:.2g}"
            rows.append((f"{random.n} random sets" if name == "necessity" else "", text))
    if found.halves and len(found.tests) > 1:
        names = ", ".join(name for nodes in found.replicated for name in nodes) or "none"
        rows.append(("on both halves", f"p below 0.05 with one sign, necessity and sufficiency: {names}"))
    rows.append(("written to", str(file)))
    return [
        facts(f"interchange of nodes, {found.behaviour} in {found.model}", rows),
        _ranked(found.tests),
        _explained(len(found.tests)),
    ]


def _parted(found: "GateTests") -> Group:
    """List what each node does in all, itself, and through the amplifiers: necessity, and the names."""
    rows = [
        [test.node, *(each.describe(2) for each in (lost.total, lost.direct, lost.through)), test.name]
        for test, (lost, _) in ((test, test.whole) for test in found.tests)
    ]
    title = f"necessity, shares of the gap, towards {found.towards}"
    return table(title, ["node", "in all", "itself", "through amplifiers", "name"], rows, numbers=(1, 2, 3))


def _ranked(tests: "tuple[NodeTest, ...]") -> Group:
    """List the sets that do most, by the larger of the two shares."""

    def share(test: "NodeTest") -> float:
        return max(abs(test.necessity.value), abs(test.sufficiency.value))

    shown = sorted(tests, key=share, reverse=True)[:SHOWN]
    more = f", the {len(shown)} of {len(tests)} that do most" if len(shown) < len(tests) else ""
    return table(
        f"shares of the gap, with 95 % intervals{more}",
        ["nodes", "necessity", "p", "sufficiency", "p"],
        [
            [
                _names(test.nodes),
                test.necessity.describe(),
                f"{test.p_necessity:.2g}",
                test.sufficiency.describe(),
                f"{test.p_sufficiency:.2g}",
            ]
            for test in shown
        ],
        numbers=(1, 2, 3, 4),
    )


def _names(nodes: tuple[str, ...]) -> str:
    return ", ".join(nodes) if len(nodes) <= 6 else f"{', '.join(nodes[:5])} and {len(nodes) - 5} more"


def _explained(count: int) -> Text:
    several = f", corrected for {count} tests (Holm)" if count > 1 else ""
    return Text(
        f"p: that the effect has no sign, by turning signs of pairs at random{several}. --json gives all numbers."
    )
