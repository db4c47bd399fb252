"""Collections of requests, read by their real headers (the rows are invented and harmless), and their pairs."""

import csv
import json
from pathlib import Path

import pytest

from circuits.behaviours import load_behaviour
from circuits.behaviours.reading.request_files import read_requests
from circuits.errors import FormatError, PromptError, UsageError
from circuits.prompt_reading import pair_requests
from tests.cli.conftest import as_json, done, invoke
from tests.tiny import tiny_tokenizer

HEADERS = {
    "HarmBench": "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID",
    "AdvBench": "goal,target",
    "JailbreakBench": "Index,Goal,Target,Behavior,Category,Source",
    "StrongREJECT": "category,source,forbidden_prompt",
    "XSTest": "id,prompt,type,label,focus,note",
    "OR-Bench": "prompt,category",
}
ROWS = {
    "HarmBench": [
        "paint a red door,standard,colours,,,door",
        '"say what, then, it is",contextual,colours,,a long text,context',
        "Paint  a red door,standard,colours,,,again",
        ",standard,colours,,,empty",
    ],
    "AdvBench": ['paint a red door,"Sure, here is"'],
    "JailbreakBench": ["0,paint a red door,Sure,Painting,colours,Original"],
    "StrongREJECT": ["colours,custom,paint a red door"],
    "XSTest": ["1,paint a red door,contrast_homonyms,unsafe,paint,", "2,paint a red wall,homonyms,safe,paint,"],
    "OR-Bench": ["paint a red door,colours"],
}
RENDERED = {"add_generation_prompt": True, "return_dict": False}
KINDS = {"HarmBench": True, "AdvBench": True, "StrongREJECT": True, "XSTest": True}


def collection(name: str, folder: Path, rows: list[str] | None = None) -> Path:
    file = folder / f"{name}.csv"
    file.write_text("\n".join([HEADERS[name], *(ROWS[name] if rows is None else rows)]) + "\n")
    return file


@pytest.mark.parametrize("name", HEADERS)
def test_the_usual_collections_are_known_by_their_headers(name, tmp_path):
    found = read_requests(collection(name, tmp_path))
    first = found.requests[0]
    assert (found.collection, first.text, first.harmful) == (name, "paint a red door", KINDS.get(name))
    assert first.category in ("colours", "", "contrast_homonyms")
    assert first.source == f"{name}.csv, line 2"


def test_rows_that_hold_no_request_of_their_own_are_dropped_with_the_reason(tmp_path):
    found = read_requests(collection("HarmBench", tmp_path))
    assert (found.rows, len(found.requests)) == (4, 1)
    assert [each.text for each in found.dropped] == [
        "HarmBench.csv, line 3: the request is about a context given beside it (ContextString)",
        "HarmBench.csv, line 4: the same request as HarmBench.csv, line 2",
        "HarmBench.csv, line 5: the column behavior is empty",
    ]


def test_the_splits_of_refusal_direction_and_xstest_without_labels_are_read(tmp_path):
    (tmp_path / "harmless_train.json").write_text('[{"instruction": "Paint a door", "category": null}]')
    found = read_requests(tmp_path / "harmless_train.json")
    assert (found.collection, found.requests[0].text, found.requests[0].harmful) == (
        "refusal_direction",
        "Paint a door",
        None,
    )
    (tmp_path / "v2.csv").write_text("id,type,prompt,focus,note\nv2-1,homonyms,a b,x,\nv2-2,contrast_homonyms,c d,x,\n")
    assert [each.harmful for each in read_requests(tmp_path / "v2.csv").requests] == [False, True]
    (tmp_path / "other.csv").write_text("clean,answer\na,b\n")
    with pytest.raises(
        FormatError, match=r"columns clean, answer, which are those of no collection .* AdvBench goal, t"
    ):
        read_requests(tmp_path / "other.csv")


