"""What may lie beside a ``circuit.json``: evidence on its heads (``heads.json``) and its prompts (``prompts.json``).

Both say which circuit they are of, by a digest; files of another circuit are not used. A ``prompts.json`` is a prompt
file as well: every command that takes one reads it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from circuits.circuit import Circuit
from circuits.errors import CircuitsError, FormatError
from circuits.files.documents import json_text, read_json
from circuits.graph import Node
from circuits.interchange.foreign import UNKNOWN
from circuits.interchange.score_files import read_scores_of, scores_of
from circuits.records import Example
from circuits.scores import EdgeScores

HEADS, PROMPTS, SCORES = "heads.json", "prompts.json", "scores.parquet"
HEADS_FORMAT, PROMPTS_FORMAT = "circuits/heads", "circuits/prompts"
VERSION = 1


@dataclass(frozen=True)
class Beside:
    """What was found beside a circuit, and remarks on files that are there but are not used.

    ``evidence`` is a line on each head, ``roles`` the names of those that have one.
    """

    evidence: dict[Node, str] = field(default_factory=dict[Node, str])
    roles: dict[Node, str] = field(default_factory=dict[Node, str])
    prompts: tuple[Example, ...] = ()
    remarks: tuple[str, ...] = ()


class _Label(BaseModel, strict=True):
    name: str


class _Head(BaseModel, strict=True):
    head: str
    text: str
    labels: list[_Label] = []


class _Document(BaseModel, strict=True):
    format: str
    version: int


class _Heads(_Document):
    circuit_digest: str
    heads: list[_Head]


class _Prompts(_Document):
    digest: str
    prompts: list[Example]


_Read = TypeVar("_Read", bound=_Document)


def beside(path: str | Path, circuit: Circuit) -> Beside:
    """Read what lies beside a circuit's file; missing files are no evidence, unusable ones are remarked on."""
    folder, remarks = Path(path).parent, list[str]()
    heads, prompts = dict[Node, _Head](), tuple[Example, ...]()
    if (folder / HEADS).is_file():
        try:
            heads = _read_heads(folder / HEADS, circuit)
        except CircuitsError as problem:
            remarks.append(f"{problem} The diagram is drawn without it; 'circuits heads {path}' measures it anew.")
    if (folder / PROMPTS).is_file():
        try:
            prompts = read_prompts(folder / PROMPTS, circuit)
        except CircuitsError as problem:
            remarks.append(f"{problem} The report is written without prompts.")
    evidence = {node: head.text for node, head in heads.items()}
    roles = {node: ", ".join(label.name for label in head.labels) for node, head in heads.items() if head.labels}
    return Beside(evidence, roles, prompts, tuple(remarks))


def read_evidence(path: Path, circuit: Circuit) -> dict[Node, str]:
    """Read a ``heads.json``: one text per head. Raises :class:`FormatError` when it is of another circuit."""
    return {node: head.text for node, head in _read_heads(path, circuit).items()}


def _read_heads(path: Path, circuit: Circuit) -> dict[Node, _Head]:
    document = _checked(_Heads, path, HEADS_FORMAT)
    if document.circuit_digest != circuit.digest:
        raise FormatError(f"{path} holds evidence on the heads of another circuit (other edges, prompts or weights).")
    return {Node.parse(head.head): head for head in document.heads}


def read_prompts(path: Path, circuit: Circuit) -> tuple[Example, ...]:
    """Read a ``prompts.json``. Raises :class:`FormatError` when the circuit was found on other prompts."""
    document = _checked(_Prompts, path, PROMPTS_FORMAT)
    if document.digest != circuit.behaviour.digest:
        raise FormatError(f"{path} holds other prompts than those the circuit was found on.")
    return tuple(document.prompts)


def scores_beside(circuit: Circuit, path: str | Path) -> EdgeScores | None:
    """Return the scores of the whole graph that ``discover`` left beside a circuit, if they are the circuit's."""
    file = Path(path).parent / SCORES
    if circuit.model.id == UNKNOWN or not file.is_file():
        return None
    scores = read_scores_of(file, circuit.graph, scores_of(circuit.model.digest, circuit.behaviour.digest))
    if scores is None:
        return None
    same = np.allclose(scores.values[circuit.edges], circuit.scores, rtol=1e-5, atol=1e-12, equal_nan=True)
    return scores if same else None


def prompts_json(circuit: Circuit, prompts: Sequence[Example]) -> str:
    """Return the text of a ``prompts.json``."""
    document: dict[str, Any] = {
        "format": PROMPTS_FORMAT,
        "version": VERSION,
        "behaviour": circuit.behaviour.name,
        "digest": circuit.behaviour.digest,
        "prompts": [_without_what_is_empty(asdict(prompt)) for prompt in prompts],
    }
    return json_text(document)


def _without_what_is_empty(prompt: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in prompt.items() if key not in ("roles", "alignment") or value}


def _checked(kind: type[_Read], path: Path, expected: str) -> _Read:
    try:
        document = kind.model_validate_json(json.dumps(read_json(path)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise FormatError(f"{path} cannot be used: {place}: {first['msg']}.") from error
    if document.format != expected or not 1 <= document.version <= VERSION:
        raise FormatError(
            f"{path} says it is {document.format!r}, version {document.version}; expected {expected}, 1 to {VERSION}."
        )
    return document
