import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from circuits.behaviours import BUILT_IN, load_behaviour
from circuits.behaviours.built_in import agreement, capital, greater_than, harm, pronoun
from circuits.behaviours.built_in.ioi import ioi_roles
from circuits.behaviours.built_in.refusal import CATEGORIES, Phrases, parse_phrases, read_phrases
from circuits.behaviours.tokens import prompt_text, single_tokens
from circuits.errors import FormatError, PromptError, UnknownNameError, UsageError
from circuits.vocabulary import Metric

ISSUE_2 = ["ioi", "greater-than", "capital", "agreement", "induction", "pronoun", "refusal"]
SENTENCES = [f"{name}-sentences" for name in ("ioi", "greater-than", "capital", "agreement", "pronoun")]
everywhere = pytest.mark.parametrize("name", [*ISSUE_2, *SENTENCES])


SENTENCES_OF = {
    "greater-than-sentences": greater_than,
    "capital-sentences": capital,
    "agreement-sentences": agreement,
    "pronoun-sentences": pronoun,
}
OF_CATEGORIES = [f"refusal:{category}" for category in CATEGORIES]


def test_the_built_in_behaviours_are_those_of_the_documentation():
    assert sorted(BUILT_IN) == sorted([*ISSUE_2, *SENTENCES, "harm", *OF_CATEGORIES])


@everywhere
def test_prompts_give_as_many_pairs_as_asked_for_with_no_clean_prompt_in_both_parts(name, tokenizer):
    prompts = BUILT_IN[name].prompts(tokenizer)
    assert (prompts.n_discovery, prompts.n_heldout) == (32, 64)
    assert not {pair.clean for pair in prompts.discovery} & {pair.clean for pair in prompts.heldout}
    assert len({(pair.clean, pair.corrupted) for pair in prompts.discovery + prompts.heldout}) == 96


@everywhere
def test_all_prompts_of_a_behaviour_have_one_length_and_share_position_zero_within_a_pair(name, tokenizer):
    prompts = BUILT_IN[name].prompts(tokenizer)
    pairs = prompts.discovery + prompts.heldout
    assert all(len(pair.clean) == len(pair.corrupted) for pair in pairs)
    assert (len({pair.length for pair in pairs}) == 1) == (name not in ("refusal", *SENTENCES))
    assert all(pair.clean[0] == pair.corrupted[0] for pair in pairs)
    assert all(pair.clean != pair.corrupted for pair in pairs)


@pytest.mark.parametrize("name", [name for name in [*ISSUE_2, *SENTENCES] if name != "refusal"])
def test_both_sides_differ_in_exactly_one_token(name, tokenizer):
    for pair in BUILT_IN[name].prompts(tokenizer).heldout:
        assert sum(left != right for left, right in zip(pair.clean, pair.corrupted, strict=True)) == 1


