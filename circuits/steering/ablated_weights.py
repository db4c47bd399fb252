"""A model folder whose weights have a direction taken out of all that writes to the residual stream.

With ``d`` the unit vector, every matrix ``W`` that writes to the stream becomes ``(1 - d d^T) W``, every bias ``b``
``b - (b . d) d``, and every row ``e`` of an embedding ``e - (e . d) d`` (Arditi et al. 2024, arXiv:2406.11717, section
4.1, weight orthogonalisation). The stream then never has the direction, which is what ablating it in a run
(:mod:`circuits.steering.steered_model`) comes to. An output matrix tied to the embedding reads the stream and stays as
it was; so the two are stored apart.

A norm between a block and the stream is no matrix, and such models are refused.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from circuits.adapters.anatomy import Anatomy
from circuits.directions.stream_direction import StreamDirection
from circuits.errors import GuardError, OutputError, UnsupportedModelError, UsageError
from circuits.files.atomic import require_room, write
from circuits.files.documents import json_text
from circuits.model import Model
from circuits.models.quiet import quiet_transformers
from circuits.steering.steered_model import SteeredModel
from circuits.tracing.requirements import require_one_device
from circuits.tracing.state import in_own_state
from circuits.tracing.tracer import Tracer, tolerance_of, untraced

RECORD, FORMAT, VERSION = "ablated_direction.json", "circuits/ablated-weights", 1
_TRIED = 6
"""Tokens of the prompt on which the new weights are held against runs with the direction ablated."""
_MOST_BYTES = "5GB"
"""Of one file of weights."""


@dataclass(frozen=True)
class AblatedWeights:
    """What was written: the folder, the parameters that were changed, and how close it comes to ablating in a run.

    ``difference`` is the largest difference of the first token's logits from those of a run with the direction ablated,
    as a share of the largest logit.
    """

    folder: Path
    changed: tuple[str, ...]
    difference: float

    def describe(self) -> str:
        """Return in a sentence what was written."""
        return (
            f"{self.folder}/ holds the model with the direction taken out of {len(self.changed)} weights that write to "
            f"the residual stream; {RECORD} says so."
        )


@in_own_state
def write_ablated_weights(model: Model, direction: StreamDirection, folder: str | Path) -> AblatedWeights:
    """Write a model whose weights have a direction taken out of all that writes to the residual stream.

    The folder is as ``save_pretrained`` writes it (safetensors, configuration, tokenizer) and can be loaded by its
    name. The direction, where it comes from and what was changed are in ``ablated_direction.json``, and in short in the
    configuration. Cost: copies of the weights that are changed, and two forward passes of a few tokens.

    Raises :class:`UsageError` for a direction of another model and a folder that is not empty,
    :class:`UnsupportedModelError` for a model that is not of transformers, or has norms between blocks and stream or
    experts, :class:`GuardError` where the new weights do not do what ablating in a run does, and :class:`OutputError`.
    """
    require_one_device(model.tracer.anatomy, "taking a direction out of weights")
    direction.require_model(model.info)
    if model.packing is not None:
        raise UsageError("the model's weights are packed, and new ones are expanded; load it without packed.")
    if model.info.target is not None:
        raise UsageError(f"the model ends at {model.info.target}; give the model as it was loaded.")
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UsageError(f"'{place}' is there already; a model is written into a new or empty folder. Name another.")
    module, changed = _without(model.tracer.anatomy, direction)
    difference = _difference(model, module, direction)
    found = AblatedWeights(place, changed, difference)
    size = sum(value.numel() * value.element_size() for value in module.parameters())
    require_room(place, size, name="folder", advice="Choose another, or free some space.")
    facts = direction.facts() | {"digest": direction.digest}
    module.config.ablated_direction = facts
    record = {
        "format": FORMAT,
        "version": VERSION,
        "model": model.info.id,
        "model_digest": model.info.digest,
        "direction": facts,
        "changed": list(changed),
        "difference": difference,
    }
    _save(module, model.tokenizer, place, record)
    return found


def _without(anatomy: Anatomy, direction: StreamDirection) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return second module objects, with new weights where the stream is written to and the same ones elsewhere."""
    module = untraced(anatomy.module)
    if not isinstance(module, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(module).__name__} is no model of transformers, so no folder can be written that loads it again; "
            "ablate the direction while the model runs (measure_direction)."
        )
    changed: list[str] = []
    vector = torch.tensor(direction.vector.tolist(), dtype=torch.float64, device=anatomy.device)
    for path in _writers(module, anatomy):
        part = module.get_submodule(path)
        weight_last = isinstance(part, nn.Embedding | Conv1D)
        for name, value in list(part.named_parameters(recurse=False)):
            last = weight_last or value.dim() == 1
            part.register_parameter(name, nn.Parameter(_projected(value, vector, last=last), requires_grad=False))
            changed.append(f"{path}.{name}")
    module.config = copy.deepcopy(module.config)
    module.config.tie_word_embeddings = False
    return module, tuple(changed)


