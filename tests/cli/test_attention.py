"""``--attention`` chooses the attention implementation, and results say which it was."""

import json
from pathlib import Path

import numpy as np
import pytest

from circuits.circuit import Circuit
from tests.cli.conftest import discover_options, done, invoke
from tests.tiny import tiny_tokenizer
from tests.zoo import ZOO


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A model of a family that has no sdpa."""
    ZOO["gemma2"]().save_pretrained(tmp_path / "gemma2")
    tiny_tokenizer().save_pretrained(tmp_path / "gemma2")
    return tmp_path / "gemma2"


def scores(prompts: Path, folder: Path, out: Path, *options: str) -> np.ndarray:
    done("score", prompts, "--model", folder, "--scorer", "eap", "--pairs", 6, "--out", out, *options)
    return np.genfromtxt(out, delimiter=",", names=True, dtype=None, encoding="utf-8")["score"]


def test_frozen_patterns_leave_edges_into_queries_and_keys_without_a_score(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    file = tmp_path / "frozen.csv"
    frozen = scores(prompts, tiny_folder, file, "--freeze-patterns", "--freeze-norms")
    into_patterns = ["<q>" in line or "<k>" in line for line in file.read_text().splitlines()[1:]]
    assert not frozen[into_patterns].any()
    assert frozen.any()


def test_both_implementations_give_the_same_scores(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    eager, sdpa, auto = (
        scores(prompts, tiny_folder, tmp_path / f"{name}.csv", "--attention", name)
        for name in ("eager", "sdpa", "auto")
    )
    assert np.abs(eager - sdpa).max() < 1e-4 * np.abs(sdpa).max()
    assert (eager != sdpa).any(), "the option changed nothing"
    assert (auto == sdpa).all()


def test_a_circuit_says_which_it_was_found_with(tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path) -> None:
    quick = ("--pruner", "top", "--size", "30", "--attention", "eager")
    done("discover", prompts, *discover_options(tiny_folder, tmp_path), *quick)
    assert Circuit.load(tmp_path / "circuit.json").method.attention == "eager"
    assert Circuit.load(found / "circuit.json").method.attention == "sdpa"


def test_a_circuit_of_an_earlier_release_does_not_say(found: Path) -> None:
    document = json.loads((found / "circuit.json").read_text())
    del document["method"]["attention"]
    assert Circuit.from_document(document).method.attention == ""


def test_an_unknown_implementation_is_refused(tiny_folder: Path, prompts: Path) -> None:
    result = invoke("score", prompts, "--model", tiny_folder, "--attention", "flash")
    assert result.exit_code == 2
    assert "there is no attention 'flash'. Known: auto, sdpa, eager." in " ".join(result.stderr.split())


def test_one_that_the_model_does_not_have_is_refused(gemma: Path, prompts: Path) -> None:
    result = invoke("score", prompts, "--model", gemma, "--attention", "sdpa")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "attention 'sdpa' was asked for, but the model in" in said
    assert "Use `--attention auto`" in said


def test_auto_is_what_the_model_has(gemma: Path, tiny_folder: Path) -> None:
    from circuits.models.loading import load_weights

    assert load_weights(str(gemma), device="cpu").attention == "eager"
    assert load_weights(str(tiny_folder), device="cpu").attention == "sdpa"