@everywhere
def test_the_same_seed_gives_the_same_pairs_and_another_seed_gives_others(name, tokenizer):
    behaviour = BUILT_IN[name]
    first, again, other = (behaviour.prompts(tokenizer, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.digest != other.digest


@pytest.mark.parametrize("name", ["ioi", "capital", "refusal"])
def test_heldout_pairs_are_never_discovery_pairs_of_another_seed_or_another_number_of_pairs(name, tokenizer):
    one = BUILT_IN[name].prompts(tokenizer, discovery=8, heldout=500, seed=1)
    other = BUILT_IN[name].prompts(tokenizer, discovery=500, heldout=8, seed=2)
    assert not {pair.clean for pair in one.heldout} & {pair.clean for pair in other.discovery}


def test_asking_for_more_pairs_adds_to_those_of_fewer(tokenizer):
    few, many = (BUILT_IN["ioi"].prompts(tokenizer, discovery=count, heldout=8) for count in (10, 40))
    assert many.discovery[:10] == few.discovery


def test_capital_spreads_pairs_over_as_many_countries_as_possible(tokenizer):
    heldout = BUILT_IN["capital"].prompts(tokenizer, heldout=100).heldout
    counts = Counter(pair.clean_text for pair in heldout).values()
    assert len(counts) < 100
    assert max(counts) - min(counts) <= 1


def test_ioi_replaces_the_repeated_name_by_a_third_one(tokenizer):
    for pair in BUILT_IN["ioi"].prompts(tokenizer).discovery:
        answer, wrong = tokenizer.decode([pair.answers[0]]), tokenizer.decode([pair.wrong_answers[0]])
        assert pair.clean_text.count(answer) == 1
        assert pair.clean_text.count(wrong) == 2
        assert pair.corrupted_text.count(answer) == pair.corrupted_text.count(wrong) == 1


def test_other_sentences_are_held_out_than_those_for_discovery_and_both_orders_are_in_either(tokenizer):
    prompts = BUILT_IN["ioi-sentences"].prompts(tokenizer, discovery=200, heldout=200)
    sentences = [{pair.tags["sentence"] for pair in part} for part in (prompts.discovery, prompts.heldout)]
    assert [len(each) for each in sentences] == [8, 6]
    assert not sentences[0] & sentences[1]
    for part in (prompts.discovery, prompts.heldout):
        for pair in part:
            answer, wrong = tokenizer.decode([pair.answers[0]]), tokenizer.decode([pair.wrong_answers[0]])
            assert (pair.clean_text.count(answer), pair.clean_text.count(wrong)) == (1, 2)
            assert (pair.corrupted_text.count(answer), pair.corrupted_text.count(wrong)) == (1, 1)
            first = pair.clean_text.index(answer) < pair.clean_text.index(wrong)
            assert pair.tags["order"] == ("receiver first" if first else "giver first")
            assert set(ioi_roles(pair)) == {"IO", "S1", "S1+1", "S2"}
        assert 0.4 < sum(pair.tags["order"] == "receiver first" for pair in part) / len(part) < 0.6


@pytest.mark.parametrize("name", SENTENCES[1:])
def test_no_held_out_sentence_is_one_for_discovery_and_every_sentence_is_drawn(name, tokenizer):
    prompts = BUILT_IN[name].prompts(tokenizer, discovery=200, heldout=200)
    drawn = [{pair.tags["sentence"] for pair in part} for part in (prompts.discovery, prompts.heldout)]
    assert drawn == [set(SENTENCES_OF[name].SEEN), set(SENTENCES_OF[name].UNSEEN)]
    assert not drawn[0] & drawn[1]


@pytest.mark.parametrize("name", ["capital-sentences", "agreement-sentences"])
def test_no_answered_word_for_discovery_is_held_out(name, tokenizer):
    prompts = BUILT_IN[name].prompts(tokenizer, discovery=200, heldout=200)
    seen, unseen = (
        {token for pair in part for token in {*pair.clean} ^ {*pair.corrupted}}
        for part in (prompts.discovery, prompts.heldout)
    )
    assert len(seen) > 10
    assert len(unseen) > 10
    assert not seen & unseen


def test_greater_than_asks_for_tens_above_those_of_the_start_where_digits_are_single_tokens(tokenizer):
    for pair in BUILT_IN["greater-than"].prompts(tokenizer).heldout:
        words = pair.clean_text.split()
        tens = int(words[6][2])
        later, earlier = (
            [int(tokenizer.decode([token])) for token in side] for side in (pair.answers, pair.wrong_answers)
        )
        assert later == list(range(tens + 1, 10))
        assert earlier == list(range(tens))
        assert pair.corrupted_text.split()[6][2] == "0"


def test_greater_than_asks_for_two_digits_where_those_are_one_token(two_digit_tokenizer):
    for pair in BUILT_IN["greater-than"].prompts(two_digit_tokenizer, discovery=4, heldout=4).heldout:
        year = int(pair.clean_text.split()[6][2:])
        later = [int(two_digit_tokenizer.decode([token])) for token in pair.answers]
        assert later == list(range(year + 1, 100))
        assert len(pair.wrong_answers) == year


def test_agreement_and_pronoun_ask_both_ways_round(tokenizer):
    for name in ("agreement", "pronoun"):
        answers = [pair.answers for pair in BUILT_IN[name].prompts(tokenizer).heldout]
        assert len(set(answers)) == 2
        assert 0.25 < sum(answer == answers[0] for answer in answers) / len(answers) < 0.75


def test_induction_answers_what_followed_the_last_word_before_in_either_prompt(tokenizer):
    for pair in BUILT_IN["induction"].prompts(tokenizer).heldout:
        for side, answer in ((pair.clean, pair.answers[0]), (pair.corrupted, pair.wrong_answers[0])):
            assert side[side.index(side[-1]) + 1] == answer


def test_refusal_is_asked_through_the_chat_template_with_phrases_of_one_split_only(tokenizer):
    prompts = BUILT_IN["refusal"].prompts(tokenizer)
    phrases = [{pair.tags["harmful"] for pair in part} for part in (prompts.discovery, prompts.heldout)]
    assert not phrases[0] & phrases[1]
    assert all(pair.clean_text.startswith("<|user|>") for pair in prompts.discovery)
    assert all(pair.clean_text.endswith("<|assistant|>") for pair in prompts.discovery)
    assert all(tokenizer.decode(list(pair.answers)) == "Sorry" for pair in prompts.heldout)


def test_refusal_takes_the_first_harmless_phrase_whose_prompt_is_as_long_as_the_harmful_one(tokenizer):
    def length(text):
        return len(tokenizer.encode(text, add_special_tokens=False))

    alternatives = {row.harmful: row.harmless for row in read_phrases()[1]}
    for pair in BUILT_IN["refusal"].pairs(tokenizer):
        wanted, offered = length(prompt_text(tokenizer, pair.clean)), alternatives[pair.tags["harmful"]]
        prompts = [pair.tags["template"].format(phrase) for phrase in offered]
        texts = [f"<|user|>{prompt}\n<|assistant|>" for prompt in prompts]
        assert pair.tags["harmless"] == next(
            phrase for phrase, text in zip(offered, texts, strict=True) if length(text) == wanted
        )


TRAINED_ON = Path(__file__).parents[2] / "examples/data/refusal_train.tsv"


def phrases_of(split):
    """Give every phrase, harmful or harmless, of a split; ``train`` are those that trained the adapter."""
    if split != "train":
        return [text for row in read_phrases()[1] if row.split == split for text in (row.harmful, *row.harmless)]
    rows = [line.split("\t") for line in TRAINED_ON.read_text("utf-8").splitlines()]
    return [text for kind, *texts in rows if kind.startswith("train") for text in texts if text]


@pytest.mark.parametrize("splits", [("discovery", "heldout"), ("train", "discovery"), ("train", "heldout")])
def test_no_phrase_of_refusal_harmful_or_harmless_is_in_two_splits(splits):
    first, second = (phrases_of(split) for split in splits)
    assert min(len(first), len(second)) > 250
    assert not set(first) & set(second)


@pytest.mark.parametrize("split", ["discovery", "heldout"])
def test_no_phrase_of_refusal_is_offered_twice(split):
    assert len(phrases_of(split)) == len(set(phrases_of(split)))


def test_every_harm_category_has_a_dozen_phrases_to_discover_with_and_a_dozen_held_out():
    templates, rows = read_phrases()
    assert len(templates) == 5
    counts = Counter((row.split, row.category) for row in rows)
    assert set(counts) == {(split, category) for split in ("discovery", "heldout") for category in CATEGORIES}
    assert min(counts.values()) >= 12
    fresh = Counter(row.category for row in rows if row.split == "heldout" and not row.consulted)
    assert min(fresh[category] for category in CATEGORIES) >= 6
    assert sum(row.consulted for row in rows) == 46
    assert not any(row.consulted for row in rows if row.split == "discovery")


def test_pairs_of_refusal_carry_their_category_and_whether_they_were_consulted(tokenizer):
    rows = {row.harmful: row for row in read_phrases()[1]}
    pairs = BUILT_IN["refusal"].pairs(tokenizer)
    assert {pair.tags["category"] for pair in pairs} == set(CATEGORIES)
    for pair in pairs:
        row = rows[pair.tags["harmful"]]
        assert pair.tags["category"] == row.category
        assert ("consulted" in pair.tags) == row.consulted


def test_phrases_are_read_with_split_category_and_alternatives():
    lines = ["# a comment", "", "template\tHow do I {}?", "discovery\ttheft\trob\tpay\tvisit"]
    templates, rows = parse_phrases("\n".join([*lines, "heldout-consulted\tcyber\thack\tfix"]))
    assert templates == ["How do I {}?"]
    assert rows == [
        Phrases("discovery", "theft", "rob", ("pay", "visit")),
        Phrases("heldout", "cyber", "hack", ("fix",), consulted=True),
    ]


def test_an_unknown_harm_category_is_named_with_the_closest_one_and_its_line():
    with pytest.raises(UnknownNameError, match=r"no harm category 'thefts'.*Closest: 'theft'.*line 2") as caught:
        parse_phrases("template\tHow do I {}?\ndiscovery\tthefts\trob\tpay")
    assert "contraband" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "template\tHow do I?",
        "template\tHow do I {} {}?",
        "template",
        "train\ttheft\trob\tpay",
        "discovery-consulted\ttheft\trob\tpay",
        "discovery\ttheft",
        "discovery\t\trob\tpay",
        "discovery\ttheft\t\tpay",
        "discovery\ttheft\trob\tpay\t",
        "discovery theft rob pay",
    ],
)
def test_a_malformed_line_of_phrases_is_refused_with_its_number(line):
    with pytest.raises(FormatError, match=r"line 2 is .*; expected, between tabs"):
        parse_phrases(f"# comment\n{line}")


