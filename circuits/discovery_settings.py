"""How a circuit is searched, and which prompts for what: to fit circuits to, to choose by, and to judge on."""

from dataclasses import dataclass, field
from typing import Any, Self

from circuits.behaviours.behaviour import Behaviour, PromptSet
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.roles import role_names
from circuits.behaviours.split import in_groups, parted
from circuits.errors import PromptError, UsageError
from circuits.model import Model
from circuits.openings import finds_openings, with_openings
from circuits.patching.measurement import Options, Resources
from circuits.pruning.pruners import PRUNERS
from circuits.scoring.budget import Budget
from circuits.scoring.verified import TopK
from circuits.settings import settle
from circuits.vocabulary import PrunerName, ScorerName

Pairs = tuple[TokenPair, ...]


@dataclass(frozen=True)
class DiscoverySettings:
    """How a circuit is searched.

    The pruner ``closest`` looks for the fewest edges with a fidelity of ``target`` on ``choose`` pairs, none of those
    it fits circuits to: ``pairs``, and in turn ``fresh`` groups of as many others, as far as there are so many; it ends
    with the best so far after ``seconds``. ``minimal`` looks for the fewest with that faithfulness, which is quicker
    and agrees less pair by pair, and does not prune circuits of more than ``prune_limit`` edges edge by edge. ``size``
    is the number of edges of ``top``, ``greedy`` and ``ilp``; ``threshold`` the least |score| of the pruner of that
    name, and what an edge must cost to be kept by ``acdc``. ``sample`` edges are measured exactly to check the scorer;
    ``verify`` is what the scorer ``verified`` looks for (by default within a budget of twice as many edges as it
    finds); ``rough`` marks what is found as a first answer. With ``by_role`` the edges searched have the token roles of
    the pairs (:meth:`circuits.Model.by_role`). Without ``options``: the behaviour's own metric, corrupted ablation,
    noising. ``resources`` is what measuring may use.
    """

    scorer: ScorerName = ScorerName.EAP_IG
    pruner: PrunerName = PrunerName.CLOSEST
    target: float = 0.9
    size: int = 200
    prune_limit: int = 400
    steps: int = 5
    verify: TopK = field(default_factory=lambda: TopK(budget=Budget(edges=400)))
    pairs: int = 64
    choose: int = 128
    fresh: int = 3
    heldout: int = 64
    seconds: float | None = None
    seed: int = 0
    sample: int = 64
    rough: bool = False
    by_role: bool = False
    threshold: float | None = None
    options: Options | None = None
    resources: Resources = field(default_factory=Resources)

    @classmethod
    def quick(cls, **changed: Any) -> Self:
        """Return settings for a first, rough answer with much less work; ``changed`` are other settings.

        The pruner ``minimal`` without pruning edge by edge, on 8 pairs, judged on 16 others; neither are scores checked
        nor pairs resampled. The circuit says so.
        """
        given: dict[str, Any] = {"pruner": PrunerName.MINIMAL, "prune_limit": 0, "pairs": 8, "heldout": 16}
        given |= {"sample": 0, "rough": True}
        return cls(**(given | changed))

    def options_for(self, prompts: PromptSet) -> Options:
        """Return what is measured: unless said otherwise, the behaviour's own metric."""
        return self.options or Options(prompts.metric)

    def __post_init__(self) -> None:
        settle(self, least={"size": 1, "prune_limit": 0, "steps": 1, "sample": 0, "seed": 0, "fresh": 0})
        if not 0 < self.target < 1:
            raise UsageError(f"the target must be between 0 and 1, got {self.target}.")
        if self.pruner.by_threshold and (self.threshold is None or not self.threshold > 0):
            raise UsageError(
                f"the pruner {self.pruner} needs a threshold above 0, in the metric's unit, got {self.threshold}. Give "
                "one with --threshold."
            )
        if self.by_role and self.pruner in (PrunerName.GREEDY, PrunerName.ILP, PrunerName.ACDC):
            raise UsageError(
                f"the pruner {self.pruner} knows no token roles (by_role); take closest, minimal, top or threshold."
            )
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"the time for pruning must be more than 0 seconds, got {self.seconds}.")
        if min(self.pairs, self.heldout) < 4:
            raise UsageError(
                f"at least 4 discovery and 4 held-out pairs are needed, got {self.pairs} and {self.heldout}."
            )


def prompts_for(model: Model, behaviour: Behaviour, settings: DiscoverySettings) -> PromptSet:
    """Draw the discovery and held-out pairs for a model's tokenizer, with openings of the model where it needs its own.

    See :mod:`circuits.openings`.
    """
    if finds_openings(model, behaviour):
        behaviour = with_openings(model, behaviour)[0]
    more = settings.choose + settings.fresh * settings.pairs if PRUNERS[settings.pruner].chooses else 0
    discovery = settings.pairs + more
    return behaviour.prompts(model.tokenizer, discovery=discovery, heldout=settings.heldout, seed=settings.seed)


def model_for(model: Model, prompts: PromptSet, settings: DiscoverySettings) -> Model:
    """Return the model whose edges are searched: by role, with the roles of the prompts, where that is wanted."""
    return model.by_role(role_names((*prompts.discovery, *prompts.heldout))) if settings.by_role else model


def parts_of(prompts: PromptSet, settings: DiscoverySettings) -> tuple[list[Pairs], Pairs, tuple[str, ...]]:
    """Return groups of pairs to fit circuits to, of which edges are scored on the first, pairs to choose by, remarks.

    Where there are too few to part, the same pairs serve for both.
    """
    if not PRUNERS[settings.pruner].chooses:
        return [prompts.discovery], (), ()
    count, share = prompts.n_discovery, settings.choose / (settings.pairs + settings.choose)
    try:
        fitted, chosen_by = parted(prompts.discovery, 1 - min(share, settings.choose / count))
    except PromptError as few:
        remark = f"{few} Until then circuits are chosen by the pairs they fit."
        return [prompts.discovery], prompts.discovery, (remark,)
    return in_groups(fitted, settings.pairs), chosen_by, ()
