"""``circuits mediate``: what passes through a direction, on a tiny model, and both halves in one figure."""

import json
from pathlib import Path

from tests.cli.conftest import as_json, done, invoke
from tests.cli.test_direction import found, words  # noqa: F401  (fixtures)


def test_the_share_the_readers_and_the_joined_figure_are_written(
    found: Path,  # noqa: F811
    words: Path,  # noqa: F811
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    direction = found / "direction.safetensors"
    circuit = tmp_path / "circuit"
    options = [words, "--model", tiny_folder, "--pairs", 4]
    done("discover", *options, "--to", direction, "--pruner", "top", "--size", "20", "--out", circuit, "--no-heads")
    out = tmp_path / "mediation.json"
    options += ["--through", direction, "--random", 1, "--readers", 3, "--out", out]
    report = as_json("mediate", *options, "--join", circuit / "circuit.json")
    assert [each["name"] for each in report["parts"]] == ["direction", "stream", "without the direction"]
    assert report["files"] == [str(out), str(tmp_path / "mediation.svg")]
    assert json.loads(out.read_text())["readers"] == report["readers"]
    assert f"resid{report['layer']}" in (tmp_path / "mediation.svg").read_text()
    text = " ".join(done("mediate", *options).stdout.split())
    assert "what reads the direction" in text
    assert "carries" in text


def test_what_does_not_fit_together_ends_before_the_model_is_loaded(found: Path, words: Path) -> None:  # noqa: F811
    direction = found / "direction.safetensors"
    for options, words_said in (
        (["--through", direction, "--to", direction], "leave --to out"),
        (["--through", "missing.safetensors"], "no direction that can be read"),
        ([], "Missing option '--through'"),
    ):
        result = invoke("mediate", words, "--model", "/nowhere", *options)
        assert result.exit_code in (1, 2)
        assert words_said in " ".join(result.stderr.split())
