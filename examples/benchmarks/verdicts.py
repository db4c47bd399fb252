"""What is said of a good, a weak and a spurious circuit, and of prompts whose answers were shuffled.

    python examples/benchmarks/verdicts.py [--quick]

Prints, for each, the verdict of the held-out pairs and the doubts of the search, as ``circuits discover`` does. About
ten minutes on one processor core; with ``--quick`` every search is a quick one, so that nothing is good.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import circuits
from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.behaviours.tokens import Tokenizer
from circuits.errors import BehaviourNotShownError
from circuits.report.sentences import verdict
from circuits.vocabulary import PrunerName, ScorerName

QUICK = "--quick" in sys.argv
WEAK: dict[str, Any] = {"pruner": PrunerName.MINIMAL, "pairs": 8}
SPURIOUS: dict[str, Any] = {"scorer": ScorerName.RANDOM, "pruner": PrunerName.TOP, "size": 400}


def shuffled(behaviour: Behaviour) -> Behaviour:
    """Return a behaviour in which every prompt is asked for the answers of another."""

    def pairs(tokenizer: Tokenizer) -> Sequence[Pair]:
        made = list(behaviour.pairs(tokenizer))
        others = random.Random(0).sample(made, len(made))
        return [
            replace(pair, answers=other.answers, wrong_answers=other.wrong_answers)
            for pair, other in zip(made, others, strict=True)
        ]

    return replace(behaviour, name=f"{behaviour.name}, answers shuffled", pairs=pairs)


def say(title: str, behaviour: Behaviour, changed: dict[str, Any]) -> None:
    """Search, and print what is said of what was found."""
    settings = circuits.DiscoverySettings.quick(**changed) if QUICK else circuits.DiscoverySettings(**changed)
    print(f"\n{title}: {behaviour.name}, {changed or 'default settings'}")
    try:
        found = circuits.discover(model, behaviour, settings)
    except BehaviourNotShownError as problem:
        print(f"  refused: {problem}")
        return
    evaluation = found.circuit.evaluation
    assert evaluation is not None
    for sentence in (*verdict(evaluation, found.circuit.method.target), *found.doubts):
        print(f"  {sentence}")


model = circuits.load_model()
agreement = circuits.load_behaviour("agreement")
say("good", agreement, {})
say("weak", circuits.load_behaviour("ioi"), WEAK)
say("spurious", agreement, SPURIOUS)
say("shuffled", shuffled(agreement), {})
