"""Mutated input files and options, with fixed seeds: ``python -m tests.fuzzing --cases 10000 --seed 0``.

Every case is a valid input that was changed at random: bytes, or values inside its JSON. What happens is one of

- ``refused``: an error of this package;
- ``accepted``: it was read, and what was read, written again, says what the input says (judged here by :mod:`json` and
  :mod:`csv` alone, not by the code under test);
- ``traceback`` (any other error), ``hang`` (more than half a minute), ``changed`` (accepted with another meaning).

The last three are defects.
"""

import argparse
import csv
import io
import json
import math
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from circuits.behaviours.pairs import Pair
from circuits.behaviours.reading.datasets import read_file
from circuits.builder import build_graph
from circuits.circuit import Circuit
from circuits.errors import CircuitsError, UsageError
from circuits.graph import ModelShape
from circuits.interchange.score_files import read_edges, read_scores, write_scores
from circuits.scores import EdgeScores

SECONDS = 30
GRAPH = build_graph(ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, d_model=8, d_head=2))
DEFECTS = ("traceback", "hang", "changed")

NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    10**9,
    10**30,
    -(10**400),
    0.5,
    -0.0,
    1e308,
    1e-320,
    "",
    " ",
    "false",
    "0",
    "1",
    "NaN",
    "a0.h1->m1",
    "m0",
    "..",
    "--><!--",
    "\x1b[2J",
    "\ud83d",
    "é",
    "日本",
    "x" * 5_000,
    "\0",
    "٣",
    [],
    {},
    [[]],
    [None],
    [1, 2],
    ["a", 1],
    {"a": 1},
    {"role": "user", "content": "x"},
    math.nan,
    math.inf,
)
TOKENS = (
    b"\xff",
    b"\x00",
    b'"',
    b"'",
    b",",
    b"\n",
    b"\r",
    b"[" * 2_000,
    b"{",
    b"}",
    b"]",
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"9" * 5_000,
    b"\\ud800",
    b"\\u0000",
    b"null",
    b"true",
    b"False",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"#",
    b"->",
    b"<q>",
    b"_",
    b" ",
    b"\t",
    b"1_0",
    "٣".encode(),
    b"--",
    b"=",
)


class Hang(BaseException):
    """A case took too long."""


class Outcome(NamedTuple):
    kind: str
    case: str
    detail: str = ""


# ------------------------------------------------------------------------------------------------------------ mutations


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        place = chance.randrange(len(data) + 1)
        end = min(len(data), place + chance.choice((1, 1, 2, 5, 30)))
        change = chance.randrange(6)
        if change == 0:
            data = data[:place] + chance.choice(TOKENS) + data[place:]
        elif change == 1:
            data = data[:place] + data[end:]
        elif change == 2:
            data = data[:place] + bytes(chance.randrange(256) for _ in range(end - place)) + data[end:]
        elif change == 3:
            data = data[:end] + data[place:]
        elif change == 4:
            data = data[:place]
        else:
            data = data[:place] + chance.choice(TOKENS) + data[end:]
    return data


def mutated_table(data: bytes, chance: random.Random) -> bytes:
    """Change a Parquet file: mostly single bytes, since little else leaves anything to be read."""
    if chance.random() < 0.4:
        return mutated_bytes(data, chance)
    place = chance.randrange(len(data))
    return data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]


def mutated_value(value: Any, chance: random.Random) -> Any:
    """Change one place inside a JSON value: replace, leave out, add, rename or exchange."""
    inside = isinstance(value, dict | list) and len(value) > 0
    if not inside or chance.random() < 0.15:
        return chance.choice(NASTY)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, change = chance.choice(keys), chance.randrange(8)
    changed = dict(value) if isinstance(value, dict) else list(value)
    if change == 0:
        del changed[key]
    elif change == 1 and isinstance(changed, dict):
        changed[chance.choice(("comment", "answer", "answers", "version", "score", key + "s", ""))] = changed[key]
    elif change == 1:
        changed.insert(key, chance.choice(changed))
    elif change == 2:
        other = chance.choice(keys)
        changed[key], changed[other] = changed[other], changed[key]
    else:
        changed[key] = mutated_value(changed[key], chance)
    return changed


