"""A loaded model, ready for experiments: weights, tokenizer, graph and tracer behind one name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuits.behaviours.behaviour import TokenPair
from circuits.builder import build_graph
from circuits.graph import ComputationalGraph
from circuits.models.builtin import FetchProgress, no_fetch_progress
from circuits.models.loading import LoadedWeights, load_weights
from circuits.records import ModelInfo
from circuits.tracing.anatomy import Anatomy
from circuits.tracing.experiment import Options, PatchingExperiment
from circuits.tracing.guards import GuardResult, check, require
from circuits.tracing.tracer import Tracer


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
    def dtype(self) -> str:
        """The type of the model's weights, such as ``float32``."""
        return str(self.tracer.anatomy.dtype).removeprefix("torch.")

    def experiment(self, pairs: Sequence[TokenPair], options: Options | None = None) -> PatchingExperiment:
        """Set up measurements on prompt pairs. Cost: two forward passes of the pairs."""
        return PatchingExperiment(self.tracer, self.graph, pairs, options or Options())

    def __repr__(self) -> str:
        shape = self.info.shape
        return (
            f"Model({self.info.id!r}: {shape.n_layers} layers, {shape.n_heads} heads, "
            f"{shape.n_kv_heads} key/value heads, {self.graph.n_edges:,} edges, {self.dtype} on {self.device})"
        )


def load_model(
    model: str = "smollm2-135m",
    *,
    device: str = "auto",
    dtype: str = "auto",
    progress: FetchProgress = no_fetch_progress,
) -> Model:
    """Load a built-in model, a local folder or a Hugging Face id, and verify that it can be measured.

    ``device`` is auto, cpu, cuda or mps; ``dtype`` auto (float32 on a CPU, the model's own elsewhere), float32,
    bfloat16 or float16. ``progress`` is told while a built-in model is fetched, which happens once. Raises
    ``UnknownNameError``, ``ModelUnavailableError``, ``UnsupportedModelError``, ``DeviceError``, and ``GuardError`` for
    a model that would be measured wrongly.
    """
    loaded = verified(load_weights(model, device=device, dtype=dtype, progress=progress))
    require(loaded.guards, loaded.info.id)
    return loaded


def verified(weights: LoadedWeights) -> Model:
    """Wrap loaded weights and run the guards, without refusing (``circuits check`` shows the results)."""
    anatomy = Anatomy(weights.module)
    tracer = Tracer(anatomy, weights.tokenizer)
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
    )
    return Model(info, weights.tokenizer, tracer, graph, check(tracer, graph, weights.tokenizer))
