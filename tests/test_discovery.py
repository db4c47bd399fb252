"""From a model and a behaviour to a circuit judged on held-out prompts, on a tiny model; and resumed after a stop."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch

import circuits
from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.pairs import Pair
from circuits.circuit import Circuit
from circuits.discovery import Discovery, checked_experiment, discover, pruned, record_pairs
from circuits.discovery_settings import DiscoverySettings, parts_of, prompts_for
from circuits.drawing.dot import circuit_dot
from circuits.errors import BehaviourNotShownError, PromptError, UsageError
from circuits.evaluation import evaluate
from circuits.graph import ModelShape
from circuits.model import Model, verified
from circuits.models.loading import LoadedWeights
from circuits.patching.experiment import PatchingExperiment
from circuits.patching.measurement import Options, Resources
from circuits.patching.node_circuits import edges_among
from circuits.pruning.connected import connected
from circuits.pruning.pruners import prune
from circuits.records import SearchOutcome
from circuits.report.sentences import facts
from circuits.rivals import PRICE, Rivals, leave_rivals
from circuits.scoring import score
from circuits.statistics import faithfulness
from circuits.vocabulary import Direction, Metric, PrunerName, ScorerName
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.toy import planted_toy

LETTERS = "BCDFGHKLMNPQRSVWXYZ"
SETTINGS = DiscoverySettings(pruner=PrunerName.MINIMAL, pairs=4, heldout=6, sample=12, target=0.7, options=Options())


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer, module = tiny_tokenizer(), tiny_llama()
    weights = LoadedWeights(module, tokenizer, "tiny", "local", "0" * 64, "1" * 64, torch.device("cpu"), torch.float32)
    return verified(weights)


@pytest.fixture(scope="module")
def behaviour(model: Model) -> Behaviour:
    """Random letters, of which the last four change; answers are what the model says to each side."""
    generator, pairs = np.random.default_rng(0), list[Pair]()
    for i in range(30):
        common, here, there = ("".join(generator.choice(list(LETTERS), n)) for n in (3, 4, 4))
        clean, corrupted = common + here, common + there
        best = [_best(model, text) for text in (clean, corrupted)]
        if best[0] != best[1]:
            pairs.append(Pair(clean, corrupted, answer_ids=(best[0],), wrong_ids=(best[1],), source=f"pair {i}"))
    return Behaviour("letters", "what the model says", lambda _: pairs)


def _best(model: Model, text: str) -> int:
    ids = torch.tensor([model.tokenizer(text).input_ids])
    return int(model.tracer.anatomy.module(ids).logits[0, -1].argmax())


@pytest.fixture(scope="module")
def found(model: Model, behaviour: Behaviour) -> Discovery:
    return discover(model, behaviour, SETTINGS, command="circuits discover letters")


def same(one: Discovery, other: Discovery) -> None:
    """Equal in everything but how long it took."""
    for name in ("edges", "scores", "removal", "inclusion", "withstands"):
        np.testing.assert_array_equal(getattr(one.circuit, name), getattr(other.circuit, name))
    assert (one.circuit.method, one.circuit.behaviour) == (other.circuit.method, other.circuit.behaviour)
    assert one.circuit.evaluation == other.circuit.evaluation
    assert one.selection.proposed == other.selection.proposed


# ----------------------------------------------------------------------------------------------------------- the result


def test_the_circuit_reaches_the_target_on_the_prompts_it_was_searched_on(
    model: Model, behaviour: Behaviour, found: Discovery
) -> None:
    experiment, _ = checked_experiment(model, prompts_for(model, behaviour, SETTINGS), SETTINGS)
    measured = evaluate(experiment, found.circuit.edges)
    assert abs(1 - measured.faithfulness) <= 0.3 + 1e-5
    assert found.selection.faithfulness == pytest.approx(measured.faithfulness, abs=1e-4)
    assert found.selection.locally_minimal
    assert 0 < len(found.circuit) < model.graph.n_edges


def test_it_is_judged_on_held_out_prompts_and_nothing_else(
    model: Model, behaviour: Behaviour, found: Discovery
) -> None:
    assert not {pair.clean for pair in found.prompts.discovery} & {pair.clean for pair in found.prompts.heldout}
    heldout = model.experiment(found.prompts.heldout)
    by_magnitude = found.selection.by_magnitude
    expected = evaluate(heldout, found.circuit.edges, scores=found.scores, by_magnitude=by_magnitude)
    assert found.circuit.evaluation == expected
    assert expected.n == 6
    assert expected.faithfulness != pytest.approx(found.selection.faithfulness, abs=1e-3)


def test_what_was_asked_for_is_written_down(model: Model, found: Discovery) -> None:
    method, behaviour = found.circuit.method, found.circuit.behaviour
    assert (method.scorer, method.pruner, method.target, method.dtype) == ("eap-ig", "minimal", 0.7, "float32")
    assert method.rank_by == ("|score|" if found.selection.by_magnitude else "score")
    assert (behaviour.name, behaviour.n_discovery, behaviour.n_heldout) == ("letters", 4, 6)
    assert behaviour.digest == found.prompts.digest
    assert found.circuit.model == model.info
    assert found.circuit.provenance.command == "circuits discover letters"
    assert found.circuit.provenance.versions["torch"] == metadata.version("torch")
    np.testing.assert_array_equal(found.circuit.scores, found.scores.values[found.circuit.edges])
    assert found.agreement is not None
    assert found.agreement.n == 12
    assert found.circuit.stability is None  # four pairs say nothing of others


def test_it_says_how_stable_its_edges_are_where_there_are_pairs_enough(model: Model, behaviour: Behaviour) -> None:
    settings = replace(SETTINGS, pruner=PrunerName.TOP, size=40, pairs=10, sample=0)
    found = discover(model, behaviour, settings)
    circuit = found.circuit
    assert circuit.stability is not None
    assert circuit.stability.pairs == circuit.behaviour.n_discovery
    assert circuit.inclusion.shape == circuit.withstands.shape == circuit.edges.shape
    assert 0 < circuit.stability.jaccard_edges <= 1
    assert Circuit.from_document(json.loads(circuit.to_json())).stability is not None


def test_the_same_discovery_twice_gives_the_same_circuit(model: Model, behaviour: Behaviour, found: Discovery) -> None:
    same(discover(model, behaviour, SETTINGS), found)


def test_the_top_pruner_and_an_exact_scorer_need_no_comparison(model: Model, behaviour: Behaviour) -> None:
    settings = replace(SETTINGS, scorer=ScorerName.EXACT, pruner=PrunerName.TOP, size=40)
    result = discover(model, behaviour, settings)
    assert result.agreement is None
    assert result.circuit.measured
    assert result.selection.proposed == 40
    assert (result.circuit.method.target, result.circuit.method.pruner) == (None, "top")
    assert 0 < len(result.circuit) <= 40


@pytest.mark.parametrize(
    "options",
    [Options(metric=Metric.KL), Options(metric=Metric.LOG_ODDS), Options(direction=Direction.DENOISING)],
    ids=["kl", "log-odds", "denoising"],
)
def test_other_metrics_and_the_other_direction_lead_to_a_circuit_too(
    model: Model, behaviour: Behaviour, options: Options
) -> None:
    result = discover(model, behaviour, replace(SETTINGS, options=options, sample=0))
    assert result.selection.locally_minimal
    assert result.circuit.behaviour.metric == options.metric.value
    assert result.circuit.evaluation is not None
    assert result.circuit.evaluation.curve[-1].faithfulness == pytest.approx(1, abs=1e-3)


def test_stages_are_told_as_they_come(model: Model, behaviour: Behaviour) -> None:
    stages: list[str] = []
    discover(model, behaviour, SETTINGS, progress=lambda stage, _done, _total: stages.append(stage))
    order = list(dict.fromkeys(stage.split(" ")[0] for stage in stages))
    assert order == ["recording", "scoring", "proposing", "pruning", "comparing", "resampling", "evaluating"]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_22_identical_prompts_are_refused(model: Model) -> None:
    pairs = [Pair(f"BCD{letter}", f"BCD{letter}", answer_ids=(1,), wrong_ids=(2,)) for letter in LETTERS]
    with pytest.raises(PromptError, match=r"the clean and the corrupted prompt are the same"):
        discover(model, Behaviour("same", "nothing", lambda _: pairs), SETTINGS)


def test_22_a_gap_that_is_none_is_refused(model: Model, behaviour: Behaviour) -> None:
    """Every pair is also there the other way round, so that the mean gap is zero."""
    backwards = [replace(pair, clean=pair.corrupted, corrupted=pair.clean) for pair in behaviour.pairs(model.tokenizer)]
    both = Behaviour("none", "nothing", lambda _: [*behaviour.pairs(model.tokenizer), *backwards])
    with pytest.raises(BehaviourNotShownError, match=r"tiny does not show none"):
        discover(model, both, replace(SETTINGS, pairs=20, heldout=20))


def test_settings_out_of_range_are_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match=r"between 0 and 1, got 1.5"):
        DiscoverySettings(target=1.5)
    with pytest.raises(UsageError, match=r"at least 4 discovery and 4 held-out pairs are needed, got 3 and 64"):
        DiscoverySettings(pairs=3)


# ------------------------------------------------------------------------------------------------------------- resuming


class StopError(KeyboardInterrupt):
    """Ctrl-C at a chosen moment."""


def stop_at(stage: str) -> Callable[[str, int, int], None]:
    def stop(name: str, _done: int, _total: int) -> None:
        if name.startswith(stage):
            raise StopError

    return stop


def stopped(model: Model, behaviour: Behaviour, folder: Path, stage: str, settings: DiscoverySettings) -> None:
    with pytest.raises(StopError):
        discover(model, behaviour, settings, folder=folder, progress=stop_at(stage))


def forbid(monkeypatch: pytest.MonkeyPatch, *methods: str) -> None:
    """Let measurements of these kinds fail."""

    def measuring(*_: object) -> None:
        raise AssertionError("measured again")

    for method in methods:
        monkeypatch.setattr(f"circuits.{method}", measuring)


ATTRIBUTION = "patching.experiment.PatchingExperiment._attribution"
EVERYTHING = (
    ATTRIBUTION,
    "patching.experiment.PatchingExperiment._circuit_values",
    "patching.experiment.PatchingExperiment._mask_gradient",
    "passes.exact._Patcher.logits",
)


@pytest.mark.parametrize("stage", ["scoring", "proposing", "pruning", "comparing", "evaluating"])
def test_20_a_discovery_interrupted_at_any_stage_and_resumed_gives_the_same_circuit(
    model: Model, behaviour: Behaviour, found: Discovery, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor([found.prompts.discovery[0].clean])
    before = model.tracer.anatomy.module(ids).logits
    stopped(model, behaviour, tmp_path, stage, SETTINGS)
    assert torch.equal(model.tracer.anatomy.module(ids).logits, before)
    forbid(monkeypatch, ATTRIBUTION)  # its only batch was done when the first progress was told
    same(discover(model, behaviour, SETTINGS, folder=tmp_path, resume=True), found)
    assert Circuit.load(tmp_path / "circuit.json").digest == found.circuit.digest


def test_after_a_finished_run_nothing_at_all_is_measured_again(
    model: Model, behaviour: Behaviour, found: Discovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    discover(model, behaviour, SETTINGS, folder=tmp_path)
    forbid(monkeypatch, *EVERYTHING)
    again = discover(model, behaviour, SETTINGS, folder=tmp_path, resume=True)
    same(again, found)
    assert (again.agreement, again.circuit.evaluation) == (found.agreement, found.circuit.evaluation)


@pytest.mark.parametrize(
    "change",
    [
        {"prune_limit": 3},
        {"target": 0.6, "sample": 5, "heldout": 5, "size": 7},
    ],
    ids=str,
)
def test_what_does_not_enter_the_scores_keeps_them(
    model: Model, behaviour: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    stopped(model, behaviour, tmp_path, "evaluating", SETTINGS)
    changed = replace(SETTINGS, **change)
    expected = discover(model, behaviour, changed)
    forbid(monkeypatch, ATTRIBUTION)
    same(discover(model, behaviour, changed, folder=tmp_path, resume=True), expected)


@pytest.mark.parametrize(
    "resources", [Resources(batch_size=3), Resources(checkpointing=True, prefix_cache=False, memory="40%")], ids=str
)
def test_how_memory_is_used_does_not_touch_the_scores(
    model: Model,
    behaviour: Behaviour,
    found: Discovery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resources: Resources,
) -> None:
    stopped(model, behaviour, tmp_path, "proposing", SETTINGS)
    forbid(monkeypatch, ATTRIBUTION)
    resumed = discover(model, behaviour, replace(SETTINGS, resources=resources), folder=tmp_path, resume=True)
    np.testing.assert_array_equal(resumed.scores.values, found.scores.values)


def test_a_raised_limit_keeps_the_rounds_before_it(
    model: Model, behaviour: Behaviour, found: Discovery, tmp_path: Path
) -> None:
    """Circuits that were measured under the lower limit are not measured again."""
    low = replace(SETTINGS, prune_limit=3)
    discover(model, behaviour, low, folder=tmp_path)
    with Counted() as cold:
        discover(model, behaviour, SETTINGS)
    with Counted() as warm:
        same(discover(model, behaviour, SETTINGS, folder=tmp_path, resume=True), found)
    with Counted() as alone:
        discover(model, behaviour, low)
    assert warm.circuits <= cold.circuits - 0.5 * alone.circuits
    assert alone.circuits > 20


class Counted:
    """Counts the circuits that are measured inside."""

    circuits = 0

    def __enter__(self) -> Self:
        self._original: Any = PatchingExperiment._circuit_values

        def counting(experiment: Any, batch: Any, change: Any, masks: Any, members: Any) -> Any:
            self.circuits += len(members)
            return self._original(experiment, batch, change, masks, members)

        PatchingExperiment._circuit_values = counting  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        PatchingExperiment._circuit_values = self._original  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"options": Options(metric=Metric.KL)},
        {"options": Options(direction=Direction.DENOISING), "steps": 2},
    ],
    ids=str,
)
def test_what_enters_the_scores_measures_them_anew_and_mixes_nothing(
    model: Model, behaviour: Behaviour, tmp_path: Path, change: dict[str, Any]
) -> None:
    stopped(model, behaviour, tmp_path, "evaluating", SETTINGS)
    changed = replace(SETTINGS, **change)
    expected = discover(model, behaviour, changed)
    resumed = discover(model, behaviour, changed, folder=tmp_path, resume=True)
    same(resumed, expected)
    np.testing.assert_array_equal(resumed.scores.values, expected.scores.values)


def test_two_runs_that_are_stopped_and_continued_in_one_folder_end_as_if_each_were_alone(
    model: Model, behaviour: Behaviour, found: Discovery, tmp_path: Path
) -> None:
    other = replace(SETTINGS, seed=1)
    stopped(model, behaviour, tmp_path, "pruning", SETTINGS)
    for settings, stage in ((other, "pruning"), (SETTINGS, "comparing"), (other, "evaluating")):
        with pytest.raises(StopError):
            discover(model, behaviour, settings, folder=tmp_path, resume=True, progress=stop_at(stage))
    same(discover(model, behaviour, SETTINGS, folder=tmp_path, resume=True), found)
    same(discover(model, behaviour, other, folder=tmp_path, resume=True), discover(model, behaviour, other))


CLOSEST = replace(SETTINGS, pruner=PrunerName.CLOSEST, pairs=5, choose=5, target=0.3)


def test_the_closest_circuit_is_fitted_to_some_pairs_chosen_by_others_and_judged_on_neither(
    model: Model, behaviour: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    found = discover(model, behaviour, CLOSEST, progress=lambda stage, _done, _total: stages.append(stage))
    assert found.prompts.n_discovery == found.circuit.behaviour.n_discovery
    assert found.prompts.n_discovery > 5
    assert found.selection.pairs < found.prompts.n_discovery
    assert found.scores.n == found.prompts.n_discovery - found.selection.pairs
    assert found.circuit.method.pruner == "closest"
    assert found.circuit.method.target == 0.3
    assert found.circuit.evaluation is not None
    assert found.circuit.evaluation.likeness is not None
    assert found.circuit.evaluation.likeness.kl is not None
    assert found.circuit.evaluation.likeness.remark
    assert any(stage.startswith("pruning ") and "error" in stage for stage in stages)
    stopped(model, behaviour, tmp_path, "comparing", CLOSEST)
    forbid(monkeypatch, ATTRIBUTION, "patching.experiment.PatchingExperiment._mask_gradient")
    same(found, discover(model, behaviour, CLOSEST, folder=tmp_path, resume=True))


@pytest.mark.parametrize(("fresh", "groups"), [(0, [64]), (1, [64, 64]), (7, [64] * 8), (99, [64] * 8)])
def test_more_pairs_to_fit_to_are_taken_in_groups_as_far_as_there_are_any(
    model: Model, fresh: int, groups: list[int]
) -> None:
    pairs = [
        Pair(f"{a}{b}{c}B", f"{a}{b}{c}C", answer_ids=(1,), wrong_ids=(2,))
        for a in LETTERS
        for b in LETTERS
        for c in "BCDFG"
    ]
    many = Behaviour("many", "what the model says", lambda _: pairs)
    settings = DiscoverySettings(fresh=fresh)
    prompts = prompts_for(model, many, settings)
    parts, choosing, remarks = parts_of(prompts, settings)
    assert [len(part) for part in parts] == groups
    assert len(choosing) == 128
    assert not remarks
    fitted = {pair.clean_text for part in parts for pair in part}
    assert len(fitted) > 64 * len(groups) - 64
    assert not fitted & {pair.clean_text for pair in choosing}


def test_few_nodes_are_found_with_all_edges_among_them(model: Model, behaviour: Behaviour) -> None:
    settings = replace(CLOSEST, pruner=PrunerName.NODES, pairs=4, choose=4, fresh=1)
    stages: list[str] = []
    found = discover(model, behaviour, settings, progress=lambda stage, _done, _total: stages.append(stage))
    circuit, graph = found.circuit, found.circuit.graph
    assert circuit.method.pruner == "nodes"
    assert circuit.evaluation is not None
    assert found.selection.reached
    edges = list(graph.edges(circuit.edges))
    nodes = {edge.sender for edge in edges}
    places = np.sort([graph.sender_index[node] for node in nodes])
    assert circuit.edges.tolist() == connected(graph, edges_among(graph, places)).tolist()
    assert any(re.match(r"pruning \d+ nodes \(error", stage) for stage in stages)


def test_nodes_are_not_searched_by_metrics_of_whole_answers() -> None:
    toy = planted_toy(ModelShape(n_layers=2, n_heads=2, n_kv_heads=2, d_model=4, d_head=2), 5, seed=0, n_pairs=8)
    with pytest.raises(UsageError, match=r"--metric sequence.* use --pruner closest"):
        prune(toy, toy, score(toy, ScorerName.EAP), PrunerName.NODES)


def test_the_closest_circuit_is_what_is_looked_for_unless_said_otherwise() -> None:
    assert DiscoverySettings().pruner is PrunerName.CLOSEST


def test_too_few_pairs_to_choose_by_serve_for_both_and_that_is_said(model: Model, behaviour: Behaviour) -> None:
    few = Behaviour("few", "what the model says", lambda tokenizer: behaviour.pairs(tokenizer)[:14])
    found = discover(model, few, replace(CLOSEST, sample=0))
    assert found.selection.pairs == found.scores.n == found.prompts.n_discovery == 7
    assert any("Until then circuits are chosen by the pairs they fit" in warning for warning in found.warnings)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_for_pruning_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="must be more than 0 seconds"):
        DiscoverySettings(seconds=seconds)


# ----------------------------------------------------------------------------------------------------------- the README


@pytest.fixture
def of_readme(
    model: Model, behaviour: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], dict[str, Any]]:
    """Run Python of the README on the tiny model, in a small setting, and return its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(circuits, "load_model", lambda _: model)
    monkeypatch.setattr(circuits, "load_behaviour", lambda _: behaviour)
    monkeypatch.setattr(circuits, "DiscoverySettings", lambda seed, **_: replace(SETTINGS, seed=seed))
    names: dict[str, Any] = {"circuits": circuits, "name": "tiny"}

    def run(code: str) -> dict[str, Any]:
        exec(code, names)
        return names

    return run


