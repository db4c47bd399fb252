"""Options of ``circuits ablate``: which part of a circuit is acted on, and what is done to it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.circuit import Circuit
from circuits.errors import UsageError
from circuits.vocabulary import Ablation, ActedOn, NodeAblation, NodeChoice

if TYPE_CHECKING:
    from circuits.ablation.intervention import Intervention


@dataclass(frozen=True)
class Acting:
    """What is done to which part of a circuit."""

    what: Annotated[
        str,
        typer.Option(metavar="|".join(ActedOn), help="The circuit's nodes, or its edges (first token of pairs only)."),
    ] = ActedOn.NODES
    ablation: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(NodeAblation),
            help="What a node's output is replaced by: its mean over the tokens (default) or the last tokens of the "
            "corrupted (harmless) discovery prompts, or zero. Of edges: corrupted.",
            show_default=False,
        ),
    ] = None
    scale: Annotated[
        float | None,
        typer.Option(
            help="How much of a node's own output is left: 0 none (default), 1 all of it, below 0 turned around.",
            show_default=False,
        ),
    ] = None
    steer: Annotated[
        float,
        typer.Option(
            help="Add this many times a node's difference of means, clean (harmful) minus corrupted (harmless) at the "
            "last token. Alone, it leaves the node's own output (--scale 1).",
        ),
    ] = 0.0
    nodes: Annotated[str, typer.Option(metavar="|".join(NodeChoice), help="Which nodes of the circuit.")] = (
        NodeChoice.ALL
    )
    strongest: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Only the N edges with the largest |score|, and their nodes."),
    ] = None
    first_token: Annotated[
        bool, typer.Option("--first-token", help="Act at the first token too, which is spared otherwise.")
    ] = False

    @property
    def target(self) -> ActedOn:
        """Whether nodes or edges are acted on."""
        return ActedOn.parse(self.what)

    @property
    def which(self) -> NodeChoice:
        """Which nodes are acted on."""
        return NodeChoice.parse(self.nodes)

    def part(self, circuit: Circuit) -> Circuit:
        """Return the part of a circuit that was asked for."""
        return circuit.strongest(self.strongest) if self.strongest else circuit

    @property
    def intervention(self) -> "Intervention | None":
        """What nodes put out instead, where nodes are acted on; steering alone leaves their own values."""
        if self.target is not ActedOn.NODES:
            return None
        from circuits.ablation.intervention import Intervention

        kind = NodeAblation.parse(self.ablation or NodeAblation.MEAN)
        scale = (1.0 if self.steer else 0.0) if self.scale is None else self.scale
        return Intervention(kind, scale, self.steer, self.first_token)

    def check(self) -> None:
        """Raise :class:`UsageError` unless what was asked for can be done to nodes, or to edges."""
        if self.target is ActedOn.NODES:
            if self.ablation == Ablation.CORRUPTED:
                raise UsageError(
                    "corrupted values exist for pairs of prompts, not for text that is generated; use --ablation mean, "
                    "or --what edges, which measures the first token of pairs."
                )
            NodeAblation.parse(self.ablation or NodeAblation.MEAN)
            NodeChoice.parse(self.nodes)
        elif self.ablation not in (None, Ablation.CORRUPTED):
            raise UsageError(
                "edges carry corrupted values, at the first token of pairs only; expected --ablation corrupted, got "
                f"'{self.ablation}'. Use --what nodes for other ablations."
            )
        elif self.scale is not None or self.steer or self.first_token or self.nodes != NodeChoice.ALL:
            raise UsageError(
                "--scale, --steer, --nodes and --first-token act on nodes; leave them out, or --what edges."
            )
