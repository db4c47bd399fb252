"""The table of families in the guide on models is complete, and its figures are what is measured today."""

from pathlib import Path

import pytest

from circuits.adapters.families import ARCHITECTURES, architecture_of
from examples.guides.figures import markers
from tests import family_table
from tests.family_table import HEADINGS, NAME, Row, bound, line, row_of
from tests.reference import gradients, hooks
from tests.zoo import ZOO

GUIDE = Path(__file__).parent.parent / "examples" / "guides" / "models.md"


def guide_rows() -> list[str]:
    begin, end = markers(NAME)
    table = GUIDE.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    return [row for row in table.splitlines() if row.startswith("|")]


def test_the_guide_has_one_row_for_every_family_in_order() -> None:
    head, rule, *rows = guide_rows()
    assert head == line(HEADINGS)
    assert rule == line(("---",) * len(HEADINGS))
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(ZOO)


@pytest.mark.parametrize("family", ZOO)
def test_measuring_a_family_again_gives_the_row_of_the_guide(family: str) -> None:
    assert str(row_of(family)) in guide_rows()


def test_every_adapter_and_every_model_type_is_that_of_some_family() -> None:
    models = [create() for create in ZOO.values()]
    chosen = [architecture_of(model).name for model in models]
    assert sorted(set(chosen)) == sorted(architecture.name for architecture in ARCHITECTURES)
    types = {model.config.model_type for model in models}
    assert types == {kind for architecture in ARCHITECTURES for kind in architecture.model_types}


# ------------------------------------------------------------------------------------- would it say that all is wrong?


@pytest.mark.parametrize(
    ("error", "text"), [(3e-15, "<1e-12"), (2e-10, "<1e-9"), (2.9e-6, "<1e-5"), (0.04, "<1e-1"), (0.2, "**wrong**")]
)
def test_a_figure_is_the_smallest_bound_that_holds(error: float, text: str) -> None:
    assert bound(error) == text


def test_a_measurement_that_failed_is_wrong() -> None:
    assert bound(float("nan")) == "**wrong**"
    row = Row("mine", "Mine", "sequential", 12, exact=0.0, gradients=0.5, guards=float("inf"))
    assert str(row) == "| mine | `Mine` | sequential | 12 | <1e-12 | **wrong** | **wrong** |"


def test_a_reference_that_disagrees_shows_in_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, gradient = hooks.exact_edge_effects, gradients.gradient_edge_scores
    with monkeypatch.context() as patch:
        patch.setattr(hooks, "exact_edge_effects", lambda *args: exact(*args) + 5e-5)
        assert str(row_of("gpt2")).endswith("| <1e-4 | <1e-5 | <1e-5 |")
    with monkeypatch.context() as patch:
        patch.setattr(gradients, "gradient_edge_scores", lambda *args: 1.05 * gradient(*args))
        assert str(row_of("gpt2")).endswith("| <1e-12 | <1e-1 | <1e-5 |")


def test_writing_replaces_the_table_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_table, "table", lambda: "| new |")
    path = tmp_path / "README.md"
    begin, end = markers(NAME)
    path.write_text(f"before\n{begin}\n\n| old |\n\n{end}\nafter\n")
    family_table.main(["--write", str(path)])
    assert path.read_text() == f"before\n{begin}\n\n| new |\n\n{end}\nafter\n"
    family_table.main(["--write", str(path)])
    assert path.read_text().count("| new |") == 1
