"""The journal: what was measured comes back, of the same things only; damage and other runs are never taken over."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuits.errors import OutputError
from circuits.files import journal as module
from circuits.files.journal import NOWHERE, Journal, Shelf
from circuits.patching.keeping import Measured

MODEL, OTHER = {"model": "a" * 64}, {"model": "b" * 64}
ROW = np.array([0.1, -2.5, np.nan])


def opened(folder: Path, *, resume: bool = True) -> Journal:
    return Journal(folder / "journal", resume=resume)


def filled(folder: Path) -> Path:
    with opened(folder, resume=False) as journal:
        shelf = journal.shelf(**MODEL)
        shelf.put("circuit", b"1", b"one")
        shelf.put("circuit", b"2", b"two")
        shelf.arrays("scores", ["eap", 5], lambda: {"mean": ROW})
    return folder / "journal"


def never() -> Any:
    raise AssertionError("measured again")


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    filled(tmp_path)
    with opened(tmp_path) as journal:
        shelf = journal.shelf(**MODEL)
        assert shelf.filled
        assert shelf.get("circuit", b"1") == b"one"
        np.testing.assert_array_equal(shelf.arrays("scores", ["eap", 5], never)["mean"], ROW)


def test_a_json_value_comes_back_with_every_digit_and_with_what_is_no_number(tmp_path: Path) -> None:
    value = {"a": 0.1 + 0.2, "b": [1, "ü", None], "c": float("nan")}
    with opened(tmp_path) as journal:
        made = journal.shelf(**MODEL).document("head", "a0.h1", lambda: value)
    with opened(tmp_path) as journal:
        found = journal.shelf(**MODEL).document("head", "a0.h1", never)
    assert str(found) == str(made) == str(value)


@pytest.mark.parametrize("change", [OTHER, {**MODEL, "seed": 1}, {}])
def test_what_was_measured_of_something_else_is_not_taken(tmp_path: Path, change: dict[str, Any]) -> None:
    filled(tmp_path)
    with opened(tmp_path) as journal:
        shelf = journal.shelf(**change)
        assert (shelf.filled, shelf.get("circuit", b"1")) == (False, None)
        assert shelf.arrays("scores", ["eap", 5], lambda: {"mean": np.zeros(1)})["mean"].tolist() == [0]
        assert journal.shelf(**MODEL).filled


def test_the_order_of_what_something_is_measured_from_does_not_matter_but_its_place_does(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        assert journal.shelf(a=1, b=2) == journal.shelf(b=2, a=1)
        assert journal.shelf(a=1).under(b=2) != journal.shelf(a=1, b=2)
        assert journal.shelf(a=1).under(b=2) == journal.shelf(a=1).under(b=2)


def test_another_release_measures_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr("circuits.files.journal.metadata.version", lambda _: "99.0")
    with opened(tmp_path) as journal:
        assert not journal.shelf(**MODEL).filled


def test_without_resume_the_run_begins_afresh(tmp_path: Path) -> None:
    filled(tmp_path)
    with opened(tmp_path, resume=False) as journal:
        shelf = journal.shelf(**MODEL)
        assert (journal.empty, shelf.filled, shelf.get("circuit", b"1")) == (True, False, None)
        shelf.forget("circuit")
        shelf.put("circuit", b"3", b"three")
        assert (journal.empty, shelf.filled, shelf.get("circuit", b"1")) == (False, True, None)
    with opened(tmp_path) as journal:
        shelf = journal.shelf(**MODEL)
        assert (shelf.get("circuit", b"1"), shelf.get("circuit", b"3")) == (None, b"three")


def test_an_earlier_run_is_thrown_away_only_when_there_is_something_in_its_place(tmp_path: Path) -> None:
    """A forgotten --resume, noticed at once, costs nothing."""
    filled(tmp_path)
    opened(tmp_path, resume=False).close()
    with opened(tmp_path) as journal:
        assert journal.shelf(**MODEL).get("circuit", b"1") == b"one"


def test_a_journal_in_which_nothing_was_kept_is_not_left_behind(tmp_path: Path) -> None:
    opened(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_new_journal_is_empty_and_has_no_problem(tmp_path: Path) -> None:
    with opened(tmp_path / "made" / "anew") as journal:
        assert (journal.empty, journal.problem) == (True, "")


def test_what_is_forgotten_is_gone_and_the_rest_is_not(tmp_path: Path) -> None:
    filled(tmp_path)
    with opened(tmp_path) as journal:
        journal.shelf(**MODEL).forget("circuit")
    with opened(tmp_path) as journal:
        shelf = journal.shelf(**MODEL)
        assert shelf.get("circuit", b"1") is None
        shelf.arrays("scores", ["eap", 5], never)


# --------------------------------------------------------------------------------------------------- writing in time


def test_it_is_written_when_that_is_due_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("circuits.files.journal.time.monotonic", lambda: now)

    def written() -> int:
        connection = sqlite3.connect(f"file:{tmp_path / 'journal'}?mode=ro", uri=True, timeout=0)
        try:
            return connection.execute("SELECT count(*) FROM kept").fetchone()[0]
        finally:
            connection.close()

    with opened(tmp_path) as journal:
        shelf = journal.shelf(**MODEL)
        shelf.put("circuit", b"1", b"one")
        assert not shelf.due
        assert written() == 0
        now = module.SECONDS + 1
        assert shelf.due
        shelf.put("circuit", b"2", b"two")
        assert written() == 2
        shelf.arrays("part", 1, lambda: {"a": ROW}, interim=True)  # will be part of a sum before it is due
        journal.write()
        assert written() == 2
        now *= 2
        shelf.arrays("part", 1, lambda: {"a": ROW}, interim=True)
        assert written() == 3


def test_what_was_measured_together_is_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed at any moment has whole batches: what is measured with others differs in its last digits."""
    written: list[int] = []
    batches = [np.arange(0, 3), np.arange(3, 6), np.arange(6, 8)]
    write = Journal.write

    def counting(journal: Journal) -> None:
        write(journal)
        rows = sqlite3.connect(tmp_path / "journal").execute("SELECT count(*) FROM kept").fetchone()
        written.append(rows[0])

    monkeypatch.setattr(module, "SECONDS", 0.0)  # due at every moment
    monkeypatch.setattr(Journal, "write", counting)
    with opened(tmp_path) as journal:
        names = [bytes([i]) for i in range(8)]
        measured = Measured(journal.shelf(**MODEL), "circuit", names, 1, parts=1, progress=lambda *_: None)
        with measured.missing(np.array([0])):
            for batch in batches:
                measured.add(batch, np.array([0]), torch.ones(len(batch), 1))
    assert {3, 6, 8} <= set(written) <= {0, 3, 6, 8}


