"""A loaded model, ready for experiments: weights, tokenizer, graph and tracer behind one name."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, cast

import torch
from torch import nn

from circuits.adapters.anatomy import Anatomy
from circuits.adapters.architecture import Architecture
from circuits.behaviours.behaviour import digest_of
from circuits.behaviours.endings import ending_at
from circuits.behaviours.pairs import TokenPair, template_of
from circuits.behaviours.roles import BY_DIFFERENCE
from circuits.builder import build_graph
from circuits.directions.means import direction_of
from circuits.errors import UsageError
from circuits.files.journal import NOWHERE, Journal, Shelf
from circuits.graph import ComputationalGraph
from circuits.guards.checks import GuardResult, check, require
from circuits.models.fetching.builtin import FetchProgress, no_fetch_progress
from circuits.models.in_memory import weights_in_memory
from circuits.models.loading import load_weights
from circuits.models.packed_weight import Packing
from circuits.models.weights import LoadedWeights, attention_of
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.keeping import shelf_of_pairs
from circuits.patching.measurement import Options, Resources
from circuits.patching.recorded_pairs import resampled
from circuits.patching.sequences import AnyExperiment, SequenceExperiment, rows_of
from circuits.records import ModelInfo
from circuits.settings import require_kind
from circuits.tracing.state import in_own_state
from circuits.tracing.tracer import Tracer
from circuits.vocabulary import Ablation, Metric


@dataclass(frozen=True)
class Model:
    """A model that passed the guards. Make one with :func:`load_model`."""

    info: ModelInfo
    tokenizer: Any
    tracer: Tracer
    graph: ComputationalGraph
    guards: tuple[GuardResult, ...]

    @property
    def device(self) -> str:
        """The kind of device the model runs on."""
        return self.tracer.anatomy.device.type

    @property
    def n_parameters(self) -> int:
        """How many numbers the model's weights are."""
        return sum(weights.numel() for weights in self.tracer.anatomy.module.parameters())

    @property
    def dtype(self) -> str:
        """The type of the model's weights, such as ``float32``; with torch's matmul precision where that is lowered."""
        name, precision = str(self.tracer.anatomy.dtype).removeprefix("torch."), torch.get_float32_matmul_precision()
        lowered = name == "float32" and precision != "highest"
        return f"{name}, matmul precision {precision}" if lowered else name

    @property
    def packing(self) -> Packing | None:
        """How much of the weights is packed and expanded when it is used; None: nothing is."""
        return Packing.of(self.tracer.anatomy.module)

    @property
    def attention(self) -> str:
        """The attention implementation, such as ``sdpa``; empty for a module that is not of transformers."""
        return attention_of(self.tracer.anatomy.module)

    def by_role(self, roles: Sequence[str] = BY_DIFFERENCE) -> Self:
        """Return the same model with edges that have token roles: ``a3.h5->a7.h2<q>@end``.

        An edge with a role carries its sender's value at the positions of that role alone, so there are as many times
        more edges as there are ``roles``, and effects that cancel over positions are seen. Roles are those of the
        prompt pairs (:func:`circuits.role_names`), by default those by difference. Scorers, pruners and evaluations
        take the experiments of this model as those of any other; nothing is loaded again.
        """
        info = replace(self.info, roles=tuple(roles))
        return replace(self, info=info, graph=build_graph(info.shape))

    def with_roles_of(self, info: ModelInfo) -> Self:
        """Return the model with the token roles of a circuit's edges, where these have some; else as it is."""
        return self.by_role(info.roles) if info.roles and not self.info.roles else self

    def experiment(
        self,
        pairs: Sequence[TokenPair],
        options: Options | None = None,
        *,
        resources: Resources | None = None,
        reference: Sequence[TokenPair] = (),
        journal: Journal | None = None,
    ) -> AnyExperiment:
        """Set up measurements on prompt pairs, by any metric.

        Args:
            pairs: What is measured.
            options: How: metric, ablation, direction. With the metric ``sequence`` answers may be of several tokens.
            resources: What measuring may use: memory, rows per pass, the prefix cache, checkpointing.
            reference: Of the metric ``projection``, the pairs that its direction is taken from
                (``behaviour.prompts(...).reference``); never those it is judged on. Not needed where the model's
                circuits lead to a given direction or a neuron (:func:`circuits.leading_to`). Of mean ablations, those
                whose corrupted prompts the means are taken over.
            journal: Keeps what is measured, and gives back what an earlier run has measured of the same.

        Cost: two forward passes of the pairs; of answers of several tokens, of all their rows; of ``projection``, one
        of both sides of the reference pairs too, and of mean ablations, one of their corrupted side. Raises
        :class:`UsageError` for a projection or a mean without reference pairs, for a pair to resample that is the only
        one of its length, and for another metric where circuits lead to a direction; ``PromptError`` for pairs that
        cannot be measured.
        """
        options = options or Options()
        pairs, reference = self._ending(pairs), self._ending(reference)
        if self.info.target is not None and options.metric is not Metric.PROJECTION:
            raise UsageError(
                f"what leads to {self.info.target} is measured by the length along its direction; choose the metric "
                f"{Metric.PROJECTION}, or leave the target out for the logits."
            )
        tracer, shelf = self.tracer, self._shelf(options, reference, journal)
        if self._finds_direction(options):
            tracer = tracer.reading(direction_of(tracer, reference)[None])

        if options.ablation is Ablation.RESAMPLE:
            pairs = resampled(pairs)

        def measured(rows: Sequence[TokenPair]) -> PatchingExperiment:
            return PatchingExperiment(
                tracer, self.graph, rows, options, resources=resources, reference=reference, shelf=shelf
            )

        return SequenceExperiment(pairs, measured) if options.metric.whole_answers else measured(pairs)

    def kept(
        self, pairs: Sequence[TokenPair], options: Options, *, reference: Sequence[TokenPair], journal: Journal
    ) -> Shelf:
        """Return where the journal keeps what :meth:`experiment` with the same arguments measures."""
        pairs, reference = self._ending(pairs), self._ending(reference)
        pairs = resampled(pairs) if options.ablation is Ablation.RESAMPLE else pairs
        if options.metric.whole_answers:
            pairs = [row for pair in pairs for row in rows_of(pair)]
        return shelf_of_pairs(self._shelf(options, reference, journal), pairs, options.metric, options.ablation)

    def _ending(self, pairs: Sequence[TokenPair]) -> Sequence[TokenPair]:
        """Cut prompts off behind the token that the model's circuits lead to."""
        return pairs if self.info.target is None else ending_at(pairs, self.info.target.position)

    def _shelf(self, options: Options, reference: Sequence[TokenPair], journal: Journal | None) -> Shelf:
        shelf = self.shelf(journal)
        known = self._finds_direction(options) or options.ablation.by_means
        if options.ablation is Ablation.MEAN_BY_TEMPLATE:
            shelf = shelf.under(templates=[template_of(pair) for pair in reference])
        return shelf.under(reference=digest_of(reference)) if known else shelf

    def _finds_direction(self, options: Options) -> bool:
        """Whether the direction that is read is found in reference pairs, not given by where circuits lead."""
        target = self.info.target
        given = target is not None and (target.receiver is None or bool(target.digest))
        return options.metric.along_direction and not given

    def shelf(self, journal: Journal | None) -> Shelf:
        """Return where a journal keeps what is measured with these weights, at this precision."""
        if journal is None or not self.info.digest:
            return NOWHERE
        shelf = journal.shelf(model=self.info.digest, dtype=self.dtype, attention=self.attention)
        shelf = shelf if self.info.target is None else shelf.under(target=asdict(self.info.target))
        return shelf.under(roles=self.info.roles) if self.info.roles else shelf

    def __repr__(self) -> str:
        shape, packed = self.info.shape, ", packed" if self.packing else ""
        return (
            f"Model({self.info.id!r}: {shape.n_layers} layers, {shape.n_heads} heads, "
            f"{shape.n_kv_heads} key/value heads, {self.graph.n_edges:,} edges, {self.dtype} on {self.device}{packed})"
        )


