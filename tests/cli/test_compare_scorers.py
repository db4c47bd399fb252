"""``circuits scorers`` compares scorers, and writes the numbers and the picture."""

import json
from pathlib import Path

from tests.cli.conftest import as_json, done, invoke


def test_scorers_are_compared_and_written_with_a_picture(prompts: Path, tiny_folder: Path, tmp_path: Path) -> None:
    options = ["--model", tiny_folder, "--pairs", 6, "--heldout", 4, "--sample", 12, "--top", 20, "--steps", 2]
    chosen = ["--scorer", "eap", "--scorer", "relp"]
    shown = done("scorers", prompts, *options, *chosen, "--ablation", "resample", "--out", tmp_path).stdout
    document = json.loads((tmp_path / "scorers.json").read_text())
    assert [row["scorer"] for row in document["rows"]] == ["eap", "relp", "ensemble"]
    assert document["ablation"] == "resample"
    assert (tmp_path / "scorers.svg").read_text().startswith("<svg")
    assert all(name in shown for name in ("Spearman", "CMD", "relp", "ensemble"))
    by_kl = as_json("scorers", prompts, *options, *chosen, "--scorer", "eap-ig", "--metric", "kl", "--out", tmp_path)
    assert [row["scorer"] for row in by_kl["rows"]] == ["eap-ig"]
    assert sorted(by_kl["left_out"]) == ["eap", "relp"]


def test_a_scorer_that_there_is_not_is_refused(prompts: Path) -> None:
    result = invoke("scorers", prompts, "--scorer", "rlep")
    assert (result.exit_code, "Closest: 'relp'" in result.stderr) == (2, True)