def test_what_stopped_the_run_does_not_keep_the_rest_from_being_written(tmp_path: Path) -> None:
    def stopped() -> None:
        with opened(tmp_path) as journal:
            journal.shelf(**MODEL).put("circuit", b"1", b"one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with opened(tmp_path) as journal:
        assert journal.shelf(**MODEL).get("circuit", b"1") == b"one"


# ------------------------------------------------------------------------------------------------- damage and faults


def test_a_value_that_was_damaged_is_measured_again_and_the_others_are_not(tmp_path: Path) -> None:
    path = filled(tmp_path)
    data = path.read_bytes()
    assert data.count(b"one") == 1
    path.write_bytes(data.replace(b"one", b"onf"))
    with opened(tmp_path) as journal:
        shelf = journal.shelf(**MODEL)
        assert (shelf.get("circuit", b"1"), shelf.get("circuit", b"2")) == (None, b"two")
        assert journal.problem == ""


def test_a_value_under_the_name_of_another_is_not_taken(tmp_path: Path) -> None:
    path = filled(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM kept WHERE item = ?", (b"2",))
    connection.execute("UPDATE kept SET item = ? WHERE item = ?", (b"2", b"1"))
    connection.commit()
    connection.close()
    with opened(tmp_path) as journal:
        assert journal.shelf(**MODEL).get("circuit", b"2") is None


@pytest.mark.parametrize(
    "content", [b"\x00\xff\xfe\x00", b'{"format": "circuits/journal", "version": 1}\n', b"SQLite format 3\x00 cut off"]
)
def test_a_file_that_is_no_journal_is_begun_afresh_and_said_to_be_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal").write_bytes(content)
    with opened(tmp_path) as journal:
        assert journal.problem == "is damaged, or of another release"
        assert journal.empty
        journal.shelf(**MODEL).put("circuit", b"1", b"one")
    with opened(tmp_path) as journal:
        assert journal.shelf(**MODEL).filled


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_journal_that_was_cut_is_begun_afresh_and_never_read_wrongly(tmp_path: Path, share: float) -> None:
    path = filled(tmp_path)
    with Journal(path, resume=True) as journal:
        for item in range(300):
            journal.shelf(**MODEL).put("circuit", b"%d" % item, b"%d" % item * 50)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with opened(tmp_path) as journal:
        assert journal.problem
        assert journal.empty


def test_a_journal_of_another_version_is_not_read(tmp_path: Path) -> None:
    path = filled(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with opened(tmp_path) as journal:
        assert journal.problem
        assert journal.empty


def test_a_second_run_is_refused_while_the_first_goes_on_and_leaves_it_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.shelf(**MODEL).put("circuit", b"1", b"one")
        for resume in (True, False):
            with pytest.raises(OutputError, match=r"another run is writing to .* Wait until it has ended, or .*--out"):
                opened(tmp_path, resume=resume)
    with opened(tmp_path) as journal:
        assert journal.shelf(**MODEL).filled


def test_a_folder_that_cannot_be_made_is_an_error_that_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file/journal: (File exists|Not a directory).*--out"):
        opened(tmp_path / "file")


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with opened(folder) as journal:
        shelf = journal.shelf(**MODEL)
        shelf.put("circuit", b"1", b"one")
        journal.write()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        shelf.put("circuit", b"2", b"two")
        journal.write()
        shelf.put("circuit", b"3", b"three")
    with opened(folder) as journal:
        assert journal.shelf(**MODEL).get("circuit", b"3") == b"three"


def test_a_full_disk_is_an_error_that_says_what_is_kept_and_loses_nothing_written_before(tmp_path: Path) -> None:
    filled(tmp_path)

    def filling() -> None:
        with opened(tmp_path) as journal:
            journal._run("PRAGMA max_page_count = 8")
            for item in range(100):
                journal.shelf(**MODEL).put("circuit", b"more %d" % item, b"x" * 1000)

    with pytest.raises(OutputError, match=r"cannot write .*journal: database or disk is full\. What was written bef"):
        filling()
    with opened(tmp_path) as journal:
        assert journal.shelf(**MODEL).get("circuit", b"2") == b"two"


@pytest.mark.parametrize("room", [0, 1500, 6000])
def test_a_limit_on_the_size_of_files_loses_nothing_that_was_written(tmp_path: Path, room: int) -> None:
    """A full disk as the system tells of it: in the middle of a file."""
    size = filled(tmp_path).stat().st_size
    program = """if True:
        import resource, sys
        from circuits.files.journal import Journal
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
        with Journal(sys.argv[1], resume=True) as journal:
            for item in range(100):
                journal.shelf(model="a" * 64).put("circuit", b"more %d" % item, bytes(1000))
                journal.write()
    """
    command = [sys.executable, "-c", program, str(tmp_path / "journal"), str(size + room)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OutputError: cannot write" in ended.stderr
    assert "What was written before is kept: free some space and go on with --resume" in ended.stderr
    with opened(tmp_path) as journal:
        assert journal.problem == ""
        shelf = journal.shelf(**MODEL)
        assert (shelf.get("circuit", b"1"), shelf.get("circuit", b"2")) == (b"one", b"two")


def test_a_finished_journal_is_removed_without_a_trace(tmp_path: Path) -> None:
    journal = Journal(filled(tmp_path), resume=True)
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_nowhere_keeps_nothing_and_measures_every_time() -> None:
    made: list[int] = []
    for _ in range(2):
        NOWHERE.put("circuit", b"1", b"one")
        NOWHERE.forget("circuit")
        NOWHERE.arrays("scores", 1, lambda: {"a": np.array(made.append(1))})
        NOWHERE.document("head", 1, lambda: made.append(1))
    assert len(made) == 4
    assert (NOWHERE.get("circuit", b"1"), NOWHERE.filled, NOWHERE.due) == (None, False, False)
    assert NOWHERE.under(seed=1) == NOWHERE == Shelf(None, b"")
