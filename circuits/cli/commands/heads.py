"""``circuits heads``: what the heads of a circuit do, with the evidence."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.text import Text

from circuits.cli.arguments import PAIRS, CircuitArgument, Measurement, ModelOptions
from circuits.cli.command import RecordedOutputOptions, command
from circuits.cli.places import prepared_file
from circuits.cli.resuming import ResumeOption, kept_until_done
from circuits.cli.session import circuit_behaviour_name, require_same_model, require_same_prompts
from circuits.cli.tables import facts, table
from circuits.graph import Edge
from circuits.interchange.foreign import read_circuit
from circuits.interchange.sidecars import HEADS
from circuits.progress import PLANS

if TYPE_CHECKING:
    from circuits.heads.evidence import AttentionShare, HeadEvidence, HeadRoles

SHOWN = 3
"""How many roles of attention are listed for a head."""


@command
def heads(
    circuit: CircuitArgument,
    *,
    behaviour: Annotated[
        str | None,
        typer.Option("--behaviour", "-b", help="The prompt file, where the circuit's behaviour is not built in."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where to write everything measured, .json or .csv (default: heads.json beside the circuit, where "
            "draw finds it).",
            rich_help_panel="Output",
        ),
    ] = None,
    resume: ResumeOption = False,
    measurement: Measurement,
    model_options: ModelOptions,
    output_options: RecordedOutputOptions,
) -> None:
    """Show what each head of a circuit does: where it attends, what it writes and copies, with the numbers."""
    output = output_options.output()
    found = read_circuit(circuit).circuit
    name = circuit_behaviour_name(found, behaviour, "--behaviour", file=circuit)
    chosen = measurement.behaviour(name, recorded=found.behaviour)
    options = measurement.options(chosen, direction=found.method.direction, ablation=found.method.ablation)
    resources = model_options.resources()
    file = prepared_file(out or circuit.with_name(HEADS), (".json", ".csv"), HEADS)

    from circuits.files.atomic import write
    from circuits.heads import head_roles

    with kept_until_done(file, output, resume=resume) as journal, output.progress(plan=PLANS["heads"]) as progress:
        model = model_options.load(progress, output, default=found.model.id)
        require_same_model(found, model, output, nodes=found.model.target is None)
        require_same_prompts(chosen, name, found, model)
        chosen = measurement.with_openings(chosen, model, output)
        seed = found.method.seed if measurement.seed is None else measurement.seed
        prompts = chosen.prompts(model.tokenizer, discovery=0, heldout=measurement.pairs or PAIRS, seed=seed)
        output.recorder.drew(prompts)
        measurement.list_unusable(prompts.unusable, file.parent, output)
        told = partial(progress, "measuring heads")
        roles = head_roles(
            model,
            found,
            prompts.heldout,
            options=options,
            resources=resources,
            seed=seed,
            progress=told,
            journal=journal,
        )
        text = roles.to_csv() if file.suffix.lower() == ".csv" else roles.to_json()
        write(file, text, make_folder=True)
    output.show(_summary(roles, file), *_tables(roles), _explained(roles))
    output.leave({**roles.document(), "circuit": str(circuit), "file": str(file)}, file.parent, [file])


def _summary(roles: "HeadRoles", file: Path) -> Group:
    labelled = sum(bool(head.labels) for head in roles.heads)
    rows = [
        ("heads", f"{len(roles.heads)}, of which {labelled} have a label"),
        ("prompt pairs", f"{roles.n_pairs}, held out"),
        ("random sequences", f"{roles.n_sequences} of {roles.sequence_length} tokens"),
        ("written to", str(file)),
    ]
    return facts(f"heads of the circuit of {roles.behaviour} in {roles.model}", rows)


def _tables(roles: "HeadRoles") -> list[Group]:
    heads = roles.heads
    return [
        table(
            f"what they are (direct effect in {roles.unit}; attention on random sequences; copying)",
            ["head", "label", "direct", "prev", "dup", "ind", "copies"],
            [_role_row(head) for head in heads],
            numbers=(2, 3, 4, 5, 6),
        ),
        table(
            "why the labels",
            ["head", "label", "evidence"],
            [[str(head.node), label.name, label.because] for head in heads for label in head.labels],
        ),
        table(
            "where they attend: share on clean prompts (on corrupted ones)",
            ["head", "from the last token", "from the changed token"],
            [[str(head.node), _shares(head.from_last), _shares(head.from_changed)] for head in heads],
        ),
        table(
            "what they write at the last position: logits added; tokens raised most (· is a space)",
            ["head", "answer", "wrong", "answer in top 5", "tokens"],
            [_written_row(head) for head in heads],
            numbers=(1, 2, 3),
        ),
        table(
            "their strongest edges in the circuit",
            ["head", "from", "to"],
            [[str(head.node), _incoming(head), _outgoing(head)] for head in heads],
        ),
    ]


def _role_row(head: "HeadEvidence") -> list[str]:
    scores = head.sequences
    return [
        str(head.node),
        ", ".join(label.name for label in head.labels) or "-",
        f"{head.direct.mean:+.3f}",
        *(f"{score:.2f}" for score in (scores.previous_token, scores.duplicate_token, scores.induction)),
        f"{head.copying.random:.0%}",
    ]


def _written_row(head: "HeadEvidence") -> list[str]:
    writes = head.writes
    tokens = " ".join(repr(text.replace(" ", "·")) for text, _ in writes.tokens)
    numbers = [f"{value:+.2f}" if math.isfinite(value) else "-" for value in (writes.answer, writes.wrong_answer)]
    top = f"{writes.answer_in_top:.0%}" if math.isfinite(writes.answer_in_top) else "-"
    return [str(head.node), *numbers, top, tokens]


def _shares(shares: "Sequence[AttentionShare]") -> str:
    from circuits.heads.evidence import largest

    return ", ".join(f"{each.role} {each.clean:.0%} ({each.corrupted:.0%})" for each in largest(shares, SHOWN))


def _incoming(head: "HeadEvidence") -> str:
    """Name the senders, what of the head they enter (q, k or v), and the scores."""
    edges = [(Edge.parse(text), score) for text, score in head.incoming]
    return ", ".join(f"{edge.sender} ({edge.receiver.slot}) {score:.2g}" for edge, score in edges)


def _outgoing(head: "HeadEvidence") -> str:
    edges = [(Edge.parse(text), score) for text, score in head.outgoing]
    return ", ".join(f"{edge.receiver} {score:.2g}" for edge, score in edges)


def _explained(roles: "HeadRoles") -> Text:
    limits = roles.thresholds
    return Text(
        f"Labels sum up evidence that reaches {limits['attention']:.0%} of the attention, {limits['copying']:.0%} of "
        "the tokens copied or suppressed and, of what heads do on the prompts, a direct effect whose interval does not "
        "hold 0; the numbers are the evidence. Attention was measured by replacing values with unit vectors. Roles are "
        "those of the clean prompt and may overlap. prev, dup, ind: mean attention on random tokens given twice to the "
        "previous token, the earlier copy, the token after that. --json or --out gives all numbers."
    )
