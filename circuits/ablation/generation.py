"""A model with some of its nodes ablated, scaled or steered: it predicts, continues prompts, and is read like a model.

Nothing is changed on the model itself: every prediction is a traced run of its own, with the intervention at every
token of it. Tokens are generated greedily and each by running the whole text again, which is exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.ablation.intervention import Intervention, Place, Reference, batches, reference_of, visits_of
from circuits.ablation.nodes import acting_nodes
from circuits.behaviours import BUILT_IN, load_behaviour
from circuits.behaviours.pairs import TokenPair
from circuits.behaviours.tokens import Prompt, Tokens, prompt_text, prompt_tokens
from circuits.circuit import Circuit
from circuits.errors import PromptError, UsageError
from circuits.graph import Node
from circuits.model import Model
from circuits.tracing.plan import Plan, Visit
from circuits.tracing.requirements import require_prompts
from circuits.tracing.runs import Recorder, unembed
from circuits.tracing.state import in_own_state
from circuits.vocabulary import NodeChoice

MAX_NEW_TOKENS = 8
"""Enough to tell how an answer begins. A model that was stopped from refusing is never asked for more."""
REFERENCE_PAIRS = 32


@dataclass(frozen=True)
class AblatedModel:
    """A model whose ``nodes`` are acted on while it runs. Make one with :func:`ablated`."""

    model: Model
    nodes: tuple[Node, ...]
    intervention: Intervention
    visits: Mapping[Place, Visit]

    @in_own_state
    def logits(self, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row d_vocab"]:
        """Predict what follows prompts of one length. Cost: one forward pass."""
        recorder = Recorder()
        self.model.tracer.run(ids, Plan(visits=self.visits, logits=recorder.keep_logits))
        return recorder.logits

    @in_own_state
    def generate(self, prompt: Prompt, *, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """Continue a text, or answer chat messages, greedily; a few tokens only (8 at most).

        Raises :class:`UsageError` for more tokens, :class:`PromptError` for a model without tokenizer.
        """
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise PromptError("this model has no tokenizer; use `continuations` on token ids.")
        text = prompt_text(tokenizer, prompt)
        ids = prompt_tokens(tokenizer, text, rendered=not isinstance(prompt, str))
        if not ids:
            raise PromptError("the prompt is empty; expected at least one token.")
        return str(tokenizer.decode(list(self.continuations([ids], max_new_tokens)[0][0])))

    @in_own_state
    def continuations(
        self, prompts: Sequence[Tokens], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> tuple[list[Tokens], Float[Tensor, "row d_vocab"]]:
        """Continue prompts greedily, up to an end-of-text token; give also the logits of the first new token.

        Cost: one forward pass for every new token.
        """
        if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
            raise UsageError(
                f"expected 1 to {MAX_NEW_TOKENS} new tokens, got {max_new_tokens}: only the beginning of an answer is "
                "generated, which is enough to tell what kind of answer it is."
            )
        anatomy, ends = self.model.tracer.anatomy, end_tokens(self.model)
        require_prompts(anatomy, {f"prompt {i}": prompt for i, prompt in enumerate(prompts)}, more=max_new_tokens - 1)
        found: dict[int, tuple[Tokens, Tensor]] = {}
        for members, ids in batches(prompts, anatomy.device):
            first, new = self._continued(ids, max_new_tokens, ends)
            for row, member in enumerate(members):
                found[member] = (_until_end(_ids(new[row]), ends), first[row])
        ordered = [found[member] for member in range(len(prompts))]
        return [tokens for tokens, _ in ordered], torch.stack([logits for _, logits in ordered])

    def _continued(self, ids: Tensor, count: int, ends: frozenset[int]) -> tuple[Tensor, Tensor]:
        length, first = ids.shape[1], None
        for _ in range(count):
            logits = self.logits(ids)
            first = logits if first is None else first
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
            if all(not ends.isdisjoint(_ids(row)) for row in ids[:, length:]):
                break
        assert first is not None
        return first, ids[:, length:]

    @in_own_state
    def losses(self, texts: Sequence[Tokens]) -> list[Float[Tensor, " token"]]:
        """Return minus the log probability of every token but the first, in nats. Cost: one forward pass."""
        found: dict[int, Tensor] = {}
        for members, ids in batches(texts, self.model.tracer.anatomy.device):
            recorder = Recorder()
            self.model.tracer.run(ids, Plan(visits=self.visits, final=recorder.keep_final))
            streams = recorder.final[:, :-1].flatten(0, 1).unsqueeze(1)
            logits = unembed(self.model.tracer, ids[:, :-1].reshape(-1, 1), streams).float()
            losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
            found |= dict(zip(members, losses.reshape(len(members), -1), strict=True))
        return [found[member] for member in range(len(texts))]


@in_own_state
def ablated(
    model: Model,
    circuit: Circuit | Sequence[Node | str],
    intervention: Intervention | None = None,
    *,
    which: NodeChoice | str = NodeChoice.ALL,
    reference: Reference | Sequence[TokenPair] | None = None,
) -> AblatedModel:
    """Return a model whose circuit is ablated, scaled or steered while it runs: at its nodes, for all that they send.

    Args:
        model: The model; nothing is changed on it.
        circuit: Its heads and MLPs are acted on (``which``: all, or of one kind); or these nodes, which may be text.
        intervention: What is done to them; replaced by their means by default.
        which: Which nodes of the circuit.
        reference: Prompt pairs for means and directions, or what :func:`reference_of` made of them. Default: the
            discovery prompts of the circuit's behaviour, where that is a built-in one.

    Raises :class:`UsageError` for a circuit of another model shape, one without such nodes, and where reference prompts
    are needed and not known.
    """
    intervention = intervention or Intervention()
    chosen = acting_nodes(circuit, which) if isinstance(circuit, Circuit) else circuit
    if isinstance(circuit, Circuit) and circuit.model.shape != model.info.shape:
        raise UsageError(
            f"the circuit is of {circuit.model.id} with {circuit.model.shape.describe()}, but {model.info.id} has "
            f"{model.info.shape.describe()}; use the circuit's own model."
        )
    nodes = tuple(model.graph.node(node) for node in ([chosen] if isinstance(chosen, str) else chosen))
    if not intervention.needs_reference:
        reference = None
    elif not isinstance(reference, Reference):
        reference = reference_of(model.tracer, _reference_pairs(model, circuit) if reference is None else reference)
    return AblatedModel(model, nodes, intervention, visits_of(model.tracer.anatomy, nodes, intervention, reference))


def _reference_pairs(model: Model, circuit: Circuit | Sequence[Node | str]) -> Sequence[TokenPair]:
    """Draw the pairs that a built-in behaviour's circuit was searched on."""
    if not isinstance(circuit, Circuit) or circuit.behaviour.name not in BUILT_IN:
        raise UsageError(
            "means and directions are taken over reference prompts, and there are none for this circuit; give pairs "
            "with `reference`, or use zero ablation without steering."
        )
    count = circuit.behaviour.n_discovery or REFERENCE_PAIRS
    behaviour = load_behaviour(circuit.behaviour.name, recorded=circuit.behaviour)
    return behaviour.prompts(model.tokenizer, discovery=count, heldout=0, seed=circuit.method.seed).discovery


def end_tokens(model: Model) -> frozenset[int]:
    """Return the tokens at which the model stops: those of its generation settings, and the tokenizer's."""
    settings: Any = getattr(model.tracer.anatomy.module, "generation_config", None)
    tokens: set[int] = set()
    for source in (settings, model.tokenizer):
        given: Any = getattr(source, "eos_token_id", None)
        if given is not None:
            tokens.update([given] if isinstance(given, int) else given)
    return frozenset(tokens)


def _ids(tokens: Int[Tensor, " token"]) -> list[int]:
    return [int(token) for token in tokens]


def _until_end(tokens: list[int], ends: frozenset[int]) -> Tokens:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:stop])
