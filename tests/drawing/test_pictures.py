"""Files by suffix, errors, start-up, and bytes that do not depend on the hash seed."""

import html
import os
import subprocess
import sys
from pathlib import Path

import pytest

from circuits.comparison import difference
from circuits.drawing.pictures import DIFFERENCE_SUFFIXES, DRAWINGS, EXPORTS, draw, draw_difference, export
from circuits.errors import OutputError, UnknownNameError, UsageError
from circuits.files.atomic import write
from tests.example_circuits import random_circuit

STARTS = {
    ".svg": b"<?xml",
    ".pdf": b"%PDF",
    ".png": b"\x89PNG",
    ".dot": b"digraph",
    ".mmd": b"---\ntitle",
    ".html": b"<!doctype html>",
    ".graphml": b"<?xml",
    ".csv": b"edge,sender",
    ".tex": b"% toy in ",
    ".md": b"| edge | score ",
    ".mib.json": b'{\n "cfg"',
    ".mib.pt": b"PK",  # as torch writes archives
}

SCRIPT = """
import sys
from circuits.comparison import difference
from circuits.drawing.difference import difference_dot
from circuits.drawing.dot import circuit_dot
from circuits.interchange.formats import circuit_csv, circuit_graphml, circuit_mib_json
from circuits.drawing.mermaid import circuit_mermaid
from tests.example_circuits import random_circuit
a, b = random_circuit(90), random_circuit(90, seed=1)
texts = [form(a) for form in (circuit_dot, circuit_graphml, circuit_csv, circuit_mib_json, circuit_mermaid)]
texts += [a.to_json(), difference_dot(difference(a, b)), str(difference(a, b).to_dict())]
sys.stdout.write("\\n=====\\n".join(texts))
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
    )
    return done.stdout


@pytest.mark.parametrize("suffix", DRAWINGS)
def test_drawings_are_of_the_kind_that_the_suffix_says(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix.upper()}"
    draw(random_circuit(12), path)
    assert path.read_bytes().startswith(STARTS[suffix])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", EXPORTS)
def test_exports_are_of_the_kind_that_the_suffix_says(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    export(random_circuit(12), path)
    assert path.read_bytes().startswith(STARTS[suffix])


@pytest.mark.parametrize("suffix", DIFFERENCE_SUFFIXES)
def test_differences_are_drawn_by_suffix(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    draw_difference(difference(random_circuit(12), random_circuit(12, seed=1)), path)
    assert path.read_bytes().startswith(STARTS[suffix])


def test_a_circuit_draws_itself_and_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    circuit = random_circuit(12)
    circuit.draw(tmp_path / "x.svg", title="my title")
    assert "my title" in (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert "toy in tiny-grouped" in html.unescape(circuit._repr_svg_() or "")


def test_a_notebook_falls_back_to_text_without_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    assert random_circuit(3)._repr_svg_() is None


def test_an_unknown_suffix_is_refused_with_the_closest_known_one(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no file format '\.svgg'.*Closest: '\.svg'"):
        draw(random_circuit(3), tmp_path / "x.svgg")
    with pytest.raises(UnknownNameError, match=r"no file format 'picture'"):
        draw(random_circuit(3), tmp_path / "picture")
    with pytest.raises(UnknownNameError, match=r"no file format '\.json'.*\.mib\.json"):
        export(random_circuit(3), tmp_path / "x.json")
    with pytest.raises(UnknownNameError, match=r"no file format '\.html'"):
        draw_difference(difference(random_circuit(3), random_circuit(3)), tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_an_output_error_that_keeps_the_earlier_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*No such file"):
        draw(random_circuit(3), tmp_path / "absent" / "x.dot")
    (tmp_path / "taken.dot").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        draw(random_circuit(3), tmp_path / "taken.dot")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.dot"]


def test_a_failed_write_keeps_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.csv"
    write(target, "earlier")

    def full_disk(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write(target, "later")
    assert target.read_text(encoding="utf-8") == "earlier"


def test_two_processes_with_different_hash_seeds_write_identical_files() -> None:
    first, second = (run(SCRIPT, PYTHONHASHSEED=seed) for seed in ("1", "4242"))
    assert first == second
    assert first.count("=====") == 7
    assert len(first) > 50_000


def test_drawing_needs_neither_torch_nor_matplotlib() -> None:
    code = "import sys, circuits.drawing.pictures, circuits.comparison, circuits.drawing.heatmap; print(*sys.modules)"
    loaded = set(run(code).split())
    assert "circuits.drawing.dot" in loaded
    assert not loaded & {"torch", "nnsight", "transformers", "matplotlib", "pandas", "scipy", "pygraphviz", "jinja2"}


def test_two_circuits_are_drawn_at_a_width_but_not_summed_up(tmp_path: Path) -> None:
    diff = difference(random_circuit(30, seed=1, name="a"), random_circuit(30, seed=2, name="b"))
    diff.draw(tmp_path / "x.dot", width=84)
    text = (tmp_path / "x.dot").read_text()
    assert 'size="3.307,' in text
    assert 'POINT-SIZE="17.6"' in text
    diff.draw(tmp_path / "x.dot", width=84, legend=False)
    assert "labelloc" not in (tmp_path / "x.dot").read_text()
    with pytest.raises(UsageError, match="compared edge by edge; leave out the level 'node'"):
        diff.draw(tmp_path / "x.dot", level="node")
