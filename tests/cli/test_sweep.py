"""``circuits sweep`` runs a campaign in processes of its own; the exit code says whether all came through."""

import json
from pathlib import Path

from circuits.circuit import Circuit
from tests.cli.conftest import invoke


def test_a_campaign_runs_in_processes_and_failures_are_in_the_exit_code(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"clean": "a b", "corrupted": "a b c d", "answer": 1, "wrong_answer": 2}\n')
    (tmp_path / "grid.toml").write_text(
        f'behaviours = ["{prompts}", "bad.jsonl"]\nmodels = ["{tiny_folder}"]\n[options]\nquick = true\n'
        'heads = false\nprune-limit = 1\npairs = 6\nheldout = 6\ntarget = 0.8\nscorer = "eap"\n'
    )
    out = tmp_path / "campaign"
    ended = invoke("sweep", tmp_path / "grid.toml", "--out", out, "--workers", 2, "--threads", 1, "--json")
    assert ended.exit_code == 1, ended.output
    document = json.loads(ended.stdout)
    assert [(run["name"], run["state"]) for run in document["runs"]] == [
        ("mine-tiny-0", "finished"),
        ("bad-tiny-0", "PromptError"),
    ]
    assert document["runs"][0]["edges"] == len(Circuit.load(out / "runs" / "mine-tiny-0" / "circuit.json"))
    assert "warning: bad-tiny-0 failed: " in ended.stderr
    record = json.loads((out / "run.json").read_text())
    assert [file["path"] for file in record["outputs"]] == [*document["files"]]


def test_a_wrong_campaign_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text("behaviours = []\n")
    ended = invoke("sweep", tmp_path / "grid.toml", "--out", tmp_path / "out")
    assert ended.exit_code == 2
    assert "a campaign needs at least one of its behaviours" in ended.stderr
