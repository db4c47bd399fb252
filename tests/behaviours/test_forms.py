"""The forms in which people and other tools keep prompt pairs: what each is read as, or what is said of it."""

import gzip
import io
import json
import re

import pandas as pd
import pytest

from circuits.behaviours import load_behaviour
from circuits.behaviours.reading.datasets import read_file
from circuits.errors import CircuitsError, FormatError, MissingFileError, UnknownNameError

A = {"clean": "When Mary went", "corrupted": "When John went", "answer": " Mary", "wrong_answer": " John"}
B = {"clean": "So, Mary is", "corrupted": "So, John is", "answer": " she", "wrong_answer": " he"}
READ = [tuple(A.values()), tuple(B.values())]
"""What the two pairs are, however they are written."""


def named(*names):
    """The two pairs with fields of other names."""
    return [dict(zip(names, pair, strict=True)) for pair in READ]


HEADER = ",".join(A)


def table(separator=",", quote='"', header=HEADER, end="\n", rows=READ):
    lines = [header.replace(",", separator)]
    lines += [separator.join(quote + cell.replace('"', '""') + quote for cell in row) for row in rows]
    return end.join(lines) + end


def parquet(rows):
    made = io.BytesIO()
    pd.DataFrame(rows).to_parquet(made, index=False)
    return made.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in (A, B))
FORMS = {
    "JSON Lines": ("x.jsonl", LINES),
    "JSON Lines called ndjson": ("x.ndjson", LINES),
    "JSON Lines called json": ("x.json", LINES),
    "JSON Lines with blank lines and comments": ("x.jsonl", "# mine\n\n" + LINES.replace("\n", "\n\n# next\n")),
    "JSON Lines with a byte order mark": ("x.jsonl", LINES.encode("utf-8-sig")),
    "JSON Lines in UTF-16": ("x.jsonl", LINES.encode("utf-16")),
    "JSON Lines with Windows line ends": ("x.jsonl", LINES.replace("\n", "\r\n")),
    "JSON Lines packed": ("x.jsonl.gz", gzip.compress(LINES.encode())),
    "packed without saying so": ("x.jsonl", gzip.compress(LINES.encode())),
    "a JSON array": ("x.json", json.dumps([A, B])),
    "a JSON array over several lines": ("x.json", json.dumps([A, B], indent=2)),
    "a JSON array called jsonl": ("x.jsonl", json.dumps([A, B], indent=1)),
    "a JSON document with prompts": ("x.json", json.dumps({"word_idxs": {}, "prompts": [A, B]})),
    "a JSON document with data": ("x.json", json.dumps({"version": 1, "data": [A, B]}, indent=1)),
    "JSON by column": ("x.json", pd.DataFrame([A, B]).to_json()),
    "JSON lists by column": ("x.json", json.dumps({key: [A[key], B[key]] for key in A})),
    "CSV": ("x.csv", table()),
    "CSV with Windows line ends": ("x.csv", table(end="\r\n")),
    "CSV in UTF-16, as spreadsheets write Unicode text": ("x.csv", table("\t").encode("utf-16")),
    "CSV with a byte order mark": ("x.csv", table().encode("utf-8-sig")),
    "CSV packed": ("x.csv.gz", gzip.compress(table().encode())),
    "CSV with semicolons, as spreadsheets of many countries write it": ("x.csv", table(";", quote="")),
    "CSV with spaces after commas": ("x.csv", table(", ")),
    "CSV with spaces after commas and without quotes": (
        "x.csv",
        "clean, corrupted, answer, wrong_answer\nWhen Mary went, When John went, Mary, John\n"
        '"So, Mary is", "So, John is", she, he\n',
    ),
    "CSV with comments and blank lines": ("x.csv", "# my pairs\n" + table().replace("\n", "\n# next\n\n")),
    "CSV with a comment that holds a quote": ("x.csv", table() + '# the "last" row, 5" long\n'),
    "CSV with a column of row numbers": ("x.csv", pd.DataFrame([A, B]).to_csv()),
    "CSV with empty columns after the last": (
        "x.csv",
        table(header=",".join(A) + ",,", rows=[(*r, "", "") for r in READ]),
    ),
    "CSV with rows of nothing": ("x.csv", table() + ",,,\n"),
    "CSV with names in capitals and with spaces": ("x.csv", table(header="Clean,Corrupted,Answer,Wrong Answer")),
    "CSV with clean_prompt and corrupted_prompt": (
        "x.csv",
        table(header="clean_prompt,corrupted_prompt,correct_answer,incorrect_answer"),
    ),
    "CSV with correct and incorrect": ("x.csv", table(header="clean,corrupted,correct,incorrect")),
    "CSV called txt": ("x.txt", table()),
    "TSV": ("x.tsv", table("\t", quote="")),
    "TSV called csv": ("x.csv", table("\t", quote="")),
    "TSV called txt": ("x.txt", table("\t", quote="")),
    "Parquet": ("x.parquet", parquet([A, B])),
    "Parquet with other names": ("x.parquet", parquet(named("clean", "corrupt", "answers", "wrong_answers"))),
    "auto-circuit's names": (
        "x.json",
        json.dumps(
            {"prompts": [{**row, "answer": [row["answer"]]} for row in named("clean", "corrupt", "answer", "wrong")]}
        ),
    ),
    "prefixes and patches": (
        "x.jsonl",
        json.dumps(named("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")),
    ),
    "prompt and counterfactual": (
        "x.json",
        json.dumps(named("prompt", "counterfactual", "target", "counterfactual_answer")),
    ),
    "JSON in a file called csv": ("x.csv", LINES),
}


