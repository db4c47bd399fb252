"""Guards: measurements on one tiny batch that show whether a model is measured at the right places.

Each has an error, a tolerance that follows the dtype, and a meaning; :func:`require` refuses a model that fails one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuits.behaviours.tokens import unknown_place
from circuits.errors import GuardError, PromptError
from circuits.graph import ComputationalGraph, ModelShape, Slot
from circuits.tracing.anatomy import Anatomy
from circuits.tracing.masked import run_masked
from circuits.tracing.plan import Plan, Site, Visit, put
from circuits.tracing.runs import Recorder, Run, record
from circuits.tracing.state import in_own_state
from circuits.tracing.tracer import Tracer, tolerance_of

_POSITIONS = 6
_SENTENCE, _OWN_WORDS = "The keys to the cabinet are on the table.", 8
_KEY, _QUERY, _AFTER_KEY = slice(0, 1), slice(1, 2), slice(1, None)
"""Positions at which the guards change a key or a query, and those that see the changed key and others."""


@dataclass(frozen=True)
class GuardResult:
    """One guard's measured error against its tolerance, and what a failure means."""

    name: str
    error: float
    tolerance: float
    meaning: str
    advice: str = "Describe it with an Architecture that fits: see 'Models of your own' in the README."

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

    def require_plain(self, ids: Sequence[Int[Tensor, "pair pos"]], runs: Sequence[Run]) -> None:
        """Raise where the first or last prompt of one of these runs has other logits than in a plain forward pass.

        The runs are of equal token length and prefix length; only the first of each two lengths are looked at. Cost:
        a forward pass of two prompts for each run. Raises :class:`PrefixDiffersError` where the runs continue from
        a prefix, and else :class:`GuardError`.
        """
        length, shared = ids[0].shape[1], 0 if runs[0].prefix is None else runs[0].prefix.length
        if (length, shared) in self._seen:
            return
        self._seen.add((length, shared))
        rows = sorted({0, len(ids[0]) - 1})
        plain = self._tracer.plain_logits(torch.cat([prompts[rows] for prompts in ids]))
        dtype = self._tracer.anatomy.dtype
        if not bool(plain.isfinite().all()):
            raise GuardError(f"the logits of prompts of {length} tokens {_not_finite(dtype)}.")
        error, tolerance = _distance(torch.cat([run.logits[rows] for run in runs]), plain), tolerance_of(dtype)
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
            f"pass of the same tokens (tolerance {tolerance:.2g}), though the guards, on {_POSITIONS} tokens, passed. "
            f"Its scores would be wrong. {_hooks_advice(self._tracer) or 'Try shorter prompts.'}"
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
        _distance(_summed(tracer.anatomy, clean)[0][-1], clean.stream[-1]),
        tolerance,
        "What the nodes write does not add up to the residual stream that the logits read: a norm or factor between a "
        "block and the stream is not declared, or a block has parts that are not.",
    )
    first = zip(clean.stream, corrupted.stream, strict=True)
    yield GuardResult(
        "causality",
        float(np.max([_distance(here[:, :1], there[:, :1]) for here, there in first])),
        tolerance,
        "What stands at the first token depends on later tokens: this is no decoder.",
    )
    nothing = run_masked(tracer, graph, corrupted, {}, np.zeros((1, graph.n_edges), dtype=np.bool_))[0]
    yield GuardResult(
        "nothing live",
        _distance(nothing, corrupted.logits),
        tolerance,
        "With nothing live a run must equal the corrupted run: the logits are not read where the adapter says.",
    )
    yield _wiring(tracer, clean, tolerance)
    hint = " Rounding alone can make a mixture of experts choose others: try float32." if tolerance > 1e-2 else ""
    changes = {0: clean.stream[0] - corrupted.stream[0]}
    everything = run_masked(tracer, graph, corrupted, changes, np.ones((1, graph.n_edges), dtype=np.bool_))[0]
    yield GuardResult(
        "everything live",
        _distance(everything, clean.logits),
        tolerance,
        "With everything live a run must equal the clean run. Where the other guards pass, a projection may run twice, "
        "or the attention may read something besides queries, keys and values." + hint,
    )
    yield GuardResult(
        "restart",
        _distance(_restarted(tracer, clean), clean.logits),
        tolerance,
        "Going on from a recorded attention output must end in the recorded logits: the attention, or what it adds to, "
        "is declared wrongly.",
    )
    yield _head_isolation(tracer, clean, tolerance)


