"""A bounded number of mutated inputs of every kind, with a fixed seed; ``python -m tests.fuzzing`` runs more."""

from pathlib import Path

import pytest

from circuits.errors import FormatError
from tests.fuzzing import DEFECTS, Kind, contained, fuzz, judged


def test_mutated_inputs_are_refused_or_keep_their_meaning() -> None:
    found = fuzz(cases=800, seed=1)
    defects = [(name, each) for name, outcomes in found.items() for each in outcomes if each.kind in DEFECTS]
    assert defects == []
    assert len(found) == 8
    for name, outcomes in found.items():
        kinds = [each.kind for each in outcomes]
        assert len(kinds) == 100
        assert kinds.count("accepted") >= 1, name
        assert kinds.count("refused") >= 20, name


@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        (lambda path: path.read_text() == "x", "accepted"),
        (lambda path: path.read_text() == "y", "changed"),
        (lambda path: {}["missing"], "traceback"),
        (lambda path: (_ for _ in ()).throw(FormatError("refused")), "refused"),
    ],
)
def test_every_outcome_can_be_told(tmp_path: Path, reader: object, kind: str) -> None:
    def read(path: Path) -> bool:
        found = reader(path)  # pyright: ignore[reportCallIssue]
        return found if isinstance(found, bool) else next(found)

    assert judged(Kind("x", lambda _: b"", read), tmp_path / "x", b"x").kind == kind


def test_a_hang_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzzing.SECONDS", 0.2)

    def wait(_: Path) -> bool:
        while True:
            pass

    assert judged(Kind("x", lambda _: b"", wait), tmp_path / "x", b"x").kind == "hang"


@pytest.mark.parametrize(
    ("given", "written", "kept"),
    [
        ({"a": 1}, {"a": 1.0, "b": 2}, True),
        ({"a": 1, "c": 1}, {"a": 1}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": [True]}, {"a": [1]}, False),
        ({"a": 0.1234567}, {"a": 0.123457}, True),
        ([1, 2], [1], False),
    ],
)
def test_what_was_written_again_must_hold_all_that_was_given(given: object, written: object, kept: bool) -> None:
    assert contained(given, written) is kept
