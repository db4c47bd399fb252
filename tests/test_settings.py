"""Options given in Python: names may be text, numbers may be numpy's, and what is neither is refused at once."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from circuits import Crossing, DiscoverySettings, Intervention, Options, Resources, load_behaviour
from circuits.ablation.nodes import acting_nodes
from circuits.errors import CircuitsError, UnknownNameError, UsageError
from circuits.heads.labels import Thresholds
from circuits.scoring.budget import Budget
from circuits.scoring.scorers import Settings, score
from circuits.scoring.verified import TopK
from circuits.vocabulary import (
    Ablation,
    Choice,
    Direction,
    Metric,
    NodeAblation,
    NodeChoice,
    PrunerName,
    ScorerName,
)
from tests.example_circuits import random_circuit
from tests.toy import ToyExperiment

NAMES: list[tuple[type, str, Choice]] = [
    (DiscoverySettings, "pruner", PrunerName.TOP),
    (DiscoverySettings, "scorer", ScorerName.EAP),
    (Options, "metric", Metric.KL),
    (Options, "ablation", Ablation.ZERO),
    (Options, "direction", Direction.DENOISING),
    (Intervention, "ablation", NodeAblation.ZERO),
]


@pytest.mark.parametrize(("kind", "name", "member"), NAMES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_name_given_as_text_is_the_member_itself(kind: Any, name: str, member: Choice) -> None:
    assert getattr(kind(**{name: member.value}), name) is member
    assert getattr(kind(**{name: member}), name) is member


@pytest.mark.parametrize(("kind", "name", "member"), NAMES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_mistyped_name_is_answered_with_the_closest_before_anything_runs(
    kind: Any, name: str, member: Choice
) -> None:
    with pytest.raises(UnknownNameError, match=rf"there is no {member.kind()} '{member}z'\. Closest: '{member}'\."):
        kind(**{name: f"{member}z"})


@pytest.mark.parametrize("wrong", [None, 3, True, b"top", ["top"], PrunerName, object(), 1.5, math.nan, ()])
def test_what_is_no_text_is_no_name(wrong: object) -> None:
    with pytest.raises(UsageError, match="a pruner is given by its name, such as 'closest'; got "):
        DiscoverySettings(pruner=wrong)  # type: ignore[arg-type]


def test_names_are_text_in_functions_too() -> None:
    scored = score(ToyExperiment(), "random", Settings(seed=1))
    assert np.array_equal(scored.values, score(ToyExperiment(), ScorerName.RANDOM, Settings(seed=1)).values)
    with pytest.raises(UnknownNameError, match=r"there is no scorer 'eap-gi'\. Closest: 'eap-ig'"):
        score(ToyExperiment(), "eap-gi")
    circuit = random_circuit(40)
    assert acting_nodes(circuit, "mlps") == acting_nodes(circuit, NodeChoice.MLPS)
    assert replace(load_behaviour("ioi"), metric="log-odds").metric is Metric.LOG_ODDS  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Closest: 'log-odds'"):
        replace(load_behaviour("ioi"), metric="logodds")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [int, np.int64, np.uint8, np.array, torch.tensor])
def test_whole_numbers_of_any_make_are_pythons(make: Any) -> None:
    settings = DiscoverySettings(size=make(7), seed=make(3))
    assert (settings.size, settings.seed) == (7, 3)
    assert type(settings.size) is type(settings.seed) is int


@pytest.mark.parametrize("make", [float, np.float32, np.float64, int])
def test_finite_numbers_of_any_make_are_floats(make: Any) -> None:
    settings = Intervention(scale=make(2))
    assert settings.scale == 2.0
    assert type(settings.scale) is float


def test_a_truth_value_of_numpy_is_pythons() -> None:
    assert Resources(prefix_cache=np.False_).prefix_cache is False  # type: ignore[arg-type]


REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (DiscoverySettings, {"size": 0}, r"'size' of DiscoverySettings is 0; expected a whole number of at least 1\."),
    (DiscoverySettings, {"size": -5}, r"'size' of DiscoverySettings is -5"),
    (DiscoverySettings, {"size": 2.5}, r"'size' of DiscoverySettings is 2\.5; expected a whole number"),
    (DiscoverySettings, {"size": True}, r"'size' of DiscoverySettings is True"),
    (DiscoverySettings, {"size": "200"}, r"'size' of DiscoverySettings is '200'"),
    (DiscoverySettings, {"size": math.nan}, r"'size' of DiscoverySettings is nan"),
    (DiscoverySettings, {"size": np.float64(3)}, r"'size' of DiscoverySettings is 3\.0; expected a whole number"),
    (DiscoverySettings, {"size": None}, r"'size' of DiscoverySettings is None"),
    (DiscoverySettings, {"size": [3]}, r"'size' of DiscoverySettings is a list"),
    (DiscoverySettings, {"size": np.array([3, 4])}, r"'size' of DiscoverySettings is a ndarray"),
    (DiscoverySettings, {"target": math.nan}, r"'target' of DiscoverySettings is nan; expected a finite number\."),
    (DiscoverySettings, {"target": math.inf}, r"'target' of DiscoverySettings is inf"),
    (DiscoverySettings, {"target": "0.9"}, r"'target' of DiscoverySettings is '0\.9'"),
    (DiscoverySettings, {"target": True}, r"'target' of DiscoverySettings is True"),
    (DiscoverySettings, {"target": 1.5}, r"the target must be between 0 and 1, got 1\.5"),
    (DiscoverySettings, {"steps": 0}, r"'steps' of DiscoverySettings is 0; expected a whole number of at least 1"),
    (DiscoverySettings, {"seed": -1}, r"'seed' of DiscoverySettings is -1; expected a whole number of at least 0"),
    (DiscoverySettings, {"seed": None}, r"'seed' of DiscoverySettings is None"),
    (DiscoverySettings, {"sample": -1}, r"'sample' of DiscoverySettings is -1"),
    (DiscoverySettings, {"prune_limit": math.inf}, r"'prune_limit' of DiscoverySettings is inf; expected a whole"),
    (DiscoverySettings, {"pairs": 3}, r"at least 4 discovery and 4 held-out pairs are needed"),
    (DiscoverySettings, {"options": {"metric": "kl"}}, r"'options' of DiscoverySettings is a dict; expected Options"),
    (DiscoverySettings, {"verify": 200}, r"'verify' of DiscoverySettings is 200; expected TopK"),
    (Resources, {"batch_size": 0}, r"the batch size must be at least 1, got 0"),
    (Resources, {"batch_size": 1.0}, r"'batch_size' of Resources is 1\.0; expected a whole number"),
    (Resources, {"batch_size": True}, r"'batch_size' of Resources is True"),
    (Resources, {"memory": 8}, r"'memory' of Resources is 8; expected text"),
    (Resources, {"prefix_cache": "no"}, r"'prefix_cache' of Resources is 'no'; expected True or False"),
    (Resources, {"keep_gradients": 1}, r"'keep_gradients' of Resources is 1; expected True or False"),
    (Resources, {"checkpointing": "auto"}, r"'checkpointing' of Resources is 'auto'; expected True or False"),
    (TopK, {"k": math.nan}, r"'k' of TopK is nan; expected a whole number"),
    (TopK, {"k": 0}, r"the number of edges to find must be at least 1"),
    (TopK, {"error": math.nan}, r"'error' of TopK is nan; expected a finite number"),
    (TopK, {"budget": 400}, r"'budget' of TopK is 400; expected Budget"),
    (Budget, {"edges": 0}, r"'edges' of Budget is 0; expected a whole number of at least 1"),
    (Budget, {"edges": -3}, r"'edges' of Budget is -3"),
    (Budget, {"seconds": math.inf}, r"'seconds' of Budget is inf; expected a finite number of at least 0"),
    (Budget, {"seconds": -1.0}, r"'seconds' of Budget is -1\.0"),
    (Settings, {"steps": 2.0}, r"'steps' of Settings is 2\.0; expected a whole number"),
    (Settings, {"seed": -1}, r"'seed' of Settings is -1"),
    (Settings, {"top": 5}, r"'top' of Settings is 5; expected TopK"),
    (Intervention, {"scale": math.nan}, r"'scale' of Intervention is nan; expected a finite number"),
    (Intervention, {"steer": math.inf}, r"'steer' of Intervention is inf"),
    (Intervention, {"first_token": 1}, r"'first_token' of Intervention is 1; expected True or False"),
    (Thresholds, {"attention": math.nan}, r"'attention' of Thresholds is nan"),
    (Crossing, {"draws": -1}, r"'draws' of Crossing is -1; expected a whole number of at least 0"),
    (Crossing, {"pairs": 0}, r"'pairs' of Crossing is 0; expected a whole number of at least 1"),
    (Crossing, {"resources": None}, r"'resources' of Crossing is None; expected Resources"),
]


@pytest.mark.parametrize(
    ("kind", "options", "message"), REFUSED, ids=[f"{kind.__name__}{options}" for kind, options, _ in REFUSED]
)
def test_a_number_out_of_range_or_of_another_kind_is_refused_by_its_name(
    kind: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    "kind", [DiscoverySettings, Options, Resources, TopK, Budget, Settings, Intervention, Thresholds, Crossing]
)
def test_no_option_of_another_kind_escapes_as_a_raw_error(kind: Any) -> None:
    """Every field of every settings class, given things that no field may be."""
    strange = [object(), b"\xff", 1j, {1}, "\ud83d", 10**5000, -(10**400), np.array([]), torch.zeros(2), lambda: 0]
    unlooked = {"progress", "edges", "behaviours"}  # arrays, callables and mappings: looked at where they are used
    for field in fields(kind):
        for value in strange if field.name not in unlooked else ():
            try:
                kind(**{field.name: value})
            except CircuitsError:
                continue
            assert isinstance(value, str) or callable(value), (field.name, value)
