"""Guards: measurements on one tiny batch that show whether a model is measured at the right places.

Each has an error, a tolerance that follows the dtype, and a meaning; :func:`require` refuses a model that fails one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuits.adapters.anatomy import Anatomy
from circuits.behaviours.tokens import unknown_place
from circuits.errors import GuardError, PromptError
from circuits.graph import ComputationalGraph
from circuits.guards.distance import distance
from circuits.guards.isolation import isolation
from circuits.passes.masked import run_masked
from circuits.tracing.plan import LayerSite, Plan, Visit, put
from circuits.tracing.requirements import trial_length
from circuits.tracing.runs import Recorder, Run, record
from circuits.tracing.state import in_own_state
from circuits.tracing.tracer import Tracer, tolerance_of

_POSITIONS, _FEWEST = 6, 3
_SENTENCE, _OWN_WORDS = "The keys to the cabinet are on the table.", 8


@dataclass(frozen=True)
class GuardResult:
    """One guard's measured error against its tolerance, and what a failure means."""

    name: str
    error: float
    tolerance: float
    meaning: str
    advice: str = "Describe it with an Architecture that fits; see: circuits guide models"

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance (an error that is not a number is not)."""
        return self.error <= self.tolerance


class PrefixDiffersError(GuardError):
    """A run that continued from cached positions is not the run of the whole prompt; it must be run whole."""


class RecordedRuns:
    """Holds recorded runs against plain forward passes, at the lengths at which they are measured.

    The guards run on a few tokens; positions may be embedded otherwise in longer prompts (rotary embeddings of the
    kinds dynamic and longrope), and attention may look back less far than that. So of every token length and prefix
    length the first runs are compared with what the model alone gives for the same tokens.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._seen: set[tuple[int, int]] = set()

    def require_plain(self, ids: Sequence[Int[Tensor, "pair _"]], runs: Sequence[Run]) -> None:
        """Raise where the first or last prompt of one of these runs has other logits than in a plain forward pass.

        The runs are of equal prefix length, and looked at apart where they are not of equal token length; only the
        first of each two lengths are looked at. Cost:
        a forward pass of two prompts for each run. Raises :class:`PrefixDiffersError` where the runs continue from
        a prefix, and else :class:`GuardError`.
        """
        if len({prompts.shape[1] for prompts in ids}) > 1:
            for prompts, run in zip(ids, runs, strict=True):
                self.require_plain([prompts], [run])
            return
        length, shared = ids[0].shape[1], 0 if runs[0].prefix is None else runs[0].prefix.length
        if (length, shared) in self._seen:
            return
        self._seen.add((length, shared))
        rows = sorted({0, len(ids[0]) - 1})
        plain = self._tracer.plain_logits(torch.cat([prompts[rows] for prompts in ids]))
        dtype = self._tracer.anatomy.dtype
        if not bool(plain.isfinite().all()):
            raise GuardError(f"the logits of prompts of {length} tokens {_not_finite(dtype)}.")
        error, tolerance = distance(torch.cat([run.logits[rows] for run in runs]), plain), tolerance_of(dtype)
        if error <= tolerance:
            return
        if shared:
            raise PrefixDiffersError(
                f"in prompts of {length} tokens, logits that follow from {shared} cached positions differ by "
                f"{error:.2g} of their size from those of the whole prompt: how this model embeds positions depends on "
                "the length"
            )
        raise GuardError(
            f"a recorded run of {length} tokens differs by {error:.2g} of the size of its logits from a plain forward "
            f"pass of the same tokens (tolerance {tolerance:.2g}), though the guards, on {_POSITIONS} tokens at most, "
            f"passed. Its scores would be wrong. {_hooks_advice(self._tracer) or 'Try shorter prompts.'}"
        )


def _not_finite(dtype: torch.dtype) -> str:
    """Return what to do about numbers that are not finite, as the rest of a sentence."""
    name = str(dtype).removeprefix("torch.")
    if dtype is torch.float16:
        return f"are not finite in {name}, whose largest number is 65,504; try bfloat16 or float32 (--dtype bfloat16)"
    return f"are not finite in {name}; look for NaN and infinite numbers in the weights"


def _hooks_advice(tracer: Tracer) -> str:
    """Return a sentence that names the hooks others hung on the model; empty where there are none."""
    hooks = tracer.foreign_hooks
    if not hooks:
        return ""
    more = f" and {len(hooks) - 3} more" if len(hooks) > 3 else ""
    return (
        f"The model carries hooks of others, which may change what is measured: {', '.join(hooks[:3])}{more}. Remove "
        "them (handle.remove()) and load the model again."
    )