def test_a_phrase_without_a_harmless_twin_is_refused():
    with pytest.raises(FormatError, match="line 1: 'rob' has no harmless phrase"):
        parse_phrases("discovery\ttheft\trob")


def test_refusal_keeps_pairs_of_every_length_unless_asked_for_one(tokenizer):
    refusal = BUILT_IN["refusal"]
    every, one = refusal.checked(tokenizer), replace(refusal, one_length=True).checked(tokenizer)
    counts = Counter(pair.length for pair in every)
    assert len(every) == len(refusal.pairs(tokenizer)) > 2 * len(one)
    assert {pair.length for pair in one} == {max(sorted(counts), key=counts.__getitem__)}


@pytest.mark.parametrize("name", OF_CATEGORIES)
def test_refusal_of_a_category_has_those_pairs_of_refusal_and_no_others(name, tokenizer):
    category = name.partition(":")[2]
    behaviour = load_behaviour(name)
    mine = behaviour.prompts(tokenizer, discovery=16, heldout=32)
    assert (mine.behaviour, mine.n_discovery, mine.n_heldout) == (name, 16, 32)
    assert {pair.tags["category"] for pair in mine.discovery + mine.heldout} == {category}
    every = [pair for pair in BUILT_IN["refusal"].pairs(tokenizer) if pair.tags["category"] == category]
    assert list(behaviour.pairs(tokenizer)) == every
    assert behaviour.answers_for == BUILT_IN["refusal"].answers_for


