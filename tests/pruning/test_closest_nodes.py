"""The search for few nodes, judged on pairs that it was not fitted to."""

import numpy as np
import pytest

from circuits.errors import UsageError
from circuits.files.journal import Journal
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.node_circuits import node_values
from circuits.pruning.closest_nodes import closest_nodes
from circuits.statistics import error
from tests.directions.test_target import measured, model
from tests.subjects import random_pairs

FIT, CHOOSE = random_pairs(8, 7), random_pairs(6, 7, seed=5)


def test_the_path_goes_from_the_whole_model_to_the_input_alone_and_the_best_is_judged_on_choose_pairs() -> None:
    fit, choose = measured("llama", 2, FIT), measured("llama", 2, CHOOSE)
    told = list[int]()
    found = closest_nodes(fit, choose, report=lambda each: told.append(len(each.edges)))
    assert told == [len(each.edges) for each in found.path]
    assert told[0] == len(fit.graph.senders)
    assert told == sorted(told, reverse=True)
    assert told[-1] == 2
    for each in found.path:
        assert 0 in each.edges
        assert each.error == pytest.approx(float(error(choose, node_values(choose, each.edges))))
    assert found.reached == (found.best.error <= np.sqrt(0.1) and abs(1 - found.best.faithfulness) <= 0.1)
    smaller = [each for each in found.path if len(each.edges) < len(found.best.edges)]
    assert not any(each.reaches(0.99) for each in smaller)
    assert found.with_at_most(3).error == min(each.error for each in found.path if len(each.edges) <= 3)


def test_the_nodes_kept_longest_do_better_than_those_dropped_first() -> None:
    fit, choose = measured("llama", 2, FIT), measured("llama", 2, CHOOSE)
    found = closest_nodes(fit, choose)
    half = found.with_at_most(6)
    others = np.union1d([0], np.setdiff1d(np.arange(len(fit.graph.senders)), half.edges))
    assert half.error < 0.7 * float(error(choose, node_values(choose, others)))


def test_a_search_that_is_repeated_runs_nothing_again(tmp_path) -> None:
    def search() -> list[list[int]]:
        with Journal(tmp_path / "journal", resume=True) as journal:
            whole = model("llama")
            parts = [whole.experiment(pairs, journal=journal) for pairs in (FIT, CHOOSE)]
            fit, choose = (each for each in parts if isinstance(each, PatchingExperiment))
            return [each.edges.tolist() for each in closest_nodes(fit, choose).path]

    first, size = search(), (tmp_path / "journal").stat().st_size
    assert search() == first
    assert (tmp_path / "journal").stat().st_size == size


def test_targets_and_sizes_out_of_range_are_refused() -> None:
    fit = measured("llama", 2, FIT)
    with pytest.raises(UsageError, match=r"between 0 and 1 and at least 2 nodes, got 1\.5"):
        closest_nodes(fit, fit, target=1.5)
    with pytest.raises(UsageError, match="no circuit of 1 nodes"):
        closest_nodes(fit, fit).with_at_most(1)
