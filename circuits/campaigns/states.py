"""What has become of a run, told from the files in its folder."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from circuits.circuit import Circuit
from circuits.errors import CircuitsError
from circuits.files.atomic import write
from circuits.files.documents import json_text, read_json
from circuits.recording.run_record import NAME, RunRecord, sha256_of

CIRCUIT = "circuit.json"
NOT_FINITE = "NotFinite"
"""The kind of failure of a run that ended well and computed what is no number."""
_UNSAID = ("--resume", "--json", "--quiet")


@dataclass(frozen=True)
class Failure:
    """Why a run has no result: the error's class and message, the exit code, and how often it was tried."""

    name: str
    kind: str
    message: str
    code: int
    attempts: int = 1

    def save(self, path: Path) -> None:
        """Write it as JSON; raises :class:`OutputError`."""
        document = {"format": "circuits/failure", "version": 1, **asdict(self)}
        write(path, json_text(document), make_folder=True)


def failed_before(path: Path) -> str:
    """Return the kind of an earlier failure; empty where there is none."""
    if not path.is_file():
        return ""
    try:
        document = read_json(path)
    except CircuitsError:
        return "unknown"
    return str(cast("dict[str, Any]", document).get("kind", "unknown")) if isinstance(document, dict) else "unknown"


def finished(folder: Path, arguments: Sequence[str]) -> bool:
    """Return whether a folder holds what a command with these arguments leaves.

    That is its record, outputs that are as the record has them, and inputs that have not changed since.
    """
    try:
        record = RunRecord.load(folder / NAME)
    except CircuitsError:
        return False
    if _told(record.arguments) != _told(arguments):
        return False
    unchanged = all(sha256_of(Path(file.path)) == file.sha256 for file in record.inputs)
    return unchanged and all(sha256_of(folder / file.path) == file.sha256 for file in record.outputs)


def _told(arguments: Sequence[str]) -> list[str]:
    return [text for text in arguments if text not in _UNSAID]


def circuit_in(folder: Path) -> Circuit:
    """Return the circuit that a run left; raises :class:`FormatError` where there is none."""
    return Circuit.load(folder / CIRCUIT)


def not_finite(circuit: Circuit) -> str:
    """Say what of a circuit is no number though it must be one; nothing where all is well."""
    found = circuit.evaluation
    if found is None:
        return "it was not evaluated on held-out prompts."
    values = {"its faithfulness": found.faithfulness, "the clean metric": found.metric_clean}
    values |= {"the corrupted metric": found.metric_corrupted}
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    wrong += ["a score of its edges"] if not all(math.isfinite(float(each)) for each in circuit.scores) else []
    return (
        f"{' and '.join(wrong)} came out as no number; on other hardware or with --dtype float32 it may be one."
        if wrong
        else ""
    )
