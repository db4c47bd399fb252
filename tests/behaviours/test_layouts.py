"""Data sets of other tools, with the headers they were published with, mean what they mean there."""

import copy
import json
import re

import pytest

from circuits.behaviours import load_behaviour
from circuits.errors import FormatError
from tests.behaviours.conftest import build

YEARS = "The {} lasted from the year {}{} to the year {}"


@pytest.fixture(scope="module")
def two_digits():
    """Give a tokenizer that has every two-digit number as one token, as gpt2's has."""
    return build(digits=False)


@pytest.fixture
def write(tmp_path):
    def file(name, content):
        path = tmp_path / name
        path.write_text(content)
        return path

    return file


def texts(tokenizer, tokens):
    return [tokenizer.decode([token]) for token in tokens]


def year_rows(years, column="correct_idx"):
    nouns = ("war", "battle", "siege", "project", "campaign", "journey", "empire", "trade", "conflict", "voyage")
    rows = [
        f"{YEARS.format(nouns[i % 10], 17, f'{y:02}', 17)},{YEARS.format(nouns[i % 10], 17, '01', 17)},{y}"
        for i, y in enumerate(years)
    ]
    return f"clean,corrupted,{column}\n" + "\n".join(rows) + "\n"


@pytest.mark.parametrize("column", ["correct_idx", "label", "year"])
def test_a_two_digit_year_means_all_years_beyond_it_against_it_and_those_before(write, two_digits, column):
    path = write("gt.csv", year_rows(range(44, 60), column))
    prompts = load_behaviour(path).prompts(two_digits, discovery=8, heldout=8)
    for pair in prompts.discovery:
        year = int(pair.tags[column])
        assert texts(two_digits, pair.answers) == [f"{end:02}" for end in range(year + 1, 100)]
        assert texts(two_digits, pair.wrong_answers) == [f"{end:02}" for end in range(year + 1)]
    assert prompts.remarks == ()


def test_where_digits_are_tokens_a_year_asks_for_the_tens_and_years_without_both_sides_are_left_out(write, tokenizer):
    path = write("gt.csv", year_rows([44, 91, 5, *range(50, 62)]))
    behaviour = load_behaviour(path)
    pairs = behaviour.checked(tokenizer)
    assert len(pairs) == 13
    remarks = behaviour.remarks(tokenizer, 13)
    assert behaviour.prompts(tokenizer, discovery=4, heldout=4).remarks == remarks
    (pair,) = (pair for pair in pairs if pair.tags["correct_idx"] == "44")
    assert texts(tokenizer, pair.answers) == list("56789")
    assert texts(tokenizer, pair.wrong_answers) == list("0123")
    assert re.match(r"2 of 15 rows are not read as they are written\. gt\.csv, line 3: .* the year 91\.", remarks[0])
    assert remarks[1] == "gt.csv: 13 of 15 pairs can be used with this tokenizer; the rest is left out."


def test_a_price_and_a_sequence_hold_years_too(write, two_digits):
    price = "The war lasted from the year $ 1477 to $ 14,The war lasted from the year $ 1401 to $ 14,77"
    sequence = '"1208, 1216, 1223, 1233, 1256, 12","1208, 1216, 1223, 1233, 1301, 13",56'
    for row, beyond in ((price, 78), (sequence, 57)):
        (pair,) = load_behaviour(write("p.csv", f"clean,corrupted,correct_idx\n{row}\n")).pairs(two_digits)
        assert pair.answers[0] == str(beyond)


def test_token_ids_without_wrong_answers_are_no_years(write, tokenizer):
    (pair,) = load_behaviour(write("ids.csv", "clean,corrupted,correct_idx\nA b,A c,52\n")).pairs(tokenizer)
    assert (pair.answers, pair.answer_ids) == ((), (52,))


def test_a_row_among_years_that_is_none_is_named(write):
    content = year_rows(range(44, 50)) + "When and went,When and the,12\n"
    with pytest.raises(FormatError, match=r"gt\.csv, line 8: the other rows hold the two last digits of a year"):
        load_behaviour(write("gt.csv", content))


CAPITALS = (("Paris", "France"), ("Rome", "Italy"), ("Madrid", "Spain"), ("Berlin", "Germany"))