def _projected(value: Tensor, vector: Tensor, *, last: bool) -> nn.Parameter | Tensor:
    """Return a weight without the direction along its last axis, or its first; ``value`` is left as it is."""
    unit = vector.to(torch.promote_types(value.dtype, torch.float32))
    wide = value.detach().to(unit.dtype)
    along: Any = cast(Any, wide) @ unit if last else unit @ wide
    removed = along[..., None] * unit if last else unit[:, None] * along
    return (wide - removed).to(value.dtype)


def _writers(module: PreTrainedModel, anatomy: Anatomy) -> Iterator[str]:
    """Return the paths of the modules that write to the stream: embeddings, output projections, ends of the MLPs."""
    names, width = anatomy.architecture, anatomy.shape.d_model
    if names.attention_post_norm or names.mlp_post_norm:
        raise UnsupportedModelError(
            f"in models of the family '{names.name}' a norm stands between a block and the residual stream, and no "
            "matrix behind it could be changed; ablate the direction while the model runs (ablate without --weights)."
        )
    modules: dict[str, nn.Module] = dict(cast(Any, module).named_modules())
    for path, part in modules.items():
        if isinstance(part, nn.Embedding) and part.embedding_dim == width and not path.startswith(f"{names.layers}."):
            yield path
    for layer in range(anatomy.shape.n_layers):
        above = f"{names.layers}.{layer}"
        yield f"{above}.{names.output}"
        if names.mlp_output or names.mlp:
            yield _end(modules, f"{above}.{names.mlp_output or names.mlp}", width)


def _end(modules: dict[str, nn.Module], path: str, width: int) -> str:
    """Return the linear layer that an MLP ends with."""
    inside = {name: part for name, part in modules.items() if name == path or name.startswith(f"{path}.")}
    if any(value.dim() > 2 for value in modules[path].parameters()):
        raise UnsupportedModelError(
            f"'{path}' holds experts, whose weights cannot be changed yet; ablate the direction while the model runs "
            "(ablate without --weights)."
        )
    ends = [name for name, part in inside.items() if _outputs(part) == width]
    if not ends:
        raise UnsupportedModelError(
            f"'{path}' has no linear layer with {width} outputs, so what it writes to the residual stream cannot be "
            "changed; ablate the direction while the model runs (ablate without --weights)."
        )
    return ends[-1]


def _outputs(part: nn.Module) -> int:
    """Return how many outputs a linear layer has; 0 for other modules."""
    if isinstance(part, Conv1D):
        return int(cast(Any, part).nf)
    return part.out_features if isinstance(part, nn.Linear) else 0


def _difference(model: Model, module: PreTrainedModel, direction: StreamDirection) -> float:
    """Return by how much the new weights' logits differ from an ablated run's, or raise :class:`GuardError`."""
    whole = model.tracer.anatomy
    ids = torch.arange(_TRIED, device=whole.device) % whole.vocabulary
    _, expected = SteeredModel(model, direction).answers([tuple(int(token) for token in ids)])
    found = Tracer(Anatomy(module, whole.architecture)).plain_logits(ids[None]).float().cpu()
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= tolerance_of(whole.dtype):
        raise GuardError(
            f"with the direction taken out of the weights of '{model.info.id}' its logits are not those of a run with "
            f"the direction ablated (they differ by {difference:.2g} of the largest): something else writes to the "
            "residual stream. Ablate the direction while the model runs (ablate without --weights)."
        )
    return difference


def _save(module: PreTrainedModel, tokenizer: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write the files beside the folder and move them into it when all are there; the configuration comes last."""
    try:
        with TemporaryDirectory(dir=folder, prefix=".part") as part:
            with quiet_transformers():
                cast(Any, module).save_pretrained(part, max_shard_size=_MOST_BYTES)
                if tokenizer is not None:
                    tokenizer.save_pretrained(part)
            write(Path(part) / RECORD, json_text(record))
            for file in sorted(Path(part).iterdir(), key=lambda file: file.name == "config.json"):
                file.replace(folder / file.name)
    except OSError as error:
        raise OutputError(
            f"cannot write the model into '{folder}': {error.strerror or error}. Choose another place, or free some "
            "space."
        ) from error
