"""``circuits discover --quick``: a first answer that says it is rough; what is asked for beside it holds."""

import json
from pathlib import Path
from typing import Any

from circuits import RunRecord
from circuits.cli.arguments import Measurement
from circuits.cli.searching import Search
from circuits.cli.verifying import Verifying
from circuits.discovery_settings import DiscoverySettings
from circuits.patching.measurement import Options, Resources
from circuits.vocabulary import PrunerName
from tests.cli.conftest import as_json, done, invoke


def settings(search: dict[str, Any], pairs: int | None = None) -> DiscoverySettings:
    return Search(**search).settings(Measurement(pairs=pairs), Verifying(), Options(), Resources())


def test_quick_takes_few_pairs_unless_more_are_asked_for() -> None:
    quick, plain = DiscoverySettings.quick(), DiscoverySettings()
    found = settings({"quick": True})
    for each in (found, quick):
        assert (each.pairs, each.heldout, each.pruner, each.prune_limit) == (8, 16, PrunerName.MINIMAL, 0)
        assert each.sample == 0
    asked = settings({"quick": True, "heldout": 40, "pruner": "top", "size": 30, "prune_limit": 9}, pairs=64)
    assert (asked.pairs, asked.heldout, asked.pruner, asked.size, asked.rough) == (64, 40, PrunerName.TOP, 30, True)
    assert asked.prune_limit == 9
    usual = settings({})
    assert (usual.pairs, usual.heldout, usual.pruner, usual.rough) == (plain.pairs, plain.heldout, plain.pruner, False)


def test_a_quick_discovery_warns_that_it_is_rough(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    options = ("--model", tiny_folder, "--out", tmp_path, "--pairs", 6, "--heldout", 6, "--target", 0.8)
    document = as_json("discover", prompts, "--quick", *options)
    assert any("rough first answer" in text for text in document["warnings"])
    assert document["circuit"]["search"]["doubts"][0] in document["warnings"]
    assert not (tmp_path / "heads.json").exists()
    assert RunRecord.load(tmp_path).settings["quick"] is True
    for file in ("report.html", "circuit.dot"):
        assert "rough first answer" in (tmp_path / file).read_text()


def test_few_pairs_are_cross_fitted_on_demand_and_that_is_offered(
    prompts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(prompts.read_text().splitlines(keepends=True)[:12]))
    common = ("discover", few, "--model", tiny_folder, "--quick", "--pruner", "top", "--size", 40, "--pairs", 6)
    assert "--cross-fit judges the search by all of them" in done(*common, "--out", tmp_path / "once").stderr
    document = as_json(*common, "--out", tmp_path / "twice", "--cross-fit")
    assert document["circuit"]["behaviour"]["n_heldout"] == 6
    assert document["cross_fit"]["likeness"]["n"] == 12
    assert all(30 < len(edges) <= 40 for edges in document["cross_fit"]["edges"])


def test_rivals_are_searched_on_demand(prompts: Path, tiny_folder: Path, tmp_path: Path) -> None:
    quick = ("--pairs", 8, "--choose", 8, "--fresh", 0, "--heldout", 6, "--target", 0.8, "--scorer", "eap")
    common = ("discover", prompts, "--model", tiny_folder, *quick, "--no-heads")
    document = as_json(*common, "--out", tmp_path, "--rivals", 1)
    [rival] = document["rivals"]["rivals"]
    assert rival["edges"] == len(json.loads((tmp_path / "rival_1.json").read_text())["edges"])
    assert rival["shared_edges"] < len(document["circuit"]["edges"])
    assert str(tmp_path / "rival_1.json") in document["files"].values()
    shown = done(*common, "--out", tmp_path, "--rivals", 1, "--resume").stdout
    assert "rival 1" in shown
    refused = invoke("discover", "ioi", "--quick", "--rivals", 1)
    assert refused.exit_code == 2
    assert "rivals are searched by the pruner closest" in refused.stderr
