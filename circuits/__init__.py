"""Path patching: find, measure, draw and compare the circuits of transformer language models.

>>> import circuits
>>> model = circuits.load_model("smollm2-135m")            # doctest: +SKIP
>>> behaviour = circuits.load_behaviour("ioi")
>>> found = circuits.discover(model, behaviour)            # doctest: +SKIP
>>> found.circuit.draw("ioi.svg")                          # doctest: +SKIP

Names are loaded when first used, so that ``import circuits`` stays fast.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.ablation.circuit_ablation import ablate_circuit
    from circuits.ablation.generation import AblatedModel, ablated
    from circuits.ablation.intervention import Intervention
    from circuits.ablation.measuring import AblationReport, measure_ablation
    from circuits.adapters.architecture import Architecture, by_group, each_slot
    from circuits.behaviours import Message, load_behaviour
    from circuits.behaviours.behaviour import Behaviour, PromptSet, TokenPair
    from circuits.behaviours.roles import role_names
    from circuits.behaviours.survey import Prompts
    from circuits.builder import build_graph
    from circuits.campaigns.campaign import Campaign
    from circuits.campaigns.outcome import CampaignOutcome
    from circuits.campaigns.running import run_campaign
    from circuits.certainty.gates import GateTests, find_gates
    from circuits.certainty.node_tests import NodeTests, interchange_nodes
    from circuits.certainty.pair_groups import PairGroups, group_pairs
    from circuits.certainty.scorer_comparison import ScorerComparison, compare_scorers
    from circuits.circuit import Circuit
    from circuits.comparison import CircuitDiff, Comparison, compare
    from circuits.comparison.by_depth import DepthComparison, compare_by_depth
    from circuits.comparison.comparing import Crossing, compare_models, measure_comparison
    from circuits.cross_fitting import CrossFit, cross_fit
    from circuits.diagrams.style import DiagramStyle
    from circuits.directions.stream_direction import StreamDirection
    from circuits.directions.target import leading_to
    from circuits.discovery import Discovery, discover
    from circuits.discovery_settings import DiscoverySettings
    from circuits.drawing.pictures import export
    from circuits.drawing.saved import draw_saved
    from circuits.errors import CircuitsError
    from circuits.evaluation import evaluate
    from circuits.evaluation.circuit_evaluation import evaluate_circuit
    from circuits.files.journal import Journal
    from circuits.graph import ComputationalGraph, Edge, ModelShape, Node, NodeKind
    from circuits.guides import guide
    from circuits.heads import HeadRoles, head_roles
    from circuits.interchange.foreign import read_circuit
    from circuits.model import Model, load_model
    from circuits.neurons.neuron_finding import find_neurons
    from circuits.neurons.neuron_split import NeuronSplit
    from circuits.openings import choose_openings
    from circuits.patching.measurement import Options, Resources
    from circuits.patching.paths import Path, path_effects
    from circuits.patching.shared_experiment import share
    from circuits.patching.site_results import SitePatching
    from circuits.patching.sites import patch_sites, position_labels
    from circuits.progress_line import show_progress
    from circuits.prompt_reading import pair_requests, read_prompts
    from circuits.pruning import closest, minimal
    from circuits.pruning.closest_nodes import closest_nodes
    from circuits.recording.citing import Citation, cite
    from circuits.recording.recorder import RunRecorder
    from circuits.recording.repeating import Repetition, run_again
    from circuits.recording.run_record import RunRecord
    from circuits.report.comparison_files import save_comparison
    from circuits.report.widget import ReportWidget, explore
    from circuits.results import save_discovery
    from circuits.rivals import Rivals, find_rivals
    from circuits.scores import EdgeScores
    from circuits.scoring import score
    from circuits.scoring.scorers import score_shared
    from circuits.steering.ablated_weights import write_ablated_weights
    from circuits.steering.attacked_answers import AttackedAnswers, answers_under_attack
    from circuits.steering.effects import measure_direction
    from circuits.steering.mediation import mediate
    from circuits.steering.over_refusal import over_refusal
    from circuits.steering.search import SearchSettings, find_direction
    from circuits.vocabulary import Direction, Metric, PrunerName, ScorerName, Site

_HOMES = {
    "AblatedModel": "circuits.ablation.generation",
    "AblationReport": "circuits.ablation.measuring",
    "Architecture": "circuits.adapters.architecture",
    "AttackedAnswers": "circuits.steering.attacked_answers",
    "Behaviour": "circuits.behaviours.behaviour",
    "Campaign": "circuits.campaigns.campaign",
    "CampaignOutcome": "circuits.campaigns.outcome",
    "Circuit": "circuits.circuit",
    "CircuitDiff": "circuits.comparison",
    "CircuitsError": "circuits.errors",
    "Citation": "circuits.recording.citing",
    "Comparison": "circuits.comparison",
    "ComputationalGraph": "circuits.graph",
    "CrossFit": "circuits.cross_fitting",
    "Crossing": "circuits.comparison.comparing",
    "DepthComparison": "circuits.comparison.by_depth",
    "DiagramStyle": "circuits.diagrams.style",
    "Direction": "circuits.vocabulary",
    "Discovery": "circuits.discovery",
    "DiscoverySettings": "circuits.discovery_settings",
    "Edge": "circuits.graph",
    "EdgeScores": "circuits.scores",
    "GateTests": "circuits.certainty.gates",
    "HeadRoles": "circuits.heads",
    "Intervention": "circuits.ablation.intervention",
    "Journal": "circuits.files.journal",
    "Message": "circuits.behaviours",
    "Metric": "circuits.vocabulary",
    "Model": "circuits.model",
    "ModelShape": "circuits.graph",
    "NeuronSplit": "circuits.neurons.neuron_split",
    "Node": "circuits.graph",
    "NodeKind": "circuits.graph",
    "NodeTests": "circuits.certainty.node_tests",
    "PairGroups": "circuits.certainty.pair_groups",
    "Options": "circuits.patching.measurement",
    "Path": "circuits.patching.paths",
    "PromptSet": "circuits.behaviours.behaviour",
    "Prompts": "circuits.behaviours.survey",
    "PrunerName": "circuits.vocabulary",
    "Repetition": "circuits.recording.repeating",
    "ReportWidget": "circuits.report.widget",
    "Resources": "circuits.patching.measurement",
    "Rivals": "circuits.rivals",
    "RunRecord": "circuits.recording.run_record",
    "RunRecorder": "circuits.recording.recorder",
    "ScorerComparison": "circuits.certainty.scorer_comparison",
    "ScorerName": "circuits.vocabulary",
    "SearchSettings": "circuits.steering.search",
    "Site": "circuits.vocabulary",
    "SitePatching": "circuits.patching.site_results",
    "StreamDirection": "circuits.directions.stream_direction",
    "TokenPair": "circuits.behaviours.behaviour",
    "ablate_circuit": "circuits.ablation.circuit_ablation",
    "ablated": "circuits.ablation.generation",
    "answers_under_attack": "circuits.steering.attacked_answers",
    "build_graph": "circuits.builder",
    "by_group": "circuits.adapters.architecture",
    "choose_openings": "circuits.openings",
    "cite": "circuits.recording.citing",
    "closest": "circuits.pruning",
    "closest_nodes": "circuits.pruning.closest_nodes",
    "compare": "circuits.comparison",
    "compare_by_depth": "circuits.comparison.by_depth",
    "compare_models": "circuits.comparison.comparing",
    "compare_scorers": "circuits.certainty.scorer_comparison",
    "cross_fit": "circuits.cross_fitting",
    "discover": "circuits.discovery",
    "draw_saved": "circuits.drawing.saved",
    "each_slot": "circuits.adapters.architecture",
    "evaluate": "circuits.evaluation",
    "evaluate_circuit": "circuits.evaluation.circuit_evaluation",
    "explore": "circuits.report.widget",
    "export": "circuits.drawing.pictures",
    "find_direction": "circuits.steering.search",
    "find_gates": "circuits.certainty.gates",
    "find_neurons": "circuits.neurons.neuron_finding",
    "find_rivals": "circuits.rivals",
    "group_pairs": "circuits.certainty.pair_groups",
    "guide": "circuits.guides",
    "head_roles": "circuits.heads",
    "interchange_nodes": "circuits.certainty.node_tests",
    "leading_to": "circuits.directions.target",
    "load_behaviour": "circuits.behaviours",
    "load_model": "circuits.model",
    "measure_ablation": "circuits.ablation.measuring",
    "measure_comparison": "circuits.comparison.comparing",
    "measure_direction": "circuits.steering.effects",
    "mediate": "circuits.steering.mediation",
    "minimal": "circuits.pruning",
    "over_refusal": "circuits.steering.over_refusal",
    "pair_requests": "circuits.prompt_reading",
    "patch_sites": "circuits.patching.sites",
    "path_effects": "circuits.patching.paths",
    "position_labels": "circuits.patching.sites",
    "read_circuit": "circuits.interchange.foreign",
    "read_prompts": "circuits.prompt_reading",
    "role_names": "circuits.behaviours.roles",
    "run_again": "circuits.recording.repeating",
    "run_campaign": "circuits.campaigns.running",
    "save_comparison": "circuits.report.comparison_files",
    "save_discovery": "circuits.results",
    "score": "circuits.scoring",
    "score_shared": "circuits.scoring.scorers",
    "share": "circuits.patching.shared_experiment",
    "show_progress": "circuits.progress_line",
    "write_ablated_weights": "circuits.steering.ablated_weights",
}

__all__ = [
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
    "Options",
    "PairGroups",
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
    "compare_scorers",
    "cross_fit",
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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; ``__version__`` is that of the installed distribution."""
    if name == "__version__":
        return metadata.version("path-patching-circuits")
    if name not in _HOMES:
        raise AttributeError(f"module 'circuits' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
