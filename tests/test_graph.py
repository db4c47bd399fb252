"""Nodes, slots, edges, their order, their text form, and what is said about those that do not exist."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.builder import build_graph
from circuits.errors import UnknownNameError, UsageError
from circuits.graph import ComputationalGraph, Edge, ModelShape, Node, NodeKind, Receiver, Slot
from tests.toy import fed_columns

GPT2 = build_graph(ModelShape(n_layers=12, n_heads=12, n_kv_heads=12, d_model=768, d_head=64))
SMOLLM2 = build_graph(ModelShape(n_layers=30, n_heads=9, n_kv_heads=3, d_model=576, d_head=64))


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    groups, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return ModelShape(draw(st.integers(1, 12)), groups * per_group, groups, 8, 2, draw(st.booleans()))


def readable_by_definition(graph: ComputationalGraph, sender: Node, receiver: Receiver) -> bool:
    """Say whether a sender comes before a receiver, without using the order the graph is stored in."""
    node = receiver.node
    if node.kind is NodeKind.LOGITS or sender.kind is NodeKind.INPUT or sender.layer < node.layer:
        return True
    beside = sender.layer == node.layer and sender.kind is NodeKind.HEAD and node.kind is NodeKind.MLP
    return beside and not graph.shape.parallel


# ------------------------------------------------------------------------------------------------------------- counts


def test_gpt2_small_has_158_nodes_and_32491_edges() -> None:
    assert len(GPT2.nodes) == 158
    assert GPT2.n_edges == len(GPT2) == len(list(GPT2.edges())) == 32_491


def test_smollm2_has_301_senders_481_receivers_and_70651_edges() -> None:
    assert (len(SMOLLM2.senders), len(SMOLLM2.receivers), SMOLLM2.n_edges) == (301, 481, 70_651)


def test_the_smallest_graph_is_the_one_drawn_by_hand() -> None:
    graph = build_graph(ModelShape(1, 1, 1, 1, 1))
    assert [str(edge) for edge in graph.edges()] == [
        "input->a0.h0<q>",
        "input->a0.h0<k>",
        "input->a0.h0<v>",
        "input->m0",
        "a0.h0->m0",
        "input->logits",
        "a0.h0->logits",
        "m0->logits",
    ]


def test_a_parallel_block_lacks_exactly_the_edges_from_heads_to_the_mlp_beside_them() -> None:
    sequential = build_graph(ModelShape(3, 4, 2, 8, 2))
    parallel = build_graph(ModelShape(3, 4, 2, 8, 2, parallel=True))
    kept = set(parallel.edges())
    missing = [str(edge) for edge in sequential.edges() if edge not in kept]
    assert missing == [f"a{layer}.h{head}->m{layer}" for layer in range(3) for head in range(4)]
    assert kept < set(sequential.edges())


def test_key_and_value_receivers_are_groups_only_when_heads_share_them() -> None:
    grouped = [str(receiver) for receiver in build_graph(ModelShape(1, 4, 2, 8, 2)).receivers]
    assert grouped == [
        *("a0.h0<q>", "a0.h1<q>", "a0.h2<q>", "a0.h3<q>"),
        *("a0.kv0<k>", "a0.kv1<k>", "a0.kv0<v>", "a0.kv1<v>"),
        *("m0", "logits"),
    ]
    plain = [str(receiver) for receiver in build_graph(ModelShape(1, 2, 2, 8, 2)).receivers]
    assert plain == ["a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0", "logits"]


def test_nodes_are_listed_once_senders_first() -> None:
    graph = build_graph(ModelShape(2, 2, 1, 8, 2))
    listed = [str(node) for node in graph.nodes]
    assert listed == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "a0.kv0", "a1.kv0", "logits"]


# -------------------------------------------------------------------------------------------------------------- order


@settings(max_examples=30, deadline=None)
@given(shape=shapes())
def test_the_edges_are_those_whose_sender_is_computed_before_the_receiver_reads(shape: ModelShape) -> None:
    graph = build_graph(shape)
    expected = [
        Edge(sender, receiver)
        for receiver in graph.receivers
        for sender in graph.senders
        if readable_by_definition(graph, sender, receiver)
    ]
    assert list(graph.edges()) == expected


@settings(max_examples=30, deadline=None)
@given(shape=shapes())
def test_the_order_of_senders_is_topological(shape: ModelShape) -> None:
    graph = build_graph(shape)
    first_fed = np.array([min(fed_columns(graph, receiver)) for receiver in graph.receivers])
    assert np.all(graph.edge_senders < first_fed[graph.edge_receivers])


@settings(max_examples=20, deadline=None)
@given(shape=shapes())
def test_index_is_the_inverse_of_edge(shape: ModelShape) -> None:
    graph = build_graph(shape)
    assert [graph.index(edge) for edge in graph.edges()] == list(range(graph.n_edges))


def test_arrays_of_senders_and_receivers_agree_with_the_edges() -> None:
    for index in (0, 24, 12_345, 32_490):
        edge = GPT2.edge(index)
        assert GPT2.senders[GPT2.edge_senders[index]] == edge.sender
        assert GPT2.receivers[GPT2.edge_receivers[index]] == edge.receiver
    assert [str(edge) for edge in GPT2.edges([32_490, 0])] == ["m11->logits", "input->a0.h0<q>"]


def test_processes_with_different_hash_seeds_list_the_same_edges_in_the_same_order() -> None:
    code = (
        "from circuits.builder import build_graph; from circuits.graph import ModelShape; "
        "g = build_graph(ModelShape(11, 12, 3, 8, 2)); print(*g.edges(), *g.nodes, sep='\\n')"
    )
    digests = set()
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        digests.add(hashlib.sha256(done.stdout).hexdigest())
        assert b"a10.h11->logits" in done.stdout
    assert len(digests) == 1


# ---------------------------------------------------------------------------------------------------------- text form


@settings(deadline=None)
@given(
    kind=st.sampled_from(NodeKind),
    layer=st.integers(0, 200),
    index=st.integers(0, 200),
    slot=st.sampled_from([*Slot, None]),
)
def test_parsing_is_the_inverse_of_printing(kind: NodeKind, layer: int, index: int, slot: Slot | None) -> None:
    match kind:
        case NodeKind.INPUT | NodeKind.LOGITS:
            node = Node(kind)
        case NodeKind.MLP | NodeKind.RESID | NodeKind.MIDDLE:
            node = Node(kind, layer)
        case _:
            node = Node(kind, layer, index)
    receiver, edge = Receiver(node, slot), Edge(node, Receiver(node, slot))
    assert Node.parse(str(node)) == node
    assert Receiver.parse(str(receiver)) == receiver
    assert Edge.parse(str(edge)) == edge


@pytest.mark.parametrize("graph", [GPT2, SMOLLM2], ids=["gpt2", "smollm2"])
def test_every_edge_has_a_text_of_its_own_that_reads_back(graph: ComputationalGraph) -> None:
    texts = [str(edge) for edge in graph.edges()]
    assert len(set(texts)) == graph.n_edges
    assert [Edge.parse(text) for text in texts[::101]] == list(graph.edges(range(0, graph.n_edges, 101)))


def test_layers_and_heads_of_two_digits_are_read_as_numbers() -> None:
    edge = Edge.parse("a10.h11->a11.h10<k>")
    assert edge == Edge(Node(NodeKind.HEAD, 10, 11), Receiver(Node(NodeKind.HEAD, 11, 10), Slot.K))
    assert str(edge) == "a10.h11->a11.h10<k>"
    assert GPT2.index(edge) == [str(other) for other in GPT2.edges()].index("a10.h11->a11.h10<k>")
    assert Node.parse("m10") == Node(NodeKind.MLP, 10) != Node.parse("m1")


def test_spaces_around_an_edge_and_its_arrow_are_allowed() -> None:
    assert Edge.parse(" a3.h5 -> m4\n") == Edge.parse("a3.h5->m4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a3.h5", "'a3.h5' is not an edge; expected sender->receiver"),
        ("m0->m1->m2", "'m0->m1->m2' is not an edge"),
        ("", "'' is not an edge"),
        ("->", "'' is not a node; expected input, logits, m3, a3.h5 or a3.kv1"),
        ("head->m2", "'head' is not a node"),
        ("input->M1", "'M1' is not a node"),
        ("a3.x5->m4", "'a3.x5' is not a node"),
        ("a-1.h5->m4", "'a-1.h5' is not a node"),
        ("m03->m4", "'m03' is not a node; write it without leading zeros: 'm3'"),
        ("a1.h00->m4", "without leading zeros: 'a1.h0'"),
        ("input->a1.h2<x>", "'a1.h2<x>' is not a receiver; expected m3, logits, a3.h5<q> or a3.kv1<k>"),
        ("input->a1.h2<q", "'a1.h2<q' is not a receiver"),
        ("a1.h2<q>->m3", "'a1.h2<q>' is not a node"),
    ],
)
def test_text_that_is_no_edge_is_refused_with_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Edge.parse(text)
    assert message in str(caught.value)


# ---------------------------------------------------------------------------------------- edges that do not exist


@pytest.mark.parametrize(
    ("graph", "text", "messages"),
    [
        (GPT2, "a12.h3->logits", ["there is no node 'a12.h3'", "Closest: 'a11.h3'", "layers 0-11 and heads 0-11"]),
        (GPT2, "input->a0.h12<k>", ["there is no node 'a0.h12'", "Closest: 'a0.h11'"]),
        (SMOLLM2, "input->m30", ["there is no node 'm30'", "m29", "layers 0-29 and heads 0-8 in key/value groups 0-2"]),
        (SMOLLM2, "input->a0.kv5<k>", ["there is no node 'a0.kv5'", "Closest: 'a0.kv2'"]),
        (GPT2, "input->a0.kv5<k>", ["there is no node 'a0.kv5'", "Closest: 'a0.h5'"]),
        (
            SMOLLM2,
            "m3->a9.h7<v>",
            ["'a9.h7<v>'", "Heads share keys and values", "write 'a9.kv2<v>' for the group of a9.h7"],
        ),
        (SMOLLM2, "input->a0.kv0<q>", ["there is no receiver 'a0.kv0<q>'", "a0.kv0<k>, a0.kv0<v>"]),
        (GPT2, "input->a4.h1", ["there is no receiver 'a4.h1'", "a4.h1<q>, a4.h1<k>, a4.h1<v>", "A slot tells"]),
        (GPT2, "input->m0<q>", ["there is no receiver 'm0<q>'", "Closest: 'm0'"]),
        (GPT2, "m0->input", ["there is no receiver 'input'", "It only sends"]),
        (GPT2, "logits->m0", ["there is no edge 'logits->m0'", "'logits' only reads"]),
        (SMOLLM2, "a0.kv0->m3", ["there is no edge 'a0.kv0->m3'", "'a0.kv0' only reads"]),
        (GPT2, "m3->a3.h0<q>", ["there is no edge", "'m3' is not computed before 'a3.h0<q>' reads the stream"]),
        (GPT2, "m3->m3", ["'m3' is not computed before 'm3' reads"]),
        (GPT2, "a3.h0->a3.h1<v>", ["'a3.h0' is not computed before 'a3.h1<v>' reads"]),
    ],
)
def test_an_edge_that_does_not_exist_is_refused_with_the_reason(
    graph: ComputationalGraph, text: str, messages: list[str]
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        graph.index(Edge.parse(text))
    for message in messages:
        assert message in str(caught.value)


def test_in_a_parallel_block_a_head_is_too_late_for_the_mlp_beside_it() -> None:
    text = "a1.h0->m1"
    assert build_graph(ModelShape(2, 2, 2, 8, 2)).index(Edge.parse(text)) > 0
    with pytest.raises(UnknownNameError, match=r"'a1\.h0' is not computed before 'm1'"):
        build_graph(ModelShape(2, 2, 2, 8, 2, parallel=True)).index(Edge.parse(text))


@pytest.mark.parametrize("text", ["input->a0.h99<k>", "input->a40.h2<v>"])
def test_a_group_that_does_not_exist_is_never_recommended(text: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        SMOLLM2.index(Edge.parse(text))
    assert "there is no node" in str(caught.value)
    assert "kv33" not in str(caught.value)
    assert "a40.kv" not in str(caught.value)


def test_the_closest_node_is_offered_however_far_off_the_number_is() -> None:
    with pytest.raises(UnknownNameError) as caught:
        GPT2.index(Edge.parse("m99->logits"))
    assert "Closest: 'm11'" in str(caught.value)
    assert "Known: m11" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------- model shapes


@pytest.mark.parametrize(
    "numbers", [(0, 1, 1, 1, 1), (1, 0, 1, 1, 1), (1, 1, 0, 1, 1), (1, 1, 1, 0, 1), (1, 1, 1, 1, 0)]
)
def test_a_shape_with_a_number_below_one_is_refused(numbers: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        ModelShape(*numbers)


def test_heads_that_cannot_share_their_groups_evenly_are_refused() -> None:
    with pytest.raises(UsageError, match="9 heads cannot share 4 key/value heads evenly"):
        ModelShape(1, 9, 4, 8, 2)


def test_a_shape_knows_whether_and_how_heads_are_grouped() -> None:
    assert (GPT2.shape.grouped, GPT2.shape.heads_per_group) == (False, 1)
    assert (SMOLLM2.shape.grouped, SMOLLM2.shape.heads_per_group) == (True, 3)


# ------------------------------------------------------------------------------------------- edges and nodes as given


def test_edges_are_given_by_position_by_value_by_name_or_as_a_mask() -> None:
    names = ["m11->logits", "input->a0.h0<q>", "m11->logits"]
    expected = [32_490, 0, 32_490]
    for edges in (
        names,
        tuple(names),
        np.array(names),
        (name for name in names),
        [Edge.parse(name) for name in names],
        expected,
        np.array(expected, dtype=np.int32),
        np.array(expected, dtype=np.uint64),
        [np.int64(32_490), "input->0.0<q>", Edge.parse("m11->logits")],
    ):
        found = GPT2.indices(edges)
        assert found.tolist() == expected
        assert found.dtype == np.int64
    for one in ("m11->logits", Edge.parse("m11->logits"), 32_490, np.int64(32_490)):
        assert GPT2.indices(one).tolist() == [32_490]
    mask = np.zeros(GPT2.n_edges, dtype=np.bool_)
    mask[[5, 7]] = True
    assert GPT2.indices(mask).tolist() == [5, 7]
    assert GPT2.indices([]).tolist() == []


def test_a_head_may_be_written_as_in_papers() -> None:
    head = Node(NodeKind.HEAD, 10, 7)
    for text in ("a10.h7", "L10H7", "l10h7", "L10.H7", "10.7"):
        assert Node.parse(text) == GPT2.node(text) == head
    assert GPT2.node(head) is head
    assert GPT2.index(Edge.parse("9.6->L11H10<q>")) == GPT2.index(Edge.parse("a9.h6->a11.h10<q>"))


@pytest.mark.parametrize(
    ("graph", "edge", "message"),
    [
        (GPT2, 10**6, r"there is no edge 1000000; this graph has 32,491, numbered from 0\."),
        (GPT2, -1, r"there is no edge -1; this graph has 32,491"),
        (GPT2, 32_491, r"there is no edge 32491"),
        (GPT2, 1.0, r"an edge is an Edge, its text such as a3\.h5->m7, or its position; got 1\.0"),
        (GPT2, True, r"or its position; got True"),
        (GPT2, None, r"or its position; got None"),
        (GPT2, b"m0->m1", r"or its position; got"),
        (GPT2, Node(NodeKind.INPUT), r"or its position; got a Node"),
        (GPT2, "a10.h7", r"'a10\.h7' is not an edge; expected sender->receiver"),
        (GPT2, "a10.h7->a11.h2", r"no receiver 'a11\.h2'.*Known: a11\.h2<q>, a11\.h2<k>, a11\.h2<v>.*A slot tells"),
        (GPT2, "10.7->11.2", r"no receiver 'a11\.h2'.*Known: a11\.h2<q>, a11\.h2<k>, a11\.h2<v>.*A slot tells"),
        (SMOLLM2, "a10.h7->a11.h2", r"no receiver 'a11\.h2'.*Known: a11\.h2<q>, a11\.kv0<k>, a11\.kv0<v>.*A slot"),
        (SMOLLM2, "a10.h7->a11.kv2", r"no receiver 'a11\.kv2'.*Known: a11\.kv2<k>, a11\.kv2<v>\. A slot tells"),
        (GPT2, "a10.h12->logits", r"no node 'a10\.h12'\. Closest: 'a10\.h11'.*layers 0-11 and heads 0-11"),
        (GPT2, "L12H0->logits", r"no node 'a12\.h0'\. Closest: 'a11\.h0'"),
        (GPT2, "logits->m0", r"'logits' only reads"),
        (GPT2, f"a{'9' * 5000}.h1->logits", r"is not a node"),
        (GPT2, "a\u0663.h5->logits", r"is not a node"),
        (GPT2, 10**30, r"or its position; got a number of 100 bits"),
        (GPT2, "\ud83d->m0", r"is not a node"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_an_edge_that_is_none_is_refused_alone_and_among_others(
    graph: ComputationalGraph, edge: object, message: str
) -> None:
    with pytest.raises((UsageError, UnknownNameError), match=message):
        graph.indices([0, edge])  # type: ignore[list-item]
    with pytest.raises((UsageError, UnknownNameError), match=message):
        graph.indices(edge)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [10**6, -1, 2.0, "x", None, np.float64(3)])
def test_the_edge_at_a_position_that_is_none_is_refused(index: object) -> None:
    with pytest.raises(UsageError, match=r"there is no edge|an edge is"):
        GPT2.edge(index)  # type: ignore[arg-type]


def test_an_array_of_positions_is_checked_whole() -> None:
    with pytest.raises(UsageError, match="there is no edge 40000"):
        GPT2.indices(np.array([1, 40_000]))
    with pytest.raises(UsageError, match=r"got 0\.5"):
        GPT2.indices(np.array([0.5]))
    with pytest.raises(UsageError, match=r"one boolean for each of 32,491 edges, got shape \(3,\)"):
        GPT2.indices(np.array([True, False, True]))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("L12H0", r"no node 'a12\.h0'\. Closest: 'a11\.h0'"),
        ("10.12", r"no node 'a10\.h12'\. Closest: 'a10\.h11'"),
        ("10", "'10' is not a node"),
        ("L10", "'L10' is not a node"),
        ("10.7.1", "'10.7.1' is not a node"),
        ("H7", "'H7' is not a node"),
        (10.7, r"a node is 10\.7; expected Node: give a Node or its text, such as a3\.h5 or m3"),
        (None, "a node is None"),
        ((10, 7), "a node is a tuple"),
        (Node(NodeKind.MLP, 12), r"no node 'm12'\. Closest: 'm11'"),
    ],
    ids=str,
)
def test_a_node_that_is_none_is_refused(node: object, message: str) -> None:
    with pytest.raises((UsageError, UnknownNameError), match=message):
        GPT2.node(node)  # type: ignore[arg-type]