@in_own_state
def check(tracer: Tracer, graph: ComputationalGraph, tokenizer: Any = None) -> tuple[GuardResult, ...]:
    """Run all guards. Cost: two forward passes of four prompts of six tokens, and the attention of two layers."""
    tolerance = tolerance_of(tracer.anatomy.dtype)
    run = record(tracer, _prompts(tracer.anatomy))
    results = [_finite(run), *_results(tracer, graph, run.rows(slice(2)), run.rows(slice(2, 4)), tolerance)]
    if advice := _hooks_advice(tracer):
        results = [replace(each, advice=advice) if each.name != "finite" else each for each in results]
    return (*results, *([] if tokenizer is None else [_tokenizer(tracer.anatomy, tokenizer)]))


def require(results: tuple[GuardResult, ...], model: str) -> None:
    """Raise :class:`GuardError` for the first guard that failed."""
    for result in results:
        if not result.passed:
            raise GuardError(
                f"{model} fails the guard '{result.name}': error {result.error:.2g}, tolerance {result.tolerance:.2g}. "
                f"{result.meaning} Its scores would be wrong, so it is refused. {result.advice}"
            )


def _finite(run: Run) -> GuardResult:
    """Check that no value of a run is infinite or not a number; the error is the share of the logits that are."""
    wrong = float((~run.logits.isfinite()).double().mean())
    return GuardResult("finite", wrong, 0.0, f"Its values {_not_finite(run.logits.dtype)}.", "")


def _results(
    tracer: Tracer, graph: ComputationalGraph, clean: Run, corrupted: Run, tolerance: float
) -> Iterator[GuardResult]:
    yield GuardResult(
        "additivity",
        distance(_summed(tracer.anatomy, clean)[0][-1], clean.stream[-1]),
        tolerance,
        "What the nodes write does not add up to the residual stream that the logits read: a norm or factor between a "
        "block and the stream is not declared, or a block has parts that are not.",
    )
    first = zip(clean.stream, corrupted.stream, strict=True)
    yield GuardResult(
        "causality",
        float(np.max([distance(here[:, :1], there[:, :1]) for here, there in first])),
        tolerance,
        "What stands at the first token depends on later tokens: this is no decoder.",
    )
    nothing = run_masked(tracer, graph, corrupted, {}, np.zeros((1, graph.n_edges), dtype=np.bool_))[0]
    yield GuardResult(
        "nothing live",
        distance(nothing, corrupted.logits),
        tolerance,
        "With nothing live a run must equal the corrupted run: the logits are not read where the adapter says.",
    )
    yield _wiring(tracer, clean, tolerance)
    hint = " Rounding alone can make a mixture of experts choose others: try float32." if tolerance > 1e-2 else ""
    changes = {0: clean.stream[0] - corrupted.stream[0]}
    everything = run_masked(tracer, graph, corrupted, changes, np.ones((1, graph.n_edges), dtype=np.bool_))[0]
    yield GuardResult(
        "everything live",
        distance(everything, clean.logits),
        tolerance,
        "With everything live a run must equal the clean run. Where the other guards pass, a projection may run twice, "
        "or the attention may read something besides queries, keys and values." + hint,
    )
    yield GuardResult(
        "restart",
        distance(_restarted(tracer, clean), clean.logits),
        tolerance,
        "Going on from a recorded attention output must end in the recorded logits: the attention, or what it adds to, "
        "is declared wrongly.",
    )
    yield _head_isolation(tracer, clean, tolerance)


def _prompts(anatomy: Anatomy) -> Tensor:
    """Return two pairs of random prompts, clean and then corrupted, that start with the same token."""
    generator = torch.Generator().manual_seed(0)
    length = trial_length(anatomy, _POSITIONS, _FEWEST)
    ids = torch.randint(0, anatomy.vocabulary, (4, length), generator=generator)
    ids[:, 0] = ids[0, 0]
    return ids.to(anatomy.device)


