import json

import pytest

from circuits.behaviours import Message, load_behaviour
from circuits.errors import CircuitsError, FormatError, PromptError, UnknownNameError
from circuits.vocabulary import Metric
from tests.behaviours.conftest import read_pairs

NAMES = ["Mary", "John", "James", "Robert", "Michael", "William", "David", "Richard", "Joseph", "Thomas"]
PAIR = '{"clean": "a", "corrupted": "b", "answer": "c"}'
TEXT = "When {} and {} went to the store, {} gave a book to"


@pytest.fixture
def write(tmp_path):
    def file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return file


def records(count=10, **extra):
    for index in range(count):
        first, second, third = (NAMES[(index + step) % 10] for step in range(3))
        yield {
            "clean": TEXT.format(first, second, second),
            "corrupted": TEXT.format(first, second, third),
            "answer": f" {first}",
            "wrong_answer": f" {second}",
        } | extra


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def test_json_lines_give_pairs_with_unknown_keys_as_tags_and_their_line_as_source(write):
    row = next(records())
    both = row | {"answers": [" A", " B"], "wrong_answers": [" C"], "template": "abba", "n": 3}
    del both["answer"], both["wrong_answer"]
    one, two = read_pairs(write("pairs.jsonl", "\ufeff" + lines([row]) + "\n" + lines([both])))
    assert (one.clean, one.corrupted) == (row["clean"], row["corrupted"])
    assert (one.answers, one.wrong_answers, one.tags) == ((" Mary",), (" John",), {})
    assert (two.answers, two.wrong_answers, two.tags) == ((" A", " B"), (" C",), {"template": "abba", "n": "3"})
    assert two.source == "pairs.jsonl, line 3"


def test_chat_messages_are_rendered_with_the_chat_template(write, tokenizer):
    chats = [
        {
            "clean": [{"role": "user", "content": row["clean"]}],
            "corrupted": [{"role": "user", "content": row["corrupted"]}],
            "answer": "Sorry",
            "wrong_answer": "To",
        }
        for row in records()
    ]
    path = write("chat.jsonl", lines(chats))
    assert read_pairs(path)[0].clean == (Message("user", chats[0]["clean"][0]["content"]),)
    pair = load_behaviour(path).prompts(tokenizer).discovery[0]
    assert pair.clean_text.startswith("<|user|>When ")
    assert pair.clean_text.endswith("gave a book to\n<|assistant|>")


def test_csv_with_text_answers_keeps_their_leading_space(write):
    content = 'clean,corrupted,correct,incorrect,kind\n"A, b",A c, Mary, John,x\nB b,B c, Ann, Tom,\n'
    one, two = read_pairs(write("pairs.csv", content))
    assert (one.clean, one.answers, one.wrong_answers, one.tags) == ("A, b", (" Mary",), (" John",), {"kind": "x"})
    assert (two.answers, two.tags, two.source) == ((" Ann",), {}, "pairs.csv, line 3")


def test_csv_with_token_ids_reads_single_ids_and_lists(write):
    content = 'clean,corrupted,correct_idx,incorrect_idx\nA b,A c,5,7\nB b,B c,"[5, 6]",[7]\n'
    one, two = read_pairs(write("ids.csv", content))
    assert (one.answers, one.answer_ids, one.wrong_ids) == ((), (5,), (7,))
    assert (two.answer_ids, two.wrong_ids) == ((5, 6), (7,))


def test_csv_with_text_and_ids_prefers_text(write):
    content = "clean,corrupted,correct,correct_idx,incorrect,incorrect_idx\nA b,A c, Mary,5, John,7\n"
    (pair,) = read_pairs(write("both.csv", content))
    assert (pair.answers, pair.answer_ids, pair.wrong_answers) == ((" Mary",), (), (" John",))


