"""What comes from files of unknown origin is read as it says, or refused with the reason."""

import json
import os
import time
from pathlib import Path

import pytest

from circuits.circuit import Circuit
from circuits.errors import FormatError
from circuits.files.documents import MOST_LEVELS, first_change, parse_json, read_json, read_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "more than 100 levels deep"),
        ("[" * 100_000 + "]" * 100_000, "more than 100 levels deep"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "more than 100 levels deep"),
        ("[" * 120 + "]" * 120, "more than 100 levels deep"),
        ("1" + "0" * 5_000, r"the number 10000000000000000000… has 5001 digits; at most 300 are read"),
        ('{"n": -' + "9" * 400 + "}", "has 401 digits; at most 300"),
        ("1e999", "the number 1e999 is beyond what can be calculated with"),
        ("-1e400", "the number -1e400 is beyond"),
        ("0." + "1" * 5_000, "is beyond what can be calculated with"),
        ("NaN", "NaN is not a number in JSON; write null"),
        ('{"score": Infinity}', "Infinity is not a number in JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "the field 'a' is there twice in one object; keep one"),
        (r'["\ud83d a"]', "holds half of a character"),
        (r'{"\udc00": 1}', "holds half of a character"),
        (r'[[[{"a": ["x", "é\ud800"]}]]]', "holds half of a character"),
        ("{'a': 1}", "not valid JSON at column 2"),
        ('{"a": 1}\n{"a": 2}', "not valid JSON at line 2, column 1"),
        ("", "not valid JSON at column 1"),
        ('{"a": "\x00"}', "not valid JSON at column 8"),
        ("01", "not valid JSON at column 2"),
    ],
)
def test_json_that_cannot_be_read_as_it_says_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=rf"^it: .*{message}"):
        parse_json(text, "it")


def test_json_at_the_limits_is_read() -> None:
    parse_json("[" * (MOST_LEVELS - 1) + "]" * (MOST_LEVELS - 1), "it")
    assert parse_json('{"a": [1, -2.5, null, true, "é\\ud83d\\ude00"]}', "it") == {"a": [1, -2.5, None, True, "é😀"]}
    assert parse_json("9" * 300, "it") == int("9" * 300)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("é".encode("latin-1"), "is not UTF-8 text"),
        (b"\xff\xfe{", "is not UTF-16 text"),
        (b'["\xed\xa0\x80"]', "is not UTF-8 text"),
        (b"\x80\x04\x95", "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(FormatError, match=rf"x\.json {message}.*save it as UTF-8"):
        read_text(tmp_path / "x.json")


def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "x.json").write_bytes('{"é": 1}'.encode(encoding))
        assert read_json(tmp_path / "x.json") == {"é": 1}


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "x.json") == [1]


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    begun = time.monotonic()
    for name in ("pipe.json", "."):
        with pytest.raises(FormatError, match="it is no plain file; expected the path of one"):
            Circuit.load(tmp_path / name)
    with pytest.raises(FormatError, match="No such file"):
        read_text(tmp_path / "absent")
    for name in ("a\0b", "a" * 300, "\ud800"):
        with pytest.raises(FormatError, match="cannot read"):
            read_text(tmp_path / name)
    (tmp_path / "large").write_text("123456")
    monkeypatch.setattr("circuits.files.documents.MOST_BYTES", 5)
    with pytest.raises(FormatError, match=r"it has 0 MB, and at most 0 MB are expected"):
        read_text(tmp_path / "large")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("given", "written", "change"),
    [
        ({"a": 1}, {"a": 1.0, "b": 2}, None),
        ({"a": 0.1234567}, {"a": 0.123457}, None),
        ({"a": [1, None]}, {"a": [1, None]}, None),
        ({"a": 1}, {"b": 1}, "the document has an unknown field 'a'; known: b."),
        ({"a": {"c": 1}}, {"a": {"b": 1}}, "a has an unknown field 'c'; known: b."),
        ({"a": 1}, {"a": True}, "a is 1, which would be read as true."),
        ({"a": "1"}, {"a": 1}, 'a is "1", which would be read as 1.'),
        ({"a": None}, {"a": 0.0}, "a is null, which would be read as 0.0."),
        ({"a": [1, 2]}, {"a": [1]}, "a is [1, 2], which would be read as [1]."),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "a.1.b is 2, which would be read as 3."),
        ({"a": 0.12345}, {"a": 0.12346}, "a is 0.12345, which would be read as 0.12346."),
    ],
)
def test_what_reading_and_writing_would_change_is_named(given: object, written: object, change: str | None) -> None:
    assert first_change(given, written) == change


def test_a_circuit_of_absurd_size_is_refused_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    for layers, heads in ((10**6, 12), (12, 10**9), (10**200, 1)):
        model = {"id": "m", "n_layers": layers, "n_heads": heads, "n_kv_heads": heads, "d_model": 8, "d_head": 2}
        document = {"format": "circuits/circuit", "version": 1, "model": model, "edges": []}
        (tmp_path / "circuit.json").write_text(json.dumps(document))
        with pytest.raises(FormatError, match=r"circuit\.json: a model of .* heads has more than 500,000,000 edges"):
            Circuit.load(tmp_path / "circuit.json")
    assert time.monotonic() - begun < 2
