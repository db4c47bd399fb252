"""Score files (``scores.csv``, ``scores.parquet``) and edge lists, written and read back."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.errors import CircuitsError, FormatError, OutputError, UnknownNameError
from circuits.graph import ComputationalGraph, Edge, EdgeIndices
from circuits.scores import EdgeScores, Flags, Floats, Verification

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")
_FORMAT, _VERSION = "circuits/scores", 1


def write_scores(scores: EdgeScores, path: str | Path, indices: EdgeIndices | None = None) -> None:
    """Write scores as CSV or Parquet, by the suffix: one row per scored edge in graph order, or those asked for."""
    import pandas as pd

    path = Path(path)
    require_suffix(path)
    table = pd.DataFrame(scores.rows(indices))
    try:
        if path.suffix == ".csv":
            table.to_csv(path, index=False, float_format="%.9g", lineterminator="\n")
        else:
            _write_parquet(table, scores, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Choose another place or free some space."
        ) from error


def _write_parquet(table: "pd.DataFrame", scores: EdgeScores, path: Path) -> None:
    pa, parquet = _arrow()
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {"format": _FORMAT, "version": str(_VERSION), "scorer": str(scores.scorer)}
    if scores.verification is not None:
        metadata["verification"] = json.dumps(asdict(scores.verification), sort_keys=True)
    parquet.write_table(arrow.replace_schema_metadata(metadata), path)


def read_scores(path: str | Path, graph: ComputationalGraph) -> EdgeScores:
    """Read scores; raises :class:`FormatError` that names the file and row."""
    path = Path(path)
    table, metadata = _read_table(path)
    missing = {"edge", "score", "measured"} - set(table.columns)
    if missing:
        raise FormatError(
            f"{path} has no column {', '.join(sorted(missing))}; expected edge, score, measured (and sd, n)."
        )
    edges = _indices(path, [str(edge) for edge in table["edge"]], graph, first_row=2)
    unique, first = np.unique(edges, return_index=True)
    if len(unique) < len(edges):
        row = int(np.setdiff1d(np.arange(len(edges)), first)[0])
        raise FormatError(f"{path}, line {row + 2}: {table['edge'].iloc[row]} is there twice; keep one of its scores.")
    values, sd = np.full(graph.n_edges, np.nan), None
    values[edges] = _numbers(path, table, "score")
    if "sd" in table.columns:
        sd = np.full(graph.n_edges, np.nan)
        sd[edges] = _numbers(path, table, "sd")
    n = int(table["n"].iloc[0]) if "n" in table.columns and len(table) else 0
    measured = table["measured"].to_numpy(dtype=np.bool_)
    which: Flags | None = None
    if len(set(measured.tolist())) > 1:
        which = np.zeros(graph.n_edges, dtype=np.bool_)
        which[edges] = measured
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


def _verification(metadata: dict[str, str]) -> Verification | None:
    text = metadata.get("verification")
    try:
        return Verification(**json.loads(text)) if text else None
    except (TypeError, ValueError):
        return None  # of another release; the scores themselves are whole


def read_edges(path: str | Path, graph: ComputationalGraph) -> EdgeIndices:
    """Read a list of edges: a score file, or text with one edge per line (blank lines and ``#`` comments skipped)."""
    path = Path(path)
    if path.suffix in SUFFIXES:
        table, _ = _read_table(path)
        if "edge" not in table.columns:
            raise FormatError(f"{path} has no column 'edge'.")
        return _named(path, _indices(path, [str(edge) for edge in table["edge"]], graph, first_row=2).tolist())
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not a text file: {error.reason} at byte {error.start}.") from error
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


def _numbers(path: Path, table: "pd.DataFrame", column: str) -> Floats:
    try:
        return table[column].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path}, column {column}: {error}; expected numbers only.") from error


def _read_table(path: Path) -> "tuple[pd.DataFrame, dict[str, str]]":
    import pandas as pd

    pa, parquet = _arrow()
    require_suffix(path)
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path), {}
        arrow: Any = parquet.read_table(path)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise FormatError(f"cannot read {path}: {error}") from error
    raw: dict[bytes, bytes] = arrow.schema.metadata or {}
    metadata = {key.decode(): value.decode() for key, value in raw.items()}
    if int(metadata.get("version", "1")) > _VERSION:
        raise FormatError(f"{path} has version {metadata['version']}; this release reads up to {_VERSION}.")
    return arrow.to_pandas(), metadata


def _arrow() -> tuple[Any, Any]:
    """Import pyarrow, which has no types, when it is needed."""
    import pyarrow
    from pyarrow import parquet

    return pyarrow, parquet
