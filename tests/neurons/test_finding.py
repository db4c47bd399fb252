"""Splitting MLPs into neurons, from a behaviour to the result, its files and its pictures."""

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from circuits.adapters.rules import PLAIN
from circuits.behaviours import load_behaviour
from circuits.circuit import Circuit
from circuits.discovery import discover
from circuits.discovery_settings import DiscoverySettings
from circuits.errors import FormatError, UsageError
from circuits.model import Model, load_model
from circuits.neurons.neuron_experiment import NeuronExperiment
from circuits.neurons.neuron_finding import find_neurons
from circuits.neurons.neuron_split import NeuronSplit
from circuits.neurons.shrinking import neuron_scores, ranked, shrinking_sets
from circuits.patching.measurement import Options
from circuits.statistics import error
from circuits.vocabulary import Ablation, Metric
from tests.cli.conftest import as_json, prompts
from tests.subjects import Subject, double_of, random_pairs, relative

__all__ = ["prompts"]


@cache
def fitted(family: str = "gpt2", seed: int = 3) -> NeuronExperiment:
    subject: Subject = double_of(family)
    return NeuronExperiment(subject.experiment(random_pairs(8, seed=seed)), range(subject.graph.shape.n_layers))


# ------------------------------------------------------------------------------------------------------ the search


def test_integrated_slopes_add_up_to_what_all_neurons_do_together() -> None:
    """Completeness: the metric moves from none to all by the integral of its slope along the way."""
    found = fitted()
    scores = neuron_scores(found, found, "eap-ig", steps=40)
    assert scores.sum() == pytest.approx((found.clean - found.corrupted).mean(), rel=1e-2)
    assert relative(neuron_scores(found, found, "eap"), found.slopes(found.everything, rules=PLAIN)[1].mean(0)) < 1e-5


def test_scores_point_where_exact_effects_do() -> None:
    found = fitted()
    effects = found.effects(found.everything).mean(axis=1)
    for scorer in ("eap-ig", "eap", "relp"):
        assert np.corrcoef(effects, neuron_scores(found, found, scorer))[0, 1] > 0.5, scorer


@pytest.mark.parametrize("scorer", ["exact", "random", "conductance"])
def test_scorers_of_edges_are_refused(scorer: str) -> None:
    with pytest.raises(UsageError, match=f"neurons are scored by eap-ig, eap, relp, gim; {scorer} scores edges"):
        neuron_scores(fitted(), fitted(), scorer)


def test_the_divergence_has_no_slope_at_the_clean_run() -> None:
    subject = double_of("llama")
    found = NeuronExperiment(subject.experiment(metric=Metric.KL), range(3))
    with pytest.raises(UsageError, match=r"zero gradient.*--scorer eap-ig"):
        neuron_scores(found, found, "eap")
    assert np.abs(neuron_scores(found, found, "eap-ig")).max() > 0


def test_sets_shrink_to_one_by_way_of_the_size_asked_for_and_beat_the_ranking() -> None:
    found = fitted()
    scores = neuron_scores(found, found, "eap-ig")
    sets = shrinking_sets(found, scores, target=0.9, start=64, sizes=(17,))
    sizes = [len(each) for each in sets]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert 17 in sizes
    assert all(set(small) < set(large) for large, small in pairwise(sets))
    small = next(each for each in sets if len(each) == 17)
    errors = error(found, found.sets([small, np.sort(ranked(scores)[:17])]))
    assert errors[0] < errors[1]
    assert float(error(found, found.sets([sets[0]])[0])) < np.sqrt(0.1) / 2


# --------------------------------------------------------------------------------------------- from behaviour to file


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load_model(tiny_folder)


@pytest.fixture(scope="module")
def split(model: Model, prompts: Path) -> NeuronSplit:
    return find_neurons(model, load_behaviour(prompts), pairs=12, heldout=12)


@pytest.fixture(scope="module")
def circuit(model: Model, prompts: Path) -> Circuit:
    settings = DiscoverySettings(pruner="top", size=60, pairs=8, heldout=8)
    return discover(model, load_behaviour(prompts), settings).circuit


def test_what_is_said_of_the_neurons_is_measured_on_held_out_pairs(
    split: NeuronSplit, model: Model, prompts: Path
) -> None:
    drawn = load_behaviour(prompts).prompts(model.tokenizer, discovery=12, heldout=12, seed=0)
    there = NeuronExperiment(model.experiment(drawn.heldout, Options()), split.layers)
    width = there.widths[0]
    places = np.sort([each.layer * width + each.index for each in split.neurons])
    kept, rest = there.sets([places, np.setdiff1d(there.everything, places)])
    assert split.metric_kept == pytest.approx(kept.mean(), rel=1e-5)
    assert split.metric_rest == pytest.approx(rest.mean(), rel=1e-4, abs=1e-5)
    assert split.metric_all == pytest.approx(there.experiment.clean.mean(), rel=1e-5)
    assert split.likeness.fidelity.value == pytest.approx(1 - error(there, kept) ** 2, rel=1e-4)
    effects = there.effects(places).mean(axis=1)
    assert sorted(abs(each.effect) for each in split.neurons) == pytest.approx(
        sorted(np.abs(effects)), rel=1e-3, abs=1e-5
    )
    assert [abs(each.effect) for each in split.neurons] == sorted((abs(e.effect) for e in split.neurons), reverse=True)
    point = next(p for p in split.curve if p.edges == len(split))
    assert point.fidelity == pytest.approx(split.likeness.fidelity.value, rel=1e-6)


