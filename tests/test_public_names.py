"""The public names are a promise."""

import subprocess
import sys
import tomllib
from pathlib import Path

import circuits

ROOT = Path(__file__).parents[1]

PROMISED = [
    "AblatedModel",
    "AblationReport",
    "Architecture",
    "AttackedAnswers",
    "Behaviour",
    "Campaign",
    "CampaignOutcome",
    "Circuit",
    "CircuitDiff",
    "CircuitsError",
    "Citation",
    "Comparison",
    "ComputationalGraph",
    "CrossFit",
    "Crossing",
    "DepthComparison",
    "DiagramStyle",
    "Direction",
    "Discovery",
    "DiscoverySettings",
    "Edge",
    "EdgeScores",
    "GateTests",
    "HeadRoles",
    "Intervention",
    "Journal",
    "Message",
    "Metric",
    "Model",
    "ModelShape",
    "NeuronSplit",
    "Node",
    "NodeKind",
    "NodeTests",
    "PairGroups",
    "Options",
    "Path",
    "PromptSet",
    "Prompts",
    "PrunerName",
    "Repetition",
    "ReportWidget",
    "Resources",
    "Rivals",
    "RunRecord",
    "RunRecorder",
    "ScorerComparison",
    "ScorerName",
    "SearchSettings",
    "Site",
    "SitePatching",
    "StreamDirection",
    "TokenPair",
    "ablate_circuit",
    "ablated",
    "answers_under_attack",
    "build_graph",
    "by_group",
    "choose_openings",
    "cite",
    "closest",
    "closest_nodes",
    "compare",
    "compare_by_depth",
    "compare_models",
    "cross_fit",
    "compare_scorers",
    "discover",
    "draw_saved",
    "each_slot",
    "evaluate",
    "evaluate_circuit",
    "explore",
    "export",
    "find_direction",
    "find_gates",
    "find_neurons",
    "find_rivals",
    "group_pairs",
    "guide",
    "head_roles",
    "interchange_nodes",
    "leading_to",
    "load_behaviour",
    "load_model",
    "measure_ablation",
    "measure_comparison",
    "measure_direction",
    "mediate",
    "minimal",
    "over_refusal",
    "pair_requests",
    "patch_sites",
    "path_effects",
    "position_labels",
    "read_circuit",
    "read_prompts",
    "role_names",
    "run_again",
    "run_campaign",
    "save_comparison",
    "save_discovery",
    "score",
    "score_shared",
    "share",
    "show_progress",
    "write_ablated_weights",
]


def test_the_public_names_are_these_and_each_can_be_used() -> None:
    assert sorted(circuits.__all__) == sorted(PROMISED)
    assert dir(circuits) == sorted(PROMISED)
    for name in PROMISED:
        assert getattr(circuits, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(circuits, "diskover")


def test_importing_the_package_does_not_import_torch_nnsight_or_transformers() -> None:
    code = "import sys, circuits; print([name for name in ('torch', 'nnsight', 'transformers') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_the_package_says_its_version_and_that_it_is_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert circuits.__version__ == project["version"]
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "circuits" / "py.typed").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