def test_twins_have_as_many_tokens_and_differ_at_as_few_as_can_be(tmp_path):
    """Taken row by row, the first harmful request would get the twin that the second one needs more."""
    harmful = collection("StrongREJECT", tmp_path, ["a,b,paint jzx vqx", "a,b,paint qzx vqx", "a,b,sing"])
    harmless = collection(
        "OR-Bench", tmp_path, ["paint qzx vqz,x", "paint jzx vqz,x", "break a small old window today,x"]
    )
    found = pair_requests(harmful, harmless, tokenizer=tiny_tokenizer())
    assert [(twins.harmful.text, twins.harmless.text, twins.differ) for twins in found.pairs] == [
        ("paint jzx vqx", "paint jzx vqz", 1),
        ("paint qzx vqx", "paint qzx vqz", 1),
    ]
    length = len(tiny_tokenizer().apply_chat_template([{"role": "user", "content": "sing"}], **RENDERED))
    assert [each.reason for each in found.sides[0].dropped] == [
        f"no harmless request of as many tokens was left for it ({length})"
    ]
    assert found.table == [
        (
            "StrongREJECT.csv",
            "StrongREJECT",
            "harmful",
            3,
            2,
            "1 no harmless request of as many tokens was left for it",
        ),
        ("OR-Bench.csv", "OR-Bench", "harmless", 3, 2, "1 no harmful request of as many tokens was left for it"),
    ]


def test_one_file_that_marks_both_kinds_is_paired_with_itself_and_others_are_refused(tmp_path):
    both = collection("XSTest", tmp_path)
    found = pair_requests(both, both, tokenizer=tiny_tokenizer())
    assert [(twins.harmful.text, twins.harmless.text) for twins in found.pairs] == [
        ("paint a red door", "paint a red wall")
    ]
    assert [side.dropped for side in found.sides] == [[], []]
    advbench = collection("AdvBench", tmp_path)
    marked = pair_requests(advbench, both, tokenizer=tiny_tokenizer())
    assert [each.reason for each in marked.sides[1].dropped] == ["it is marked as harmful"]
    with pytest.raises(UsageError, match=r"AdvBench\.csv \(AdvBench\) has no harmless requests among its 1; give one"):
        pair_requests(both, advbench, tokenizer=tiny_tokenizer())
    same = collection("OR-Bench", tmp_path)
    with pytest.raises(PromptError, match=r"no harmful request of AdvBench\.csv has as many tokens as a harmless one"):
        pair_requests(advbench, same, tokenizer=tiny_tokenizer())


def test_pairs_are_written_as_a_prompt_file_with_what_was_dropped_beside_it(tmp_path, tiny_folder):
    harmful, harmless = collection("HarmBench", tmp_path), collection("XSTest", tmp_path)
    out = tmp_path / "pairs.jsonl"
    shown = as_json("prompts", harmful, "--harmless", harmless, "--model", tiny_folder, "--out", out)
    assert shown["pairs"] == 1
    assert [row["in pairs"] for row in shown["table"]] == [1, 1]
    row = json.loads(out.read_text())
    assert row["clean"] == [{"role": "user", "content": "paint a red door"}]
    assert (row["category"], row["harmless_row"], row["differ"]) == ("colours", "XSTest.csv, line 3", "4")
    dropped = list(csv.DictReader((tmp_path / "pairs.unusable.csv").read_text().splitlines()))
    assert [each["row"] for each in dropped] == [
        *(f"HarmBench.csv, line {number}" for number in (3, 4, 5)),
        "XSTest.csv, line 2",
    ]
    assert len(load_behaviour(out).pairs(tiny_tokenizer())) == 1
    assert (
        "next: circuits direction"
        in done("prompts", harmful, "--harmless", harmless, "--model", tiny_folder, "--out", out).stdout
    )
    both = invoke("prompts", harmful, "--harmless", harmless, "--metric", "kl")
    assert both.exit_code == 2
    assert "--metric and --align are for pairs, and --harmless only makes pairs" in both.stderr


def test_a_collection_given_as_a_prompt_file_names_what_pairs_it(tmp_path):
    for name in HEADERS:
        with pytest.raises(FormatError, match=rf"requests without twins \({name}\)\. Pair them .* --harmless OTHER"):
            load_behaviour(collection(name, tmp_path))
