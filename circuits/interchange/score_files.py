"""Score files (``scores.csv``, ``scores.parquet``) and edge lists, written and read back."""

import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from circuits.errors import CircuitsError, FormatError, UnknownNameError
from circuits.files.atomic import write
from circuits.files.documents import parse_json, read_text
from circuits.graph import ComputationalGraph, Edge, EdgeIndices
from circuits.interchange.edge_tables import flags, numbers, one_count, read_table
from circuits.scores import EdgeScores, Flags, Verification

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")
_FORMAT, _VERSION = "circuits/scores", 1


def write_scores(
    scores: EdgeScores,
    path: str | Path,
    indices: EdgeIndices | None = None,
    *,
    of: str = "",
    make_folder: bool = False,
) -> None:
    """Write scores as CSV or Parquet, by the suffix: one row per scored edge in graph order, or those asked for.

    Parquet carries a digest of its rows, and ``of``: the digest of the model and prompts that the scores belong to.
    """
    import pandas as pd

    path = Path(path)
    require_suffix(path)
    table = pd.DataFrame(scores.rows(indices))
    csv = path.suffix == ".csv"
    data = table.to_csv(index=False, float_format="%.9g", lineterminator="\n") if csv else _parquet(table, scores, of)
    write(path, data, make_folder=make_folder)


def scores_of(model: str, prompts: str) -> str:
    """Return the digest that scores carry which belong to a model and prompts, given theirs."""
    return hashlib.sha256(f"{model}\n{prompts}".encode()).hexdigest()


