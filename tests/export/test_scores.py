"""Score files and edge lists: what is written, what comes back, and where an unreadable file is wrong."""

from pathlib import Path

import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.errors import CircuitsError, FormatError, OutputError, UnknownNameError
from circuits.export.scores import read_edges, read_scores, write_scores
from circuits.graph import Edge, ModelShape
from circuits.scores import EdgeScores

GRAPH = build_graph(ModelShape(n_layers=12, n_heads=2, n_kv_heads=1, d_model=4, d_head=2))
SUFFIXES = [".csv", ".parquet"]


def exact_scores() -> EdgeScores:
    """Three measured edges, among them one of layer 11 and one whose digits do not fit nine places."""
    values, sd = np.full(GRAPH.n_edges, np.nan), np.full(GRAPH.n_edges, np.nan)
    for name, value, spread in (
        ("input->a0.h1<q>", 0.5, 0.25),
        ("m10->a11.kv0<k>", -1 / 3, 1e-7),
        ("m11->logits", 0.0, 2.0),
    ):
        index = GRAPH.index(Edge.parse(name))
        values[index], sd[index] = value, spread
    return EdgeScores(GRAPH, values, "exact", measured=True, sd=sd, n=32)


def estimated_scores() -> EdgeScores:
    return EdgeScores(GRAPH, np.random.default_rng(0).normal(size=GRAPH.n_edges), "eap", measured=False)


# -------------------------------------------------------------------------------------------------------------- writing


def test_a_csv_file_is_exactly_this(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    write_scores(exact_scores(), path)
    assert path.read_bytes() == (
        b"edge,sender,receiver,slot,score,measured,sd,n\n"
        b"input->a0.h1<q>,input,a0.h1,q,0.5,True,0.25,32\n"
        b"m10->a11.kv0<k>,m10,a11.kv0,k,-0.333333333,True,1e-07,32\n"
        b"m11->logits,m11,logits,,0,True,2,32\n"
    )


def test_scores_without_spread_have_no_such_columns(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    write_scores(estimated_scores(), path)
    lines = path.read_text().splitlines()
    assert lines[0] == "edge,sender,receiver,slot,score,measured"
    assert len(lines) == 1 + GRAPH.n_edges
    assert [line.partition(",")[0] for line in lines[1:]] == [str(edge) for edge in GRAPH.edges()]


def test_only_edges_asked_for_are_written_in_graph_order(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    write_scores(estimated_scores(), path, np.array([9, 2, 5]))
    assert [line.partition(",")[0] for line in path.read_text().splitlines()[1:]] == [
        str(GRAPH.edge(index)) for index in (2, 5, 9)
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writing_reading_and_writing_again_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for number, scores in enumerate((exact_scores(), estimated_scores())):
        first, second = (tmp_path / f"{name}{number}{suffix}" for name in ("a", "b"))
        write_scores(scores, first)
        write_scores(read_scores(first, GRAPH), second)
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("suffix", [".txt", "", ".json"])
def test_another_suffix_is_refused_with_those_that_exist(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UnknownNameError, match=r"no score file format.*\.csv, \.parquet"):
        write_scores(exact_scores(), tmp_path / f"scores{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_place_that_cannot_be_written_to_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*nowhere/scores.*Choose another place"):
        write_scores(exact_scores(), tmp_path / "nowhere" / f"scores{suffix}")


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_written_comes_back(tmp_path: Path, suffix: str) -> None:
    written, path = exact_scores(), tmp_path / f"scores{suffix}"
    write_scores(written, path)
    found = read_scores(path, GRAPH)
    np.testing.assert_allclose(found.values, written.values, rtol=1e-8 if suffix == ".csv" else 0)
    assert found.sd is not None
    np.testing.assert_allclose(found.sd, written.sd, rtol=1e-8 if suffix == ".csv" else 0)
    assert (found.n, found.measured) == (32, True)
    assert found.scorer == ("exact" if suffix == ".parquet" else "scores")
    assert not read_scores_of(estimated_scores(), tmp_path / f"e{suffix}").measured


def read_scores_of(scores: EdgeScores, path: Path) -> EdgeScores:
    write_scores(scores, path)
    return read_scores(path, GRAPH)


HEAD = "edge,sender,receiver,slot,score,measured\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("edge,value\nm0->m1,3\n", r"no column measured, score; expected edge, score, measured"),
        (HEAD + "m0->m1,m0,m1,,1,True\nm1->m0,m1,m0,,1,True\n", r"line 3: .*'m1' is not computed before 'm0'"),
        (HEAD + "m0->mlp1,m0,m1,,1,True\n", r"line 2: 'mlp1' is not a receiver|line 2: 'mlp1' is not a node"),
        (HEAD + "m0->m1,m0,m1,,high,True\n", r"column score: .*'high'; expected numbers only"),
        (HEAD + "m0->m1,m0,m1,,1,True\nm0->m1,m0,m1,,2,True\n", r"line 3: m0->m1 .*twice"),
        ("", "cannot read .*"),
        ('edge,score,measured\n"m0->m1,1,True\n', "cannot read .*"),
        ("edge,score,measured\nm0->m1,1,True,4,5,6\nm0->m2,1\n,,,,,,,,,\n", "cannot read .*|line"),
    ],
)
def test_a_csv_file_that_is_not_one_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as caught:
        read_scores(path, GRAPH)
    assert "scores.csv" in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"\xff\xfe\x00garbage", b"PAR1"])
def test_a_binary_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"scores{suffix}"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="scores"):
        read_scores(path, GRAPH)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_refused(tmp_path: Path, suffix: str) -> None:
    for read in (read_scores, read_edges):
        with pytest.raises(FormatError, match=r"cannot read .*gone"):
            read(tmp_path / f"gone{suffix}", GRAPH)


def test_a_parquet_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = tmp_path / "scores.parquet"
    write_scores(exact_scores(), path)
    table = parquet.read_table(path)
    assert table.schema.metadata[b"format"] == b"circuits/scores"
    parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, b"version": b"2"}), path)
    with pytest.raises(FormatError, match="version 2; this release reads up to 1"):
        read_scores(path, GRAPH)


# ----------------------------------------------------------------------------------------------------------- edge lists


def test_an_edge_list_has_one_edge_per_line_with_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "edges.txt"
    path.write_text("# the strong ones\nm11->logits\n\n  input -> a0.h1<q>  # a comment\nm11->logits\n")
    assert [str(edge) for edge in GRAPH.edges(read_edges(path, GRAPH))] == ["input->a0.h1<q>", "m11->logits"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_score_file_is_an_edge_list_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores{suffix}"
    write_scores(exact_scores(), path)
    assert read_edges(path, GRAPH).tolist() == exact_scores().scored.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"m0->m1\n\nm0->m77\n", r"edges.txt, line 3: there is no node 'm77'"),
        (b"m0->a1.h0<k>\n", r"line 1: .*write 'a1.kv0<k>'"),
        (b"# nothing\n\n", r"names no edge; expected one per line, such as"),
        (b"\xff\xfe", r"edges.txt is not a text file"),
    ],
)
def test_an_unreadable_edge_list_is_refused_with_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "edges.txt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_edges(path, GRAPH)


def test_a_folder_or_a_file_without_edges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot read"):
        read_edges(tmp_path, GRAPH)
    path = tmp_path / "scores.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="no column 'edge'"):
        read_edges(path, GRAPH)
    path.write_text(HEAD)
    with pytest.raises(CircuitsError, match="names no edge"):
        read_edges(path, GRAPH)
