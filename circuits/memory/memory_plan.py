"""The plan that keeps everything within a budget of memory, made before anything runs.

It says how many pairs are recorded together, how many rows go through one pass, how many senders' changes attribution
holds at once, and whether recorded runs wait in the host's memory; what operations need is in
:mod:`circuits.memory.needs`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from circuits.errors import DeviceError, UsageError
from circuits.memory.needs import ModelSizes, Needs, PromptSize, Terms

AUTO = "auto"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_BUDGET = re.compile(r"(?P<number>\d+(\.\d+)?)\s*((?P<unit>[kmgt]i?)?b|(?P<percent>%))", re.IGNORECASE)


@dataclass(frozen=True)
class Modest:
    """A budget below the limit: a share that others can have too, and of it no more than makes a run fast.

    Attributes:
        tokens: With so many tokens in all senders at once, a run is as fast as with more.
        share: Bytes. Two runs that start together, whichever counts first, get as much each and leave as much.
    """

    tokens: int
    share: int

    def limit(self, needed: int, fast: int) -> int | None:
        """Return the bytes to be content with, given what is needed at least and to be fast; None where too few."""
        return min(self.share, max(needed, fast)) if needed <= self.share else None


@dataclass(frozen=True)
class MemoryBudget:
    """The memory that may be used on top of the loaded model, and what else decides how it is used.

    Attributes:
        limit: Bytes of the device.
        host: Bytes of the host that recorded runs may wait in; 0 where the device is the host.
        pair_tokens: At most so many tokens of pairs are recorded together.
        pass_tokens: At most so many tokens go through one pass.
        modest: What to be content with where that suffices; None where all of ``limit`` may be used.
    """

    limit: int
    host: int = 0
    pair_tokens: int = 320
    pass_tokens: int = 1280
    modest: Modest | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """How a budget is used.

    Attributes:
        budget: What there is.
        sizes: Of which model.
        n_pairs: How many pairs are recorded.
        pair_tokens: Tokens of the pairs recorded together, without those of the prefix cache.
        recorded: Bytes of all recorded runs.
        held: Bytes of recorded runs that are on the device at once.
        attribution_tile: How many senders' changes attribution holds at once.
        checkpointing: Whether a backward pass holds the activations of one layer at a time.
        offload: Whether recorded runs wait in the host's memory.
    """

    budget: MemoryBudget
    sizes: ModelSizes
    n_pairs: int
    pair_tokens: int
    recorded: int
    held: int
    attribution_tile: int
    checkpointing: bool
    offload: bool

    def pairs(self, positions: int) -> int:
        """Return how many pairs are recorded together of which so many positions are run."""
        return max(1, self.pair_tokens // positions)

    def rows(self, row: Terms, positions: int, *, beside: int = 0) -> int:
        """Return how many rows fit into one pass, ``beside`` bytes of something else; at least one."""
        fitting = (self.budget.limit - self.held - beside) // max(1, sum(row.values()))
        return max(1, min(fitting, self.budget.pass_tokens // positions))

    def __str__(self) -> str:
        """Return it as one line of text."""
        where = f"waiting in the host's memory, {human(self.held)} at a time" if self.offload else "kept"
        layers = ", one layer's activations at a time" if self.checkpointing else ""
        tiles = -(-self.sizes.n_senders // self.attribution_tile)
        return (
            f"{human(self.budget.limit)}: {self.n_pairs} pairs recorded in {human(self.recorded)} ({where}), up to "
            f"{self.pair_tokens} tokens of pairs together, attribution in {tiles} tile{'s' * (tiles > 1)} of "
            f"{self.attribution_tile} senders{layers}, the rest for {human(self.budget.limit - self.held)} of passes"
        )


def plan_memory(
    sizes: ModelSizes,
    prompts: Sequence[PromptSize],
    budget: MemoryBudget,
    *,
    runs: int = 2,
    batch_size: int | None = None,
    checkpointing: bool | None = None,
) -> MemoryPlan:
    """Decide how a budget is used for some prompt pairs.

    ``batch_size`` is a number of pairs given by the user; ``checkpointing`` None means: where attribution of a single
    pair does not fit without. Raises :class:`DeviceError`, with the number of bytes needed,
    where not even one pair can be measured or where the recorded runs have no place.
    """
    if checkpointing is None:
        try:
            return plan_memory(sizes, prompts, budget, runs=runs, batch_size=batch_size, checkpointing=False)
        except DeviceError:
            checkpointing = True
    needs = {prompt: Needs(sizes, prompt) for prompt in set(prompts)}
    recorded = {prompt: sum(need.recorded(runs).values()) for prompt, need in needs.items()}
    kept = sum(recorded[prompt] for prompt in prompts)
    working = {prompt: _smallest(need, checkpointing) for prompt, need in needs.items()}
    per_pair = max((recorded[prompt] + working[prompt] for prompt in needs), default=0)
    if per_pair > budget.limit:
        raise DeviceError(
            f"one prompt pair needs {human(per_pair)} of memory beside the model, and {human(budget.limit)} may be "
            f"used. Allow at least that with --memory {_argument(per_pair)}, use shorter prompts or a smaller dtype "
            "(--dtype bfloat16), or a device with more memory. See: circuits guide costs"
        )
    alone = max(working.values(), default=0)
    if budget.modest is not None:
        fast = max((_at_once(need, budget.modest.tokens) for need in needs.values()), default=0)
        budget = replace(budget, limit=budget.modest.limit(kept + alone, kept + fast) or budget.limit)
    offload = 2 * kept > budget.limit and 0 < kept <= budget.host
    if not offload and kept + alone > budget.limit:
        fitting = int((budget.limit - alone) * len(prompts) / kept)
        raise DeviceError(
            f"the recorded runs of {len(prompts)} prompt pairs need {human(kept)} of memory, and measuring them "
            f"{human(alone)} more; {human(budget.limit)} may be used. Use at most {fitting} pairs (--pairs), or allow "
            f"more with --memory {_argument(kept + alone)}. See: circuits guide costs"
        )
    longest = max((prompt.positions for prompt in prompts), default=1)
    most = min(len(prompts), batch_size or max(1, budget.pair_tokens // longest))
    fitting = budget.limit // per_pair if offload else (budget.limit - kept) // alone if alone else 1
    pairs = batch_size or max(1, min(most, fitting))
    plan = MemoryPlan(
        budget=budget,
        sizes=sizes,
        n_pairs=len(prompts),
        pair_tokens=pairs * longest,
        recorded=kept,
        held=min(kept, pairs * max(recorded.values(), default=0)) if offload else kept,
        attribution_tile=sizes.n_senders,
        checkpointing=checkpointing,
        offload=offload,
    )
    return replace(plan, attribution_tile=_tile(plan, list(needs.values()), pairs))


def _smallest(needs: Needs, checkpointing: bool) -> int:
    """Return what a pair needs at least besides its recorded runs: recording, attribution and exact edges, in turn."""
    differences = sum(needs.differences().values())
    exact = differences + sum(needs.exact().values())
    return max(sum(needs.recording().values()), sum(needs.attribution(1, checkpointing).values()), exact)


def _at_once(needs: Needs, tokens: int) -> int:
    """Return what a circuit of all senders, or attribution in one piece, needs for so many tokens."""
    senders, rows = needs.sizes.n_senders, max(1, tokens // needs.prompt.positions)
    return rows * max(sum(needs.circuits(senders).values()), sum(needs.attribution(senders).values()))


def _tile(plan: MemoryPlan, needs: list[Needs], pairs: int) -> int:
    """Return how many senders' changes fit on top of what attribution needs in any case."""
    whole = plan.sizes.n_senders
    free = (plan.budget.limit - plan.held) // max(1, pairs)

    def fits(tile: int) -> bool:
        return all(sum(need.attribution(tile, plan.checkpointing).values()) <= free for need in needs)

    if fits(whole):
        return whole
    low, high = 1, whole
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def parse_budget(text: str, free: int, *, default: float) -> int:
    """Turn ``8GB``, ``512MiB``, ``50%`` (of what is free) or ``auto`` (a share ``default`` of it) into bytes.

    Raises :class:`UsageError` for anything else.
    """
    if text == AUTO:
        return int(default * free)
    found = _BUDGET.fullmatch(text.strip())
    number = 0.0 if found is None else float(found["number"])
    if found is None or number <= 0 or (found["percent"] and number > 100):
        raise UsageError(f"memory is auto, a size such as 8GB or 512MiB, or a share such as 50%; got '{text}'.")
    return int(number / 100 * free if found["percent"] else number * _UNITS[(found["unit"] or "").lower()])


def human(size: float) -> str:
    """Write a number of bytes for people, in powers of 1000."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1000:.3g} kB"


def _argument(size: float) -> str:
    """Write a number of bytes as an argument of ``--memory``, rounded up."""
    return f"{-(-int(size) // 10**6)}MB"
