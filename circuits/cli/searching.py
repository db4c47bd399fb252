"""Options of ``circuits discover``: how a circuit is searched."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.cli.arguments import DISCOVERY_PAIRS, ByRoleOption, Measurement
from circuits.cli.verifying import Verifying
from circuits.vocabulary import ELIMINATION_IN_BRIEF, PrunerName, ScorerName

if TYPE_CHECKING:
    from circuits.discovery_settings import DiscoverySettings
    from circuits.patching.measurement import Options, Resources


@dataclass(frozen=True)
class Search:
    """How edges are ranked and chosen, and on how many pairs the circuit is judged."""

    scorer: Annotated[
        str,
        typer.Option(
            metavar="|".join(ScorerName),
            help=f"How edges are ranked; {ELIMINATION_IN_BRIEF}.",
            rich_help_panel="Search",
        ),
    ] = ScorerName.EAP_IG
    pruner: Annotated[
        str,
        typer.Option(
            metavar="|".join(PrunerName),
            help="How edges are chosen: closest, as few as follow the model pair by pair; minimal, as few as have its "
            "mean effect (quicker, fewer, further off on each pair); nodes, as few heads and MLPs, with all edges "
            "among them; top, the best of the ranking; greedy, the best from the end back; ilp, the connected ones of "
            "the largest total score; threshold; acdc, every edge removed that costs less than --threshold.",
            rich_help_panel="Search",
        ),
    ] = PrunerName.CLOSEST
    target: Annotated[
        float,
        typer.Option(
            help="Fidelity that the circuit must reach; with --pruner minimal, faithfulness.", rich_help_panel="Search"
        ),
    ] = 0.9
    choose: Annotated[
        int,
        typer.Option(
            help="Pairs by which the pruners closest and nodes choose a circuit, beside those they fit circuits to.",
            min=4,
            rich_help_panel="Search",
        ),
    ] = 128
    fresh: Annotated[
        int,
        typer.Option(
            help="Further groups of as many --pairs that the pruners closest and nodes fit circuits to in turn, as far "
            "as there are so many: more are surer and cost little.",
            min=0,
            rich_help_panel="Search",
        ),
    ] = 3
    seconds: Annotated[
        float | None,
        typer.Option(
            help="End the search of the pruners closest and nodes after so long, with the best so far.",
            rich_help_panel="Search",
        ),
    ] = None
    size: Annotated[
        int, typer.Option(help="Edges of the pruners top, greedy and ilp.", min=1, rich_help_panel="Search")
    ] = 200
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Least |score| of --pruner threshold; what an edge must cost to be kept by --pruner acdc.",
            rich_help_panel="Search",
            show_default=False,
        ),
    ] = None
    prune_limit: Annotated[
        int,
        typer.Option(help="Circuits of more edges are not pruned edge by edge.", min=1, rich_help_panel="Search"),
    ] = 400
    steps: Annotated[int, typer.Option(help="Steps of --scorer eap-ig.", min=1, rich_help_panel="Search")] = 5
    heldout: Annotated[int, typer.Option(help="Pairs to judge the circuit on.", rich_help_panel="Measurement")] = 64
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A rough first answer: 8 pairs, the pruner minimal without pruning edge by edge, scores not "
            "checked, pairs not resampled, no evidence on heads. Other options of the search hold.",
            rich_help_panel="Search",
        ),
    ] = False

    by_role: ByRoleOption = False
    cross_fit: Annotated[
        bool,
        typer.Option(
            "--cross-fit",
            help="For few pairs: search a second time with discovery and held-out pairs exchanged, so that every pair "
            "judges the circuit that was found without it.",
            rich_help_panel="Search",
        ),
    ] = False

    rivals: Annotated[
        int,
        typer.Option(
            metavar="K",
            help="Search K more circuits that do without the edges of those found before as far as they can: is this "
            "one the only way? Each takes as long as the search (--pruner closest).",
            min=0,
            rich_help_panel="Search",
        ),
    ] = 0

    def check(self) -> None:
        """Raise ``UnknownNameError`` for a scorer or pruner that there is not, ``UsageError`` for rivals of others."""
        ScorerName.parse(self.scorer)
        pruner = PrunerName.MINIMAL if self.quick and self.pruner == Search.pruner else PrunerName.parse(self.pruner)
        if self.rivals:
            pruner.check_rivals()

    def settings(
        self, measurement: Measurement, verifying: Verifying, options: "Options", resources: "Resources"
    ) -> "DiscoverySettings":
        """Return the settings of a discovery."""
        from circuits.discovery_settings import DiscoverySettings

        scorer = ScorerName.parse(self.scorer)
        given: dict[str, Any] = {
            "pruner": PrunerName.parse(self.pruner),
            "heldout": self.heldout,
            "prune_limit": self.prune_limit,
            "pairs": measurement.pairs or DISCOVERY_PAIRS,
        }
        if self.quick:  # what was not asked for is as a quick search has it
            usual = {"pruner": Search.pruner, "heldout": Search.heldout, "prune_limit": Search.prune_limit}
            usual["pairs"] = DISCOVERY_PAIRS if measurement.pairs is None else 0
            given = {name: value for name, value in given.items() if value != usual[name]}
        return (DiscoverySettings.quick if self.quick else DiscoverySettings)(
            **given,
            scorer=scorer,
            target=self.target,
            size=self.size,
            threshold=self.threshold,
            steps=self.steps,
            choose=self.choose,
            fresh=self.fresh,
            seconds=self.seconds,
            by_role=self.by_role,
            verify=verifying.top_k(scorer, limited=True),
            seed=measurement.seed or 0,
            options=options,
            resources=resources,
        )
