"""The examples run as they stand, in a small setting, on the built-in model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = ("discover_ioi.py", "compare_refusal.py", "your_own_behaviour.py", "your_own_model.py")


def run_quickly(name: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), "--quick"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SHORT)
def test_an_example_is_short_enough_to_be_read_at_once(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60


@pytest.mark.real
@pytest.mark.slow
def test_discover_ioi_prints_a_circuit_and_draws_it(tmp_path: Path, smol: Path) -> None:
    printed = run_quickly("discover_ioi.py", tmp_path)
    found = re.search(r"(\d+) of 70,651 edges keep (-?\d+)% of the behaviour", printed)
    assert found is not None
    assert 1 <= int(found[1]) < 70_651
    assert "Spearman" in printed
    assert (tmp_path / "outputs/examples/ioi.svg").read_text().count("<svg") == 1


@pytest.mark.real
@pytest.mark.slow
def test_compare_refusal_prints_overlap_and_transfer_and_draws_the_difference(tmp_path: Path, smol: Path) -> None:
    printed = run_quickly("compare_refusal.py", tmp_path)
    assert re.search(r"refusal \(\d+ edges\) and capital \(\d+ edges\) share", printed)
    assert "smollm2-135m does not show the behaviour, so there is no circuit of it there" in printed
    own = re.search(r" refusal: refusal (-?[\d.]+) \[.*\]  capital (-?[\d.]+) \[", printed)
    assert own is not None
    assert float(own[1]) > 0.2
    assert (tmp_path / "outputs/examples/refusal_and_capital.svg").stat().st_size > 1000


@pytest.mark.real
@pytest.mark.slow
def test_your_own_behaviour_finds_the_word_early_and_the_answer_late(tmp_path: Path, smol: Path) -> None:
    printed = run_quickly("your_own_behaviour.py", tmp_path)
    rows = {
        int(layer): (float(word), float(last))
        for layer, word, last in re.findall(r"layer +(\d+): last word +(-?[\d.]+)   last token +(-?[\d.]+)", printed)
    }
    assert rows[0][0] > 0.9
    assert rows[0][1] < 0.1
    assert rows[25][1] > rows[25][0]
    assert "exact" in printed


def test_your_own_model_passes_the_guards_and_prints_a_circuit(tmp_path: Path) -> None:
    printed = run_quickly("your_own_model.py", tmp_path)
    errors = re.findall(r"^(\w+(?: \w+)?): ([\d.e+-]+), at most 1e-03$", printed, re.MULTILINE)
    assert {"additivity", "wiring", "head isolation"} <= {name for name, _ in errors}
    assert max(float(error) for _, error in errors) < 1e-4
    correlation = re.search(r"eap correlates with exact by (-?[\d.]+)", printed)
    assert correlation is not None
    assert float(correlation[1]) > 0.5
    circuit = re.search(r"^(\d+) edges keep (\d+)%: (.*)", printed, re.MULTILINE)
    assert circuit is not None
    edges = circuit[3].split()
    assert int(circuit[1]) == len(edges) < 60
    assert 80 <= int(circuit[2]) <= 120
    assert any(edge.startswith("input->") for edge in edges)
    assert any(edge.endswith("->logits") for edge in edges)
