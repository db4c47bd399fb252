"""Every command that computes leaves a record; it is repeated and cited."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from circuits import RunRecord, run_again
from circuits.cli import app
from circuits.files.documents import read_json
from tests.cli.conftest import as_json, discover_options, done, invoke


def again(arguments: Any, folder: Path) -> int:
    """Run a command in this process, as :func:`circuits.run_again` would in another."""
    return invoke(*arguments).exit_code


def test_every_command_that_runs_a_model_takes_a_place_for_its_record() -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    options = {name: {option for each in command.params for option in each.opts} for name, command in commands.items()}
    without = [name for name, known in options.items() if "--device" in known and "--record" not in known]
    assert without == ["check", "behaviours"]  # these measure no behaviour


@pytest.fixture(scope="module")
def copied(found: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit with nothing beside it, so that records there are those of the commands on it."""
    place = tmp_path_factory.mktemp("copied") / "circuit.json"
    place.write_bytes((found / "circuit.json").read_bytes())
    return place


def test_discover_leaves_a_record_that_says_all_that_is_needed_to_repeat_it(
    found: Path, prompts: Path, tiny_folder: Path
) -> None:
    record = RunRecord.load(found)
    assert (record.command, record.arguments[:2]) == ("discover", ("discover", str(prompts)))
    assert record.settings["pairs"] == 6
    assert record.settings["steps"] == 5
    circuit = read_json(found / "circuit.json")
    assert record.models[0].digest == circuit["model"]["digest"]
    assert record.models[0].parameters > 1000
    assert record.prompts[0].digest == circuit["behaviour"]["digest"]
    assert [file.path for file in record.inputs] == [str(prompts)]
    assert {"circuit.json", "scores.parquet", "heads.json"} <= {file.path for file in record.outputs}
    assert all(len(file.sha256) == 64 for file in record.outputs)
    assert {"loading the model", "evaluating on held-out prompts"} <= {each.stage for each in record.stages}
    assert sum(each.seconds for each in record.stages) == pytest.approx(record.seconds, abs=0.3)
    assert any("token ids" in text for text in record.warnings)


def test_a_circuit_says_what_the_search_says_of_it(
    tiny_folder: Path, prompts: Path, tmp_path: Path, found: Path
) -> None:
    assert read_json(found / "circuit.json")["search"]["locally_minimal"] is True
    options = [*discover_options(tiny_folder, tmp_path), "--prune-limit", 1, "--no-heads"]
    document = as_json("discover", prompts, *options)
    search = read_json(tmp_path / "circuit.json")["search"]
    assert search["locally_minimal"] is False
    assert "not locally minimal" in search["doubts"][0]
    assert search["doubts"][0] in document["warnings"]


def test_a_discovery_is_repeated_in_another_folder_with_the_same_figures(found: Path, tmp_path: Path) -> None:
    repeated = run_again(found, tmp_path / "again", runner=again)
    assert repeated.same, repeated.figures
    assert repeated.conditions == ()
    assert repeated.files == ()
    assert repeated.compared > 300
    assert (tmp_path / "again" / "circuit.json").is_file()


@pytest.mark.parametrize(
    ("command", "arguments", "output"),
    [
        ("score", ("--pairs", 4), "mine.csv"),
        ("path", ("input->a0.h0<v>->logits", "--pairs", 4), "paths.json"),
        ("patch", ("--pairs", 2, "--by", "layer"), "mine.svg"),
    ],
)
def test_commands_on_prompts_leave_records(
    tiny_folder: Path, prompts: Path, tmp_path: Path, command: str, arguments: tuple[Any, ...], output: str
) -> None:
    out = tmp_path / output
    document = as_json(command, prompts, *arguments, "--model", tiny_folder, "--out", out)
    assert document["record"] == str(tmp_path / "run.json")
    record = RunRecord.load(tmp_path)
    assert record.command == command
    assert record.outputs[0].path == output
    assert record.prompts[0].n_discovery == arguments[arguments.index("--pairs") + 1]
    assert record.results["metric_clean"] == document["metric_clean"]


def test_commands_on_circuits_leave_records_beside_them_and_do_not_replace_each_others(
    copied: Path, prompts: Path, tiny_folder: Path
) -> None:
    folder = copied.parent
    as_json("evaluate", copied, "--behaviour", prompts, "--pairs", 4)
    as_json("heads", copied, "--behaviour", prompts, "--pairs", 4)
    as_json("ablate", copied, "--prompts", prompts, "--pairs", 4, "--random", 0, "--tokens", 1)
    records = {path.name: RunRecord.load(path).command for path in folder.glob("run*.json")}
    assert records == {"run.json": "evaluate", "run-heads.json": "heads", "run-ablate.json": "ablate"}
    repeated = run_again(folder / "run.json", folder / "again", runner=again)
    assert repeated.same
    assert repeated.compared > 20


def test_a_comparison_leaves_a_record(found: Path, other_found: Path, tmp_path: Path) -> None:
    circuits = [folder / "circuit.json" for folder in (found, other_found)]
    as_json("compare", *circuits, "--no-transfer", "--out", tmp_path)
    record = RunRecord.load(tmp_path)
    assert [file.path for file in record.inputs] == [str(path) for path in circuits]
    assert run_again(tmp_path, tmp_path / "again", runner=again).same


def test_a_record_goes_where_it_is_asked_for_and_nowhere_else(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    place = tmp_path / "records" / "mine.json"
    options = ("--model", tiny_folder, "--pairs", 4, "--out", tmp_path / "a.csv", "--record")
    done("score", prompts, *options, place)
    assert RunRecord.load(place).outputs[0].path == str(tmp_path / "a.csv")
    assert not (tmp_path / "run.json").exists()
    result = invoke("score", prompts, *options, "mine.txt")
    assert result.exit_code == 2
    assert "is a .json file" in result.output


def test_a_record_that_cannot_be_written_costs_a_warning_only(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = ("--model", tiny_folder, "--pairs", 4, "--out", tmp_path / "a.csv")
    result = done("score", prompts, *options, "--record", tmp_path / "file" / "run.json")
    assert "there is no record of this run" in " ".join(result.stderr.split())
    assert (tmp_path / "a.csv").is_file()


def test_run_repeats_in_a_process_of_its_own_and_exits_with_1_where_figures_differ(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    options = ("--pairs", 4, "--model", tiny_folder, "--out", tmp_path / "one" / "paths.json")
    done("path", prompts, "input->a0.h0<v>->logits", *options)
    place = tmp_path / "one" / "run.json"
    document = json.loads(place.read_text())
    document["results"]["paths"][0]["effect"] += 1.0
    place.write_text(json.dumps(document))
    result = invoke("run", place, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert [each["place"] for each in told["figures"]] == ["paths[0].effect"]
    assert told["compared"] > 5
    assert (tmp_path / "one-again" / "paths.json").is_file()


def test_cite_prints_a_paragraph_and_bibtex(found: Path) -> None:
    result = done("cite", found)
    assert "we searched for a circuit (Goldowsky-Dill et al., 2023)" in " ".join(result.stdout.split())
    assert "@software{circuits," in result.stdout
    assert as_json("cite", found / "run.json")["bibtex"].startswith("@software")