def mutated_json(text: str, chance: random.Random, *, lines: bool = False) -> bytes:
    if chance.random() < 0.4:
        return mutated_bytes(text.encode(), chance)
    rows = text.splitlines() if lines else [text]
    place = chance.randrange(len(rows))
    rows[place] = json.dumps(mutated_value(json.loads(rows[place]), chance), ensure_ascii=chance.random() < 0.5)
    return "\n".join(rows).encode("utf-8", "surrogatepass")


# ------------------------------------------------------------------------------------------ what inputs say, on its own


def same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b or f"{a:.6g}" == f"{b:.6g}"
    return type(a) is type(b) and a == b


def contained(given: Any, written: Any) -> bool:
    """Whether all that is given is written, at any depth."""
    if isinstance(given, dict) and isinstance(written, dict):
        return all(key in written and contained(value, written[key]) for key, value in given.items())
    if isinstance(given, list) and isinstance(written, list):
        return len(given) == len(written) and all(map(contained, given, written))
    return same(given, written)


def said(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a record of a prompt file says: prompts, answers, wrong answers, all else."""
    rest = dict(record)

    def first(*names: str) -> Any:
        found = [rest.pop(name) for name in names if name in rest]
        return found[0] if found else []

    def listed(value: Any) -> list[Any]:
        return value if isinstance(value, list) else [] if value is None else [value]

    clean, corrupted = first("clean"), first("corrupted", "corrupt")
    answers = listed(first("answers", "answer", "correct"))
    wrong = listed(first("wrong_answers", "wrong_answer", "incorrect"))
    tags = {key: value if isinstance(value, str) else json.dumps(value) for key, value in rest.items()}
    return clean, corrupted, answers, wrong, tags


def said_by(pair: Pair) -> tuple[Any, ...]:
    def plain(prompt: Any) -> Any:
        return prompt if isinstance(prompt, str) else [{"role": m.role, "content": m.content} for m in prompt]

    answers, wrong = [*pair.answers, *pair.answer_ids], [*pair.wrong_answers, *pair.wrong_ids]
    return plain(pair.clean), plain(pair.corrupted), answers, wrong, dict(pair.tags)


# ---------------------------------------------------------------------------------------------------------------- kinds


class Kind(NamedTuple):
    """A kind of input: its file's name, how a valid one is mutated, and whether what is read keeps its meaning."""

    file: str
    make: Callable[[random.Random], bytes]
    keeps_meaning: Callable[[Path], bool]


PAIRS = [
    {"clean": "When Mary", "corrupted": "When John", "answer": " Mary", "wrong_answer": " John", "split": "discovery"},
    {"clean": "The sum", "corrupted": "The sun", "answers": [" A", " B"], "wrong_answers": [" C"], "n": 3},
    {"clean": "x y", "corrupted": "x z", "answers": [41, 42], "wrong_answer": 5},
    {"clean": [{"role": "user", "content": "Hi"}], "corrupted": [{"role": "user", "content": "Ho"}], "answer": "é"},
]
CSV_PAIRS = 'clean,corrupted,answer,wrong_answer,label\nA b,A c, d, e,x\n"A, b","A ""c""", d, f,y\n'
EDGES = "# strongest\nm0->m1\ninput->a0.h1<q>\n\na1.h2->a2.kv1<k>  # a key\nm2->logits\n"


def keeps_json_lines(path: Path) -> bool:
    pairs = read_file(path)[0].pairs
    records = [json.loads(line) for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]
    return [said(record) for record in records] == [said_by(pair) for pair in pairs]


def keeps_auto_circuit(path: Path) -> bool:
    pairs = read_file(path)[0].pairs
    return [said(record) for record in json.loads(path.read_bytes().decode("utf-8-sig"))["prompts"]] == list(
        map(said_by, pairs)
    )


def keeps_csv(path: Path) -> bool:
    """Compare all columns that have a name; one without is the row number of the tool that wrote the table."""
    pairs = read_file(path)[0].pairs
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))
    records = [{key: cell for key, cell in row.items() if key and cell} for row in rows]
    return [said(record) for record in records] == [said_by(pair) for pair in pairs]


def keeps_circuit(path: Path) -> bool:
    written = json.loads(Circuit.load(path).to_json())
    return contained(json.loads(path.read_bytes().decode("utf-8-sig")), written)