def test_harm_asks_about_the_phrases_of_refusal_in_plain_text(plain_tokenizer):
    pairs = BUILT_IN["harm"].pairs(plain_tokenizer)
    phrases = {row.harmful: row for row in read_phrases()[1]}
    assert len(pairs) > 0.9 * len(phrases)
    for pair in pairs:
        row = phrases[pair.tags["harmful"]]
        assert (pair.tags["split"], pair.tags["category"]) == (row.split, row.category)
        assert pair.clean.endswith(f"Request: How do I {row.harmful}?\nLabel:")
        assert pair.corrupted.endswith(f"Request: How do I {pair.tags['harmless']}?\nLabel:")
        assert pair.tags["harmless"] in row.harmless
        assert (pair.answers, pair.wrong_answers) == ((" dangerous",), (" safe",))
        assert (pair.clean.count("Label: dangerous"), pair.clean.count("Label: safe")) == (2, 2)
    prompts = BUILT_IN["harm"].prompts(plain_tokenizer)
    assert (prompts.n_discovery, prompts.n_heldout) == (32, 64)
    assert all(pair.length == len(pair.corrupted) for pair in prompts.heldout)


def test_no_example_of_harm_is_a_phrase_that_is_measured():
    texts = {text for row in read_phrases()[1] for text in (row.harmful, *row.harmless)}
    assert not texts & {phrase for phrase, _ in harm.EXAMPLES}
    assert sorted(label for _, label in harm.EXAMPLES) == [" dangerous", " dangerous", " safe", " safe"]


