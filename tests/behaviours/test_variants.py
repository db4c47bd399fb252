"""Behaviours asked with a system message, with the beginning of the answer, or for other answers."""

from dataclasses import replace

import pytest

from circuits.behaviours import Behaviour, Message, Pair, load_behaviour
from circuits.behaviours.tokens import prompt_text
from circuits.errors import PromptError, UsageError
from circuits.records import BehaviourInfo, Variant
from circuits.vocabulary import Metric
from tests.behaviours.conftest import CHAT_TEMPLATE, build

USER = Message("user", "When Mary went to the store")
OTHER = Message("user", "When Anna went to the store")


def behaviour_of(*pairs: Pair) -> Behaviour:
    return Behaviour("mine", "a test", lambda _: pairs)


CHAT = behaviour_of(Pair((USER,), (OTHER,), (" went",), (" gave",)))


def one(behaviour, tokenizer):
    (pair,) = behaviour.checked(tokenizer)
    return pair


def test_a_conversation_that_ends_with_the_assistant_is_continued_without_a_new_turn(tokenizer):
    text = prompt_text(tokenizer, (USER, Message("assistant", "Sorry, I")))
    assert text == "<|user|>When Mary went to the store\n<|assistant|>Sorry, I"
    asked = prompt_text(tokenizer, (USER, Message("assistant", "Sorry, I"), USER))
    assert asked.endswith("Sorry, I\n<|user|>When Mary went to the store\n<|assistant|>")


def test_a_prefilled_answer_is_what_the_models_own_tokenizer_makes_of_it(bos_tokenizer):
    pair = one(CHAT.varied(system="Mary gave", prefill="Sorry, the"), bos_tokenizer)
    for user, tokens in ((USER, pair.clean), (OTHER, pair.corrupted)):
        messages = [("system", "Mary gave"), ("user", user.content), ("assistant", "Sorry, the")]
        expected = bos_tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            continue_final_message=True,
            return_dict=False,
        )
        assert list(tokens) == list(expected)
        assert bos_tokenizer.decode(list(tokens)).endswith("<|assistant|>Sorry, the")


