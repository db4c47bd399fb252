"""``circuits groups`` groups pairs, writes everything and says what may be claimed."""

import json
from pathlib import Path

from tests.cli.conftest import as_json, done


def test_groups_of_one_behaviour_and_of_two_mixed(
    prompts: Path, other_prompts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    options = ["--model", tiny_folder, "--pairs", 8, "--size", 30]
    text = done("groups", prompts, *options, "--groups", 2, "--out", tmp_path).stdout
    document = json.loads((tmp_path / "groups.json").read_text())
    assert sum(group["pairs"] for group in document["groups"]) == 8
    assert document["verdict"] in " ".join(text.split())
    both = as_json("groups", prompts, other_prompts, *options, "--out", tmp_path / "both.json")
    assert both["behaviours"] == ["mine", "yours"]
    assert -1 <= both["rand"] <= 1