def _prompts(anatomy: Anatomy) -> Tensor:
    """Give two pairs of random prompts, clean and then corrupted, that start with the same token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, anatomy.vocabulary, (4, _POSITIONS), generator=generator)
    ids[:, 0] = ids[0, 0]
    return ids.to(anatomy.device)


def _summed(anatomy: Anatomy, run: Run) -> tuple[list[Tensor], list[Tensor]]:
    """Give what the attention of every layer and last the logits read, and every MLP, as sums of what nodes wrote."""
    heads, read, middle = list(range(anatomy.shape.n_heads)), [run.stream[0]], list[Tensor]()
    for layer in range(anatomy.shape.n_layers):
        attention = anatomy.head_outputs(layer, run.z[layer], heads).sum(-2)
        bias = anatomy.output_bias(layer)
        after = read[-1] + anatomy.written(layer, attention if bias is None else attention + bias)
        middle.append(read[-1] if anatomy.shape.parallel else after)
        read.append(after + run.mlp[layer])
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
    visits: dict[tuple[int, Site], Visit] = {}
    for layer, value in enumerate(middle if anatomy.shape.mlps else ()):
        visits[layer, Site.MLP_IN] = partial(put, value)
        visits[layer, Site.MLP_OUT] = partial(_kept_and_put, recorder, layer, run.mlp[layer])
    tracer.run(run.ids, Plan(attention=dict(enumerate(run.attention)), visits=visits))
    for layer, stream in enumerate(read[:-1]):
        normed = anatomy.attention_norm(layer, stream)
        for slot, path in anatomy.architecture.slot_modules.items():
            made = anatomy.project(layer, slot, normed)
            yield f"{slot.word} of layer {layer}", _distance(made, run.projections[layer][path])
        if anatomy.shape.mlps:
            yield f"outputs of m{layer}", _distance(recorder.values[layer, Site.MLP_OUT], run.mlp[layer])


def _kept_and_put(recorder: Recorder, layer: int, value: Tensor, found: Tensor) -> Tensor:
    """Keep what an MLP puts out, and let the run go on from what it should have put out."""
    recorder.at(layer, Site.MLP_OUT)(found)
    return value.clone()


def _restarted(tracer: Tracer, run: Run) -> Tensor:
    """Give the logits that follow from the stream and the attention's output of the last layer."""
    last, recorder = tracer.anatomy.shape.n_layers - 1, Recorder()
    attention = {last: run.attention[last]}
    plan = Plan(start=last, stream=run.stream[last], attention=attention, logits=recorder.keep_logits)
    tracer.run(run.ids, plan)
    return recorder.logits


def _head_isolation(tracer: Tracer, run: Run, tolerance: float) -> GuardResult:
    """Check in the first and the last layer that every unit's slots are where the adapter says."""
    found = {layer: _isolation(tracer, run, layer) for layer in sorted({0, tracer.anatomy.shape.n_layers - 1})}
    idle = [f"the {slot.word} of layer {layer}" for layer, (_, slots) in found.items() for slot in slots]
    untested = f" Not tested, since they change nothing in these prompts: {', '.join(idle)}." if idle else ""
    return GuardResult(
        "head isolation",
        float(np.max([error for error, _ in found.values()])),
        tolerance,
        "Changing one head's query, key or value changes other heads or positions than it should: heads or slots are "
        "sliced wrongly, or heads belong to other groups." + untested,
    )


_SIZES = (1.0, 1e2, 1e4)
"""How large changed slots are: 1 of the order of their own values, the others where that is too little to be seen."""


def _isolation(tracer: Tracer, run: Run, layer: int) -> tuple[float, list[Slot]]:
    """Change one unit's query, key or value: return the largest relative change of heads where there must be none.

    Infinity, if no unit of a slot acts where it must, but the slot acts elsewhere. A slot that changes nothing whatever
    its values are (uniform attention, an empty layer) is returned beside, as one that could not be tested; where
    attention is saturated, only larger changes show where it acts.
    """
    largest, waiting = 0.0, list(Slot)
    for size in _SIZES:
        error, acting = _isolation_error(tracer, run, layer, size)
        largest = float(np.max([largest, error]))
        waiting = [slot for slot in waiting if slot not in acting]
        if not waiting:
            break
    wrong = [slot for slot in waiting if _acts(tracer, run, layer, slot)]
    return (float("inf") if wrong else largest), waiting


def _isolation_error(tracer: Tracer, run: Run, layer: int, size: float) -> tuple[float, set[Slot]]:
    """Return the largest relative change of heads where there must be none, and the slots that act where they must.

    A query is changed at one position and acts there only, a key at the first position and acts later; values of zero
    (of size 1), at all positions, must give an output of zero, so that a slot that is taken for another is noticed too.
    Rows of the run are ``(slot and unit, pair)``.
    """
    anatomy, shape = tracer.anatomy, tracer.anatomy.shape
    changed = [(slot, unit) for slot in Slot for unit in range(len(anatomy.columns[slot]))]
    visits: dict[tuple[int, Site], Visit] = {}
    for path, site in anatomy.architecture.slot_sites.items():
        own = [(row, *each) for row, each in enumerate(changed) if anatomy.architecture.slot_modules[each[0]] == path]
        visits[layer, site] = partial(_changed_slots, anatomy, len(changed), own, size)
    after = _heads_after(tracer, run, layer, visits, len(changed))
    before = rearrange(run.z[layer], "b p (h k) -> 1 b h p k", h=shape.n_heads).expand_as(after)
    may, must, silenced = _reach(changed, shape, after.device)
    acted = ((after != before).any(-1) & must).flatten(1).any(1)
    acting = {slot for slot in Slot if bool(acted[[each[0] is slot for each in changed]].any())}
    error = _distances(after, before).masked_fill(may, 0).amax()
    if size == 1:
        error = torch.maximum(error, _distances(before - after, before).masked_fill(~silenced, 0).amax())
    return float(error), acting


