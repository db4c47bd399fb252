"""Options of ``--scorer verified``: how many edges to find, and how much may be measured for it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.errors import UsageError
from circuits.vocabulary import ScorerName

if TYPE_CHECKING:
    from circuits.scoring.verified import TopK


@dataclass(frozen=True)
class Verifying:
    """What ``--scorer verified`` looks for."""

    top: Annotated[
        int | None,
        typer.Option(
            help="Edges that --scorer verified finds (default: 200).",
            min=1,
            rich_help_panel="Verification",
        ),
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="EDGES|TIME",
            help="What --scorer verified may measure: 2000 (edges on all pairs), or 90s, 10min, 1h. Default: what it "
            "takes to be certain; in discover, twice as many edges as it finds.",
            rich_help_panel="Verification",
        ),
    ] = None

    def top_k(self, scorer: ScorerName, *, limited: bool = False) -> "TopK":
        """Return what is looked for; ``limited``: with a budget of twice that many edges unless said otherwise."""
        from circuits.scoring.budget import Budget
        from circuits.scoring.verified import TopK

        if scorer is not ScorerName.VERIFIED and (self.top, self.budget) != (None, None):
            raise UsageError(f"--top and --budget are for --scorer verified; the scorer is {scorer}.")
        k = TopK().k if self.top is None else self.top
        if self.budget is not None:
            return TopK(k, Budget.parse(self.budget))
        return TopK(k, Budget(edges=2 * k) if limited else Budget())