def country_rows(tokenizer, shift=0):
    lines = ["clean,capital,country,country_idx,corrupted,corrupted_capital,corrupted_country,corrupted_country_idx"]
    for (capital, country), (other, instead) in zip(CAPITALS, CAPITALS[1:] + CAPITALS[:1], strict=True):
        ids = [tokenizer.encode(f" {name}", add_special_tokens=False)[0] + shift for name in (country, instead)]
        lines.append(
            f'" {capital} the capital of",{capital},{country},{ids[0]},'
            f'" {other} the capital of",{other},{instead},{ids[1]}'
        )
    return "\n".join(lines) + "\n"


def test_country_ids_of_this_tokenizer_are_taken_as_they_are(write, tokenizer):
    behaviour = load_behaviour(write("fact.csv", country_rows(tokenizer)))
    pairs = behaviour.checked(tokenizer)
    assert [texts(tokenizer, pair.answers) for pair in pairs] == [[f" {country}"] for _, country in CAPITALS]
    assert texts(tokenizer, pairs[0].wrong_answers) == [" Italy"]
    assert pairs[0].tags == {"capital": "Paris", "corrupted_capital": "Rome"}
    (remark,) = behaviour.remarks(tokenizer, 4)
    assert remark.startswith(
        "fact.csv gives answers as token ids; in this tokenizer they are ' France' (fact.csv, line 2)"
    )


def test_country_ids_of_another_tokenizer_give_way_to_the_text_beside_them_with_a_remark(write, tokenizer):
    behaviour = load_behaviour(write("fact.csv", country_rows(tokenizer, shift=-7)))
    pairs = behaviour.checked(tokenizer)
    assert [texts(tokenizer, pair.answers) for pair in pairs] == [[f" {country}"] for _, country in CAPITALS]
    (remark,) = behaviour.remarks(tokenizer, 4)
    assert re.match(r"4 of 4 rows are not read as they are written\. fact\.csv, line 2: token ids that this", remark)
    assert "stand beside the text 'France': they are of another tokenizer" in remark


def test_lists_as_python_shows_them_are_lists_of_answers(write, tokenizer):
    names = [tokenizer.encode(f" {name}", add_special_tokens=False)[0] for name in ("dog", "cat", "book", "car")]
    content = (
        "clean,answers,answers_idx,corrupted,corrupted_answers,corrupted_answers_idx\n"
        f'" the and a","[\'dog\', \'cat\']","{names[:2]}"," the and is","[\'book\', ""car""]","{names[2:]}"\n'
    )
    (pair,) = load_behaviour(write("h.csv", content)).checked(tokenizer)
    assert texts(tokenizer, pair.answers) == [" dog", " cat"]
    assert texts(tokenizer, pair.wrong_answers) == [" book", " car"]


def test_ids_that_no_text_confirms_are_shown_and_doubted_where_no_prompt_has_them(write, tokenizer):
    he, she, dog = (tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in ("he", "she", "dog"))
    rows = "\n".join(f"So {name} is the,So the is the,{he},{she},0" for name in ("dog", "cat", "boy"))
    behaviour = load_behaviour(write("g.csv", f"clean,corrupted,clean_answer_idx,corrupted_answer_idx,label\n{rows}\n"))
    assert texts(tokenizer, behaviour.checked(tokenizer)[0].wrong_answers) == [" she"]
    (remark,) = behaviour.remarks(tokenizer, 3)
    assert "in this tokenizer they are ' he' (g.csv, line 2), ' he' (g.csv, line 3)" in remark
    assert "Only 0 of 3 are a word of their prompts" in remark
    rows = "\n".join(f"So dog and {name} is,So the and {name} is,{dog},{he}" for name in ("cat", "boy"))
    (sure,) = load_behaviour(write("i.csv", f"clean,corrupted,correct_idx,incorrect_idx\n{rows}\n")).remarks(
        tokenizer, 2
    )
    assert "' dog' (i.csv, line 2)" in sure
    assert "Only" not in sure


def test_plural_means_verbs_in_the_plural_against_verbs_in_the_singular(write, tokenizer):
    content = "clean,corrupted,group,plural\nThe dogs,The dog,x,1\nThe cat,The cats,x,0\n"
    plural, singular = load_behaviour(write("sva.csv", content)).checked(tokenizer)
    assert texts(tokenizer, plural.answers) == texts(tokenizer, singular.wrong_answers) == [" are"]
    assert texts(tokenizer, plural.wrong_answers) == texts(tokenizer, singular.answers) == [" is"]
    with pytest.raises(FormatError, match=r"sva\.csv, line 2, field 'plural': expected 0 or 1, got '2'"):
        load_behaviour(write("sva.csv", "clean,corrupted,plural\nThe dogs,The dog,2\n"))


