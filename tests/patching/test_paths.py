"""Paths of several hops: their text, and their effect against the reference's masked run over the clean run."""

import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.errors import UnknownNameError, UsageError
from circuits.graph import Edge, ModelShape
from circuits.patching.paths import Path, path_effects
from circuits.vocabulary import Ablation, Direction, Metric
from tests.reference.hooks import live_run, sender_values, zeros
from tests.subjects import Subject, clean_ids, corrupted_ids, metric_of

PLAIN = build_graph(ModelShape(n_layers=3, n_heads=4, n_kv_heads=4, d_model=32, d_head=8))
GROUPED = build_graph(ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=32, d_head=12))


# --------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    "text",
    [
        "m2->logits",
        "input->a0.h1<v>->m1->logits",
        "a0.h1->a1.h2<q>->a2.h3<k>->logits",
        "m0->m1->m2->logits",
    ],
)
def test_a_path_prints_as_it_was_written(text: str) -> None:
    assert str(Path.parse(text, PLAIN)) == text


def test_a_path_names_its_edges_in_order() -> None:
    path = Path.parse(" a0.h1 -> a1.h2<q> -> m2 -> logits ", PLAIN)
    assert [str(edge) for edge in path.edges] == ["a0.h1->a1.h2<q>", "a1.h2->m2", "m2->logits"]
    assert path.indices(PLAIN).tolist() == sorted(PLAIN.index(edge) for edge in path.edges)


def test_with_grouped_queries_a_key_may_be_named_by_its_group_or_by_the_head() -> None:
    long = Path.parse("a0.h1->a2.kv1<k>->a2.h3->logits", GROUPED)
    short = Path.parse("a0.h1->a2.h3<k>->logits", GROUPED)
    assert long == short
    assert [str(edge) for edge in long.edges] == ["a0.h1->a2.kv1<k>", "a2.h3->logits"]


def test_a_path_through_a_group_prints_the_head_it_goes_on_through() -> None:
    for head in (2, 3):
        path = Path.parse(f"a0.h1->a2.h{head}<v>->logits", GROUPED)
        assert str(path) == f"a0.h1->a2.kv1<v>->a2.h{head}->logits"
        assert Path.parse(str(path), GROUPED) == path
    query = "a0.h1->a2.h3<q>->logits"
    assert str(Path.parse(query, GROUPED)) == query


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("logits", UsageError, "'logits' is not a path; expected at least two nodes"),
        ("a0.h1->m1", UsageError, r"must end at logits: write 'a0.h1->m1->logits'"),
        ("a0.h1<q>->logits", UsageError, r"starts at a slot; the first node sends, so write 'a0.h1'"),
        ("a0.kv0->a0.h1->logits", UsageError, r"starts at 'a0.kv0', which only reads"),
        ("m1->m0->logits", UnknownNameError, r"'m1' is not computed before 'm0' reads"),
        ("m0->a1.h0->logits", UnknownNameError, r"'a1.h0'.*A slot tells which input of a head is meant"),
        ("m0->a1.h9<q>->logits", UnknownNameError, r"no node 'a1.h9'.*Closest: 'a1.h3'"),
        ("m0->a1.kv1<k>->a1.h0->logits", UsageError, r"after 'a1.kv1'.*a1.h2 to a1.h3; got 'a1.h0'"),
        ("m0->a1.kv1<k>->a2.h2->logits", UsageError, r"after 'a1.kv1'.*got 'a2.h2'"),
        ("m0->a1.kv1<k>->logits", UsageError, r"after 'a1.kv1'.*got 'logits'"),
        ("logits->logits", UnknownNameError, "'logits' only reads"),
        ("m0->mlp1->logits", UsageError, "'mlp1' is not a node"),
        ("m0-> ->logits", UsageError, "'' is not a"),
    ],
)
def test_what_is_not_a_path_is_refused_with_what_to_write(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Path.parse(text, GROUPED)


# ------------------------------------------------------------------------------------------------------------ effects

PATHS = [
    "input->logits",
    "a0.h1->m1->logits",
    "a0.h1->a1.h2<q>->logits",
    "input->a0.h3<v>->a1.h0<k>->a2.h1<v>->m2->logits",
    "m0->a2.h3<k>->logits",
    "m0->m1->m2->logits",
]


def reference_effect(subject: Subject, path: Path, metric: Metric, ablation: Ablation) -> np.ndarray:
    clean = sender_values(subject.module, clean_ids())
    corrupted = sender_values(subject.module, corrupted_ids())
    if ablation is Ablation.ZERO:
        corrupted = zeros(corrupted)
    sender = path.edges[0].sender
    override = {sender: corrupted[sender]}
    logits = live_run(subject.module, clean_ids(), base=clean, live=path.edges, override=override)
    of = metric_of(metric, subject.logits(clean_ids()))
    change = of(subject.logits(clean_ids())) - of(logits)
    return (-change if metric.lower_is_better else change).numpy()


@pytest.mark.parametrize("metric", [Metric.LOGIT_DIFFERENCE, Metric.KL])
@pytest.mark.parametrize("ablation", [Ablation.CORRUPTED, Ablation.ZERO])
def test_effects_equal_the_reference_run_with_only_the_paths_edges_live(
    double: Subject, metric: Metric, ablation: Ablation
) -> None:
    paths = [Path.parse(text, double.graph) for text in PATHS]
    found = path_effects(double.experiment(metric=metric, ablation=ablation), paths)
    expected = np.stack([reference_effect(double, path, metric, ablation) for path in paths])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (np.abs(expected).max(axis=1) > 1e-6).all()


def test_a_longer_path_is_not_the_sum_or_a_copy_of_its_first_edge(double: Subject) -> None:
    experiment = double.experiment()
    (path,) = path_effects(experiment, [Path.parse("a0.h1->m1->logits", double.graph)])
    (edge,) = experiment.edge_effects(np.array([double.index("a0.h1->m1")]))
    assert np.abs(path - edge).max() > 0.01


def test_paths_of_a_group_go_on_through_the_named_head_alone(double: Subject) -> None:
    """The two heads of a group share the key, yet the effects through them are their own."""
    texts = [f"input->a1.h{head}<k>->logits" for head in (2, 3)]
    found = path_effects(double.experiment(), [Path.parse(text, double.graph) for text in texts])
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_path_whose_edges_a_direct_edge_carries_too_is_measured_alone() -> None:
    assert Edge.parse("m0->logits") not in Path.parse("m0->m1->logits", PLAIN).edges


def test_the_direction_of_the_options_does_not_change_paths_which_are_always_noising(subject: Subject) -> None:
    paths = [Path.parse("a0.h1->m1->logits", subject.graph)]
    noising = path_effects(subject.experiment(), paths)
    denoising = path_effects(subject.experiment(direction=Direction.DENOISING), paths)
    np.testing.assert_array_equal(noising, denoising)
