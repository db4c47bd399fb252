"""Edges with token roles: their scores sum to those without, and runs are those of plain hooks."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.roles import BY_DIFFERENCE, role_names, role_of_positions
from circuits.builder import build_graph
from circuits.errors import UsageError
from circuits.graph import ComputationalGraph
from circuits.patching.experiment import PatchingExperiment
from circuits.scoring import score
from circuits.vocabulary import Direction, Metric
from tests.reference.precision import in_float64
from tests.reference.roles import circuit_by_role, effects_by_role
from tests.subjects import (
    PAIRS,
    Subject,
    clean_ids,
    corrupted_ids,
    double_of,
    metric_of,
    random_masks,
    random_pairs,
    relative,
    sorted_settings,
)
from tests.zoo import ZOO

SCORED = [("llama", name) for name in ("eap", "eap-ig", "conductance", "clean-corrupted", "relp", "gim", "ifr")]
SCORED += [("gpt2", "eap"), ("olmo2", "eap")]


def named(pairs: tuple[TokenPair, ...]) -> tuple[TokenPair, ...]:
    """Pairs with roles in other places each: one token, none, or several that are apart."""
    places = [{"A": (2,), "B": (4,)}, {"A": (3, 5)}, {"B": (2,), "A": (4, 3)}, {"A": (1,), "B": (5, 2)}]
    return tuple(replace(pair, roles=roles) for pair, roles in zip(pairs, places, strict=True))


NAMED = named(PAIRS)
RAGGED = (*PAIRS, *random_pairs(3, 5, seed=9), *random_pairs(2, 9, seed=4, shared=6))


@dataclass(frozen=True)
class ByRole:
    """A model with and without roles, on the same pairs."""

    subject: Subject
    pairs: tuple[TokenPair, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return role_names(self.pairs)

    @property
    def graph(self) -> ComputationalGraph:
        return build_graph(replace(self.subject.graph.shape, roles=self.names))

    def experiment(self, **settings: object) -> PatchingExperiment:
        options, resources = sorted_settings(settings)
        tracer, reference = self.subject.tracer, self.pairs if options.ablation.by_means else ()
        return PatchingExperiment(tracer, self.graph, self.pairs, options, resources=resources, reference=reference)

    def plain(self, **settings: object) -> PatchingExperiment:
        return self.subject.experiment(self.pairs, **settings)

    @property
    def reference(self) -> dict[str, object]:
        roles = np.stack([role_of_positions(pair, self.names) for pair in self.pairs])
        return {"roles": torch.as_tensor(roles), "names": self.names}


@pytest.fixture(scope="module", params=["llama", "gpt2", "olmo2"])
def family(request: pytest.FixtureRequest) -> Subject:
    if request.param == "olmo2":  # a norm stands between the sum of heads and the stream
        return Subject("olmo2", in_float64(ZOO["olmo2"]()).requires_grad_(False))
    return double_of(request.param)


@pytest.mark.parametrize(("family", "scorer"), SCORED, indirect=["family"])
def test_scores_of_the_roles_sum_to_the_score_of_the_edge(family: Subject, scorer: str) -> None:
    settings = {"prefix_cache": False, "batch_size": 2} if scorer == "eap" else {}
    with_roles = ByRole(family, RAGGED)
    found = score(with_roles.experiment(**settings), scorer)
    plain = score(with_roles.plain(**settings), scorer)
    assert found.by_role.shape == (len(BY_DIFFERENCE), family.graph.n_edges)
    assert relative(found.by_role.sum(0), plain.values) < 1e-5
    assert (np.abs(found.by_role) > 1e-6).any(axis=1).sum() >= 2  # not all at one role


def test_before_the_first_difference_nothing_is_carried(family: Subject) -> None:
    found = score(ByRole(family, RAGGED).experiment(), "eap")
    assert not found.by_role[BY_DIFFERENCE.index("before")].any()
    assert 0 < found.cancelling < 1


def test_exact_effects_equal_hooks_that_patch_the_roles_positions(family: Subject) -> None:
    with_roles = ByRole(family, NAMED)
    edges = np.arange(0, with_roles.graph.n_edges, 23)  # shares no factor with the number of roles or senders
    given = family.module, (clean_ids(), corrupted_ids()), list(with_roles.graph.edges(edges))
    expected = effects_by_role(*given, metric_of(Metric.LOGIT_DIFFERENCE), **with_roles.reference).numpy()
    found = with_roles.experiment().edge_effects(edges)
    assert relative(found, expected, at_least=0.05) < 1e-6
    assert (np.abs(expected).max(axis=1) > 1e-3).sum() > 10
    again = with_roles.experiment(prefix_cache=False, batch_size=3).edge_effects(edges[::3])
    assert relative(again, expected[::3], at_least=0.05) < 1e-6


@pytest.mark.parametrize("direction", list(Direction))
def test_an_edge_with_the_one_role_of_all_positions_is_the_edge(family: Subject, direction: Direction) -> None:
    everywhere = tuple(replace(pair, roles={"all": tuple(range(pair.length))}) for pair in PAIRS)
    with_roles = ByRole(family, everywhere)
    edges = np.arange(0, family.graph.n_edges, 13)
    mine = with_roles.graph.edges_by_role[with_roles.names.index("all")][edges]
    found = with_roles.experiment(direction=direction).edge_effects(mine)
    assert relative(found, with_roles.plain(direction=direction).edge_effects(edges)) < 1e-9


def test_circuits_equal_hooks_that_keep_edges_at_some_roles(family: Subject) -> None:
    with_roles = ByRole(family, NAMED)
    masks = random_masks(with_roles.graph.n_edges, (0.05, 0.6, 0.9))
    of, every = metric_of(Metric.LOGIT_DIFFERENCE), list(with_roles.graph.edges())
    expected = np.stack(
        [
            of(
                circuit_by_role(
                    family.module,
                    (clean_ids(), corrupted_ids()),
                    [every[place] for place in np.flatnonzero(mask)],
                    **with_roles.reference,
                )
            ).numpy()
            for mask in masks
        ]
    )
    assert relative(with_roles.experiment().circuits(masks), expected, at_least=1) < 1e-6
    alone = with_roles.experiment(prefix_cache=False).circuits(masks[2:])
    assert relative(alone, expected[2:], at_least=1) < 1e-6


def test_a_circuit_with_every_role_of_its_edges_is_the_circuit_without_roles(family: Subject) -> None:
    with_roles = ByRole(family, RAGGED[2:6])
    for ablation, shares in (("corrupted", (0.1, 0.5)), ("zero", (0.5, 1.0))):
        masks = random_masks(family.graph.n_edges, shares)
        whole = np.zeros((len(masks), with_roles.graph.n_edges), dtype=np.bool_)
        for row, mask in zip(whole, masks, strict=True):
            row[with_roles.graph.edges_by_role[:, mask]] = True
        found = with_roles.experiment(ablation=ablation).circuits(whole)
        np.testing.assert_allclose(found, with_roles.plain(ablation=ablation).circuits(masks), atol=1e-8)


def test_slopes_are_finite_differences_and_at_the_whole_model_eap(family: Subject) -> None:
    with_roles = ByRole(family, NAMED)
    experiment, n = with_roles.experiment(), with_roles.graph.n_edges
    values, slopes = experiment.circuit_gradient(np.ones(n))
    np.testing.assert_allclose(values, experiment.clean, atol=1e-8)
    np.testing.assert_allclose(slopes.mean(0), experiment.attributions([1.0])[0], atol=1e-6)
    weights = np.clip(np.random.default_rng(1).uniform(-1, 2, n), 0, 1)
    slopes = experiment.circuit_gradient(weights)[1]
    for edge in np.argsort(-np.abs(slopes).max(0))[[0, 5, 60]]:
        ends = []
        for step in (1e-4, -1e-4):
            moved = weights.copy()
            moved[edge] += step
            ends.append(experiment.circuit_gradient(moved, among=np.array([edge]))[0])
        assert slopes[:, edge] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4, abs=1e-7)
        assert np.abs(slopes[:, edge]).max() > 1e-3


def test_a_pair_without_the_roles_that_are_measured_is_refused() -> None:
    subject = double_of("llama")
    graph = build_graph(replace(subject.graph.shape, roles=role_names(NAMED)))
    with pytest.raises(UsageError, match=r"names no roles, and .*A.*B.*other, end are measured; name them"):
        PatchingExperiment(subject.tracer, graph, PAIRS, sorted_settings({})[0])
    other = (replace(PAIRS[0], roles={"C": (1,)}),)
    with pytest.raises(UsageError, match=r"has the role 'C', and the roles measured are .*role_names"):
        PatchingExperiment(subject.tracer, graph, other, sorted_settings({})[0])
