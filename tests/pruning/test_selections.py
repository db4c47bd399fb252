"""The pruners greedy, ilp, threshold and acdc: what each promises, and acdc against the paper's loop run literally."""

import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.discovery_settings import DiscoverySettings
from circuits.errors import UsageError
from circuits.graph import ComputationalGraph, Edge, ModelShape
from circuits.pruning.acdc import acdc, sweep_order
from circuits.pruning.connected import connected
from circuits.pruning.greedy import greedy, grown
from circuits.pruning.ilp import Quotas, UnsolvedError, best_edges, ilp
from circuits.pruning.pruners import prune
from circuits.pruning.selection import PrunerSettings
from circuits.pruning.threshold import threshold
from circuits.scores import EdgeScores
from circuits.scoring import score
from circuits.vocabulary import Metric, PrunerName, ScorerName
from tests.reference.hooks import clean_run, masked_run
from tests.subjects import PAIRS, Subject, clean_ids, corrupted_ids, metric_of
from tests.tiny import tiny_gpt2, tiny_llama
from tests.toy import ToyExperiment

SHAPES = (ModelShape(2, 2, 2, 1, 1), ModelShape(3, 4, 2, 1, 1), ModelShape(2, 2, 1, 1, 1, mlps=False))
TOY = ToyExperiment()


def random_scores(graph: ComputationalGraph, seed: int) -> EdgeScores:
    values = np.random.default_rng(seed).standard_normal(graph.n_edges) ** 3
    return EdgeScores(graph, values, "random", measured=False, sd=np.ones(graph.n_edges), n=4)


def names(graph: ComputationalGraph, edges: np.ndarray) -> list[str]:
    return [str(edge) for edge in graph.edges(edges)]


def total(scores: EdgeScores, edges: np.ndarray) -> float:
    return float(np.abs(scores.values[edges]).sum())


# --------------------------------------------------------------------------------------------------------------- greedy


def test_greedy_takes_no_edge_before_what_reads_it() -> None:
    scores = score(TOY, ScorerName.EXACT)  # m0->logits 9, input->v 8, a0.h0->m0 6, input->m0 3, a0.h0->logits 2, …
    assert names(TOY.graph, grown(scores, 2)) == ["a0.h0->m0", "m0->logits"]
    assert names(TOY.graph, grown(scores, 3)) == ["input->a0.h0<v>", "a0.h0->m0", "m0->logits"]
    found = greedy(TOY, scores, 3)
    assert (found.proposed, found.faithfulness) == (3, pytest.approx(6 / 12))
    assert len(greedy(TOY, scores, 2).edges) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_equals_a_search_of_all_edges_at_every_step(shape: ModelShape) -> None:
    graph = build_graph(shape)
    scores = random_scores(graph, 0)
    taken: list[int] = []
    for _ in range(20):
        senders = {graph.edge(edge).sender for edge in taken}
        read = {shape.group_of(sender) for sender in senders} | senders | {shape.end}
        ready = [e for e in range(graph.n_edges) if e not in taken and graph.edge(e).receiver.node in read]
        taken.append(max(ready, key=lambda e: abs(scores.values[e])))
    assert grown(scores, 20).tolist() == sorted(taken)


# ------------------------------------------------------------------------------------------------------------------ ilp


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_the_program_is_connected_and_no_worse_than_greedy_and_top_at_equal_size(shape: ModelShape, seed: int) -> None:
    graph = build_graph(shape)
    scores = random_scores(graph, seed)
    for size in (4, 12, 30):
        edges = best_edges(scores, size, Quotas())
        assert len(edges) <= size
        assert connected(graph, edges).tolist() == edges.tolist()
        for other in (
            connected(graph, grown(scores, size)),
            connected(graph, np.sort(scores.ranked(by_magnitude=True)[:size])),
        ):
            assert total(scores, edges) >= total(scores, other) - 1e-9


def test_the_program_finds_the_best_of_all_circuits() -> None:
    """Every circuit of the pencil toy tried; with other scores than its effects, so that size forces a choice."""
    graph = TOY.graph
    scores = EdgeScores(graph, np.array([0.1, 0.2, 3, 1, 0.5, 2, 4, 0.4]), "random", measured=False)
    every = [np.flatnonzero([number >> e & 1 for e in range(graph.n_edges)]) for number in range(1, 2**graph.n_edges)]
    whole = [edges for edges in every if len(connected(graph, edges)) == len(edges)]
    for size in range(1, graph.n_edges + 1):
        best = max(total(scores, edges) for edges in whole if len(edges) <= size)
        assert total(scores, best_edges(scores, size, Quotas())) == pytest.approx(best)


def test_the_program_keeps_the_share_of_positive_edges_and_stable_signs() -> None:
    graph = build_graph(SHAPES[1])
    scores = random_scores(graph, 1)
    for share in (0.2, 0.7, 0.9):
        edges = best_edges(scores, 30, Quotas(positive=share))
        assert (scores.values[edges] > 0).sum() >= share * len(edges) - 1
    assert (scores.values[best_edges(scores, 30, Quotas())] > 0).mean() < 0.9
    edges = best_edges(scores, 30, Quotas(stable=0.975))
    assert np.abs(scores.values[edges]).min() * 2 >= 1.959  # standard error 1/2
    assert np.abs(scores.values[best_edges(scores, 30, Quotas())]).min() * 2 < 1.959


