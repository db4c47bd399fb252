from dataclasses import replace

import numpy as np
import pytest

from circuits.behaviours import Message, Pair
from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.lint import check_gap, check_pair
from circuits.behaviours.reading.unusable import ADVICE
from circuits.errors import BehaviourNotShownError, PromptError, UsageError
from circuits.vocabulary import Metric

CLEAN = "When Mary and John went to the store, John gave a book to"
GOOD = Pair(CLEAN, CLEAN.replace(", John", ", James"), (" Mary",), (" John",), source="pairs.jsonl, line 3")


def problem(tokenizer, metric=Metric.LOGIT_DIFFERENCE, **changes):
    with pytest.raises(PromptError) as caught:
        check_pair(replace(GOOD, **changes), tokenizer, metric)
    return str(caught.value)


def test_a_good_pair_becomes_tokens_that_read_as_it_was_written(tokenizer):
    pair = check_pair(GOOD, tokenizer, Metric.LOGIT_DIFFERENCE)
    assert tokenizer.decode(list(pair.clean)) == GOOD.clean
    assert tokenizer.decode(list(pair.corrupted)) == GOOD.corrupted
    assert [tokenizer.decode([*pair.answers]), tokenizer.decode([*pair.wrong_answers])] == [" Mary", " John"]
    assert pair.length == len(pair.clean) == 14


def test_a_token_that_starts_every_text_comes_exactly_once_in_text_and_in_chat(bos_tokenizer):
    chat = [(Message("user", side),) for side in (GOOD.clean, GOOD.corrupted)]
    for pair in (GOOD, replace(GOOD, clean=chat[0], corrupted=chat[1])):
        tokens = check_pair(pair, bos_tokenizer, Metric.LOGIT_DIFFERENCE)
        for side in (tokens.clean, tokens.corrupted):
            assert [position for position, token in enumerate(side) if token == 0] == [0]
        assert bos_tokenizer.decode(list(tokens.answers)) == " Mary"


def test_sides_of_unequal_length_show_where_and_how_they_are_tokenized(tokenizer):
    message = problem(tokenizer, corrupted=CLEAN.replace(", John", ", John James"))
    assert message.startswith("14 clean and 15 corrupted tokens; patching replaces activations position by position")
    assert "First difference at position 10: ' gave' / ' James'." in message
    assert "clean:     ... ' store' ',' ' John' ' gave' ' a' ' book' ' to'\n" in message
    assert "corrupted: ... ' store' ',' ' John' ' James' ' gave' ' a' ' book' ...\n" in message
    assert message.endswith("Choose words of the same number of tokens, or align the sides (--align suffix).")


def test_a_side_that_only_goes_on_longer_differs_at_its_end(tokenizer):
    message = problem(tokenizer, corrupted=CLEAN + " the")
    assert "First difference at position 14: (end) / ' the'." in message


def test_equal_sides_are_refused(tokenizer):
    assert "the clean and the corrupted prompt are the same" in problem(tokenizer, corrupted=CLEAN)


def test_an_answer_of_several_tokens_shows_them_and_says_what_to_do(tokenizer):
    message = problem(tokenizer, answers=(" Mary went",))
    assert "the answer ' Mary went' is 2 tokens (' Mary' ' went')" in message
    assert "use the first token (' Mary') or another word" in message
    assert "starts with that space" not in message
    assert "starts with that space (' Mary')" in problem(tokenizer, wrong_answers=("Mary went",))


def test_an_answer_among_the_wrong_answers_is_refused(tokenizer):
    message = problem(tokenizer, wrong_answers=(" James", " Mary"))
    assert "' Mary' is an answer and a wrong answer at once" in message


@pytest.mark.parametrize("metric", [Metric.LOGIT_DIFFERENCE, Metric.PROBABILITY_DIFFERENCE])
def test_metrics_that_compare_need_a_wrong_answer(tokenizer, metric):
    assert f"no wrong answer; the metric {metric} compares" in problem(tokenizer, metric, wrong_answers=())


@pytest.mark.parametrize("metric", [Metric.LOG_ODDS, Metric.KL])
def test_other_metrics_need_no_wrong_answer(tokenizer, metric):
    assert check_pair(replace(GOOD, wrong_answers=()), tokenizer, metric).wrong_answers == ()


def test_only_kl_needs_no_answer(tokenizer):
    assert "there is no answer; the metric log-odds" in problem(
        tokenizer, Metric.LOG_ODDS, answers=(), wrong_answers=()
    )
    assert check_pair(replace(GOOD, answers=(), wrong_answers=()), tokenizer, Metric.KL).answers == ()


def test_an_empty_prompt_is_refused(tokenizer):
    assert "a prompt is empty" in problem(tokenizer, clean="")


def behaviour(pairs):
    return Behaviour("mine", "my pairs", lambda tokenizer: pairs)


