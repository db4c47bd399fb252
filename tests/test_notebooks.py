"""The notebooks run from end to end in a small setting, and are kept as a newcomer should find them."""

import ast
from pathlib import Path

import pytest

import circuits
from tests import notebooks

LARGEST = 600_000
"""Bytes of a notebook with its outputs."""


@pytest.fixture(scope="module")
def folder(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where notebooks find the tiny models of the small setting."""
    made = tmp_path_factory.mktemp("notebooks")
    notebooks.prepare(made, smol)
    return made


def test_every_notebook_is_executed_here() -> None:
    assert sorted(path.stem for path in notebooks.FOLDER.glob("*.ipynb")) == sorted(notebooks.NAMES)


@pytest.mark.real
@pytest.mark.parametrize("name", notebooks.NAMES)
def test_a_notebook_runs_from_end_to_end_with_outputs_where_it_has_them(name: str, folder: Path) -> None:
    kept, book = notebooks.read(name), notebooks.execute(notebooks.small(name), folder)
    for cell, before in zip(notebooks.code_cells(book), notebooks.code_cells(kept), strict=True):
        told = [output for output in cell.outputs if output.get("name") != "stderr"]
        assert bool(told) == bool(before.outputs) or name in notebooks.NOT_KEPT, cell.source


@pytest.mark.parametrize("name", [name for name in notebooks.NAMES if name not in notebooks.NOT_KEPT])
def test_a_notebook_is_kept_as_it_ran_once_from_top_to_bottom(name: str) -> None:
    cells = notebooks.code_cells(notebooks.read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) or "text/html" in output.get("data", {}) for output in outputs)
    assert (notebooks.FOLDER / f"{name}.ipynb").stat().st_size < LARGEST


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_a_notebook_uses_public_names_only(name: str) -> None:
    for cell in notebooks.code_cells(notebooks.read(name)):
        for node in ast.walk(ast.parse(cell.source)):
            assert not (isinstance(node, ast.ImportFrom) and str(node.module).startswith("circuits"))
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_")
                of_package = isinstance(node.value, ast.Name) and node.value.id == "circuits"
                assert not of_package or node.attr in circuits.__all__, node.attr
