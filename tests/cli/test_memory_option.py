"""``--memory``: the plan is said, what does not fit is refused with numbers, and the scores stay the same."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.cli.conftest import discover_options, done, invoke
from tests.cli.test_interruption import stopped


def scores(prompts: Path, model: Path, out: Path, *more: str) -> tuple[list[float], str]:
    arguments = ("score", prompts, "--model", model, "--pairs", 6, "--scorer", "exact", "--edges", "top:20")
    result = done(*arguments, "--out", out, *more)
    return pd.read_csv(out)["score"].tolist(), result.stderr


def test_score_says_the_plan_and_scores_the_same_in_little_memory(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    ample, said = scores(prompts, tiny_folder, tmp_path / "ample.csv")
    assert "memory" not in said
    scarce, said = scores(prompts, tiny_folder, tmp_path / "scarce.csv", "--memory", "3MB")
    assert re.search(r"memory: 3 MB: 6 pairs recorded in \S+ [kM]B \(kept\), up to \d+ tokens of pairs together", said)
    assert scarce == pytest.approx(ample, abs=2e-4)


def test_too_little_memory_is_refused_with_what_would_do(tiny_folder: Path, prompts: Path) -> None:
    result = invoke("score", prompts, "--model", tiny_folder, "--memory", "30kB")
    assert result.exit_code == 1
    assert "one prompt pair needs" in result.stderr
    assert "may be used. Allow at least that with --memory 1MB" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("text", ["lots", "8", "120%"])
def test_what_is_no_amount_of_memory_is_refused_before_the_model_is_loaded(text: str) -> None:
    result = invoke("discover", "ioi", "--model", "/nowhere", "--memory", text)
    assert result.exit_code != 0
    assert f"memory is auto, a size such as 8GB or 512MiB, or a share such as 50%; got '{text}'" in result.stderr


def test_an_interrupted_run_continues_with_other_memory(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: list[object] = [prompts, *discover_options(tiny_folder, tmp_path), "--pruner", "top", "--size", 20]
    stopped(monkeypatch, arguments, "edge_effects", 1)
    assert "continuing the run" in done("discover", *arguments, "--memory", "4MB", "--resume").stderr


def test_gradients_layer_by_layer_and_less_precise_products_are_options_of_every_measurement(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    usual, _ = scores(prompts, tiny_folder, tmp_path / "usual.csv")
    before = torch.get_float32_matmul_precision()
    try:
        options = ("--checkpointing", "--memory", "1GB", "--matmul-precision", "high")
        found, said = scores(prompts, tiny_folder, tmp_path / "layers.csv", *options)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert "one layer's activations at a time" in " ".join(said.split())
    np.testing.assert_allclose(found, usual, atol=1e-4)


def test_an_unknown_matmul_precision_is_refused_before_the_model_is_loaded(prompts: Path) -> None:
    result = invoke("score", prompts, "--model", "/nowhere", "--matmul-precision", "hihg")
    assert result.exit_code == 2
    assert "there is no matmul precision 'hihg'. Closest: 'high'" in result.stderr
