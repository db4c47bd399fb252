"""A system message, the beginning of the answer and openings: asked for on the command line, kept in the circuit."""

import json
from pathlib import Path
from typing import Any

import pytest

from circuits.behaviours import load_behaviour
from circuits.circuit import Circuit
from circuits.cli.prompting import Prompting
from circuits.records import Variant
from tests.cli.conftest import as_json, discover_options, done, invoke, pairs_shown_by, swapped, write_pairs

SYSTEM, PREFILL = "the cats", "Mary and"


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def chats(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of chats, which the tiny model shows when it is asked with the system message and the beginning."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    texts = swapped("When", " went to")

    def rendered(text: str) -> str:
        messages = [{"role": "system", "content": SYSTEM}, *user(text), {"role": "assistant", "content": PREFILL}]
        return tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)

    rows = pairs_shown_by(tiny_folder, [(rendered(clean), rendered(corrupted)) for clean, corrupted in texts])
    chats = [
        row | {"clean": user(clean), "corrupted": user(corrupted)}
        for row, (clean, corrupted) in zip(rows, texts, strict=True)
        if row["answer"] != row["wrong_answer"]
    ]
    return write_pairs(tmp_path_factory.mktemp("chats") / "chats.jsonl", chats)


@pytest.fixture(scope="module")
def asked(tiny_folder: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The circuit found with both."""
    out = tmp_path_factory.mktemp("asked")
    options = ["--system", SYSTEM, "--prefill", PREFILL, "--pruner", "top", "--size", "40", "--quiet"]
    done("discover", chats, *discover_options(tiny_folder, out), *options)
    return out / "circuit.json"


def said(result: Any) -> str:
    return " ".join(result.stderr.split())


def test_what_was_asked_is_recorded_and_evaluated_again(asked: Path, chats: Path) -> None:
    circuit = Circuit.load(asked)
    assert circuit.behaviour.variant == Variant(SYSTEM, PREFILL)
    assert json.loads(asked.read_text())["behaviour"]["variant"]["prefill"] == PREFILL
    again = as_json("evaluate", asked, "--behaviour", chats)["evaluation"]
    assert circuit.evaluation is not None
    for name in ("metric_clean", "metric_corrupted", "faithfulness"):
        assert again[name] == pytest.approx(getattr(circuit.evaluation, name), rel=1e-4)


def test_another_system_message_measures_other_prompts_and_is_not_kept_with_the_circuit(
    asked: Path, chats: Path, tmp_path: Path
) -> None:
    common = ("evaluate", asked, "--behaviour", chats)
    own = as_json(*common)["evaluation"]["metric_clean"]
    other = as_json(*common, "--system", "the dog")["evaluation"]["metric_clean"]
    assert abs(other - own) > 1e-3
    result = invoke(*common, "--system", "the dog", "--out", tmp_path / "x.json")
    assert result.exit_code == 2
    assert "this one is of chats" in said(result)
    done(*common, "--system", SYSTEM, "--out", tmp_path / "x.json")


def test_heads_and_ablate_measure_the_prompts_of_the_circuit(asked: Path, chats: Path) -> None:
    document = as_json("ablate", asked, "--prompts", chats, "--pairs", 4, "--random", 0, "--tokens", 1)
    assert all(PREFILL in row["prompt"] and SYSTEM in row["prompt"] for row in document["openings"])
    common = ("heads", asked, "--behaviour", chats, "--pairs", 4)
    assert as_json(*common)["heads"] == as_json(*common, "--system", SYSTEM)["heads"]
    assert as_json(*common)["heads"] != as_json(*common, "--system", "the dog")["heads"]


def test_commas_without_a_space_after_them_lie_between_openings() -> None:
    prompting = Prompting(refuse=["Sorry,I", "Sorry, I"], comply=[" To", "1,Sure,Here"])
    variant = prompting.varied(load_behaviour("refusal")).variant
    assert variant == Variant(None, None, ("Sorry", "I", "Sorry, I"), (" To", "1", "Sure", "Here"))


@pytest.mark.parametrize("option", ["--system", "--prefill"])
def test_plain_text_has_no_system_message_and_no_beginning(tiny_folder: Path, prompts: Path, option: str) -> None:
    result = invoke("score", prompts, "--model", tiny_folder, option, "Be kind.")
    assert result.exit_code == 2
    assert "belongs to chats, and mine.jsonl, line 1 is plain text; leave it out" in said(result)


def test_openings_are_given_and_recorded(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    options = [*discover_options(tiny_folder, tmp_path), "--metric", "kl", "--pruner", "top"]
    result = done("discover", prompts, *options, "--refuse", " is,a", "--comply", " to")
    assert Circuit.load(tmp_path / "circuit.json").behaviour.variant == Variant(None, None, (" is", "a"), (" to",))
    assert "answers ' is', 'a'; wrong answers ' to'" in " ".join(result.stdout.split())
    result = invoke("discover", prompts, *options, "--refuse", " is, a")
    assert result.exit_code == 1
    assert "the answer ' is, a' is 3 tokens" in said(result)


def test_openings_are_found_in_the_model_when_asked_for(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"KEPT": 1, "SPREAD": 0.0, "SHARE": 0.001}.items():
        monkeypatch.setattr(f"circuits.openings.{name}", value)
    file = write_pairs(tmp_path / "mine.jsonl", pairs_shown_by(tiny_folder, swapped("When", " went to")))
    options = [*discover_options(tiny_folder, tmp_path), "--openings", "auto", "--metric", "kl", "--pruner", "top"]
    result = done("discover", file, *options)
    variant = Circuit.load(tmp_path / "circuit.json").behaviour.variant
    assert variant.answers
    assert variant.wrong_answers
    assert f"refuses with {variant.answers[0]!r} 0." in said(result)
    assert "Give your own with --refuse and --comply." in said(result)
    again = done("evaluate", tmp_path / "circuit.json", "--behaviour", file)
    assert "refuses with" not in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--openings", "atuo"], "there is no value of --openings 'atuo'. Closest: 'auto'."),
        (["--refuse", ""], "--refuse is empty; expected a value"),
        (
            ["--refuse", "Sorry,,I"],
            "--refuse has an empty opening; expected first tokens of answers, such as --refuse Sorry,I.",
        ),
        (["--comply", "To,,The"], "--comply has an empty opening"),
        (["--prefill", " "], "the answer cannot begin with ' '; expected some text"),
    ],
)
def test_wrong_options_are_found_before_the_model_is_loaded(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuits.model.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    result = invoke("score", "refusal", *options)
    assert result.exit_code == 2
    assert message in said(result)


def test_categories_are_listed_and_a_misspelt_one_is_answered_with_the_closest() -> None:
    listed = {row["name"] for row in as_json("behaviours")["behaviours"]}
    assert {"refusal", "refusal:theft", "refusal:cyber"} <= listed
    result = invoke("score", "refusal:thef")
    assert result.exit_code == 2
    assert "Closest: 'refusal:theft'" in said(result)


# ------------------------------------------------------------------------------- answers of several tokens, projections


BY = ("--pairs", 12, "--pruner", "top", "--size", 60, "--metric")


@pytest.mark.parametrize("metric", ["mean-logit-difference", "log-probability", "sequence", "projection"])
def test_circuits_by_every_metric_are_found_and_evaluated_again(
    tiny_folder: Path, prompts: Path, tmp_path: Path, metric: str
) -> None:
    options = [*discover_options(tiny_folder, tmp_path), *BY, metric]
    document = as_json("discover", prompts, *options)
    assert document["circuit"]["behaviour"]["metric"] == metric
    again = as_json("evaluate", tmp_path / "circuit.json", "--behaviour", prompts)
    assert again["metric"] == metric
    for name in ("metric_clean", "metric_corrupted", "faithfulness"):
        expected = document["circuit"]["evaluation"][name]
        assert again["evaluation"][name] == pytest.approx(expected, rel=1e-3)
    has_sign = metric == "mean-logit-difference"
    assert (again["evaluation"]["accuracy_clean"] is not None) == has_sign


def test_answers_of_several_tokens_are_measured_by_the_metric_sequence_alone(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    given = ("--refuse", " the city", "--comply", " is the,a", "--model", tiny_folder, "--pairs", 12)
    out = ("--out", tmp_path / "x.csv")
    measured = invoke("score", prompts, *given, *out, "--metric", "sequence")
    assert "does not show mine. sequence over 12 pairs: clean -" in said(measured)  # a random model prefers neither
    result = invoke("score", prompts, *given, *out)
    assert result.exit_code == 1
    assert "only the next token is measured" in said(result)


@pytest.mark.parametrize("command", [("patch",), ("path", "m0->logits")])
def test_patching_and_paths_measure_one_token(tiny_folder: Path, prompts: Path, command: tuple[str, ...]) -> None:
    common = ("--model", tiny_folder, "--pairs", 12, "--metric")
    result = invoke(command[0], prompts, *command[1:], *common, "sequence")
    assert result.exit_code == 2
    what = {"patch": "activation patching", "path": "path patching"}[command[0]]
    assert f"the metric sequence measures answers of several tokens, and {what} needs one" in said(result)
    done(command[0], prompts, *command[1:], *common, "projection")


@pytest.mark.parametrize("metric", ["sequence", "projection"])
def test_heads_and_ablate_say_which_commands_measure_these(
    tiny_folder: Path, prompts: Path, tmp_path: Path, metric: str
) -> None:
    done("discover", prompts, *discover_options(tiny_folder, tmp_path), *BY, metric)
    for command in (("heads", "--behaviour"), ("ablate", "--prompts")):
        result = invoke(command[0], tmp_path / "circuit.json", command[1], prompts, "--pairs", 4)
        assert result.exit_code == 2
        assert f"metric {metric}" in said(result)
        assert "Use another metric" in said(result)


def test_a_prefill_as_attack_is_asked_for_recorded_and_refused_alone(
    tiny_folder: Path, chats: Path, tmp_path: Path
) -> None:
    begun = ["--prefill", PREFILL, "--attack-prefill", "John and"]
    alone = invoke("interchange", chats, "--model", tiny_folder, "--attack-prefill", "John and")
    assert alone.exit_code == 2
    assert "the attacked answer begins with 'John and', and the other one has no beginning" in said(alone)
    options = ["--model", tiny_folder, "--pairs", "6", "--pruner", "top", "--size", "20", "--metric", "kl", "--quiet"]
    done("discover", chats, *begun, *options, "--heldout", "6", "--out", tmp_path)
    assert Circuit.load(tmp_path / "circuit.json").behaviour.variant == Variant(
        prefill=PREFILL, attack_prefill="John and"
    )