def test_the_json_layout_of_auto_circuit_is_read(write):
    prompt = {"clean": "A b", "corrupt": "A c", "answers": [" Mary"], "wrong_answers": [" John", " Ann"]}
    one, two = read_pairs(write("auto.json", json.dumps({"word_idxs": {}, "prompts": [prompt, prompt]})))
    assert (one.corrupted, one.answers, one.wrong_answers) == ("A c", (" Mary",), (" John", " Ann"))
    assert two.source == "auto.json, prompt 2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl has no prompt pairs; expected"),
        ("a.csv", "clean,corrupted,correct,incorrect\n", r"a\.csv has no prompt pairs"),
        ("a.json", '{"prompts": []}', r"a\.json has no prompt pairs"),
        ("a.json", "", r"a\.json has no prompt pairs"),
        ("a.json", "{}", r'a\.json has no list "prompts"; expected'),
        ("a.json", '[{"clean": "A"}]', r"a\.json, record 1: there is no 'corrupted'; the fields are clean"),
        ("a.json", '{"prompts":\n [1,]}', r"a\.json: not valid JSON at line 2, column \d+"),
        ("a.json", '{"prompts": [3]}', r"a\.json, prompt 1: expected an object"),
        ("a.jsonl", '{"clean": "A"}\n', r"a\.jsonl, line 1: there is no 'corrupted'; the fields are clean"),
        ("a.jsonl", '\n{"clean": "A",\n', r"a\.jsonl, line 2: not valid JSON at column 15"),
        ("a.jsonl", "[1]\n", r"a\.jsonl, line 1: expected an object such as .*, got \[1\]"),
        ("a.jsonl", "[{}, 3]\n", r"a\.jsonl, record 2: expected an object such as .*, got 3"),
        (
            "a.jsonl",
            '{"clean": 1, "corrupted": "b", "answer": "c"}',
            r"field 'clean': expected a text or a list of chat",
        ),
        ("a.jsonl", '{"clean": "", "corrupted": "b", "answer": "c"}', r"field 'clean': expected a text"),
        ("a.jsonl", '{"clean": "a", "corrupted": "b"}', r"line 1: there is no 'answers'"),
        ("a.jsonl", '{"clean": "a", "corrupted": "b", "answer": ""}', r"field 'answer': expected an answer"),
        ("a.jsonl", '{"clean": "a", "corrupted": "b", "answers": [" A", 3]}', r"field 'answers': expected an answer"),
        (
            "a.jsonl",
            '{"clean": "a", "corrupted": "b", "answer": "c", "answers": ["c"]}',
            "both 'answers' and 'answer' are",
        ),
        (
            "a.json",
            '{"prompts": [{"clean": [3, 0, 1], "corrupt": [3, 0, 2], "answers": [[0]]}]}',
            r"a\.json, prompt 1, field 'clean': prompts of token ids or numbers are not read",
        ),
        (
            "a.jsonl",
            '{"clean": [{"role": "user"}], "corrupted": "b", "answer": "c"}',
            "field 'clean': a chat message is",
        ),
        (
            "a.jsonl",
            '{"clean": [{"role": "user", "content": "x"}], "corrupted": "b", "answer": "c"}',
            r"line 1, field 'corrupted': one side is text, the other a list of chat messages",
        ),
        (
            "a.csv",
            "clean,corrupted,correct_idx\nA,B,x1\n",
            r"a\.csv, line 2, field 'correct_idx': 'x1' is not a token id",
        ),
        ("a.csv", "clean,corrupted,correct_idx\nA,B,[1.5]\n", r"'\[1\.5\]' is not a token id"),
        ("a.csv", "clean,corrupted,correct\nA,B\n", r"line 2: expected 3 columns as in the header, got fewer"),
        ("a.csv", "clean,corrupted,correct\nA,B,C,D\n", r"line 2: expected 3 columns as in the header, got more"),
        ("a.csv", "a,b\n1,2\n", r"a\.csv, line 1: the columns are 'a', 'b'; expected a line with their names"),
        ("a.csv", "clean,b\n1,2\n", r"a\.csv, line 2: there is no 'corrupted'; the fields are clean, b. Write it as"),
        ("a.csv", 'clean,corrupted,correct\nA,B,"C\n', r"a\.csv, line \d: .*check the double quotes"),
        ("a.jsonl", b"\xff\xfe\x00", r"is not UTF-16 text"),
        ("a.jsonl", b"\xff\xfa\x00", r"is not UTF-8 text"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1: not usable JSON: .* levels deep"),
        ("a.jsonl", "{}\n" + "9" * 5_000, r"a\.jsonl, line 2: .* has 5000 digits; at most 300"),
        ("a.jsonl", "{}\n" + PAIR, r"a\.jsonl, line 1: there is no 'clean'"),
        ("a.jsonl", PAIR.replace('"c"', "9" * 5_000), r"a\.jsonl, line 1: .* has 5000 digits; at most 300"),
        ("a.jsonl", PAIR.replace('"c"', '["c", NaN]'), r"a\.jsonl, line 1: .*NaN is not a number in JSON"),
        ("a.jsonl", PAIR.replace('"c"', r'"\ud83d c"'), r"a\.jsonl, line 1: .*holds half of a character"),
        ("a.jsonl", PAIR.replace("}", ', "clean": "z"}'), r"a\.jsonl, line 1: .*the field 'clean' is there twice"),
        ("a.jsonl", PAIR.replace("}", ', "wrong_answer": ""}'), "field 'wrong_answer': expected an answer"),
        ("a.jsonl", PAIR.replace("}", ', "wrong_answer": false}'), "field 'wrong_answer': expected an answer"),
        (
            "a.jsonl",
            PAIR.replace('"a"', '[{"role": "user", "content": "x", "name": "Bob"}]'),
            'and no more, got .*"name": "Bob"',
        ),
        ("a.json", '{"prompts": [' + PAIR + '], "prompts": []}', r"a\.json: .*'prompts' is there twice"),
        ("a.csv", "clean,corrupted,clean,answer\nA,B,C,D\n", r"a\.csv, line 1: the column 'clean' is there twice"),
        ("a.csv", "clean,corrupted,answer_idx\nA,B," + "[" * 9_000, r"answer_idx.* is not a token id"),
    ],
)
def test_malformed_files_are_refused_naming_file_place_and_field(write, name, content, message):
    with pytest.raises(FormatError, match=message):
        load_behaviour(write(name, content))