def _acts(tracer: Tracer, run: Run, layer: int, slot: Slot) -> bool:
    """Return whether large random values in a slot, of all units at all positions, change any head's output."""
    path = tracer.anatomy.architecture.slot_modules[slot]
    site = tracer.anatomy.architecture.slot_sites[path]
    columns = tracer.anatomy.columns[slot].flatten()
    after = _heads_after(tracer, run, layer, {(layer, site): partial(_random_slot, columns)}, 1)
    return not torch.equal(rearrange(after, "1 b h p k -> b p (h k)"), run.z[layer])


def _heads_after(
    tracer: Tracer, run: Run, layer: int, visits: dict[tuple[int, Site], Visit], count: int
) -> Float[Tensor, "change pair head pos d_head"]:
    """Return the heads' outputs of one layer in ``count`` copies of a run, with these visits before them."""
    recorder = Recorder()
    stream, ids = run.stream[layer].repeat(count, 1, 1), run.ids.repeat(count, 1)
    visits = {**visits, (layer, Site.Z): recorder.at(layer, Site.Z)}
    tracer.run(ids, Plan(start=layer, stop=(layer, Site.Z), stream=stream, visits=visits))
    heads = tracer.anatomy.shape.n_heads
    return rearrange(recorder.values[layer, Site.Z], "(u b) p (h k) -> u b h p k", u=count, h=heads)


def _reach(changed: list[tuple[Slot, int]], shape: ModelShape, device: torch.device) -> tuple[Tensor, ...]:
    """Say where each change may act, where one of its slot must, and where it must silence the output.

    All have the shape ``(change, 1, head, pos)``.
    """
    may, must, silenced = torch.zeros(3, len(changed), 1, shape.n_heads, _POSITIONS, dtype=torch.bool, device=device)
    for row, (slot, unit) in enumerate(changed):
        size = 1 if slot is Slot.Q else shape.heads_per_group
        heads = slice(unit * size, (unit + 1) * size)
        may[row, :, heads, _QUERY if slot is Slot.Q else slice(None)] = True
        must[row, :, heads, _QUERY if slot is Slot.Q else _AFTER_KEY] = True
        silenced[row, :, heads] = slot is Slot.V
    return may, must, silenced


def _changed_slots(
    anatomy: Anatomy, count: int, own: list[tuple[int, Slot, int]], size: float, outputs: Float[Tensor, "row pos width"]
) -> Tensor:
    """Change one unit's columns in one block of rows for each entry ``(block, slot, unit)``."""
    changed = rearrange(outputs.clone(), "(u b) p w -> u b p w", u=count)
    for block, slot, unit in own:
        columns = anatomy.columns[slot][unit]
        position = slice(None) if slot is Slot.V else _QUERY if slot is Slot.Q else _KEY
        if slot is Slot.V:
            changed[block, :, position, columns] = 0 if size == 1 else size
        else:
            changed[block, :, position, columns] = size * (1 - 2 * changed[block, :, position, columns])
    return changed.flatten(0, 1)


def _random_slot(columns: Int[Tensor, " column"], outputs: Float[Tensor, "row pos width"]) -> Tensor:
    """Put large random values into some columns."""
    generator = torch.Generator().manual_seed(0)
    changed = outputs.clone()
    drawn = _SIZES[1] * torch.randn(*outputs.shape[:2], len(columns), generator=generator)
    changed[..., columns] = drawn.to(outputs)
    return changed


def _tokenizer(anatomy: Anatomy, tokenizer: Any) -> GuardResult:
    """Check that texts become tokens that the embedding has and that decode to the texts again.

    A sentence, or words of its own where a tokenizer has none for the sentence (one made for sums). The prompts
    in use are checked when they are tokenized, and when they meet the model (:mod:`circuits.tracing.prompts`).
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


def _distance(value: Tensor, expected: Tensor) -> float:
    """Give the largest relative distance of vectors along the last axis."""
    return float(_distances(value, expected).amax())


def _distances(value: Float[Tensor, "*any width"], expected: Float[Tensor, "*any width"]) -> Float[Tensor, "*any"]:
    error = (value.float() - expected.float()).square().sum(-1).sqrt()
    size = expected.float().square().sum(-1).sqrt()
    floor = 1e-6 + 1e-3 * float(size.amax())
    return error / size.clamp_min(floor)