def test_a_template_that_cuts_the_end_of_the_beginning_is_refused_and_one_that_drops_it_too():
    cut = build(chat_template=CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim"))
    assert prompt_text(cut, (USER, Message("assistant", "Sorry"))).endswith("Sorry")
    with pytest.raises(PromptError, match="cannot begin with 'Sorry ': the tokenizer's chat template changes its end"):
        prompt_text(cut, (USER, Message("assistant", "Sorry ")))
    dropping = build(chat_template="{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(PromptError, match="cannot begin with 'Sorry': the tokenizer's chat template does not write it"):
        prompt_text(dropping, (USER, Message("assistant", "Sorry")))


def test_a_system_message_comes_first_and_takes_the_place_of_one_that_is_there(tokenizer):
    plain = one(CHAT, tokenizer)
    asked = one(CHAT.varied(system="Mary"), tokenizer)
    assert asked.clean_text == "<|system|>Mary\n" + plain.clean_text
    given = behaviour_of(Pair((Message("system", "John"), USER), (Message("system", "John"), OTHER), (" went",)))
    given = replace(given.varied(system="Mary"), metric=Metric.LOG_ODDS)
    assert one(given, tokenizer).clean_text == asked.clean_text
    assert one(CHAT.varied(system=""), tokenizer).clean_text.startswith("<|system|>\n<|user|>")


def test_answers_take_the_place_of_the_pairs_own(tokenizer):
    def texts(pair):
        return [tokenizer.decode([token]) for token in (*pair.answers, *pair.wrong_answers)]

    assert texts(one(CHAT, tokenizer)) == [" went", " gave"]
    assert texts(one(CHAT.varied(answers=["Sorry", "I"]), tokenizer)) == ["Sorry", "I", " gave"]
    by_number = behaviour_of(Pair((USER,), (OTHER,), answer_ids=(5,), wrong_ids=(6,)))
    assert one(by_number, tokenizer).answers == (5,)
    assert texts(one(by_number.varied(answers=["I"], wrong_answers=["To"]), tokenizer)) == ["I", "To"]


def test_what_is_not_given_stays_as_it_was():
    once = CHAT.varied(system="a", answers=["b"]).varied(prefill="c")
    assert once.variant == Variant("a", "c", ("b",), ())
    assert once.varied(system="").variant.system == ""
    assert CHAT.variant == Variant()


@pytest.mark.parametrize("given", [{"system": "Be kind."}, {"prefill": "Sure"}])
def test_plain_text_prompts_have_no_system_message_and_no_beginning(tokenizer, given):
    with pytest.raises(UsageError, match=r"belongs to chats, and ioi, pair 1 is plain text; leave it out"):
        load_behaviour("ioi").varied(**given).prompts(tokenizer)


def test_a_second_beginning_and_an_empty_one_are_refused(tokenizer):
    begun = behaviour_of(*(replace(pair, clean=(*pair.clean, Message("assistant", "To"))) for pair in CHAT.pairs(None)))
    with pytest.raises(UsageError, match="begin with 'Sure', but this pair has a beginning of its own, 'To'"):
        begun.varied(prefill="Sure").checked(tokenizer)
    for empty in ("", " \n"):
        with pytest.raises(UsageError, match="cannot begin with"):
            CHAT.varied(prefill=empty)


def test_a_variant_is_part_of_the_digest_and_of_what_is_recorded(tokenizer):
    refusal = load_behaviour("refusal")
    plain, asked = (each.prompts(tokenizer) for each in (refusal, refusal.varied(system="John")))
    assert plain.digest != asked.digest
    assert (plain.variant, asked.variant) == (Variant(), Variant("John"))


def test_a_recorded_behaviour_is_loaded_as_it_was_measured():
    variant = Variant("a", "b", ("I",), ("To",))
    info = BehaviourInfo("refusal", "logit-difference", "nats", variant=variant)
    assert load_behaviour("refusal", recorded=info).variant == variant
    assert load_behaviour("ioi", recorded=info).variant == Variant()


def test_a_variant_is_described_by_what_it_changes():
    assert Variant().describe() == ""
    assert Variant("", "Sure", ("I", "As"), ("To",)).describe() == (
        "system ''; prefill 'Sure'; answers 'I', 'As'; wrong answers 'To'"
    )


def test_an_attack_is_the_same_request_under_another_system_message(tokenizer):
    asked = CHAT.varied(system="Mary", attack="Anna")
    pair, plain = one(asked, tokenizer), one(CHAT, tokenizer)
    assert pair.clean_text == "<|system|>Mary\n" + plain.clean_text
    assert pair.corrupted_text == "<|system|>Anna\n" + plain.clean_text
    assert (pair.answers, pair.wrong_answers) == (plain.answers, plain.wrong_answers)
    assert asked.variant.describe() == "system 'Mary'; attack 'Anna'"
    with pytest.raises(PromptError, match="both sides must tokenize to the same length"):
        one(CHAT.varied(system="Mary", attack="Mary and Anna"), tokenizer)


def test_a_prefill_as_attack_is_the_same_request_with_another_beginning_of_the_answer(tokenizer):
    asked = CHAT.varied(prefill="Mary", attack_prefill="Anna")
    pair, plain = one(asked, tokenizer), one(CHAT.varied(prefill="Mary"), tokenizer)
    assert pair.clean_text == plain.clean_text
    assert pair.clean_text.endswith("<|assistant|>Mary")
    assert pair.corrupted_text == plain.clean_text.removesuffix("Mary") + "Anna"
    assert (pair.answers, pair.wrong_answers) == (plain.answers, plain.wrong_answers)
    assert asked.variant.describe() == "prefill 'Mary'; attack prefill 'Anna'"
    both = one(asked.varied(system="Mary", attack="Anna"), tokenizer)
    assert both.corrupted_text.startswith("<|system|>Anna")
    assert both.corrupted_text.endswith("<|assistant|>Anna")
    assert both.clean_text.startswith("<|system|>Mary")


def test_a_prefill_as_attack_needs_a_beginning_of_the_other_side_of_as_many_tokens(tokenizer):
    with pytest.raises(UsageError, match=r"of different lengths; give it one that says nothing, of as many tokens"):
        CHAT.varied(attack_prefill="Anna")
    with pytest.raises(UsageError, match="cannot begin with ' '"):
        CHAT.varied(prefill="Mary", attack_prefill=" ")
    with pytest.raises(PromptError, match="both sides must tokenize to the same length"):
        one(CHAT.varied(prefill="Mary", attack_prefill="Mary and Anna"), tokenizer)
    assert CHAT.varied(prefill="Mary").varied(attack_prefill="Anna").variant.attacked