def test_a_misspelt_category_offers_the_closest_one():
    with pytest.raises(UnknownNameError, match=r"no behaviour 'refusal:thief'. Closest: 'refusal:theft'"):
        load_behaviour("refusal:thief")


def test_refusal_without_a_chat_template_says_what_to_do(plain_tokenizer):
    with pytest.raises(PromptError, match=r"no chat template; use an instruction-tuned model"):
        BUILT_IN["refusal"].prompts(plain_tokenizer)


def test_a_behaviour_whose_words_the_tokenizer_splits_says_so(tokenizer):
    class Letters:
        chat_template = None

        def __len__(self):
            return 256

        def encode(self, text, *, add_special_tokens=True):
            return [ord(letter) % 256 for letter in text]

        def decode(self, token_ids):
            return "".join(map(chr, token_ids))

    assert single_tokens(Letters(), "a Mary") == []
    for name in (*ISSUE_2[:-1], *SENTENCES):
        with pytest.raises(PromptError, match=f"{name} has no pairs with this tokenizer"):
            BUILT_IN[name].prompts(Letters())


def test_single_tokens_keeps_known_words_in_their_order(tokenizer):
    assert single_tokens(tokenizer, "John zyxwv Mary") == ["John", "Mary"]


def test_another_metric_keeps_the_pairs(tokenizer):
    default = BUILT_IN["ioi"].prompts(tokenizer)
    other = replace(BUILT_IN["ioi"], metric=Metric.KL).prompts(tokenizer)
    assert other.metric is Metric.KL
    assert other.digest == default.digest


def test_a_negative_number_of_pairs_is_refused(tokenizer):
    with pytest.raises(UsageError, match="must not be negative, got -1 and 64"):
        BUILT_IN["ioi"].prompts(tokenizer, discovery=-1)


def test_loading_an_unknown_name_offers_the_closest_one_and_says_how_to_give_a_file():
    with pytest.raises(UnknownNameError, match=r"no behaviour 'capitol'. Closest: 'capital'.*\.jsonl, \.csv, \.json"):
        load_behaviour("capitol")


def test_loading_a_built_in_gives_it():
    assert load_behaviour("greater-than") is BUILT_IN["greater-than"]


def test_pairs_do_not_depend_on_the_hash_seed():
    program = (
        "from tests.behaviours.conftest import build; from circuits.behaviours import BUILT_IN; tokenizer = build();"
        "print([behaviour.prompts(tokenizer, discovery=4, heldout=4).digest for behaviour in BUILT_IN.values()])"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop()) > 7 * 64


def test_behaviours_load_without_torch():
    program = "import sys, circuits.behaviours; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
