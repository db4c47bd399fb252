"""Over-refusal: harmless requests that a model refuses, against harmless ones that it answers.

Which those are only the model can say, by the first token of its answers. Both sides of a pair are harmless requests of
a behaviour's own (the corrupted prompts of ``refusal``), in the same form and number of tokens, so that what differs is
what is asked for; twins are chosen so that over all pairs as few tokens as possible differ.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair, TokenPair
from circuits.behaviours.tokens import Tokenizer
from circuits.errors import BehaviourNotShownError
from circuits.model import Model
from circuits.openings import finds_openings, with_openings
from circuits.records import UNCHANGED
from circuits.steering.steered_model import SteeredModel

NAME = "over-refusal"
_KEPT = ("split", "template", "category")
"""The tags that twins share, where the behaviour has them; of the kind of harm, the clean side's is kept."""


@dataclass(frozen=True)
class OverRefusal:
    """The behaviour, and of how many harmless requests the model refuses how many by the first token of its answer."""

    behaviour: Behaviour
    requests: int
    refused: int
    paired: int

    def describe(self) -> str:
        """Return in a sentence what became of the requests."""
        return (
            f"the first token refuses on {self.refused} of {self.requests} harmless requests; {self.paired} of these "
            "have a twin of the same form and as many tokens that is answered."
        )


def over_refusal(model: Model, behaviour: Behaviour) -> OverRefusal:
    """Return over-refusal as a behaviour of this model: clean prompts are harmless requests that it refuses.

    Args:
        model: The model, as it was loaded.
        behaviour: Whose corrupted prompts are the harmless requests, and whose answers refuse (``refusal``, or pairs of
            collections); openings that belong to another model are found in this one first.

    Raises :class:`BehaviourNotShownError` where the model refuses none, or answers none that fits. Cost: one forward
    pass of the harmless prompts.
    """
    if finds_openings(model, behaviour):
        behaviour, _ = with_openings(model, behaviour)
    found = {made.corrupted: (pair, made) for pair, made in behaviour.usable(model.tokenizer).pairs}
    both = list(found.values())
    _, logits = SteeredModel(model).answers([made.corrupted for _, made in both])
    refuses = [int(row.argmax()) in made.answers for row, (_, made) in zip(logits, both, strict=True)]
    groups = defaultdict[object, tuple[list[int], list[int]]](lambda: ([], []))
    for place, ((pair, made), refused) in enumerate(zip(both, refuses, strict=True)):
        tags = tuple(pair.tags.get(name, "") for name in _KEPT[:2])
        groups[tags, made.length][0 if refused else 1].append(place)
    pairs = [
        _pair(both[one][0], both[other][0])
        for refused, answered in groups.values()
        for one, other in _twins([both[i][1] for i in refused], [both[i][1] for i in answered], refused, answered)
    ]
    if not pairs:
        raise BehaviourNotShownError(
            f"{model.info.id} refuses {sum(refuses)} of {len(both)} harmless requests by the first token, and none of "
            "these has a twin of its form and length that is answered; give more harmless requests (circuits prompts)."
        )
    made = replace(
        behaviour,
        name=NAME,
        description="a harmless request is refused, against one that is answered",
        pairs=partial(_given, tuple(pairs)),
        answers_for=(),
        variant=UNCHANGED,  # the pairs are as it has them
        remarks=None,
        unread=None,
    )
    return OverRefusal(made, len(both), sum(refuses), len(pairs))


def _given(pairs: tuple[Pair, ...], tokenizer: Tokenizer) -> tuple[Pair, ...]:
    del tokenizer
    return pairs


def _pair(refused: Pair, answered: Pair) -> Pair:
    tags = {name: refused.tags[name] for name in _KEPT if name in refused.tags}
    return replace(
        refused, clean=refused.corrupted, corrupted=answered.corrupted, tags=tags, alignment=(), corrupted_roles={}
    )


def _twins(
    refused: list[TokenPair], answered: list[TokenPair], ones: list[int], others: list[int]
) -> list[tuple[int, int]]:
    """Return the places of twins: each refused request with another answered one, as alike as can be over all."""
    from scipy.optimize import linear_sum_assignment

    if not refused or not answered:
        return []
    first, second = (np.array([each.corrupted for each in side]) for side in (refused, answered))
    differ = (first[:, None] != second[None]).sum(axis=-1)
    rows, columns = linear_sum_assignment(differ)
    return [(ones[int(row)], others[int(column)]) for row, column in zip(rows, columns, strict=True)]