def test_the_result_comes_back_from_its_file_and_shows_itself(split: NeuronSplit, tmp_path: Path) -> None:
    split.save(tmp_path / "neurons.json")
    again = NeuronSplit.load(tmp_path / "neurons.json")
    assert again.to_json() == split.to_json()
    assert again.names == split.names
    assert str(len(split)) in repr(split)
    assert split.neurons[0].neuron in split._repr_html_()
    assert list(split.to_pandas().index) == [each.neuron for each in split.neurons]
    assert "neurons kept" in split.to_svg()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "circuits/circuit"}, "holds no neurons"),
        ({"version": 2}, "has version 2; expected 1"),
        ({"total": "many"}, "total: Input should be a valid integer"),
    ],
)
def test_other_files_are_refused(split: NeuronSplit, tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "n.json").write_text(json.dumps(split.to_document() | change))
    with pytest.raises(FormatError, match=message):
        NeuronSplit.load(tmp_path / "n.json")


def test_neurons_of_a_circuit_are_those_of_its_mlps_and_are_drawn_beside_them(
    model: Model, prompts: Path, circuit: Circuit, tmp_path: Path
) -> None:
    found = find_neurons(model, load_behaviour(prompts), circuit, neurons=5, pairs=12, heldout=12)
    assert len(found) == 5
    assert {each.layer for each in found.neurons} <= {node.layer for node in circuit.nodes if str(node)[0] == "m"}
    assert found.circuit == circuit.digest
    found.draw(tmp_path / "n.dot", circuit)
    text = (tmp_path / "n.dot").read_text()
    for each in found.neurons:
        assert f'"m{each.layer}" -> "{each.neuron}"' in text
    assert f'"{circuit.edge_list[0].sender}" -> ' in text
    found.draw(tmp_path / "n.svg", circuit)
    assert f"neuron:{found.neurons[0].neuron}" in (tmp_path / "n.svg").read_text()
    found.draw(tmp_path / "alone.svg")
    with pytest.raises(UsageError, match="not of this circuit"):
        find_neurons(model, load_behaviour(prompts), neurons=2, pairs=12, heldout=12).draw(tmp_path / "x.svg", circuit)


@pytest.mark.parametrize("ablation", ["mean-by-position", "mean-by-template", "optimal"])
def test_neurons_are_found_with_every_ablation_that_edges_have(
    model: Model, circuit: Circuit, prompts: Path, ablation: str
) -> None:
    options = Options(Metric.LOGIT_DIFFERENCE, Ablation.parse(ablation))
    found = find_neurons(model, load_behaviour(prompts), circuit, neurons=5, pairs=8, heldout=8, options=options)
    assert (len(found), found.ablation) == (5, ablation)
    usual = find_neurons(model, load_behaviour(prompts), circuit, neurons=5, pairs=8, heldout=8)
    assert found.metric_none != usual.metric_none


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neurons": 0}, r"between 1 and [\d,]+, got 0"),
        ({"neurons": 10**6}, "got 1000000"),
        ({"target": 1.0}, "between 0 and 1, got 1.0"),
        ({"scorer": "exact"}, "exact scores edges"),
    ],
)
def test_wrong_settings_are_refused(model: Model, prompts: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_neurons(model, load_behaviour(prompts), pairs=12, heldout=12, **settings)


def test_answers_of_several_tokens_are_refused(model: Model, prompts: Path) -> None:
    whole = replace(load_behaviour(prompts), metric=Metric.SEQUENCE)
    with pytest.raises(UsageError, match="splitting MLPs into neurons needs one; choose another metric"):
        find_neurons(model, whole, pairs=12, heldout=12)


def test_a_circuit_without_mlps_is_refused(model: Model, prompts: Path, circuit: Circuit) -> None:
    heads = [place for place, edge in enumerate(circuit.edge_list) if str(edge.sender)[0] != "m"]
    with pytest.raises(UsageError, match="no MLP sends along an edge"):
        find_neurons(model, load_behaviour(prompts), circuit.with_edges(circuit.edges[heads], circuit.scores[heads]))


def test_the_command_writes_what_the_call_returns(
    prompts: Path, tiny_folder: Path, tmp_path: Path, split: NeuronSplit
) -> None:
    options = ["--model", tiny_folder, "--pairs", 12, "--heldout", 12, "--out", tmp_path]
    document = as_json("neurons", prompts, *options)
    written = NeuronSplit.load(tmp_path / "neurons.json")
    assert written.names == split.names
    assert document["total"] == split.total
    assert (tmp_path / "neurons.svg").is_file()
    assert (tmp_path / "neurons.curve.svg").is_file()