def _parquet(table: "pd.DataFrame", scores: EdgeScores, of: str) -> bytes:
    pa, parquet = _arrow()
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {"format": _FORMAT, "version": str(_VERSION), "scorer": str(scores.scorer), "digest": _digest(table)}
    if of:
        metadata["of"] = of
    if scores.verification is not None:
        metadata["verification"] = json.dumps(asdict(scores.verification), sort_keys=True)
    buffer = io.BytesIO()
    parquet.write_table(arrow.replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


def _digest(table: "pd.DataFrame") -> str:
    """Return the digest of a table's rows, bit by bit."""
    digest = hashlib.sha256()
    for name in table.columns:
        column = table[name].to_numpy()
        numbers = column.dtype.kind in "bif"
        digest.update(name.encode() + (column.tobytes() if numbers else "\n".join(map(str, column)).encode()))
    return digest.hexdigest()


def read_scores(path: str | Path, graph: ComputationalGraph) -> EdgeScores:
    """Read scores; raises :class:`FormatError` that names the file and row."""
    path = Path(path)
    return _scores(path, *_read_table(path, graph), graph)


def read_scores_of(path: str | Path, graph: ComputationalGraph, of: str) -> EdgeScores | None:
    """Read scores, unless the file says that they belong to another model or to other prompts than ``of``."""
    path = Path(path)
    table, metadata = _read_table(path, graph)
    return _scores(path, table, metadata, graph) if metadata.get("of", of) == of else None


def _scores(path: Path, table: "pd.DataFrame", metadata: dict[str, str], graph: ComputationalGraph) -> EdgeScores:
    missing = {"edge", "score", "measured"} - set(table.columns)
    if missing:
        raise FormatError(
            f"{path} has no column {', '.join(sorted(missing))}; expected edge, score, measured (and sd, n)."
        )
    edges = _distinct(path, table, graph)
    _require_same_ends(path, table, graph, edges)
    values, sd = np.full(graph.n_edges, np.nan), None
    values[edges] = numbers(path, table, "score")
    if "sd" in table.columns:
        sd = np.full(graph.n_edges, np.nan)
        sd[edges] = numbers(path, table, "sd", least=0)
    measured = flags(path, table, "measured")
    which: Flags | None = None
    if len(set(measured.tolist())) > 1:
        which = np.zeros(graph.n_edges, dtype=np.bool_)
        which[edges] = measured
    n = one_count(path, table, "n") if "n" in table.columns else 0
    _require_whole(path, table, metadata)
    return EdgeScores(
        graph,
        values,
        metadata.get("scorer", path.stem),
        measured=bool(measured.all()),
        sd=sd,
        n=n,
        measured_edges=which,
        verification=_verification(metadata),
    )


def _require_whole(path: Path, table: "pd.DataFrame", metadata: dict[str, str]) -> None:
    """Raise :class:`FormatError` for a file that has other rows than it was written with, each right by itself."""
    if metadata.get("digest", digest := _digest(table)) != digest:
        raise FormatError(
            f"{path} was damaged or changed after it was written: its rows do not match its digest. Delete it, and run "
            "the command that wrote it again with --resume."
        )


def _distinct(path: Path, table: "pd.DataFrame", graph: ComputationalGraph) -> EdgeIndices:
    edges = _indices(path, [str(edge) for edge in table["edge"]], graph, first_row=2)
    unique, first = np.unique(edges, return_index=True)
    if len(unique) < len(edges):
        row = int(np.setdiff1d(np.arange(len(edges)), first)[0])
        raise FormatError(f"{path}, line {row + 2}: {table['edge'].iloc[row]} is there twice; keep one of its scores.")
    return edges


def _require_same_ends(path: Path, table: "pd.DataFrame", graph: ComputationalGraph, edges: EdgeIndices) -> None:
    """Raise :class:`FormatError` where a row's sender, receiver or slot is not its edge's."""
    there = [name for name in ("sender", "receiver", "slot", "role") if name in table.columns]
    given = zip(*(table[name].tolist() for name in there), strict=True) if there else ()
    for row, (edge, ends) in enumerate(zip(graph.edges(edges), given, strict=False), start=2):
        slot = edge.receiver.slot.value if edge.receiver.slot else ""
        own = {"sender": str(edge.sender), "receiver": str(edge.receiver.node), "slot": slot}
        own["role"] = edge.receiver.role
        wrong = next((name for name, end in zip(there, ends, strict=True) if end != own[name]), None)
        if wrong is not None:
            raise FormatError(
                f"{path}, line {row}: the {wrong} of {edge} is {own[wrong]!r}, but {ends[there.index(wrong)]!r} is "
                "written beside it; correct one of them."
            )


def _verification(metadata: dict[str, str]) -> Verification | None:
    text = metadata.get("verification")
    try:
        return TypeAdapter(Verification).validate_python(parse_json(text, "verification")) if text else None
    except (ValidationError, FormatError):
        return None  # of another release; the scores themselves are whole


def read_edges(path: str | Path, graph: ComputationalGraph) -> EdgeIndices:
    """Read a list of edges: a score file, or text with one edge per line (blank lines and ``#`` comments skipped)."""
    path = Path(path)
    if path.suffix in SUFFIXES:
        table, _ = _read_table(path, graph)
        if "edge" not in table.columns:
            raise FormatError(f"{path} has no column 'edge'.")
        return _named(path, _indices(path, [str(edge) for edge in table["edge"]], graph, first_row=2).tolist())
    lines = read_text(path).splitlines()
    found: list[int] = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if text:
            found.extend(_indices(path, [text], graph, first_row=number).tolist())
    return _named(path, found)


def _named(path: Path, found: list[int]) -> EdgeIndices:
    if not found:
        raise FormatError(f"{path} names no edge; expected one per line, such as a3.h5->m7.")
    return np.unique(np.array(found, dtype=np.int64))


def require_suffix(path: Path) -> None:
    """Raise :class:`UnknownNameError` unless the suffix is that of a score file."""
    if path.suffix not in SUFFIXES:
        raise UnknownNameError("score file format", path.suffix or path.name, SUFFIXES)


def _indices(path: Path, names: list[str], graph: ComputationalGraph, *, first_row: int) -> EdgeIndices:
    indices: list[int] = []
    for row, name in enumerate(names, start=first_row):
        try:
            indices.append(graph.index(Edge.parse(name)))
        except CircuitsError as error:
            raise FormatError(f"{path}, line {row}: {error}") from error
    return np.array(indices, dtype=np.int64)


def _read_table(path: Path, graph: ComputationalGraph) -> "tuple[pd.DataFrame, dict[str, str]]":
    require_suffix(path)
    table, metadata = read_table(path, most=graph.n_edges)
    version = metadata.get("version", "1")
    if version not in map(str, range(1, _VERSION + 1)):
        raise FormatError(f"{path} has version {version[:40]}; this release reads up to {_VERSION}.")
    return table, metadata


def _arrow() -> tuple[Any, Any]:
    """Import pyarrow, which has no types, when it is needed."""
    import pyarrow
    from pyarrow import parquet

    return pyarrow, parquet