@in_own_state
def load_model(
    model: str | os.PathLike[str] | nn.Module = "smollm2-135m",
    *,
    tokenizer: Any = None,
    architecture: Architecture | None = None,
    name: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    device_map: object = None,
    packed: bool = False,
    progress: FetchProgress = no_fetch_progress,
) -> Model:
    """Load a model, or take one that is in memory, and verify that it can be measured.

    Args:
        model: A built-in name, a local folder (of a model or a LoRA adapter), a ``.gguf`` file, a Hugging Face id; or a
            module: a model of transformers, one wrapped by PEFT, or a decoder of your own. A module is never changed
            (no ``eval()``, no hooks, no gradients on its parameters), but shares its weights with what is measured.
        tokenizer: What turns prompts into tokens; needed with a module, unless you only measure pairs of token ids
            (:class:`TokenPair`). For other models it replaces their own.
        architecture: Where your own decoder reads and writes its residual stream. Overrides what is known of a family.
        name: What to call a module in messages and files; its class name otherwise.
        device: auto, cpu, cuda or mps. For a module this, ``dtype`` and ``attention`` may only name what it has.
        dtype: auto (float32 on a CPU, the model's own elsewhere), float32, bfloat16 or float16.
        attention: auto (sdpa where the model has it), sdpa or eager.
        device_map: Spreads the model over several devices, whole layers each: ``auto`` or ``balanced`` (accelerate
            divides them), a JSON file, or a mapping of the names of modules to devices. A module that is spread already
            is measured where it is.
        packed: Leaves the matrices of a ``.gguf`` file of 8 bits or fewer as they are and expands each whenever it is
            used, on the way back too: the same numbers, in less memory and more time. Anything else is refused.
        progress: Is told while a built-in model is fetched, which happens once.

    Cost: reading the weights and a few passes of a tiny batch; for a module also a SHA-256 over its weights, about a
    second per gigabyte. Raises ``UnknownNameError``, ``ModelUnavailableError``, ``UnsupportedModelError`` (with the
    reason), ``DeviceError``, ``UsageError``, and ``GuardError`` for a model that would be measured wrongly.
    """
    if isinstance(model, nn.Module):
        if packed:
            raise UsageError(
                "packed is for the name of a .gguf file, and a module in memory is as it is; leave it out."
            )
        if device_map is not None:
            raise UsageError(
                "a device map was given with a module in memory, which is not moved for you. Spread it yourself "
                "(`from_pretrained(..., device_map='auto')`), or give the name of the model or its folder."
            )
        described = architecture is not None
        weights = weights_in_memory(
            model, tokenizer, name=name, described=described, device=device, dtype=dtype, attention=attention
        )
    else:
        weights = load_weights(
            _name_of(model),
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            attention=attention,
            device_map=device_map,
            packed=packed,
            progress=progress,
        )
    loaded = verified(weights, architecture)
    require(loaded.guards, loaded.info.id)
    return loaded


def _name_of(model: object) -> str:
    if isinstance(model, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", model))
    advice = "the name of a built-in model or of one of the hub, a folder, or a module in memory (nn.Module)."
    require_kind(model, str, "the model", advice)
    return str(model)


@in_own_state
def verified(weights: LoadedWeights, architecture: Architecture | None = None) -> Model:
    """Wrap loaded weights and run the guards, without refusing (``circuits check`` shows the results)."""
    anatomy = Anatomy(weights.module, architecture)
    tracer = Tracer(anatomy)
    graph = build_graph(anatomy.shape)
    shape = anatomy.shape
    info = ModelInfo(
        id=weights.id,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        d_model=shape.d_model,
        d_head=shape.d_head,
        parallel=shape.parallel,
        architecture=anatomy.architecture.name,
        revision=weights.revision,
        digest=weights.digest,
        tokenizer_digest=weights.tokenizer_digest,
        mlps=shape.mlps,
    )
    return Model(info, weights.tokenizer, tracer, graph, check(tracer, graph, weights.tokenizer))
