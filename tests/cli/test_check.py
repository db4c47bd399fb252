"""``circuits check`` says which adapter describes a model, how that was chosen, and what every guard measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.gptj.modeling_gptj import GPTJBlock

from circuits.adapters.forms import first_of
from tests.cli.conftest import as_json, done, invoke
from tests.tiny import tiny_tokenizer
from tests.zoo import ZOO, randomised

NAMES = [
    "finite",
    "additivity",
    "causality",
    "nothing live",
    "wiring",
    "everything live",
    "restart",
    "head isolation",
    "tokenizer",
]
WIDE, NARROW = "140", "80"


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """Write a model and the tests' tokenizer as ``save_pretrained`` does."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def prose(text: str) -> str:
    """Undo line breaks."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("family", "adapter", "facts"),
    [
        ("gemma3", "gemma2, for models of type 'gemma3_text'", "3, sequential|4 heads on 2 key/value heads, d_head 12"),
        ("falcon", "falcon, for models of type 'falcon'", "3, parallel|4 heads on 1 key/value head, d_head 8"),
        ("gpt_neox", "gpt_neox, for models of type 'gpt_neox'", "3, parallel|4 heads, d_head 8 (sdpa)"),
    ],
)
def test_a_saved_model_passes_and_its_adapter_is_named(
    family: str, adapter: str, facts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", NARROW)
    folder = saved(ZOO[family](), tmp_path / family)
    shown = done("check", "--model", folder).stdout
    assert re.search(rf"adapter +{re.escape(adapter)}", shown)
    assert re.search(r"prefix cache +on", shown)
    assert all(fact in shown for fact in facts.split("|"))
    assert "all 9 guards passed" in shown
    rows = re.findall(r"^ (\w+(?: \w+)?) +([\d.e-]+) +([\d.]+) +passed", shown, re.MULTILINE)
    assert [name for name, _, _ in rows] == NAMES
    assert all(float(error) < 1e-4 for _, error, _ in rows)
    assert {tolerance for _, _, tolerance in rows} == {"0.001", "0"}
    assert max(float(error) for _, error, _ in rows) > 0


def test_a_type_without_an_entry_is_recognised_by_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", WIDE)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = hf.CwmConfig(**sizes, num_key_value_heads=2, head_dim=12, vocab_size=320, pad_token_id=None)
    folder = saved(randomised(hf.CwmForCausalLM(config), 0), tmp_path / "cwm")
    assert "llama, recognised by its modules (the type 'cwm' has no entry)" in done("check", "--model", folder).stdout
    document = as_json("check", "--model", folder)
    assert (document["model_type"], document["adapter"], document["adapter_chosen_by"]) == ("cwm", "llama", "modules")
    assert document["passed"] is True


def test_wide_terminals_show_what_a_failure_means_and_narrow_ones_only_of_those_that_failed(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    for columns in (WIDE, NARROW):
        monkeypatch.setenv("COLUMNS", columns)
        shown[columns] = done("check", "--model", tiny_folder).stdout
        assert max(map(len, shown[columns].splitlines())) <= int(columns)
    meaning = "What the nodes write does not add up to the residual stream"
    assert meaning in prose(shown[WIDE])
    assert "a failure means" in shown[WIDE]
    assert "a failure means" not in shown[NARROW]


def test_the_document_has_all_that_the_tables_have(tiny_folder: Path) -> None:
    document = as_json("check", "--model", tiny_folder)
    assert (document["passed"], document["adapter"], document["adapter_chosen_by"]) == (True, "llama", "model type")
    assert (document["edges"], document["dtype"], document["device"]) == (190, "float32", "cpu")
    assert document["prefix_cache"] == "on"
    assert [guard["name"] for guard in document["guards"]] == NAMES
    assert all(guard["passed"] and guard["meaning"] for guard in document["guards"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_implementation_that_was_asked_for_is_checked(tiny_folder: Path, attention: str) -> None:
    assert as_json("check", "--model", tiny_folder, "--attention", attention)["attention"] == attention


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.fixture
def scaled_gptj(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPT-J whose blocks multiply what they add to the stream, which its adapter does not say."""
    folder = saved(ZOO["gptj"](), tmp_path / "gptj")
    plain = GPTJBlock.forward

    def scaled(self: GPTJBlock, stream: Tensor, *args: Any, **options: Any) -> Any:
        output = plain(self, stream, *args, **options)  # alone or first in a tuple, as the version has it
        after = stream + 0.7 * (first_of(output) - stream)
        return (after, *output[1:]) if isinstance(output, tuple) else after

    assert invoke("check", "--model", folder).exit_code == 0
    monkeypatch.setattr(GPTJBlock, "forward", scaled)
    return folder


def test_a_model_that_its_adapter_does_not_describe_fails_with_the_error_that_other_commands_give(
    scaled_gptj: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", NARROW)
    result = invoke("check", "--model", scaled_gptj)
    assert result.exit_code == 1
    assert re.search(r"additivity +0\.\d+ +0\.001 +FAILED +What the nodes write", result.stdout)
    assert "guards FAILED" in result.stdout
    assert re.search(r"causality +0 +0\.001 +passed *$", result.stdout, re.MULTILINE)  # its meaning is left out
    assert "fails the guard 'additivity': error 0." in result.stderr
    assert "a norm or factor between a block and the stream is not declared" in result.stderr
    refused = invoke("score", "ioi", "--model", scaled_gptj)
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-1] == result.stderr.splitlines()[-1]


def test_a_failure_is_also_in_the_document(scaled_gptj: Path) -> None:
    result = invoke("check", "--model", scaled_gptj, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["passed"] is False
    verdicts = {guard["name"]: guard["passed"] for guard in document["guards"]}
    assert (verdicts["additivity"], verdicts["causality"], verdicts["tokenizer"]) == (False, True, True)


def test_a_mistyped_folder_is_named(tiny_folder: Path) -> None:
    result = invoke("check", "--model", tiny_folder.with_name("tinny"))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"there is no folder '{tiny_folder.with_name('tinny')}'; expected a model folder" in result.stderr


def test_a_mistyped_option_is_a_wrong_usage() -> None:
    result = invoke("check", "--modl", "gpt2")
    assert result.exit_code == 2
    assert "--modl" in result.stderr


@pytest.mark.real
def test_the_built_in_model_passes(smol: Path) -> None:
    document = as_json("check")
    assert document["model"] == "smollm2-135m"
    assert (document["passed"], document["adapter"], document["edges"]) == (True, "llama", 70_651)
    assert max(guard["error"] for guard in document["guards"]) < 1e-4
