"""What tokenizers add to texts: kept once before a prompt, never after it, never on an answer."""

import copy

import pytest
from tokenizers import processors

from circuits.behaviours import Message, Pair
from circuits.behaviours.lint import check_pair
from circuits.behaviours.tokens import prompt_text, prompt_tokens
from circuits.errors import PromptError
from circuits.vocabulary import Metric
from tests.behaviours.conftest import CHAT_TEMPLATE, build

TEXT = "When Mary went to the store, Mary"
CHAT = (Message("system", "Mary"), Message("user", "When Mary went to the store"))


def ending_tokenizer():
    """A tokenizer that puts <s> before every text and an end after it, as some are configured to."""
    tokenizer = build(bos=True)
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens(["</s>"])
    end = backend.token_to_id("</s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", end)]
    )
    return tokenizer


def test_the_token_that_starts_a_text_is_kept_and_the_one_that_ends_it_is_left_out():
    tokenizer = ending_tokenizer()
    whole = tokenizer.encode(TEXT)
    assert tokenizer.decode([whole[0], whole[-1]]) == "<s></s>"
    assert prompt_tokens(tokenizer, TEXT, rendered=False) == tuple(whole[:-1])


@pytest.mark.parametrize("make", [ending_tokenizer, lambda: build(bos=True), build])
def test_an_answer_is_the_same_token_whatever_the_tokenizer_adds(make):
    tokenizer = make()
    pair = Pair(TEXT, TEXT.replace("Mary", "Anna"), (" went",), (" gave",))
    tokens = check_pair(pair, tokenizer, Metric.LOGIT_DIFFERENCE)
    assert tokenizer.decode(list(tokens.answers)) == " went"
    assert tokens.clean[-1] == tokenizer.encode(TEXT, add_special_tokens=False)[-1]


def test_a_starting_token_that_the_text_has_already_is_not_added_again(bos_tokenizer):
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.bos_token = "<s>"
    expected = (0, *tokenizer.encode(TEXT, add_special_tokens=False))
    assert tokenizer.encode("<s>" + TEXT)[:2] == [0, 0]
    assert prompt_tokens(tokenizer, "<s>" + TEXT, rendered=False) == expected
    assert prompt_tokens(tokenizer, TEXT, rendered=False) == expected


def test_a_chat_is_tokenized_as_the_tokenizer_itself_does_it(bos_tokenizer):
    """System prompt and generation prompt included; the template's <s> is the only one."""
    messages = [{"role": message.role, "content": message.content} for message in CHAT]
    expected = bos_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    text = prompt_text(bos_tokenizer, CHAT)
    assert text == "<s><|system|>Mary\n<|user|>When Mary went to the store\n<|assistant|>"
    assert prompt_tokens(bos_tokenizer, text, rendered=True) == tuple(expected)
    assert list(expected).count(0) == 1


def test_a_chat_template_without_a_starting_token_gets_none():
    tokenizer = build(bos=True)
    assert 0 not in prompt_tokens(tokenizer, prompt_text(tokenizer, CHAT), rendered=True)


def test_a_template_that_refuses_a_role_is_told_with_its_reason():
    refusing = build(chat_template="{{ raise_exception('System role not supported') }}" + CHAT_TEMPLATE)
    with pytest.raises(PromptError, match=r"refuses messages of the roles system, user \(System role not supported\)"):
        prompt_text(refusing, CHAT)