def keeps_scores(path: Path) -> bool:
    again = path.with_name("again.csv")
    write_scores(read_scores(path, GRAPH), again)
    rows = [
        list(csv.DictReader(io.StringIO(each.read_bytes().decode("utf-8-sig"), newline=""))) for each in (path, again)
    ]
    given, written = ({row["edge"].replace(" ", ""): row for row in table} for table in rows)
    scored = {edge for edge, row in given.items() if row["score"]}
    return scored == set(written) and all(
        math.isclose(float(given[edge]["score"]), float(written[edge]["score"]), rel_tol=1e-8)
        and given[edge]["measured"] == written[edge]["measured"]
        for edge in scored
    )


def keeps_parquet(path: Path) -> bool:
    from pyarrow import parquet

    found = read_scores(path, GRAPH)
    table = parquet.read_table(path).to_pandas()
    return all(
        same(found.values[index], score) or (math.isnan(score) and math.isnan(found.values[index]))
        for index, score in zip(read_edges(path, GRAPH), table["score"], strict=True)
    )


def keeps_edges(path: Path) -> bool:
    found = {str(edge) for edge in GRAPH.edges(read_edges(path, GRAPH))}
    lines = (line.partition("#")[0] for line in path.read_bytes().decode("utf-8-sig").splitlines())
    return found == {"".join(line.split()) for line in lines if line.strip()}


def circuit_text() -> str:
    from tests.example_circuits import random_circuit

    return random_circuit(8).to_json()


def score_bytes(suffix: str) -> bytes:
    import numpy as np

    values = np.full(GRAPH.n_edges, np.nan)
    values[::17] = np.linspace(-1, 2, len(values[::17]))
    scores = EdgeScores(GRAPH, values, "exact", measured=True, sd=np.abs(values), n=32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scores{suffix}"
        write_scores(scores, path)
        return path.read_bytes()


def without_digest() -> bytes:
    """Return a Parquet file in which nothing says that its rows were changed."""
    from pyarrow import BufferReader, parquet

    table = parquet.read_table(BufferReader(score_bytes(".parquet")))
    buffer = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({b"version": b"1"}), buffer)
    return buffer.getvalue()


def kinds() -> dict[str, Kind]:
    """Every kind of file, by name."""
    lines = "\n".join(json.dumps(pair) for pair in PAIRS)
    prompts = json.dumps({"prompts": [pair for pair in PAIRS if isinstance(pair["clean"], str)]})
    circuit, table, tables = circuit_text(), score_bytes(".csv"), (score_bytes(".parquet"), without_digest())
    return {
        "prompts.jsonl": Kind("p.jsonl", lambda chance: mutated_json(lines, chance, lines=True), keeps_json_lines),
        "prompts.json": Kind("p.json", lambda chance: mutated_json(prompts, chance), keeps_auto_circuit),
        "prompts.csv": Kind("p.csv", lambda chance: mutated_bytes(CSV_PAIRS.encode(), chance), keeps_csv),
        "circuit.json": Kind("c.json", lambda chance: mutated_json(circuit, chance), keeps_circuit),
        "scores.csv": Kind("s.csv", lambda chance: mutated_bytes(table, chance), keeps_scores),
        "scores.parquet": Kind("s.parquet", lambda chance: mutated_table(chance.choice(tables), chance), keeps_parquet),
        "edges.txt": Kind("e.txt", lambda chance: mutated_bytes(EDGES.encode(), chance), keeps_edges),
    }


# -------------------------------------------------------------------------------------------------------------- options

COMMANDS = (
    "discover ioi",
    "score ioi",
    "patch ioi",
    "path ioi m0->logits",
    "evaluate C",
    "draw C -o x.svg",
    "heads C",
    "export C -o x.csv",
    "compare C C",
    "ablate C",
    "check",
    "models",
    "behaviours",
)
OPTIONS = (
    "--pairs",
    "--seed",
    "--metric",
    "--ablation",
    "--direction",
    "--scorer",
    "--pruner",
    "--target",
    "--size",
    "--steps",
    "--heldout",
    "--prune-limit",
    "--batch-size",
    "--memory",
    "--device",
    "--dtype",
    "--attention",
    "--model",
    "--out",
    "--edges",
    "--site",
    "--by",
    "--system",
    "--prefill",
    "--refuse",
    "--comply",
    "--openings",
    "--behaviour",
    "--title",
    "--json",
    "--quiet",
    "--resume",
    "--random",
    "--against-model",
    "--matmul-precision",
    "--top",
    "--budget",
)
VALUES = (
    "",
    "0",
    "-1",
    "1",
    "7",
    "1e999",
    "nan",
    "inf",
    "-inf",
    "٣",
    "1_0",
    "9" * 5_000,
    "top:3",
    "top:",
    "auto",
    "8GB",
    "50%",
    "999999999TB",
    "0%",
    "--",
    "x" * 5_000,
    "\0",
    "\ud83d",
    "\x1b[2J",
    "ioi",
    "logit-difference",
    "zero",
    "noising",
    "eap",
    "minimal",
    "cpu",
    "cuda:99",
    "float32",
    "sdpa",
    "a,b",
    "a,,b",
    "=",
    "~nosuchuser",
    "/dev/null",
    ".",
    "[red]",
)