def _summed(anatomy: Anatomy, run: Run) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the attention of every layer and last the logits read, and every MLP, as sums of what nodes wrote."""
    heads, read, middle = list(range(anatomy.shape.n_heads)), [run.stream[0]], list[Tensor]()
    for layer in range(anatomy.shape.n_layers):
        attention = anatomy.head_outputs(layer, run.z[layer], heads).sum(-2)
        bias = anatomy.output_bias(layer)
        after = read[-1] + anatomy.written(layer, attention if bias is None else attention + bias)
        middle.append(read[-1] if anatomy.shape.parallel else after)
        read.append(anatomy.at(layer + 1, after + run.mlp[layer]))
    return read, middle


def _wiring(tracer: Tracer, run: Run, tolerance: float) -> GuardResult:
    """Recompute what every receiver makes of the sum of what nodes wrote before it."""
    errors = dict(_wiring_errors(tracer, run))
    wrong = [place for place, error in errors.items() if not error <= tolerance]
    where = f" The first to differ are the {wrong[0]}." if wrong else ""
    meaning = "A receiver does not read what the graph says: a block order, a norm or a projection is declared wrongly."
    return GuardResult("wiring", float(np.max(list(errors.values()))), tolerance, meaning + where)


def _wiring_errors(tracer: Tracer, run: Run) -> Iterator[tuple[str, float]]:
    anatomy, recorder = tracer.anatomy, Recorder()
    read, middle = _summed(anatomy, run)
    visits: dict[tuple[int, LayerSite], Visit] = {}
    for layer, value in enumerate(middle if anatomy.shape.mlps else ()):
        visits[layer, LayerSite.MLP_IN] = partial(put, value)
        visits[layer, LayerSite.MLP_OUT] = partial(_kept_and_put, recorder, layer, run.mlp[layer])
    tracer.run(run.ids, Plan(attention=dict(enumerate(run.attention)), visits=visits))
    for layer, stream in enumerate(read[:-1]):
        normed = anatomy.attention_norm(layer, stream)
        for slot, path in anatomy.architecture.slot_modules.items():
            made = anatomy.project(layer, slot, normed)
            yield f"{slot.word} of layer {layer}", distance(made, run.projections[layer][path])
        if anatomy.shape.mlps:
            yield f"outputs of m{layer}", distance(recorder.values[layer, LayerSite.MLP_OUT], run.mlp[layer])


def _kept_and_put(recorder: Recorder, layer: int, value: Tensor, found: Tensor) -> Tensor:
    """Keep what an MLP puts out, and let the run go on from what it should have put out."""
    recorder.at(layer, LayerSite.MLP_OUT)(found)
    return value.clone()


def _restarted(tracer: Tracer, run: Run) -> Tensor:
    """Return the logits that follow from the stream and the attention's output of the last layer."""
    last, recorder = tracer.anatomy.shape.n_layers - 1, Recorder()
    attention = {last: run.attention[last]}
    plan = Plan(start=last, stream=run.stream[last], attention=attention, logits=recorder.keep_logits)
    tracer.run(run.ids, plan)
    return recorder.logits


def _head_isolation(tracer: Tracer, run: Run, tolerance: float) -> GuardResult:
    """Check in the first and the last layer that every unit's slots are where the adapter says."""
    found = {layer: isolation(tracer, run, layer) for layer in sorted({0, tracer.anatomy.shape.n_layers - 1})}
    idle = [f"the {slot.word} of layer {layer}" for layer, (_, slots) in found.items() for slot in slots]
    untested = f" Not tested, since they change nothing in these prompts: {', '.join(idle)}." if idle else ""
    return GuardResult(
        "head isolation",
        float(np.max([error for error, _ in found.values()])),
        tolerance,
        "Changing one head's query, key or value changes other heads or positions than it should: heads or slots are "
        "sliced wrongly, or heads belong to other groups." + untested,
    )


def _tokenizer(anatomy: Anatomy, tokenizer: Any) -> GuardResult:
    """Check that texts become tokens that the embedding has and that decode to the texts again.

    A sentence, or words of its own where a tokenizer has none for the sentence (one made for sums). The prompts
    in use are checked when they are tokenized, and when they meet the model (:mod:`circuits.tracing.requirements`).
    """
    tried = [_decoded(tokenizer, text, anatomy.vocabulary) for text in _texts_to_try(anatomy, tokenizer)]
    same = bool(tried) and all("".join(found.split()) == "".join(text.split()) for text, found in tried)
    meaning = (
        "The tokenizer does not belong to this model: tokens are outside the embedding, or do not decode to the text."
    )
    return GuardResult("tokenizer", 0.0 if same else 1.0, 0.0, meaning)


def _decoded(tokenizer: Any, text: str, size: int) -> tuple[str, str]:
    """Return a text and what its tokens decode to: nothing, where the embedding lacks one."""
    ids: list[int] = tokenizer.encode(text)
    fits = bool(ids) and max(ids) < size
    return text, str(tokenizer.decode(ids, skip_special_tokens=True)) if fits else ""


def _texts_to_try(anatomy: Anatomy, tokenizer: Any) -> list[str]:
    """Return a sentence if the tokenizer has tokens for it, otherwise texts of its own tokens."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    try:
        # Of words only, some have no token for an unknown one, which is an error that has no name.
        by_word = type(getattr(backend, "model", None)).__name__ == "WordLevel"
        if not by_word and unknown_place(tokenizer, _SENTENCE, tokenizer.encode(_SENTENCE)) is None:
            return [_SENTENCE]
    except PromptError:  # what an object raises that only encodes and decodes
        pass
    size = min(anatomy.vocabulary, len(tokenizer))
    texts = [_own_text(tokenizer, token) for token in range(0, size, max(1, size // _OWN_WORDS))]
    return [text for text in texts if text.strip()]


def _own_text(tokenizer: Any, token: int) -> str:
    """Return a token's text: nothing for a special one, and for one that the tokenizer does not have."""
    try:
        return str(tokenizer.decode([token], skip_special_tokens=True))
    except PromptError:
        return ""
