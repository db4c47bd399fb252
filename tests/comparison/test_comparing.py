"""Comparisons measured on a tiny model from Python: what runs where, and how often models are loaded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from circuits.behaviours import load_behaviour
from circuits.circuit import Circuit
from circuits.comparison import compare
from circuits.comparison.comparing import Crossing, compare_models, measure_comparison
from circuits.errors import UsageError
from circuits.model import Model, load_model
from circuits.records import BehaviourInfo, Method
from circuits.statistics import faithfulness
from tests.cli.conftest import pairs_shown_by, swapped, write_pairs
from tests.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load_model(str(tiny_folder))


@pytest.fixture(scope="module")
def settings(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Crossing:
    folder = tmp_path_factory.mktemp("prompts")
    behaviours = {}
    for name, start, end in (("mine", "When", " went to"), ("yours", "The", " is")):
        rows = pairs_shown_by(tiny_folder, swapped(start, end))
        behaviours[name] = load_behaviour(write_pairs(folder / f"{name}.jsonl", rows))
    return Crossing(pairs=6, draws=2, behaviours=behaviours)


def circuit(model: Model, name: str, n_edges: int, seed: int) -> Circuit:
    chosen = np.sort(np.random.default_rng(seed).choice(model.graph.n_edges, n_edges, replace=False))
    info = BehaviourInfo(name, "logit-difference", "nats")
    return Circuit(model.info, info, Method("random", "top"), chosen, np.ones(n_edges))


def test_columns_hold_what_the_experiments_measure(model: Model, settings: Crossing) -> None:
    a, b = circuit(model, "mine", 110, 1), circuit(model, "yours", 130, 2)
    measured = measure_comparison(compare(a, b), model, settings)
    assert [column.name for column in measured.columns] == ["mine", "yours"]
    prompts = settings.prompts(b, model)
    experiment = model.experiment(prompts.heldout, settings.options(b))
    alone = faithfulness(experiment, experiment.circuits([a.mask()]))[0]
    assert measured.transfer is not None
    assert measured.transfer.cell("mine", "yours").value.value == pytest.approx(alone, rel=1e-4)
    lost = 1 - faithfulness(experiment, experiment.circuits([~a.mask()]))[0]
    found = measured.dissociations[0]
    assert found.whole.losses["mine", "yours"].value.value == pytest.approx(lost, rel=1e-4)
    only = a.mask() & ~b.mask()
    lost = 1 - faithfulness(experiment, experiment.circuits([~only]))[0]
    assert found.only is not None
    assert found.only.losses["mine without yours", "yours"].value.value == pytest.approx(lost, rel=1e-3, abs=1e-5)
    assert [len(gain.random) for gain in found.whole.gains] == [2, 2]


def test_each_model_is_asked_for_once_and_runs_its_own_behaviours(model: Model, settings: Crossing) -> None:
    changed = tiny_llama()
    changed.model.layers[0].mlp.down_proj.weight.data *= 0.9
    tuned = load_model(changed, tokenizer=tiny_tokenizer(), name="tuned")
    there = replace(circuit(model, "mine", 60, 3), model=tuned.info)
    circuits = (circuit(model, "mine", 50, 1), there, circuit(model, "yours", 40, 2))
    asked: list[str] = []

    def loaded(each: Circuit) -> Model:
        asked.append(each.model.id)
        return tuned if each.model.digest == tuned.info.digest else model

    measured = measure_comparison(compare(*circuits), loaded, settings)
    assert len(asked) == 2
    assert [column.model for column in measured.columns] == [model.info.id, "tuned", model.info.id]
    (change,) = measured.changes
    assert (change.here.model.id, change.there.model.id) == ("tuned", model.info.id)
    union = np.union1d(circuits[0].edges, there.edges)
    experiment = model.experiment(settings.prompts(circuits[0], model).heldout)
    np.testing.assert_allclose(change.there.effects, experiment.edge_effects(union), rtol=1e-3, atol=1e-5)
    own = tuned.experiment(settings.prompts(circuits[0], model).heldout)
    np.testing.assert_allclose(change.here.effects, own.edge_effects(union), rtol=1e-3, atol=1e-5)


def test_the_same_edges_in_another_model_are_measured_on_the_same_prompts(model: Model, settings: Crossing) -> None:
    mine = circuit(model, "mine", 30, 1)
    other = load_model(tiny_llama(seed=3), tokenizer=tiny_tokenizer(), name="other")
    changes = compare_models(mine, model, other, settings)
    prompts = settings.prompts(mine, model)
    np.testing.assert_allclose(changes.there.clean, other.experiment(prompts.heldout).clean, rtol=1e-4)
    assert "does not show mine" in changes.there.remark
    assert "use another model" not in changes.there.remark
    assert changes.here.remark == ""


def test_models_that_cannot_be_compared_are_refused(model: Model, settings: Crossing) -> None:
    mine = circuit(model, "mine", 30, 1)
    with pytest.raises(UsageError, match="has the same weights as the circuit's own model"):
        compare_models(mine, model, model, settings)
    short = load_model(tiny_llama(num_hidden_layers=2), tokenizer=tiny_tokenizer(), name="short")
    with pytest.raises(UsageError, match="give a model of the same shape"):
        compare_models(mine, model, short, settings)
    foreign = replace(model, info=replace(model.info, digest="f" * 64, tokenizer_digest="another"))
    with pytest.raises(UsageError, match="has another tokenizer"):
        compare_models(mine, model, foreign, settings)
