"""The record of a run: ``run.json``.

It holds what is needed to judge and to repeat a run: the command with all its settings, the model, the data and the
machine, and what came out. Files are named with their SHA-256; those beside the record by their name alone.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, cast

from pydantic import TypeAdapter, ValidationError

from circuits.errors import CircuitsError, FormatError
from circuits.files.atomic import file_name, write
from circuits.files.documents import json_text, plain, read_json
from circuits.recording.environment import Environment

FORMAT, VERSION, NAME = "circuits/run", 1, "run.json"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class UsedModel:
    """A model that a run used; ``parameters`` is how many numbers its weights are."""

    id: str
    revision: str
    digest: str
    parameters: int
    device: str
    dtype: str


@dataclass(frozen=True)
class UsedPrompts:
    """Prompt pairs that a run drew; ``digest`` is a SHA-256 over their tokens and answers."""

    behaviour: str
    metric: str
    n_discovery: int
    n_heldout: int
    digest: str


@dataclass(frozen=True)
class DatedFile:
    """A file as it was: its path and the SHA-256 of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True)
class StageTime:
    """How many seconds a stage took, all of its parts together."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class RunRecord:
    """What a run was.

    Attributes:
        command: The command's name, such as ``discover``; what was done, for a run from Python.
        arguments: What was typed after ``circuits``; empty for a run from Python, which cannot be repeated from here.
        directory: Where it was typed; relative paths begin there.
        date: When it began, UTC.
        settings: Every option with its value, also those that were not given.
        models: The models that were loaded.
        prompts: The prompt pairs that were drawn.
        inputs: The files that were named.
        outputs: The files that were written.
        seconds: How long it took.
        stages: The same by stage.
        peak_memory: The most bytes that the process held in memory.
        peak_gpu_memory: The same of the GPU; 0 without one.
        environment: What it ran on.
        warnings: What was warned of.
        results: The figures, as ``--json`` prints them.
    """

    command: str
    arguments: tuple[str, ...] = ()
    directory: str = ""
    date: str = ""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    models: tuple[UsedModel, ...] = ()
    prompts: tuple[UsedPrompts, ...] = ()
    inputs: tuple[DatedFile, ...] = ()
    outputs: tuple[DatedFile, ...] = ()
    seconds: float = 0.0
    stages: tuple[StageTime, ...] = ()
    peak_memory: int = 0
    peak_gpu_memory: int = 0
    environment: Environment | None = None
    warnings: tuple[str, ...] = ()
    results: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_document(self) -> dict[str, Any]:
        """Return what ``run.json`` holds."""
        return cast("dict[str, Any]", plain({"format": FORMAT, "version": VERSION, **asdict(self)}))

    def save(self, path: str | Path) -> None:
        """Write ``run.json``; raises :class:`OutputError`."""
        write(path, json_text(self.to_document()), make_folder=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ``run.json``, or the one of a folder. Raises :class:`FormatError` that says what is wrong with it."""
        path = Path(path)
        path = path / NAME if path.is_dir() else path
        document = read_json(path)
        known = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
        if known.get("format") != FORMAT:
            raise FormatError(
                f'{path} is no record of a run; expected a {NAME} with "format": "{FORMAT}", as commands leave beside '
                "their results."
            )
        if known.get("version") != VERSION:
            raise FormatError(f"{path} has version {known.get('version')!r}; this release reads {VERSION}.")
        fields = {name: value for name, value in known.items() if name not in ("format", "version")}
        try:
            return TypeAdapter(cls).validate_python(fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise FormatError(f"{path}: {place}: {first['msg']} (got {first.get('input')!r}).") from error

    def with_outputs(self, files: Iterable[str | Path], folder: Path) -> Self:
        """Return the record with the files that were written, those in ``folder`` by their names."""
        return replace(self, outputs=tuple(dated(Path(file), folder) for file in files))

    @property
    def version(self) -> str:
        """The version of this package that ran."""
        return self.environment.packages.get("path-patching-circuits", "") if self.environment else ""


def dated(file: Path, folder: Path | None = None) -> DatedFile:
    """Return a file with its digest; by its name from ``folder`` on where it lies in there."""
    path = file.absolute()
    within = folder is not None and path.is_relative_to(folder.absolute())
    return DatedFile(str(path.relative_to(cast(Path, folder).absolute()) if within else path), sha256_of(file))


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file; empty where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def place_for(folder: Path, record: RunRecord) -> Path:
    """Return where a record goes: ``run.json``, unless that is of another run with other results in this folder.

    Then ``run-NAME.json``, named after what was written first, or after the command.
    """
    first = folder / NAME
    if not first.exists():
        return first
    try:
        there = RunRecord.load(first)
    except CircuitsError:
        there = None
    mine = (record.command, [file.path for file in record.outputs][:1])
    if there is not None and (there.command, [file.path for file in there.outputs][:1]) == mine:
        return first
    name = Path(record.outputs[0].path).stem if record.outputs else record.command
    return folder / f"run-{file_name(name)}.json"