def options_case(folder: Path, chance: random.Random) -> list[str]:
    words = [str(folder / "circuit.json") if word == "C" else word for word in chance.choice(COMMANDS).split()]
    for _ in range(chance.choice((1, 1, 2, 3))):
        name = chance.choice(OPTIONS)
        words += [name] if chance.random() < 0.1 else [name, chance.choice(VALUES)]
    return words


def run_options(words: list[str]) -> Outcome:
    """Run a command line up to where a model would be loaded."""
    from typer.testing import CliRunner

    from circuits.cli import app

    stop = mock.Mock(side_effect=UsageError("a model would be loaded"))
    with mock.patch("circuits.model.load_model", stop), mock.patch("circuits.models.loading.load_weights", stop):
        result = CliRunner().invoke(app, words)
    problem = result.exception
    if isinstance(problem, Hang):
        return Outcome("hang", repr(words))
    if problem is not None and not isinstance(problem, SystemExit):
        return Outcome("traceback", repr(words)[:300], f"{type(problem).__name__}: {problem}"[:300])
    return Outcome("accepted" if result.exit_code == 0 or stop.called else "refused", repr(words))


# -------------------------------------------------------------------------------------------------------------- running


@contextmanager
def limited() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judged(kind: Kind, path: Path, data: bytes) -> Outcome:
    path.write_bytes(data)
    case = repr(data if len(data) < 2_000 else data[:2_000] + b"...")
    try:
        with limited():
            return Outcome("accepted" if kind.keeps_meaning(path) else "changed", case)
    except CircuitsError as problem:
        return Outcome("refused", case, str(problem))
    except Hang:
        return Outcome("hang", case)
    except Exception as problem:  # noqa: BLE001 - what no one foresaw is what is looked for
        return Outcome("traceback", case, f"{type(problem).__name__}: {problem}"[:300])


def fuzz(cases: int, seed: int) -> dict[str, list[Outcome]]:
    """Run so many cases, an equal share of each kind, and return what happened."""
    import circuits.model  # noqa: F401 - its first import takes long on a busy machine, and is no part of a case

    found: dict[str, list[Outcome]] = {}
    files = kinds()
    share = math.ceil(cases / (len(files) + 1))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "circuit.json").write_text(circuit_text())
        for name, kind in files.items():
            chances = (random.Random(f"{seed} {name} {i}") for i in range(share))
            found[name] = [judged(kind, folder / kind.file, kind.make(chance)) for chance in chances]
        found["options"] = []
        for i in range(share):
            words = options_case(folder, random.Random(f"{seed} options {i}"))
            with limited(), chdir(folder):
                found["options"].append(run_options(words))
    return found


def report(found: dict[str, list[Outcome]]) -> str:
    columns = ("accepted", "refused", *DEFECTS)
    rows = [f"{'kind':16}" + "".join(f"{column:>11}" for column in columns)]
    for name, outcomes in found.items():
        counts = Counter(outcome.kind for outcome in outcomes)
        rows.append(f"{name:16}" + "".join(f"{counts[column]:11,}" for column in columns))
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=5, help="defects shown of each kind")
    asked = parser.parse_args()
    found = fuzz(asked.cases, asked.seed)
    sys.stdout.write(report(found) + "\n")
    defects = [(name, each) for name, outcomes in found.items() for each in outcomes if each.kind in DEFECTS]
    for name in found:
        for _, each in [defect for defect in defects if defect[0] == name][: asked.show]:
            sys.stdout.write(f"\n{name}: {each.kind}: {each.detail}\n  {each.case[:600]}\n")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
