"""Every command does what it says: prints tables for people, one JSON object for programs, and writes its files."""

import csv
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.evaluation import evaluate
from circuits.interchange.score_files import read_scores
from circuits.records import Evaluation
from circuits.statistics import Estimate
from tests.cli.conftest import as_json, discover_options, done, invoke

COMMANDS = (
    "discover",
    "score",
    "evaluate",
    "patch",
    "path",
    "compare",
    "sweep",
    "ablate",
    "heads",
    "draw",
    "export",
    "check",
    "models",
    "behaviours",
    "prompts",
)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    return list(csv.DictReader(path.read_text().splitlines()))


# ---------------------------------------------------------------------------------------------------------- discover


def test_discover_writes_the_promised_files(found: Path) -> None:
    later = {"run-evaluate.json"}  # where another test has evaluated the same folder's circuit before
    names = {file.name for file in found.iterdir()}
    assert names - later == {
        "circuit.json",
        "scores.parquet",
        "circuit.dot",
        "circuit.svg",
        "heads.json",
        "prompts.json",
        "report.html",
        "journal",
        "run.json",
        "run.log",
    }


def test_what_discover_prints_is_what_it_writes(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    document = as_json("discover", prompts, *discover_options(tiny_folder, tmp_path), "--quiet")
    assert document["circuit"] == json.loads((tmp_path / "circuit.json").read_text())
    assert {*document["files"], "run.json"} == {file.name for file in tmp_path.iterdir()}
    assert document["agreement"]["n"] == 64
    assert document["search"]["locally_minimal"] is True
    removal = {row["edge"]: abs(row["removal"]) for row in document["circuit"]["edges"]}
    least = sorted(removal.values())[: len(document["near_ties"])]
    assert sorted(removal[edge] for edge in document["near_ties"]) == least


@pytest.mark.parametrize("columns", [60, 200])
def test_the_summary_says_how_good_the_circuit_is(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = done("discover", prompts, *discover_options(tiny_folder, tmp_path), "--pruner", "top", "--size", 30)
    circuit = Circuit.load(tmp_path / "circuit.json")
    assert circuit.evaluation is not None
    shown = " ".join(result.stdout.split())
    assert f"{len(circuit)} of {circuit.graph.n_edges}" in shown
    assert f"{circuit.evaluation.faithfulness:.3f} [{circuit.evaluation.faithfulness_ci[0]:.3f}" in shown
    assert circuit.evaluation.likeness is not None
    assert f"fidelity {circuit.evaluation.likeness.fidelity.describe()}, {circuit.evaluation.n} held-out pairs" in shown
    assert "20 with other heads of the same layers" in shown
    assert any(f"verdict {word}" in shown for word in ("Sufficient", "Borderline", "Mean only", "Not sufficient"))
    assert "eap-ig against exact on 64 edges" in shown
    strongest = circuit.edge_list[int(np.argmax(np.abs(circuit.scores)))]
    assert str(strongest) in shown
    assert str(tmp_path) in shown
    assert max(len(line) for line in result.stdout.splitlines() if str(tmp_path) not in line) <= columns


def test_a_run_log_tells_the_stages(found: Path) -> None:
    text = (found / "run.log").read_text()
    stages = ["loading the model", "recording the prompts", "scoring (eap-ig)", "evaluating on held-out prompts"]
    assert sorted(stages, key=text.index) == stages
    assert re.search(r"finished after \d", text)


def test_an_earlier_circuit_is_overwritten_but_not_silently(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    options = [*discover_options(tiny_folder, tmp_path), "--pruner", "top", "--size"]
    assert "overwritten" not in done("discover", prompts, *options, 30).stderr
    before = (tmp_path / "circuit.json").read_text()
    assert "holds an earlier circuit, which will be overwritten" in done("discover", prompts, *options, 60).stderr
    assert (tmp_path / "circuit.json").read_text() != before


def test_a_circuit_that_held_out_prompts_do_not_confirm_is_doubted(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    result = done("discover", prompts, *discover_options(tiny_folder, tmp_path))
    evaluation = Circuit.load(tmp_path / "circuit.json").evaluation
    assert evaluation is not None
    assert evaluation.faithfulness < 0.5  # a random model has nothing that carries over to other prompts
    assert "on held-out pairs: it fits the former too closely" in result.stderr
    assert "too closely" not in result.stdout


def test_a_circuit_chosen_for_its_fidelity_that_held_out_prompts_do_not_confirm_is_doubted(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model's circuits do hold on new prompts where they are chosen so: a worse judgement is put in place."""

    def worse(*given: Any, **named: Any) -> Evaluation:
        found = evaluate(*given, **named)
        assert found.likeness is not None
        assert found.likeness.fidelity.value > 0.9
        return replace(found, likeness=replace(found.likeness, fidelity=Estimate(0.5)))

    monkeypatch.setattr("circuits.discovery.evaluate", worse)
    few = ["--pairs", "6", "--choose", "6", "--heldout", "6", "--no-heads"]
    result = done("discover", prompts, "--model", tiny_folder, "--out", tmp_path, *few)
    assert Circuit.load(tmp_path / "circuit.json").method.pruner == "closest"
    words = " ".join(result.stderr.split())
    assert re.search(
        r"fidelity is 0\.9\d on the \d+ pairs that the circuit was chosen by, but 0\.50 on held-out", words
    )


def test_the_default_folder_is_named_after_model_and_behaviour(
    tiny_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done("score", prompts, "--model", tiny_folder, "--pairs", 6, "--scorer", "eap")
    assert (tmp_path / "outputs" / "tiny" / "mine" / "scores-eap.csv").is_file()


# ------------------------------------------------------------------------------------------------------------- score


def test_score_writes_every_edge(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "scores.csv"
    document = as_json("score", prompts, "--model", tiny_folder, "--pairs", 6, "--out", out)
    rows = read_rows(out)
    assert len(rows) == document["edges"] == 190
    assert document["measured"] is False
    best = max(rows, key=lambda row: abs(float(row["score"])))
    assert document["strongest"][0]["edge"] == best["edge"]


def test_score_measures_the_edges_of_a_file(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    edges = tmp_path / "edges.txt"
    edges.write_text("m0->logits  # a comment\n\ninput->a0.h1<q>\n")
    out = tmp_path / "scores.csv"
    common = ("score", prompts, "--model", tiny_folder, "--pairs", 6, "--scorer", "exact", "--edges", edges)
    document = as_json(*common, "--out", out)
    assert [row["edge"] for row in read_rows(out)] == ["input->a0.h1<q>", "m0->logits"]
    assert document["measured"] is True
    path = as_json("path", prompts, "m0->logits", "--model", tiny_folder, "--pairs", 6)
    scored = {row["edge"]: row["score"] for row in document["strongest"]}
    assert path["paths"][0]["effect"] == pytest.approx(scored["m0->logits"], rel=1e-4)


def test_top_n_takes_the_best_of_eap_ig(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    common = ("--model", tiny_folder, "--pairs", 6)
    done("score", prompts, *common, "--out", tmp_path / "all.csv")
    done("score", prompts, *common, "--scorer", "exact", "--edges", "top:7", "--out", tmp_path / "top.csv")
    every = sorted(read_rows(tmp_path / "all.csv"), key=lambda row: -float(row["score"]))
    chosen = {row["edge"] for row in read_rows(tmp_path / "top.csv")}
    assert chosen == {row["edge"] for row in every[:7]}


# ---------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_repeats_what_discover_found(found: Path) -> None:
    circuit = Circuit.load(found / "circuit.json")
    prompts = _prompts_of(found)
    document = as_json("evaluate", found / "circuit.json", "--behaviour", prompts)
    assert circuit.evaluation is not None
    for name in ("n", "faithfulness", "necessity", "metric_circuit"):
        assert document["evaluation"][name] == pytest.approx(getattr(circuit.evaluation, name), rel=1e-4)
    (one,), (both,) = circuit.evaluation.areas, document["evaluation"]["areas"]
    measured = "cmd" if circuit.method.rank_by == "|score|" else "cpr"  # discover measures the one ranking it used
    assert both[measured] == pytest.approx(getattr(one, measured), rel=1e-4)
    assert (both["universe"], both["edges"]) == ("query-head", circuit.graph.copies.sum())
    assert None not in both.values()


def test_evaluate_keeps_its_evaluation_in_a_new_file(found: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    done("evaluate", found / "circuit.json", "--behaviour", _prompts_of(found), "--pairs", 10, "--out", out)
    before, after = Circuit.load(found / "circuit.json"), Circuit.load(out)
    assert after.evaluation is not None
    assert after.evaluation.n == 10
    assert after.edges.tolist() == before.edges.tolist()


def test_an_evaluation_of_another_behaviour_is_not_kept_with_the_circuit(
    found: Path, other_prompts: Path, tmp_path: Path
) -> None:
    common = ("evaluate", found / "circuit.json", "--behaviour", other_prompts)
    assert as_json(*common)["behaviour"] == "yours"
    result = invoke(*common, "--out", tmp_path / "x.json")
    assert result.exit_code == 2
    assert "which is of mine by logit-difference; this one is of yours" in result.stderr


def test_other_weights_are_warned_about(found: Path, tmp_path: Path) -> None:
    from tests.tiny import tiny_llama, tiny_tokenizer

    tiny_llama(seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    common = ("evaluate", found / "circuit.json", "--behaviour", _prompts_of(found))
    assert "other weights" not in done(*common).stderr
    result = done(*common, "--model", tmp_path / "other")
    assert "the circuit was found on other weights" in result.stderr


def test_a_model_of_another_shape_is_refused(found: Path, tmp_path: Path) -> None:
    from tests.tiny import tiny_llama, tiny_tokenizer

    tiny_llama(num_hidden_layers=2).save_pretrained(tmp_path / "short")
    tiny_tokenizer().save_pretrained(tmp_path / "short")
    result = invoke(
        "evaluate", found / "circuit.json", "--behaviour", _prompts_of(found), "--model", tmp_path / "short"
    )
    assert result.exit_code == 2
    assert "layers 0-2" in result.stderr
    assert "layers 0-1" in result.stderr


def _prompts_of(found: Path) -> Path:
    """The prompt file of the session, from the command that the discovery's log begins with."""
    circuit = Circuit.load(found / "circuit.json")
    return next(found.parent.glob(f"prompts*/{circuit.behaviour.name}.jsonl"))


# ------------------------------------------------------------------------------------------------------ patch, path


@pytest.mark.parametrize("site", ["resid", "attn", "mlp", "head"])
def test_patch_draws_a_heatmap_and_writes_all_values(
    tiny_folder: Path, prompts: Path, tmp_path: Path, site: str
) -> None:
    out = tmp_path / "patch.svg"
    document = as_json("patch", prompts, "--site", site, "--model", tiny_folder, "--pairs", 6, "--out", out)
    assert out.read_text().startswith("<?xml")
    rows = read_rows(tmp_path / "patch.csv")
    columns = ["h0", "h1", "h2", "h3"] if site == "head" else ["When", "‹John›", "‹Paul≠city›", "went", "to"]
    assert [row["label"] for row in rows if row["layer"] == "0"] == document["columns"]
    assert len(document["columns"]) == len(columns)
    assert len(rows) == 3 * len(columns)
    gap = document["metric_clean"] - document["metric_corrupted"]
    share = (np.array(document["metric"]) - document["metric_corrupted"]) / gap
    np.testing.assert_allclose(share, document["share"], rtol=1e-6, atol=1e-9)


def test_patching_by_layer_draws_bars_with_intervals_and_says_what_is_true_by_construction(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "attn.svg"
    common = ("patch", prompts, "--model", tiny_folder, "--pairs", 6, "--by", "layer", "--out", out)
    document = as_json(*common, "--site", "attn")
    low, high = np.array(document["share_interval"])[:, 0].T
    shares = np.array(document["share"])[:, 0]
    assert ((low < shares) & (shares < high)).all()
    drawn = " ".join(line for text in re.findall(r"<text[^>]*>([^<]+)", out.read_text()) for line in text.split())
    for text in ("95 % interval", "mine in", "tiny", "; 6 pairs"):
        assert text in drawn
    rows = read_rows(tmp_path / "attn.csv")
    assert [float(row["share_low"]) for row in rows] == pytest.approx(low, rel=1e-5)
    by_construction = as_json(*common, "--site", "resid")
    assert len(by_construction["warnings"]) == len(document["warnings"]) + 1
    assert "1.00 by construction" in by_construction["warnings"][-1]
    assert "--by layer,position" in by_construction["warnings"][-1]


def test_patching_the_stream_where_the_prompts_differ_restores_everything_at_first(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    common = ("patch", prompts, "--model", tiny_folder, "--pairs", 6, "--out", tmp_path / "x.png")
    shares = np.array(as_json(*common)["share"])
    np.testing.assert_allclose(shares[0], [0, 0, 1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(np.array(as_json(*common, "--by", "layer")["share"]), np.ones((3, 1)), atol=1e-5)
    reverse = as_json(*common, "--direction", "noising")
    np.testing.assert_allclose(np.array(reverse["share"])[0], [0, 0, 1, 0, 0], atol=1e-5)
    assert reverse["metric"][0][2] == pytest.approx(reverse["metric_corrupted"], abs=1e-4)


def test_tokens_are_marked_where_prompts_and_sides_differ(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    columns = as_json("patch", prompts, "--model", tiny_folder, "--pairs", 6, "--out", tmp_path / "x.svg")["columns"]
    assert (columns[0], columns[3], columns[4]) == ("When", "went", "to")
    assert re.fullmatch(r"‹\w+›", columns[1])
    assert re.fullmatch(r"‹\w+≠\w+›", columns[2])


@pytest.mark.parametrize("columns", [60, 200])
def test_the_table_of_patching_fits_the_terminal(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: Path, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    wide = ("John Paul " * 6).split()
    text = "When " + " ".join(wide)
    from tests.cli.conftest import pairs_shown_by, write_pairs

    texts = [(f"{text} {word} went", f"{text} the went") for word in ("city", "capital", "gave", "John", "Paul")]
    file = write_pairs(tmp_path / "wide.jsonl", [*pairs_shown_by(tiny_folder, texts)] * 3)
    result = invoke("patch", file, "--model", tiny_folder, "--pairs", 4, "--out", tmp_path / "x.svg")
    assert result.exit_code == 0, result.output
    assert ("the strongest place of every layer" in result.stdout) == (columns == 60)


def test_the_paths_of_one_hop_add_nothing_of_their_own(tiny_folder: Path, prompts: Path) -> None:
    names = ["input->logits", "m0->m1->logits", "a0.h1->a1.kv0<k>->a1.h0->logits", "a0.h1->a1.h0<k>->logits"]
    document = as_json("path", prompts, *names, "--model", tiny_folder, "--pairs", 6)
    effects = [row["effect"] for row in document["paths"]]
    assert effects[2] == effects[3]
    assert effects[0] != effects[1]
    gap = document["metric_clean"] - document["metric_corrupted"]
    assert document["paths"][0]["share"] == pytest.approx(effects[0] / gap)


# ---------------------------------------------------------------------------------------------------- draw, export


@pytest.mark.parametrize("name", ["x.svg", "x.pdf", "x.png", "x.dot", "x.html", "x.mmd"])
def test_draw_writes_what_the_suffix_says(found: Path, tmp_path: Path, name: str) -> None:
    assert as_json("draw", found / "circuit.json", "-o", tmp_path / name)["file"] == str(tmp_path / name)
    start = {".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}.get(Path(name).suffix, b"")
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["x.graphml", "x.mib.json", "x.csv"])
def test_export_writes_what_the_suffix_says(found: Path, tmp_path: Path, name: str) -> None:
    done("export", found / "circuit.json", "-o", tmp_path / "new" / name)
    assert (tmp_path / "new" / name).stat().st_size > 100


def test_export_gives_other_tools_all_scores_and_a_folder_that_mib_evaluates(found: Path, tmp_path: Path) -> None:
    circuit = Circuit.load(found / "circuit.json")
    everything = int(circuit.graph.copies.sum())
    document = as_json("export", found / "circuit.json", "-o", tmp_path / "x.mib.json")
    assert document["scored"] == circuit.graph.n_edges
    edges = json.loads((tmp_path / "x.mib.json").read_text())["edges"]
    assert (len(edges), sum(edge["in_graph"] for edge in edges.values())) == (
        everything,
        circuit.graph.copies[circuit.edges].sum(),
    )
    (folder,) = Path(as_json("export", found / "circuit.json", "-o", tmp_path / "sub.mib")["file"]).parents[:1]
    assert [file.name for file in folder.iterdir()] == ["importances.json"]


def _numbers(document: dict[str, Any]) -> list[float]:
    evaluation = document["evaluation"]
    return [evaluation["faithfulness"], *(areas[name] for areas in evaluation["areas"] for name in ("cpr", "cmd"))]


def test_evaluating_an_exported_file_gives_what_evaluating_the_circuit_gives(
    found: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Once with what this tool added to the file, once as another tool would have written it."""
    ours, bare, prompts = tmp_path / "x.mib.json", tmp_path / "bare.json", _prompts_of(found)
    done("export", found / "circuit.json", "-o", ours)
    document = json.loads(ours.read_text())
    del document["circuits"]
    bare.write_text(json.dumps(document))
    asked = ("--behaviour", prompts, "--pairs", 6, "--universe", "both")
    expected = as_json("evaluate", found / "circuit.json", *asked)["evaluation"]
    assert [areas["universe"] for areas in expected["areas"]] == ["query-head", "group"]
    assert _numbers(as_json("evaluate", ours, *asked)) == pytest.approx(_numbers({"evaluation": expected}), rel=1e-4)
    again = invoke("evaluate", bare, *asked, "--model", tiny_folder, "--json", "--seed", 0)
    assert again.exit_code == 0, again.stderr
    assert _numbers(json.loads(again.stdout)) == pytest.approx(_numbers({"evaluation": expected}), rel=1e-4)
    assert "does not say of which model, behaviour and scorer it is" in again.stderr
    for arguments, message in (
        (asked, "does not say of which model it is; give the model with --model"),
        (("--model", tiny_folder), "does not say of which behaviour the circuit is; give it with --behaviour"),
    ):
        refused = invoke("evaluate", bare, *arguments)
        assert refused.exit_code != 0
        assert message in " ".join(refused.stderr.split())


def test_scores_beside_a_file_of_an_unknown_model_are_not_taken_for_its_own(tmp_path: Path) -> None:
    """Scores of a grouped model lie beside it, whose edges the file's graph does not have."""
    (tmp_path / "theirs.json").write_text((Path(__file__).parents[1] / "interchange" / "eap_ig_graph.json").read_text())
    document = json.loads((tmp_path / "theirs.json").read_text())
    for edge in document["edges"].values():
        del edge["score"]
    (tmp_path / "theirs.json").write_text(json.dumps(document))
    (tmp_path / "scores.parquet").write_bytes(b"of something else")
    assert as_json("draw", tmp_path / "theirs.json", "-o", tmp_path / "x.dot")["edges"] == 20
    assert as_json("export", tmp_path / "theirs.json", "-o", tmp_path / "x.csv")["scored"] == 0


def test_comparing_with_a_file_of_another_tool_takes_the_other_circuits_model(found: Path, tmp_path: Path) -> None:
    done("export", found / "circuit.json", "-o", tmp_path / "x.mib.json")
    document = json.loads((tmp_path / "x.mib.json").read_text())
    del document["circuits"]
    (tmp_path / "bare.json").write_text(json.dumps(document))
    files = (found / "circuit.json", tmp_path / "bare.json", "--no-transfer", "-o", tmp_path / "both")
    compared = as_json("compare", *files)
    n_edges = len(Circuit.load(found / "circuit.json"))
    assert f'"shared": {n_edges}' in json.dumps(compared)


# ----------------------------------------------------------------------------------------- check, models, behaviours


def test_check_lists_the_guards(tiny_folder: Path) -> None:
    document = as_json("check", "--model", tiny_folder)
    assert document["passed"] is True
    names = [guard["name"] for guard in document["guards"]]
    assert {"additivity", "wiring", "head isolation"} <= set(names)
    table = done("check", "--model", tiny_folder).stdout
    assert all(name in table for name in names)


def test_check_fails_when_a_guard_does(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from circuits.guards.checks import GuardResult

    failed = GuardResult("wiring", 0.5, 0.001, "A receiver does not read what the graph says.")
    monkeypatch.setattr("circuits.model.check", lambda *_: (failed,))
    result = invoke("check", "--model", tiny_folder)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "A receiver does not read" in result.stderr
    refused = invoke("score", "ioi", "--model", tiny_folder)
    assert refused.exit_code == 1
    assert "fails the guard 'wiring'" in refused.stderr


def test_models_and_behaviours_are_listed() -> None:
    assert {model["name"] for model in as_json("models")["models"]} == {
        "smollm2-135m",
        "smollm2-135m-refusal",
        "qwen2.5-coder-0.5b-instruct",
    }
    names = [behaviour["name"] for behaviour in as_json("behaviours")["behaviours"]]
    assert {"ioi", "greater-than", "refusal"} <= set(names)
    assert all(name in done("behaviours").stdout for name in names)
    assert "smollm2-135m-refusal" in done("models").stdout


def test_example_pairs_of_a_behaviour_are_shown(tiny_folder: Path, prompts: Path) -> None:
    shown = as_json("behaviours", "--show", prompts, "--model", tiny_folder)["pairs"]
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert [pair["clean"] for pair in shown] == [line["clean"] for line in lines[:3]]


# ------------------------------------------------------------------------------------------------------------- whole


def test_the_commands_are_those_that_were_promised() -> None:
    shown = done("--help").stdout
    assert [name for name in COMMANDS if not re.search(rf"│ {name}\b", shown)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_json_and_debug(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = done(command, "--help").stdout
    assert all(option in shown for option in ("--json", "--quiet", "--debug"))


def test_scores_left_by_discover_can_be_read_back(found: Path) -> None:
    circuit = Circuit.load(found / "circuit.json")
    scores = read_scores(found / "scores.parquet", circuit.graph)
    np.testing.assert_allclose(scores.values[circuit.edges], circuit.scores, rtol=1e-5)


def test_help_starts_in_about_a_second() -> None:
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "circuits", "--help"], check=True, capture_output=True)
    assert time.monotonic() - begun < 5  # generous: machines that run tests are busy; it takes 0.6 s on an idle one


def test_draw_measures_the_part_that_it_draws(found: Path, tmp_path: Path) -> None:
    circuit = found / "circuit.json"
    document = as_json("draw", circuit, "-o", tmp_path / "part.dot", "--top", 25, "--width", 84)
    assert 0 < document["edges"] <= 25
    text = (tmp_path / "part.dot").read_text()
    assert "faithfulness" in text
    assert "on n = 6 held-out prompt pairs" in text
    as_json("draw", circuit, "-o", tmp_path / "part.dot", "--top", 25, "--no-measure", "--labels", "roles")
    assert "not evaluated on held-out prompts" in (tmp_path / "part.dot").read_text()
    (tmp_path / "circuit.json").write_bytes(circuit.read_bytes())
    result = invoke("draw", tmp_path / "circuit.json", "-o", tmp_path / "x.dot", "--top", 25)
    assert result.exit_code == 2
    assert "Add --no-measure" in result.output