def test_problems_name_their_pair_and_are_counted(tokenizer):
    bad = [replace(GOOD, corrupted=CLEAN, source=f"pairs.jsonl, line {number}") for number in range(5)]
    with pytest.raises(PromptError) as caught:
        behaviour([GOOD, *bad]).checked(tokenizer)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [f"pairs.jsonl, line {number}" for number in range(3)]
    assert lines[3:] == ["... and 2 more of 6 pairs cannot be used.", ADVICE]


def test_unusable_pairs_can_be_left_out_unless_all_are(tokenizer):
    bad = replace(GOOD, corrupted=CLEAN)
    found = replace(behaviour([bad, GOOD]), usable_only=True).usable(tokenizer)
    assert len(found.pairs) == 1
    assert [problem.source for problem in found.unusable] == ["pairs.jsonl, line 3"]
    with pytest.raises(PromptError, match=r"pairs\.jsonl, line 3: the clean and the corrupted prompt are the same"):
        replace(behaviour([bad]), usable_only=True).checked(tokenizer)


def spread(mean, sd, n=32):
    values = np.random.default_rng(0).normal(size=n)
    return mean + sd * (values - values.mean()) / values.std(ddof=1)


def gap(clean, corrupted, metric=Metric.LOGIT_DIFFERENCE):
    return check_gap(clean, corrupted, metric, behaviour="ioi", model="tiny")


def test_a_clear_gap_passes_without_warnings():
    assert gap(spread(5.1, 1.5), spread(-0.3, 1.5)[::-1]) == ()


def test_a_model_that_answers_wrongly_on_both_sides_is_refused_with_the_numbers():
    expected = (
        r"tiny does not show ioi\. logit-difference over 32 pairs: clean -8.30, corrupted -8.20; the mean gap is -0.10 "
        r"\(95 % interval -"
    )
    with pytest.raises(BehaviourNotShownError, match=expected):
        gap(spread(-8.3, 1.0), spread(-8.2, 1.0)[::-1])


def test_a_gap_that_could_be_chance_is_refused_and_a_surer_one_of_the_same_size_is_not():
    corrupted = np.zeros(32)
    with pytest.raises(
        BehaviourNotShownError, match=r"the mean gap is 0.30 \(95 % interval -0.06 to 0.66\), so possibly 0 or less"
    ):
        gap(spread(0.3, 1.0), corrupted)
    assert gap(spread(0.3, 0.1), corrupted) == ()


@pytest.mark.parametrize("metric", [Metric.LOGIT_DIFFERENCE, Metric.PROBABILITY_DIFFERENCE])
def test_a_model_that_prefers_the_wrong_answers_is_refused_in_spite_of_a_gap(metric):
    with pytest.raises(BehaviourNotShownError, match="below 0 the model prefers the wrong answers"):
        gap(spread(-0.2, 0.05), spread(-0.8, 0.05), metric)


def test_log_odds_below_zero_only_warn():
    (warning,) = gap(spread(-1.0, 0.1), spread(-4.0, 0.1), Metric.LOG_ODDS)
    assert "mean log-odds -1.00" in warning


def test_the_sign_is_turned_where_lower_is_better():
    zero, divergence = np.zeros(32), np.abs(spread(2.0, 0.5))
    assert gap(zero, divergence, Metric.KL) == ()
    with pytest.raises(BehaviourNotShownError, match=r"the mean gap is -2\.\d+"):
        gap(divergence, zero, Metric.KL)


def test_no_gap_at_all_is_refused():
    values = spread(3.0, 1.0)
    with pytest.raises(BehaviourNotShownError, match=r"the mean gap is 0.00, so possibly 0 or less"):
        gap(values, values)


def test_pairs_with_the_wrong_sign_are_warned_about():
    clean, corrupted = spread(5.0, 0.5), spread(-1.0, 0.5)
    corrupted[:4] = clean[:4] + 1
    assert any(
        "on 4 of 32 pairs the corrupted prompt does at least as well" in warning for warning in gap(clean, corrupted)
    )


def test_a_gap_that_is_small_against_its_spread_or_the_clean_value_is_warned_about():
    assert any("small against its spread" in warning for warning in gap(spread(0.45, 1.0, 200), np.zeros(200)))
    clean = spread(6.0, 0.1)
    (warning,) = gap(clean, clean - 0.3)
    assert "the corrupted prompts keep 95% of the clean logit-difference" in warning


def test_a_low_accuracy_is_warned_about():
    clean = spread(4.0, 0.5)
    clean[:8] = -1.0
    assert "the model prefers the answer on only 75% of the clean prompts." in gap(clean, np.full(32, -5.0))


def test_values_that_are_not_finite_are_refused():
    clean = spread(5.0, 1.0)
    clean[3] = np.nan
    with pytest.raises(BehaviourNotShownError, match=r"1 of 64 values .* are not finite; run in a wider dtype"):
        gap(clean, np.zeros(32))


def test_one_value_per_pair_is_expected():
    with pytest.raises(UsageError, match="expected one clean and one corrupted value per pair"):
        gap(np.zeros(3), np.zeros(4))