def test_a_path_that_does_not_exist_is_not_taken_for_a_name(tmp_path):
    for path in ("no/such", "pairs.jsonl", tmp_path / "ioi"):
        with pytest.raises(FormatError, match="does not exist; give the path of a prompt file"):
            load_behaviour(path)
    with pytest.raises(FormatError, match="is a folder, not a prompt file"):
        load_behaviour(tmp_path)


def test_an_unknown_format_names_the_known_ones(write):
    with pytest.raises(
        UnknownNameError, match=r"no prompt file format '\.jsonx'. Closest: '\.json.*Known: \.jsonl, \.csv, \.json"
    ):
        load_behaviour(write("pairs.jsonx", "{}"))


def test_a_prompt_file_is_named_after_the_file_and_a_short_one_is_halved(write, tokenizer):
    behaviour = load_behaviour(write("names.jsonl", lines(records(10))))
    prompts = behaviour.prompts(tokenizer)
    assert (behaviour.name, prompts.behaviour) == ("names", "names")
    assert (prompts.n_discovery, prompts.n_heldout) == (5, 5)
    assert {pair.clean_text for pair in prompts.discovery + prompts.heldout} == {row["clean"] for row in records(10)}


def test_pairs_that_share_a_clean_prompt_stay_on_one_side(write, tokenizer):
    rows = [
        row | {"corrupted": row["corrupted"].replace("book", thing)} for row in records() for thing in ("key", "drink")
    ]
    prompts = load_behaviour(write("twice.jsonl", lines(rows))).prompts(tokenizer)
    assert (prompts.n_discovery, prompts.n_heldout) == (10, 10)
    assert not {pair.clean for pair in prompts.discovery} & {pair.clean for pair in prompts.heldout}