def mib_ioi(first, second, third):
    prompt = "When {} and {} went to the, {} gave a to"
    return {
        "prompt": prompt.format(first, second, second),
        "metadata": {"indirect_object": first, "subject": second, "random_c": third},
        "s2_io_flip_counterfactual": {"prompt": prompt.format(first, second, first)},
        "template": "x",
    }


def test_the_records_of_mib_are_read(write, tokenizer):
    path = write("mib.jsonl", json.dumps(mib_ioi("Mary", "John", "James")) + "\n")
    (pair,) = load_behaviour(path).checked(tokenizer)
    assert pair.corrupted_text == "When Mary and John went to the, Mary gave a to"
    assert (texts(tokenizer, pair.answers), texts(tokenizer, pair.wrong_answers)) == ([" Mary"], [" John"])
    choice = {
        "prompt": "The words: I",
        "choices": {"label": ["I", "Sure"], "text": ["", ""]},
        "answerKey": 1,
        "symbol_counterfactual": {"prompt": "The words: a", "choices": {"label": ["I", "To"]}, "answerKey": 0},
    }
    sums = {
        "prompt": "1 the 1",
        "label": 7,
        "operator": "+",
        "random_counterfactual": {"prompt": "1 the 2", "label": 8},
    }
    rows = [sums, {**sums, "random_counterfactual": None}]
    (pair,) = load_behaviour(write("mcqa.jsonl", json.dumps(choice))).pairs(tokenizer)
    assert (pair.answers, pair.wrong_answers, pair.corrupted) == (("Sure",), ("I",), "The words: a")
    behaviour = load_behaviour(write("sums.jsonl", "\n".join(map(json.dumps, rows))))
    assert [(pair.answers, pair.wrong_answers) for pair in behaviour.pairs(tokenizer)] == [(("7",), ("8",))]
    assert behaviour.remarks(tokenizer, 1) == (
        "sums.jsonl: 1 of 2 pairs can be used with this tokenizer; the rest is left out.",
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "clean,corrupted,country_idx\nA,B,5\n",
            r"line 2: there is no 'corrupted_country_idx' beside 'country_idx'",
        ),
        (
            "a.csv",
            "clean,corrupted,answers_idx,corrupted_answers_idx\nA,B,\"['a']\",5\n",
            r"'answers_idx': .* is not a token id",
        ),
        ("a.csv", "clean,corrupted,answers_idx,corrupted_answers_idx\nA,B,__import__('os'),5\n", "is not a token id"),
        (
            "a.jsonl",
            json.dumps({"prompt": "A", "random_counterfactual": {"prompt": "B"}}),
            r"line 1: the record has 'random",
        ),
        (
            "a.jsonl",
            json.dumps({"prompt": "A", "random_counterfactual": None}),
            "every record lacks its counterfactual",
        ),
        (
            "a.jsonl",
            json.dumps({"prompt": "A", "symbol_counterfactual": 3, "choices": 3}),
            r"'symbol_counterfactual', as MIB's",
        ),
        ("a.csv", "clean,corrupted,plural\nA,B,1\nA,B,\n", r"line 3, field 'plural': expected 0 or 1, got None"),
    ],
)
def test_rows_that_do_not_fit_their_layout_are_refused_by_name(write, name, content, message):
    with pytest.raises(FormatError, match=message):
        load_behaviour(write(name, content))


def test_the_row_numbers_that_pandas_writes_are_no_tag(write, tokenizer):
    (pair,) = load_behaviour(write("i.csv", ",clean,corrupted,correct_idx,incorrect_idx\n826,A b,A c,5,7\n")).pairs(
        tokenizer
    )
    assert pair.tags == {}


def test_a_file_behaviour_can_be_copied(write, two_digits):
    behaviour = load_behaviour(write("gt.csv", year_rows(range(44, 54))))
    expected = behaviour.prompts(two_digits, discovery=5, heldout=5)
    assert copy.deepcopy(behaviour).prompts(two_digits, discovery=5, heldout=5) == expected
