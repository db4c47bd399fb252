"""What makes prompt pairs unusable, or measurements on them meaningless.

Two stages: :func:`inspect_pairs` looks at the pairs before any model runs; :func:`check_gap` looks at what a model did
on them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from circuits.behaviours.alignment import aligned
from circuits.behaviours.pairs import Pair, TokenPair
from circuits.behaviours.reading.unusable import Unusable
from circuits.behaviours.tokens import (
    Tokenizer,
    Tokens,
    answer_tokens,
    prompt_text,
    prompt_tokens,
    token_texts,
    unknown_place,
)
from circuits.errors import BehaviourNotShownError, PromptError, UsageError
from circuits.vocabulary import Align, Metric

Values = NDArray[np.float64]
FEW = 4
"""Of fewer pairs the interval of the gap tells nothing: it is not asked to lie above 0, and a warning says so."""


def inspect_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, metric: Metric, align: Align | None = None
) -> tuple[list[tuple[Pair, TokenPair]], list[Unusable]]:
    """Return the pairs that can be measured, as written and as tokens, and why the others cannot."""
    usable: list[tuple[Pair, TokenPair]] = []
    problems: list[Unusable] = []
    for pair in pairs:
        try:
            usable.append((pair, check_pair(pair, tokenizer, metric, align)))
        except PromptError as error:
            problems.append(Unusable(pair.source, f"{pair.source}: {error}"))
    return usable, problems


def check_pair(pair: Pair, tokenizer: Tokenizer, metric: Metric, align: Align | None = None) -> TokenPair:
    """Tokenize one pair; raises :class:`PromptError` that says what is wrong with it, but not where it is from.

    Sides of different lengths are aligned where that is asked for, or known.
    """
    clean_text, corrupted_text = prompt_text(tokenizer, pair.clean), prompt_text(tokenizer, pair.corrupted)
    rendered = not isinstance(pair.clean, str)
    clean = prompt_tokens(tokenizer, clean_text, rendered=rendered)
    corrupted = prompt_tokens(tokenizer, corrupted_text, rendered=not isinstance(pair.corrupted, str))
    for text, tokens in ((clean_text, clean), (corrupted_text, corrupted)):
        _check_known(tokenizer, text, tokens)
    alignment = _alignment(pair, tokenizer, (clean, corrupted), align)
    _check_sides(tokenizer, clean, corrupted, alignment)

    def ids(texts: Sequence[str], given: Tokens) -> Tokens:
        if given:
            return _ids_of_vocabulary(tokenizer, given)
        return tuple(single_token(tokenizer, clean_text, clean, text, rendered=rendered) for text in texts)

    def sequences(texts: Sequence[str], given: Tokens) -> tuple[Tokens, ...]:
        if given:
            return tuple((token,) for token in _ids_of_vocabulary(tokenizer, given))
        found = [answer_tokens(tokenizer, clean_text, clean, text, rendered=rendered) for text in texts]
        return tuple(tokens for tokens in found if tokens)

    sides = (pair.answers, pair.answer_ids), (pair.wrong_answers, pair.wrong_ids)
    if metric.whole_answers:
        right, wrong = (sequences(*side) for side in sides)
        _check_sequences(tokenizer, right, wrong)
        first, first_wrong = ({tokens[0]: None for tokens in side} for side in (right, wrong))
        answers = tuple(token for token in first if token not in first_wrong)
        wrong_answers = tuple(token for token in first_wrong if token not in first)
    else:
        right, wrong = (), ()
        answers, wrong_answers = (ids(*side) for side in sides)
        _check_answers(tokenizer, answers, wrong_answers, metric)
    texts = clean_text, corrupted_text
    given = clean, corrupted, answers, wrong_answers, *texts, pair.tags, right, wrong
    return TokenPair(*given, roles=pair.roles, alignment=alignment)


def _alignment(pair: Pair, tokenizer: Tokenizer, sides: tuple[Tokens, Tokens], align: Align | None) -> Tokens:
    if pair.alignment or align is None or not all(sides):
        return pair.alignment
    return aligned(tokenizer, sides, align, (pair.roles, pair.corrupted_roles))


def _check_known(tokenizer: Tokenizer, text: str, tokens: Tokens) -> None:
    place = unknown_place(tokenizer, text, tokens)
    if place is not None:
        raise PromptError(
            f"the tokenizer has no token for a part of {text!r}: its token {place} is the one for unknown words. Use "
            "words that it has, or another model."
        )


def _check_sequences(tokenizer: Tokenizer, right: Sequence[Tokens], wrong: Sequence[Tokens]) -> None:
    if not right:
        raise PromptError(f"there is no answer; the metric {Metric.SEQUENCE} needs at least one.")
    both = [tokens for tokens in right if tokens in wrong]
    if both:
        text = tokenizer.decode(list(both[0]))
        raise PromptError(f"{text!r} is an answer and a wrong answer at once; remove it from one of the two.")


def _check_sides(tokenizer: Tokenizer, clean: Tokens, corrupted: Tokens, alignment: Tokens) -> None:
    if not clean or not corrupted:
        raise PromptError("a prompt is empty; both sides need at least one token.")
    if len(clean) != len(corrupted) and not alignment:
        shared = min(len(clean), len(corrupted))
        first = next((i for i in range(shared) if clean[i] != corrupted[i]), shared)
        here = [token_texts(tokenizer, side[first : first + 1]) for side in (clean, corrupted)]
        differ = " / ".join(repr(text[0]) if text else "(end)" for text in here)
        raise PromptError(
            f"{len(clean)} clean and {len(corrupted)} corrupted tokens; patching replaces activations position "
            f"by position, so both sides must tokenize to the same length. First difference at position {first}: "
            f"{differ}.\n"
            f"  clean:     {_around(tokenizer, clean, first)}\n"
            f"  corrupted: {_around(tokenizer, corrupted, first)}\n"
            f"  Choose words of the same number of tokens, or align the sides (--align {Align.SUFFIX})."
        )
    if clean == corrupted:
        raise PromptError(
            "the clean and the corrupted prompt are the same, so patching changes nothing; change the word that the "
            "answer depends on in the corrupted prompt."
        )


def _around(tokenizer: Tokenizer, tokens: Tokens, position: int) -> str:
    start, stop = max(0, position - 3), position + 4
    pieces = [repr(text) for text in token_texts(tokenizer, tokens[start:stop])]
    return " ".join([*(["..."] if start else []), *pieces, *(["..."] if stop < len(tokens) else [])])


def single_token(tokenizer: Tokenizer, prompt: str, prompt_ids: Tokens, answer: str, *, rendered: bool) -> int:
    """Return the one token that an answer is after a prompt; raises :class:`PromptError` for more or fewer."""
    tokens = answer_tokens(tokenizer, prompt, prompt_ids, answer, rendered=rendered)
    _check_known(tokenizer, answer, tokens)
    if len(tokens) == 1:
        return tokens[0]
    pieces = token_texts(tokenizer, tokens)
    shown = " ".join(repr(piece) for piece in pieces) or "none"
    advice = f"use the first token ({pieces[0]!r}) or another word" if pieces else "write the expected word"
    space = "" if answer.startswith(" ") or rendered else " A word after a space starts with that space (' Mary')."
    raise PromptError(
        f"the answer {answer!r} is {len(tokens)} tokens ({shown}); only the next token is measured, so an answer "
        f"must be one token: {advice}; or measure whole answers, --metric {Metric.SEQUENCE}.{space}"
    )


def _ids_of_vocabulary(tokenizer: Tokenizer, ids: Tokens) -> Tokens:
    for token in ids:
        if not 0 <= token < len(tokenizer):
            raise PromptError(
                f"token id {token} is not in this tokenizer's vocabulary of {len(tokenizer)} tokens; the file was made "
                "for another model: use that model, or a file with the answers as text (columns correct, incorrect)."
            )
    return ids


def _check_answers(tokenizer: Tokenizer, answers: Tokens, wrong_answers: Tokens, metric: Metric) -> None:
    if not answers and not metric.against_clean:
        raise PromptError(f"there is no answer; the metric {metric} needs at least one (only kl needs none).")
    if not wrong_answers and metric.compares:
        raise PromptError(
            f"there is no wrong answer; the metric {metric} compares answers with wrong answers: add one, or "
            f"choose the metric {Metric.LOG_ODDS} or {Metric.KL}."
        )
    both = [token for token in answers if token in wrong_answers]
    if both:
        shown = ", ".join(repr(text) for text in token_texts(tokenizer, both))
        raise PromptError(f"{shown} is an answer and a wrong answer at once; remove it from one of the two.")


def check_gap(clean: Values, corrupted: Values, metric: Metric, *, behaviour: str, model: str) -> tuple[str, ...]:
    """Judge the metric that a model reached on the clean and the corrupted prompts, one value per pair each.

    Returns warnings: pairs whose corrupted side does at least as well, a gap that is small against its spread or the
    clean value, a low share of pairs on which the model prefers the answer. Raises :class:`BehaviourNotShownError`
    when there is nothing to explain: the mean gap may be 0 or less (from four pairs on, by its 95 % t-interval), or
    the mean over clean prompts says that the model prefers the wrong answers.
    """
    if clean.shape != corrupted.shape or clean.ndim != 1 or not clean.size:
        raise UsageError(
            f"expected one clean and one corrupted value per pair, got {clean.shape} and {corrupted.shape}."
        )
    where = f"{model} does not show {behaviour}"
    broken = int(np.sum(~np.isfinite(clean)) + np.sum(~np.isfinite(corrupted)))
    if broken:
        raise BehaviourNotShownError(
            f"{where}: {broken} of {2 * clean.size} values of {metric} are not finite; run in a wider "
            "dtype (--dtype float32)."
        )
    gap = metric.sign * (clean - corrupted)
    mean, half = float(gap.mean()), _interval(gap) if gap.size >= FEW else 0.0
    numbers = f"{metric} over {clean.size} pairs: clean {clean.mean():.2f}, corrupted {corrupted.mean():.2f}"
    advice = (
        "A circuit explains the gap between clean and corrupted prompts, and without a gap there is none to find. "
        "First check that answers belong to their prompts; then try another model (an instruction-tuned or a larger "
        "one), other prompts or another metric."
    )
    if mean - half <= 0:
        interval = f" (95 % interval {mean - half:.2f} to {mean + half:.2f})" if half else ""
        raise BehaviourNotShownError(
            f"{where}. {numbers}; the mean gap is {mean:.2f}{interval}, so possibly 0 or less. {advice}"
        )
    if metric.compares and clean.mean() <= 0:
        raise BehaviourNotShownError(
            f"{where}. {numbers}; below 0 the model prefers the wrong answers even on the clean prompts. {advice}"
        )
    return _warnings(clean, gap, metric)


def _interval(gap: Values) -> float:
    """Half the width of the 95 % t-interval of the mean; 0 for a single pair, which has no spread."""
    from scipy.special import stdtrit  # scipy takes long to import, and most commands never measure

    if gap.size < 2:
        return 0.0
    return float(stdtrit(gap.size - 1, 0.975) * gap.std(ddof=1) / np.sqrt(gap.size))


def _warnings(clean: Values, gap: Values, metric: Metric) -> tuple[str, ...]:
    warnings: list[str] = []
    if gap.size < FEW:
        pairs = f"{gap.size} pairs are" if gap.size > 1 else "1 pair is"
        warnings.append(f"{pairs} measured, too few to tell whether other prompts would give the same.")
    mixed = int(np.sum(gap <= 0))
    if mixed > 0.05 * gap.size:
        warnings.append(
            f"on {mixed} of {gap.size} pairs the corrupted prompt does at least as well as the clean one; scores of "
            "such pairs cancel others in the mean."
        )
    if gap.size > 1 and gap.mean() < 0.5 * gap.std(ddof=1):
        warnings.append(
            f"the gap is small against its spread over pairs (mean {gap.mean():.2f}, standard deviation "
            f"{gap.std(ddof=1):.2f}); use more pairs for stable scores."
        )
    if metric.compares and gap.mean() < 0.1 * clean.mean():
        warnings.append(
            f"the corrupted prompts keep {1 - gap.mean() / clean.mean():.0%} of the clean {metric}; a circuit can only "
            "explain the rest."
        )
    accuracy = float(np.mean(clean > 0))
    if metric.compares and accuracy < 0.9:
        warnings.append(f"the model prefers the answer on only {accuracy:.0%} of the clean prompts.")
    if metric is Metric.LOG_ODDS and clean.mean() < 0:
        warnings.append(
            f"the answers are less likely than everything else together on the clean prompts (mean log-odds "
            f"{clean.mean():.2f})."
        )
    return tuple(warnings)