def test_prompts_of_different_lengths_may_be_in_one_file(write, tokenizer):
    rows = [
        {**row, "clean": row["clean"] + extra, "corrupted": row["corrupted"] + extra}
        for row, extra in zip(records(), ["", " the"] * 5, strict=True)
    ]
    prompts = load_behaviour(write("mixed.jsonl", lines(rows))).prompts(tokenizer)
    assert len({pair.length for pair in prompts.discovery + prompts.heldout}) == 2


def test_a_split_in_the_file_is_kept(write, tokenizer):
    rows = [row | {"split": "heldout" if index < 5 else "discovery"} for index, row in enumerate(records())]
    prompts = load_behaviour(write("split.jsonl", lines(rows))).prompts(tokenizer)
    assert {pair.clean_text for pair in prompts.heldout} == {row["clean"] for row in rows[:5]}
    with pytest.raises(PromptError, match=r"has the split 'held-out'; where some pairs are marked"):
        load_behaviour(write("a.jsonl", lines([rows[0] | {"split": "held-out"}, *rows[1:]]))).prompts(tokenizer)
    with pytest.raises(PromptError, match="is in both splits"):
        load_behaviour(write("b.jsonl", lines([rows[0] | {"split": "discovery"}, *rows]))).prompts(tokenizer)


def test_too_few_pairs_are_refused_with_the_numbers(write, tokenizer):
    behaviour = load_behaviour(write("few.jsonl", lines(records(7))))
    with pytest.raises(PromptError, match=r"few has 3 discovery and 4 held-out pairs .* at least 4 of each"):
        behaviour.prompts(tokenizer)
    assert behaviour.prompts(tokenizer, discovery=2, heldout=2).n_discovery == 2


def test_token_ids_of_another_vocabulary_are_refused(write, tokenizer):
    rows = "".join(f'"{row["clean"]}","{row["corrupted"]}",99999,5\n' for row in records())
    path = write("ids.csv", f"clean,corrupted,correct_idx,incorrect_idx\n{rows}")
    with pytest.raises(PromptError, match=r"ids\.csv, line 2: token id 99999 is not in .* made for another model"):
        load_behaviour(path).prompts(tokenizer)


def test_token_ids_are_taken_as_they_are(write, tokenizer):
    rows = "".join(f'"{row["clean"]}","{row["corrupted"]}","[41, 42]",5\n' for row in records())
    prompts = load_behaviour(write("ids.csv", f"clean,corrupted,correct_idx,incorrect_idx\n{rows}")).prompts(tokenizer)
    assert (prompts.discovery[0].answers, prompts.discovery[0].wrong_answers) == ((41, 42), (5,))
    assert prompts.metric is Metric.LOGIT_DIFFERENCE


def test_every_error_of_a_prompt_file_is_one_of_the_package(write):
    with pytest.raises(CircuitsError):
        load_behaviour(write("a.jsonl", "null"))


def test_a_wrong_answer_may_be_the_token_0_and_may_be_left_open(write):
    with_ids = PAIR.replace('"c"', "7").replace("}", ', "wrong_answer": 0}')
    rows = [with_ids, *(PAIR.replace("}", f', "wrong_answer": {nothing}}}') for nothing in ("null", "[]"))]
    one, two, three = read_pairs(write("a.jsonl", "\n".join(rows)))
    assert (one.answer_ids, one.wrong_ids) == ((7,), (0,))
    assert two.wrong_answers == three.wrong_answers == two.wrong_ids == three.wrong_ids == ()
