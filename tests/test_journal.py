"""The journal: finished stages come back, a killed run's are kept, another run's are not taken over."""

import json
from pathlib import Path

import numpy as np
import pytest

from circuits.builder import build_graph
from circuits.errors import OutputError
from circuits.graph import ModelShape
from circuits.journal import Journal
from circuits.pruning import Selection
from circuits.scores import EdgeScores
from circuits.vocabulary import Metric

GRAPH = build_graph(ModelShape(n_layers=2, n_heads=2, n_kv_heads=1, d_model=4, d_head=2))
SETTINGS = {"scorer": "eap", "seed": 0, "options": {"metric": Metric.KL, "batch_size": None}}
VALUES = np.linspace(-1, 1, GRAPH.n_edges) / 3


def scores() -> EdgeScores:
    return EdgeScores(GRAPH, VALUES.copy(), "eap", measured=False)


def selection(*edges: int, proposed: int = 9) -> Selection:
    return Selection(np.array(edges, dtype=np.int64), 0.93, proposed, by_magnitude=True)


def filled(folder: Path) -> Journal:
    journal = Journal(folder, SETTINGS)
    journal.keep_scores(scores())
    journal.keep_selection(GRAPH, "proposed", selection(1, 5, 8))
    journal.keep_selection(GRAPH, "pruned", selection(1, 8))
    return journal


def test_a_new_journal_has_nothing_finished(tmp_path: Path) -> None:
    for resume in (False, True):
        journal = Journal(tmp_path, SETTINGS, resume=resume)
        assert (journal.resumed, journal.scores(GRAPH), journal.selection(GRAPH)) == (False, None, None)
    assert json.loads((tmp_path / "journal").read_text())["format"] == "circuits/journal"


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = Journal(tmp_path, SETTINGS, resume=True)
    assert journal.resumed
    found, chosen = journal.scores(GRAPH), journal.selection(GRAPH)
    assert found is not None
    assert chosen is not None
    np.testing.assert_array_equal(found.values, VALUES)
    assert (found.scorer, found.measured) == ("eap", False)
    assert chosen.edges.tolist() == [1, 8]  # the last step
    assert (chosen.faithfulness, chosen.proposed, chosen.by_magnitude) == (0.93, 9, True)


def test_without_resume_the_run_begins_afresh(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = Journal(tmp_path, SETTINGS)
    assert (journal.resumed, journal.scores(GRAPH)) == (False, None)
    assert not Journal(tmp_path, SETTINGS, resume=True).resumed


@pytest.mark.parametrize("change", [{"seed": 1}, {"options": {"metric": "log-odds", "batch_size": None}}, {"new": 1}])
def test_a_run_with_other_settings_begins_afresh(tmp_path: Path, change: dict[str, object]) -> None:
    filled(tmp_path)
    journal = Journal(tmp_path, SETTINGS | change, resume=True)
    assert (journal.resumed, journal.scores(GRAPH), journal.selection(GRAPH)) == (False, None, None)


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_last_line_cut_off_by_a_kill_is_forgotten_and_later_steps_are_not_lost_with_it(
    tmp_path: Path, cut: int
) -> None:
    filled(tmp_path)
    path = tmp_path / "journal"
    text = path.read_text()
    path.write_text(text[:-cut])
    resumed = Journal(tmp_path, SETTINGS, resume=True)
    chosen = resumed.selection(GRAPH)
    assert chosen is not None
    assert chosen.edges.tolist() == ([1, 5, 8] if cut > 1 else [1, 8])
    resumed.keep_selection(GRAPH, "pruned", selection(8))
    again = Journal(tmp_path, SETTINGS, resume=True).selection(GRAPH)
    assert again is not None
    assert again.edges.tolist() == [8]


@pytest.mark.parametrize("garbage", [b"\x00\xff\xfe\x00", b"[1, 2]\n", b"17\n", b"{}\n", b""])
def test_a_file_that_is_no_journal_is_begun_afresh(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "journal").write_bytes(garbage)
    journal = Journal(tmp_path, SETTINGS, resume=True)
    assert not journal.resumed
    journal.keep_scores(scores())
    assert Journal(tmp_path, SETTINGS, resume=True).resumed


def test_scores_that_were_deleted_are_computed_again(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "scores.parquet").unlink()
    journal = Journal(tmp_path, SETTINGS, resume=True)
    assert journal.scores(GRAPH) is None
    assert journal.selection(GRAPH) is not None


def test_edges_that_this_graph_does_not_have_are_not_taken_over(tmp_path: Path) -> None:
    filled(tmp_path)
    text = (tmp_path / "journal").read_text().replace(str(GRAPH.edge(8)), "a7.h0->logits")
    (tmp_path / "journal").write_text(text)
    assert Journal(tmp_path, SETTINGS, resume=True).selection(GRAPH) is None


def test_a_folder_that_is_not_there_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*gone/journal: No such file.*choose another --out"):
        Journal(tmp_path / "gone", SETTINGS)


def test_the_same_steps_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        filled(tmp_path / name)
    assert (tmp_path / "a" / "journal").read_bytes() == (tmp_path / "b" / "journal").read_bytes()