def test_the_program_takes_seconds_on_a_graph_of_the_size_of_a_real_model() -> None:
    """Of 70,651 random edges the best 100, and what greedy growth takes of as many, are on no path at all."""
    graph = build_graph(ModelShape(30, 9, 3, 1, 1))
    values = np.random.default_rng(0).standard_normal(graph.n_edges) ** 5
    scores = EdgeScores(graph, values, "random", measured=False)
    edges = best_edges(scores, 100, Quotas(), seconds=60)
    assert len(edges) == 100
    assert connected(graph, edges).tolist() == edges.tolist()


def test_what_the_program_cannot_do_is_said() -> None:
    scores = score(TOY, ScorerName.EXACT)
    part = EdgeScores(TOY.graph, np.where(np.arange(8) == 7, 1.0, np.nan), "exact", measured=True)
    with pytest.raises(UnsolvedError, match=r"no connected circuit of at most 1 edges.*--size"):
        ilp(TOY, part, 1)
    with pytest.raises(UsageError, match=r"no standard deviation.*eap-ig"):
        ilp(TOY, scores, 3, Quotas(stable=0.9))
    with pytest.raises(UsageError, match=r"'stable' is from 0\.5 to 1, got 0\.2"):
        Quotas(stable=0.2)
    with pytest.raises(UsageError, match=r"between 1 and 8.*got 9"):
        ilp(TOY, scores, 9)


# ------------------------------------------------------------------------------------------------------------ threshold


def test_threshold_takes_the_edges_of_large_score_on_a_path() -> None:
    scores = score(TOY, ScorerName.EXACT)
    found = threshold(TOY, scores, 6)
    assert names(TOY.graph, found.edges) == ["input->a0.h0<v>", "a0.h0->m0", "m0->logits"]
    assert (found.proposed, found.faithfulness) == (3, pytest.approx(0.5))
    with pytest.raises(UsageError, match=r"no edge has a \|score\| of 10 or more; the largest is 9"):
        threshold(TOY, scores, 10)


# ----------------------------------------------------------------------------------------------------------------- acdc


def test_acdc_sweeps_the_pencil_toy_from_the_logits_back() -> None:
    assert names(TOY.graph, sweep_order(TOY.graph))[:4] == ["m0->logits", "a0.h0->logits", "input->logits", "a0.h0->m0"]
    assert names(TOY.graph, acdc(TOY, 2.5).edges) == ["input->a0.h0<v>", "input->m0", "a0.h0->m0", "m0->logits"]
    assert len(acdc(TOY, 100).edges) == 0
    assert len(acdc(TOY, 1e-9).edges) == 6  # all but the head's query and key, which do nothing


@pytest.mark.parametrize(
    ("family", "tau", "metric"),
    [
        ("gpt2", 0.02, Metric.KL),
        ("gpt2", 0.3, Metric.LOGIT_DIFFERENCE),
        ("llama", 0.1, Metric.KL),
        ("llama", 0.02, Metric.LOGIT_DIFFERENCE),
    ],
)
def test_acdc_equals_the_loop_of_the_paper_over_plain_hooks(family: str, tau: float, metric: Metric) -> None:
    create = {
        "gpt2": lambda: tiny_gpt2(n_layer=2, n_head=2),
        "llama": lambda: tiny_llama(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1),
    }[family]
    subject = Subject(family, create())
    graph, loss = subject.graph, metric_of(metric, clean_run(subject.module, clean_ids()))
    kept = set(range(graph.n_edges))

    def cost(edges: set[int]) -> float:
        live: list[Edge] = [graph.edge(edge) for edge in edges]
        return metric.sign * -float(loss(masked_run(subject.module, clean_ids(), corrupted_ids(), live)).mean())

    current = cost(kept)
    for edge in sweep_order(graph).tolist():
        fewer = cost(kept - {edge})
        if fewer - current < tau:
            kept.remove(edge)
            current = fewer
    found = acdc(subject.experiment(PAIRS, metric=metric), tau)
    assert found.edges.tolist() == sorted(kept)
    assert 0 < len(kept) < graph.n_edges


def test_the_threshold_of_acdc_is_positive_and_the_message_says_what_would_do() -> None:
    with pytest.raises(UsageError, match=r"above 0, got 0; a hundredth of what all edges do together is 0\.12"):
        acdc(TOY, 0)


# ------------------------------------------------------------------------------------------------------------ the table


def test_the_table_of_pruners_hands_on_sizes_and_thresholds() -> None:
    scores = score(TOY, ScorerName.EXACT)
    for name, settings, expected in (
        (PrunerName.GREEDY, PrunerSettings(size=3), greedy(TOY, scores, 3)),
        (PrunerName.ILP, PrunerSettings(size=100), ilp(TOY, scores, 8)),
        (PrunerName.THRESHOLD, PrunerSettings(threshold=6), threshold(TOY, scores, 6)),
        (PrunerName.ACDC, PrunerSettings(threshold=2.5), acdc(TOY, 2.5)),
    ):
        assert prune(TOY, TOY, scores, name, settings) == expected
    for name in (PrunerName.THRESHOLD, PrunerName.ACDC):
        with pytest.raises(UsageError, match=f"the pruner {name} needs a threshold.*--threshold"):
            prune(TOY, TOY, scores, name)


@pytest.mark.parametrize("name", ["greedy", "ilp", "acdc"])
def test_pruners_that_follow_paths_of_whole_edges_say_that_they_know_no_roles(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} knows no token roles"):
        DiscoverySettings(pruner=name, threshold=0.1, by_role=True)