README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs_as_it_stands_and_its_words_for_other_tools_too(
    of_readme: Callable[[str], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = of_readme(README.partition("```python\n")[2].partition("```")[0])
    printed = capsys.readouterr().out
    assert printed.startswith(names["found"].circuit.evaluation.likeness.fidelity.describe())
    assert (tmp_path / "ioi.svg").is_file()
    assert (tmp_path / "outputs/ioi/circuit.json").is_file()

    found = names["found"]
    names |= {"edges": found.circuit.edges, "masks": [found.circuit.mask()], "scores": found.scores}
    names |= {"paths": ["input->m0->logits"], "tokens": [""] * len(found.prompts.heldout[0].clean)}
    rows = README.partition("| there | here |")[2].partition("\n\n")[0]
    calls = [
        code
        for row in rows.splitlines()
        for code in re.findall(r"`((?:circuits|experiment|scores|model)\.[^`]+)`", row.rpartition(" | ")[2])
    ]
    assert len(calls) == 13
    for call in calls:
        assert of_readme(f"result = {call}")["result"] is not None


# ------------------------------------------------------------------------------------------------------------- quick


def test_a_quick_search_is_said_to_be_rough_wherever_its_circuit_is_shown(model: Model, behaviour: Behaviour) -> None:
    settings = DiscoverySettings.quick(pairs=4, heldout=6, target=0.7, options=Options())
    assert (settings.pruner, settings.sample, settings.rough) == (PrunerName.MINIMAL, 0, True)
    rough = discover(model, behaviour, settings)
    assert rough.agreement is None
    said = "This is a rough first answer (quick): searched on 4 pairs and judged on 6, its scores not checked."
    assert rough.doubts[0].startswith(said)
    assert rough.circuit.search is not None
    assert rough.circuit.search.doubts == rough.doubts
    assert Circuit.from_document(rough.circuit.to_document()).search == rough.circuit.search
    assert "rough first answer" in circuit_dot(rough.circuit)
    assert ("Doubts", " ".join(rough.doubts)) in facts(rough.circuit)


def test_a_usual_search_is_not_rough(found: Discovery) -> None:
    assert not any("rough" in text for text in found.doubts)
    assert found.circuit.search is not None
    assert found.circuit.search.locally_minimal == found.selection.locally_minimal


# ---------------------------------------------------------------------------------------------------------- few pairs


def test_every_pair_judges_the_circuit_that_was_found_without_it(model: Model, behaviour: Behaviour) -> None:
    few = replace(behaviour, pairs=lambda tokenizer: behaviour.pairs(tokenizer)[:12])
    settings = DiscoverySettings.quick(pruner=PrunerName.TOP, size=40, pairs=6, heldout=6, options=Options())
    prompts = few.prompts(model.tokenizer, discovery=6, heldout=6)
    assert (prompts.n_discovery, prompts.n_heldout) == (6, 6)
    crossed = circuits.cross_fit(model, few, settings)
    first = discover(model, few, settings)
    np.testing.assert_array_equal(crossed.circuits[0].edges, first.circuit.edges)
    np.testing.assert_array_equal(
        circuits.cross_fit(model, few, settings, first=first).circuits[1].edges, crossed.circuits[1].edges
    )
    exchanged = few.swapped(model.tokenizer).prompts(model.tokenizer, discovery=6, heldout=6)
    for here, there in ((exchanged.discovery, prompts.heldout), (exchanged.heldout, prompts.discovery)):
        assert {pair.clean_text for pair in here} == {pair.clean_text for pair in there}
    assert not np.array_equal(crossed.circuits[0].edges, crossed.circuits[1].edges)
    parts: list[list[np.ndarray]] = []
    for circuit, pairs in zip(crossed.circuits, (prompts.heldout, prompts.discovery), strict=True):
        experiment = model.experiment(pairs)
        parts.append([experiment.clean, experiment.corrupted, experiment.circuits([circuit.mask()])[0]])
    clean, corrupted, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    expected = 1 - ((values - clean) ** 2).sum() / ((corrupted - clean) ** 2).sum()
    assert crossed.likeness.n == 12
    assert crossed.likeness.fidelity.value == pytest.approx(expected, abs=1e-4)
    assert crossed.faithfulness.value == pytest.approx(
        (values - corrupted).mean() / (clean - corrupted).mean(), abs=1e-4
    )
    one, other = crossed.circuits
    sizes = f"{len(one)} and {len(other)} edges, {len(set(one) & set(other))} in both"
    assert f"over all 12 pairs, each judged by the circuit found without it ({sizes})" in crossed.describe()


# ------------------------------------------------------------------------------------------------------------- rivals


CLOSE = replace(SETTINGS, pruner=PrunerName.CLOSEST, choose=8, fresh=0, pairs=8, sample=0, scorer=ScorerName.EAP)


def test_rivals_are_found_with_a_price_on_what_was_found_before_and_judged_on_the_same_pairs(
    model: Model, behaviour: Behaviour, tmp_path: Path
) -> None:
    first = discover(model, behaviour, CLOSE, folder=tmp_path)
    rivals = circuits.find_rivals(model, first, CLOSE, count=2)
    assert rivals.first is first.circuit
    assert len(rivals.rivals) == 2
    experiment = model.experiment(first.prompts.heldout)
    for each in rivals.rivals:
        assert each.evaluation is not None
        assert each.search is not None
        assert rivals.shared(each) < len(first.circuit)
        value = float(faithfulness(experiment, experiment.circuits([each.mask()])[0]))
        assert each.evaluation.faithfulness == pytest.approx(value, abs=1e-5)
    prices = np.zeros(first.circuit.graph.n_edges)
    prices[first.circuit.edges] = PRICE
    pairs = record_pairs(model, first.prompts, CLOSE)
    assert pruned(pairs, first.scores, CLOSE).edges.tolist() == first.circuit.edges.tolist()
    assert pruned(pairs, first.scores, CLOSE, prices=prices).edges.tolist() == rivals.rivals[0].edges.tolist()


def test_what_all_rivals_share_is_told_and_kept_with_the_circuit(found: Discovery, tmp_path: Path) -> None:
    whole = found.circuit

    def rival(edges: np.ndarray, *, reached: bool) -> Circuit:
        return replace(
            whole, edges=edges, scores=np.ones(len(edges)), removal=None, removal_se=None, inclusion=None,
            withstands=None, stability=None, search=SearchOutcome(reached, locally_minimal=False),
        )  # fmt: skip

    most, some = rival(whole.edges[:-1], reached=True), rival(whole.edges[1:], reached=True)
    failed = rival(whole.edges[:1], reached=False)
    rivals = Rivals(whole, (most, failed, some))
    assert [rivals.shared(each) for each in rivals.rivals] == [len(whole) - 1, 1, len(whole) - 1]
    assert rivals.indispensable == tuple(whole.graph.edges(whole.edges[1:-1]))
    sizes = f"({len(whole) - 1} and {len(whole) - 1} edges)"
    assert rivals.describe().startswith(f"2 of 3 rivals {sizes} reach the target on the pairs")
    assert f" {len(whole) - 2} of the circuit's {len(whole)} edges are in all of them; the other 2" in rivals.describe()
    with_doubt, names = leave_rivals(found, rivals, tmp_path)
    assert names == ("rival_1.json", "rival_2.json", "rival_3.json")
    kept = Circuit.load(tmp_path / "circuit.json")
    assert kept.search is not None
    assert kept.search.doubts[-1] == rivals.describe() == with_doubt.warnings[-1]
    assert Circuit.load(tmp_path / names[2]).edges.tolist() == some.edges.tolist()
    none = Rivals(whole, (failed,))
    assert none.describe().startswith("none of 1 rivals reaches the target")
    assert leave_rivals(found, none, tmp_path)[0] is found


def test_only_the_closest_circuit_has_rivals(model: Model, found: Discovery) -> None:
    with pytest.raises(UsageError, match="searched by the pruner closest"):
        circuits.find_rivals(model, found, SETTINGS)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        circuits.find_rivals(model, found, CLOSE, count=0)