def texts(pair):
    return (pair.clean, pair.corrupted, *pair.answers, *pair.wrong_answers)


@pytest.fixture
def write(tmp_path):
    def file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return file


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_as_the_pairs_it_holds(write, form):
    pairs, _ = read_file(write(*FORMS[form]))
    assert [texts(pair) for pair in pairs.pairs] == READ


REFUSED = {
    "no file": (
        "x.jsonl",
        None,
        MissingFileError,
        r"x\.jsonl does not exist; give the path of a prompt file \(\.jsonl",
    ),
    "an empty file": ("x.csv", "", r"x\.csv has no prompt pairs"),
    "a header alone": ("x.csv", table(rows=[]), r"x\.csv has no prompt pairs"),
    "a table without header": (
        "x.csv",
        table().partition("\n")[2],
        FormatError,
        r"line 1: the columns are 'When Mary went', .*; expected a line with their names before the pairs",
    ),
    "a workbook": ("x.xlsx", b"PK", UnknownNameError, r"no prompt file format '\.xlsx'.*Save the sheet as CSV UTF-8"),
    "pictures": ("x.pdf", "", UnknownNameError, r"no prompt file format '\.pdf'"),
    "a broken archive": (
        "x.csv.gz",
        gzip.compress(table().encode())[:-9],
        FormatError,
        r"cannot unpack .*Write it again",
    ),
    "a broken Parquet file": ("x.parquet", parquet([A])[:-9], r"cannot read x\.parquet as Parquet"),
    "Latin-1": (
        "x.csv",
        table().replace("Mary", "Zoë").encode("latin-1"),
        FormatError,
        r"not UTF-8 text .*save it as UTF-8",
    ),
    "UTF-16 without mark": (
        "x.csv",
        table().encode("utf-16-le"),
        FormatError,
        "holds zero bytes, as UTF-16 without its mark",
    ),
    "token ids as prompts": (
        "x.json",
        '[{"clean": [1], "corrupted": [2], "answer": 3}]',
        FormatError,
        "token ids or numbers",
    ),
    "a document of another kind": ("x.json", '{"model": "x"}', 'has no list "prompts"; expected'),
    "no column of corrupted prompts": (
        "x.csv",
        table(header="clean,b,answer,d"),
        FormatError,
        "there is no 'corrupted'",
    ),
    "a name in two spellings": (
        "x.json",
        '[{"clean": "a", "Clean": "b"}]',
        FormatError,
        "the field 'clean' is there twice",
    ),
    "two columns of one name": ("x.csv", table(header="clean,clean,answer,d"), "'clean' is there twice"),
    "two names for one thing": (
        "x.csv",
        table(header="clean,corrupted,corrupt,answer"),
        FormatError,
        "both 'corrupted' and",
    ),
    "commas without quotes": (
        "x.csv",
        table(quote=""),
        FormatError,
        "line 3: expected 4 columns .*, got more; put text",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_a_form_that_cannot_be_read_is_refused_with_what_to_do(write, tmp_path, form):
    name, content, *kind, message = REFUSED[form]
    path = tmp_path / name if content is None else write(name, content)
    with pytest.raises(kind[0] if kind else FormatError, match=message) as caught:
        load_behaviour(path)
    assert isinstance(caught.value, CircuitsError)


def test_forty_forms_are_pinned():
    assert len(FORMS) + len(REFUSED) >= 40


def test_what_is_left_out_of_a_table_is_said(write):
    pairs, _ = read_file(write("x.csv", "# one\n" + table(", ")))
    assert pairs.told == (
        "x.csv: 1 line that begins with # is a comment; put a prompt that begins so in double quotes.",
        "x.csv: spaces after separators are left out, but for one at the start of an answer.",
    )
    assert read_file(write("y.csv", table()))[0].told == ()


def test_prompts_that_begin_with_a_hash_are_prompts_where_all_do_or_where_they_are_quoted(write):
    rows = [("# one", "# two", " a", " b"), ("# three", "# four", " a", " b")]
    for quote in ("", '"'):
        pairs, _ = read_file(write("x.csv", table(quote=quote, rows=rows)))
        assert [texts(pair) for pair in pairs.pairs] == rows
        assert pairs.told == ()


def test_a_packed_file_is_named_without_its_packing(write):
    assert load_behaviour(write("mine.jsonl.gz", gzip.compress(LINES.encode()))).name == "mine"


def test_a_file_that_unpacks_without_end_is_refused(write, monkeypatch):
    monkeypatch.setattr("circuits.behaviours.reading.rows.MOST_BYTES", 1000)
    with pytest.raises(FormatError, match="MB are expected"):
        read_file(write("x.jsonl.gz", gzip.compress(b" " * 2000)))


def test_one_bad_row_refuses_a_file_and_can_be_left_out(write, tokenizer):
    rows = [json.dumps({**A, "clean": f"When Mary went {i}", "corrupted": f"When John went {i}"}) for i in range(10)]
    rows[2:2] = ["{oops", json.dumps({**A, "clean": 3}), json.dumps({**A, "answer": " Xylophone"})]
    path = write("x.jsonl", "\n".join(rows))
    with pytest.raises(FormatError) as caught:
        load_behaviour(path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("x.jsonl, line 3: not valid JSON at column 2")
    assert lines[1].startswith("x.jsonl, line 4, field 'clean': expected a text")
    assert "--skip-unusable" in lines[2]
    prompts = load_behaviour(path, skip_unusable=True).prompts(tokenizer, discovery=10, heldout=10)
    assert prompts.n_discovery + prompts.n_heldout == 10
    assert [(row.source, re.sub(r"[^a-zA-Z ].*", "", row.reason)) for row in prompts.unusable] == [
        ("x.jsonl, line 3", "not valid JSON at column "),
        ("x.jsonl, line 4", "field "),
        ("x.jsonl, line 5", "the answer "),
    ]
    assert prompts.remarks == ("x.jsonl: 10 of 13 pairs can be used with this tokenizer; the rest is left out.",)


def test_a_file_without_a_usable_row_is_refused_even_so(write):
    with pytest.raises(FormatError, match=r"x\.jsonl, line 1: not valid JSON") as caught:
        load_behaviour(write("x.jsonl", "{oops\n{oops\n"), skip_unusable=True)
    assert "--skip-unusable" not in str(caught.value)


def test_pairs_in_the_wrong_split_can_be_left_out(write, tokenizer):
    def row(place, split):
        return json.dumps(
            {**A, "clean": f"When Mary went {place}", "corrupted": f"When John went {place}", "split": split}
        )

    rows = [*(row(i, "discovery") for i in range(5)), *(row(i, "heldout") for i in range(4, 9)), row(9, "test")]
    behaviour = load_behaviour(write("x.jsonl", "\n".join(rows)), skip_unusable=True)
    prompts = behaviour.prompts(tokenizer, discovery=4, heldout=5)
    assert (prompts.n_discovery, prompts.n_heldout) == (4, 5)
    assert [row.source for row in prompts.unusable] == ["x.jsonl, line 5", "x.jsonl, line 11"]
    assert "is in both splits" in prompts.unusable[0].reason
    assert "has the split 'test'" in prompts.unusable[1].reason


def test_prompts_that_end_in_a_space_are_warned_of(write, tokenizer):
    spaced = {**A, "clean": A["clean"] + " ", "corrupted": A["corrupted"] + " ", "answer": "a", "wrong_answer": "I"}
    (remark,) = load_behaviour(write("x.json", json.dumps([spaced, B]))).remarks(tokenizer, 2)
    assert remark.startswith("x.json: 1 of 2 clean prompts end in a space (the first is x.json, record 1).")


def test_an_answer_of_several_tokens_offers_to_measure_all_of_it(write, tokenizer):
    with pytest.raises(CircuitsError, match=r"' Xylophone' is \d tokens .*or measure whole answers, --metric sequence"):
        load_behaviour(write("x.json", json.dumps([{**A, "answer": " Xylophone"}]))).checked(tokenizer)


def test_one_pair_is_enough_where_nothing_is_held_out_and_all_are_used(write, tokenizer):
    rows = [{**A, "clean": f"When Mary went {i}", "corrupted": f"When John went {i}"} for i in range(12)]
    for count, asked, drawn in ((1, 32, 1), (2, 32, 2), (12, 32, 12), (12, 6, 6)):
        sample = load_behaviour(write("x.json", json.dumps(rows[:count]))).sample(tokenizer, asked)
        assert (sample.n_discovery, sample.n_heldout) == (drawn, 0)
    behaviour = load_behaviour(write("x.json", json.dumps(rows)))
    split = behaviour.prompts(tokenizer, discovery=4, heldout=4)
    assert set(sample_texts(behaviour.sample(tokenizer, 4).discovery)) == set(sample_texts(split.discovery))


def sample_texts(pairs):
    return [pair.clean_text for pair in pairs]
