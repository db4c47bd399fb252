"""Score files and edge lists: what is written, what comes back, and where an unreadable file is wrong."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from circuits.builder import build_graph
from circuits.errors import CircuitsError, FormatError, OutputError, UnknownNameError
from circuits.graph import Edge, ModelShape
from circuits.interchange.score_files import read_edges, read_scores, read_scores_of, scores_of, write_scores
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
    with pytest.raises(OutputError, match=r"cannot write .*nowhere/scores.*The folder must exist"):
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
    assert not read_back(estimated_scores(), tmp_path / f"e{suffix}").measured


def read_back(scores: EdgeScores, path: Path) -> EdgeScores:
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
        ("edge,score,measured\nm0->m1,1,True,4,5,6\n", "line 2: expected 3 columns as in the header, got 6"),
        ("edge,score,measured\nm0->m2,1\n", "line 2: expected 3 columns as in the header, got 2"),
        (HEAD + "m0->m1,m0,m1,,1,false\n", "line 2, column measured: 'false'; expected True or False"),
        (HEAD + "m0->m1,m0,m1,,1,\n", "line 2, column measured: ''; expected True or False"),
        (HEAD + "m0->m1,m0,m1,,1,1\n", "line 2, column measured: '1'; expected True or False"),
        (HEAD + "m0->m1,m0,m1,,1,True\nm0->m2,m0,m2,,inf,True\n", "line 3, column score: 'inf'; expected numbers"),
        (HEAD + "m0->m1,m0,m1,,1e999,True\n", "line 2, column score: '1e999'; expected numbers only"),
        (HEAD + "m0->m1,m0,m1,,1_000,True\n", "line 2, column score: '1_000'; expected numbers only"),
        (HEAD + "m0->m1,m0,m1,,٣,True\n", "line 2, column score: '٣'; expected numbers only"),
        (HEAD + "m0->m1,m0,m1,,nan,True\n", "line 2, column score: 'nan'; expected numbers only"),
        (HEAD + "m0->m1,m2,m1,,1,True\n", "line 2: the sender of m0->m1 is 'm0', but 'm2' is written beside it"),
        (HEAD + "m0->m1,m0,m3,,1,True\n", "line 2: the receiver of m0->m1 is 'm1', but 'm3' is written"),
        (HEAD + "m0->m1,m0,m1,q,1,True\n", "line 2: the slot of m0->m1 is '', but 'q' is written"),
        ("edge,score,score,measured\nm0->m1,1,2,True\n", "has the column 'score' twice; keep one"),
        ("edge,score,measured,sd,n\nm0->m1,1,True,-1,4\n", "line 2, column sd: '-1'; expected numbers from 0 up"),
        (
            "edge,score,measured,sd,n\nm0->m1,1,True,1,4\nm0->m2,1,True,1,5\n",
            "line 3, column n: '5'; expected",
        ),
        ("edge,score,measured,sd,n\nm0->m1,1,True,1,4.5\n", "line 2, column n: '4.5'; expected the same whole number"),
        ("edge,score,measured,sd,n\nm0->m1,1,True,1,\n", "line 2, column n: ''; expected the same whole number"),
        ("edge,score,measured\n" + "m0->m1,1,True\n" * 40_000, "has 40,000 rows; this model has only .* edges"),
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
    path = tmp_path / "scores.parquet"
    write_scores(exact_scores(), path)
    table = parquet.read_table(path)
    assert table.schema.metadata[b"format"] == b"circuits/scores"
    parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, b"version": b"2"}), path)
    with pytest.raises(FormatError, match="version 2; this release reads up to 1"):
        read_scores(path, GRAPH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.replace_schema_metadata({b"version": b"two"}), "has version two; this release"),
        (lambda table: table.replace_schema_metadata({b"version": b"-1"}), "has version -1; this release"),
        (lambda table: table.replace_schema_metadata({b"version": b"9" * 5_000}), "; this release reads up to 1"),
        (lambda table: table.replace_schema_metadata({b"scorer": b"\xff"}), "cannot read .*invalid start byte"),
        (lambda table: table.drop_columns(["score"]), "has no column score"),
        (lambda table: table.set_column(5, "measured", [["true"] * len(table)]), "line 2, column measured: 'true'"),
        (lambda table: table.set_column(5, "measured", [[1] * len(table)]), "line 2, column measured: 1; expected"),
        (lambda table: table.set_column(4, "score", [[[1.0]] * len(table)]), r"line 2, column score: .*numbers only"),
        (lambda table: table.set_column(4, "score", [[float("inf")] * len(table)]), "line 2, column score: inf"),
        (lambda table: table.set_column(0, "edge", [[7] * len(table)]), "line 2: '7' is not an edge"),
        (lambda table: table.set_column(7, "n", [[-1] * len(table)]), "line 2, column n: -1; expected numbers from 0"),
        (lambda table: pa.concat_tables([table] * 400), "rows of .* MB in all; this model has only"),
    ],
)
def test_a_parquet_file_that_is_not_one_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(exact_scores(), path)
    table = parquet.read_table(path)
    undigested = {key: value for key, value in table.schema.metadata.items() if key != b"digest"}
    parquet.write_table(change(table.replace_schema_metadata(undigested)), path)
    with pytest.raises(FormatError, match=message):
        read_scores(path, GRAPH)


def test_a_parquet_file_damaged_in_any_place_is_refused_or_read_in_time(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(exact_scores(), path)
    data, generator = path.read_bytes(), random.Random(0)
    refused = 0
    for place in [*range(len(data) - 400, len(data)), *generator.choices(range(len(data)), k=100)]:
        path.write_bytes(data[:place] + bytes([generator.randrange(256)]) + data[place + 1 :])
        try:
            read_scores(path, GRAPH)
        except FormatError:
            refused += 1
    assert refused > 100


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
        (b"\xff\xff", r"edges.txt is not UTF-8 text"),
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


# ------------------------------------------------------------------------------------------------- whose they are


def test_scores_say_which_model_and_prompts_they_belong_to(tmp_path: Path) -> None:
    path, mine, other = tmp_path / "scores.parquet", scores_of("model", "prompts"), scores_of("model", "others")
    write_scores(exact_scores(), path, of=mine)
    assert read_scores_of(path, GRAPH, mine) is not None
    assert read_scores_of(path, GRAPH, other) is None
    np.testing.assert_array_equal(read_scores(path, GRAPH).values, exact_scores().values)
    write_scores(exact_scores(), path)  # of a file that does not say so, the caller has to judge
    assert read_scores_of(path, GRAPH, other) is not None
