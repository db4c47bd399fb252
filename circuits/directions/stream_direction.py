"""A direction of the residual stream at one layer and token, and its files.

It is kept as ``NAME.safetensors``, which holds the tensor ``direction`` (unit length, float32) and says in its metadata
where it belongs, beside ``NAME.json`` with the same facts in plain text. Files of other tools are read too: any
safetensors file with one vector, beside a JSON file with ``layer`` and ``pos``; and linear probes, which are directions
with a bias (:mod:`circuits.directions.direction_files`).
"""

import hashlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import save

from circuits.directions.direction_files import TENSOR, read_vector
from circuits.equality import by_content
from circuits.errors import FormatError, UsageError
from circuits.files.atomic import write
from circuits.files.documents import json_text, read_json
from circuits.records import LAST, ModelInfo, Target
from circuits.scores import Floats

FORMAT, VERSION = "circuits/direction", 1
SUFFIX = ".safetensors"
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Origin:
    """What a direction was taken from: model, weights, behaviour and prompts; empty where that is not known."""

    model: str = ""
    model_digest: str = ""
    behaviour: str = ""
    prompts_digest: str = ""
    pairs: int = 0


@by_content
@dataclass(frozen=True, eq=False)
class StreamDirection:
    """A direction of the residual stream.

    Attributes:
        vector: Unit vector, from corrupted to clean prompts, shape ``(d_model,)``.
        layer: It was read in the stream that enters this layer (0: the embeddings); the number of layers is the stream
            that the final norm reads.
        position: At this token, counted from the end of the prompt: -1 is the last one.
        size: The distance between the two means, in the stream's own units; what is added when it is added.
        bias: What is added to the length along it where circuits lead to it: the constant of a linear probe. Given in
            the vector's own length, and scaled with it: the sum is the distance from the probe's boundary.
        origin: What it was taken from.
    """

    vector: Floats
    layer: int
    position: int = -1
    size: float = 1.0
    origin: Origin = Origin()
    bias: float = 0.0

    def __post_init__(self) -> None:
        length = float(np.linalg.norm(self.vector))
        sound = self.vector.ndim == 1 and np.isfinite(length) and length > 0 and np.isfinite(self.bias)
        if not sound or self.layer < 0 or self.position > -1:
            raise UsageError(
                f"a direction is one vector of finite numbers that are not all 0, a layer from 0 up and a position of "
                f"-1 or less; got shape {self.vector.shape}, length {length:g}, layer {self.layer}, position "
                f"{self.position}."
            )
        length = 1.0 if abs(length - 1) < _ROUNDING else length  # what a file holds stays as it is, and so its digest
        object.__setattr__(self, "vector", np.asarray(self.vector, dtype=np.float64) / length)
        object.__setattr__(self, "bias", float(self.bias) / length)
        self.vector.setflags(write=False)

    @property
    def digest(self) -> str:
        """A SHA-256 over the direction, as the file holds it, and its place."""
        place = f"{self.layer} {self.position} {f'{self.bias:.6g}' if self.bias else ''}".encode()
        return hashlib.sha256(place + self.vector.astype("<f4").tobytes()).hexdigest()

    @property
    def target(self) -> Target:
        """The place as the end of a circuit."""
        return Target(self.layer, self.digest, position=LAST if self.position == -1 else str(self.position))

    def at(self, target: Target) -> Self:
        """Return the direction at a target's layer and token; of a role, which is no one number, at the last token."""
        counted = target.position.startswith("-")
        return replace(self, layer=target.layer, position=int(target.position) if counted else -1)

    def require_model(self, model: ModelInfo) -> None:
        """Raise :class:`UsageError` unless a model has a stream of this width and such a layer."""
        if len(self.vector) != model.d_model or self.layer > model.n_layers:
            raise UsageError(
                f"the direction has {len(self.vector)} numbers and is of layer {self.layer}, but {model.id} has "
                f"d_model {model.d_model} and {model.n_layers} layers; use the model it was found in "
                f"({self.origin.model or 'unknown'})."
            )

    def facts(self) -> dict[str, Any]:
        """Return all but the vector, as JSON has it; ``pos`` is the position's name elsewhere."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "layer": self.layer,
            "pos": self.position,
            "size": self.size,
            **({"bias": self.bias} if self.bias else {}),
            **asdict(self.origin),
        }

    def save(self, path: str | Path, *, more: dict[str, Any] | None = None) -> None:
        """Write ``path`` (its suffix becomes ``.safetensors``) and the JSON beside it, which also says ``more``."""
        file = Path(path).with_suffix(SUFFIX)
        facts = self.facts()
        metadata = {key: str(value) for key, value in facts.items()}
        write(file, save({TENSOR: self.vector.astype(np.float32)}, metadata), make_folder=True)
        write(file.with_suffix(".json"), json_text(facts | (more or {})))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a direction; raises :class:`FormatError` for a file that is none or does not say where it belongs."""
        file = Path(path)
        beside = file.with_suffix(".json")
        vector, facts = read_vector(file)
        if "layer" not in facts and beside.is_file():
            facts |= _document(beside)
        if "layer" not in facts:
            raise FormatError(
                f"{file} does not say of which layer its direction is; expected it in the file's metadata (of .npz: as "
                f'an array `layer`) or in {beside.name}: {{"layer": 16, "pos": -1}}.'
            )
        try:
            place = TypeAdapter(_Place).validate_python(facts)
            origin = {each.name: facts[each.name] for each in fields(Origin) if each.name in facts}
            known = TypeAdapter(Origin).validate_python(origin)
            return cls(vector, place.layer, place.pos, place.size, known, place.bias)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FormatError(f"{file}: {where}: {first['msg']} (got {first['input']!r}).") from error
        except UsageError as error:
            raise FormatError(f"{file}: {error}") from error


@dataclass(frozen=True)
class _Place:
    layer: int
    pos: int = -1
    size: float = 1.0
    bias: float = 0.0


def _document(file: Path) -> dict[str, Any]:
    found = read_json(file)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
