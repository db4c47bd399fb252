"""Loading weights from folders, by built-in name and by Hugging Face id."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from circuits.errors import DeviceError, ModelUnavailableError, UnknownNameError, UnsupportedModelError
from circuits.models.fetching import builtin, hub
from circuits.models.loading import load_weights
from tests.tiny import tiny_gpt2, tiny_llama, tiny_tokenizer


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that the test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_local_folder_gives_the_same_logits_and_tokens(tiny_folder: Path) -> None:
    loaded = load_weights(str(tiny_folder), device="cpu")
    ids = torch.arange(10)[None]
    assert torch.equal(loaded.module(ids).logits, tiny_llama()(ids).logits)
    assert loaded.tokenizer.encode(" gave a book") == tiny_tokenizer().encode(" gave a book")
    assert (loaded.id, loaded.revision) == (str(tiny_folder), "local")
    assert (loaded.device, loaded.dtype) == (torch.device("cpu"), torch.float32)


def test_a_loaded_model_is_frozen_and_evaluated(tiny_folder: Path) -> None:
    loaded = load_weights(str(tiny_folder), device="cpu")
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    with pytest.raises(AttributeError):
        loaded.id = "other"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("asked", "got"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_number_format_is_the_one_asked_for_and_float32_on_the_cpu_otherwise(
    folder: Path, asked: str, got: torch.dtype
) -> None:
    tiny_llama().bfloat16().save_pretrained(folder)
    loaded = load_weights(str(folder), device="cpu", dtype=asked)
    assert loaded.dtype == loaded.module.lm_head.weight.dtype == got


def test_gpt2_and_models_in_several_files_are_loaded(tmp_path: Path) -> None:
    tiny_gpt2().save_pretrained(tmp_path, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    loaded = load_weights(str(tmp_path), device="cpu")
    ids = torch.arange(10)[None]
    assert torch.equal(loaded.module(ids).logits, tiny_gpt2()(ids).logits)
    missing = sorted(tmp_path.glob("model-*.safetensors"))[0]
    missing.unlink()
    with pytest.raises(ModelUnavailableError, match=f"lacks {missing.name}"):
        load_weights(str(tmp_path), device="cpu")


def test_the_digest_changes_with_one_weight_and_with_nothing_else(folder: Path) -> None:
    before = load_weights(str(folder), device="cpu")
    moved = Path(shutil.copytree(folder, folder.with_name("moved")))
    assert load_weights(str(moved), device="cpu", dtype="bfloat16").digest == before.digest
    state = load_file(moved / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-3
    save_file(state, moved / "model.safetensors", metadata={"format": "pt"})
    after = load_weights(str(moved), device="cpu")
    assert after.digest != before.digest
    assert after.tokenizer_digest == before.tokenizer_digest


def test_the_tokenizer_digest_changes_with_vocabulary_and_chat_template_but_not_with_padding(folder: Path) -> None:
    before = load_weights(str(folder), device="cpu")
    tokenizer = tiny_tokenizer()
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    tokenizer.save_pretrained(folder)
    assert load_weights(str(folder), device="cpu").tokenizer_digest == before.tokenizer_digest
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    chat = load_weights(str(folder), device="cpu")
    tiny_tokenizer(("entirely different words",)).save_pretrained(folder)
    words = load_weights(str(folder), device="cpu")
    assert len({loaded.tokenizer_digest for loaded in (before, chat, words)}) == 3
    assert words.digest == before.digest


# ------------------------------------------------------------------------------------------------------- bad folders


def test_a_folder_with_pickles_only_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailableError, match=r"pytorch_model.bin, a pickle.*Convert"):
        load_weights(str(folder), device="cpu")


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def two_ggufs(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).touch()


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[]")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_shape(folder: Path) -> None:
    change_config(folder, intermediate_size=48)


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def config_of_wrong_types(folder: Path) -> None:
    change_config(folder, num_attention_heads=[4, 8])


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_weights, "has no weights; expected model.safetensors"),
        (two_ggufs, "has 2 .gguf files; expected"),
        (broken_index, "expected a 'weight_map'"),
        (truncated, "could not be read"),
        (without_a_tensor, "lack 1 tensors .* 'model.layers.1.mlp.up_proj.weight'"),
        (of_another_shape, "could not be read"),
        (without_config, "has no config.json"),
        (config_no_json, "a config.json that cannot be read: .*not valid JSON at column 2"),
        (config_of_wrong_types, "a value that its architecture cannot have .*num_attention_heads"),
        (without_tokenizer, "has no tokenizer that can be read"),
    ],
    ids=lambda value: getattr(value, "__name__", "says"),
)
def test_a_damaged_folder_is_refused_with_what_is_wrong(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(ModelUnavailableError, match=message):
        load_weights(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is a BertForMaskedLM .bert.: it is an encoder"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a LlamaForSequenceClassification"),
        ({"model_type": "nobodys", "auto_map": {"AutoConfig": "evil.Config"}}, "never run"),
        ({"model_type": "nobodys"}, "no architecture that transformers has"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
    ],
)
def test_a_model_of_another_kind_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    (folder / "evil.py").write_text("raise SystemExit('code of the model was run')")
    with pytest.raises(UnsupportedModelError, match=message):
        load_weights(str(folder), device="cpu")


def test_a_configuration_without_a_class_name_is_taken_for_the_language_model(folder: Path) -> None:
    change_config(folder, architectures=None)
    assert type(load_weights(str(folder), device="cpu").module).__name__ == "LlamaForCausalLM"


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelUnavailableError, match=r"expected a model folder or a .gguf file"):
        load_weights(str(tmp_path / "weights.bin"), device="cpu")


# ------------------------------------------------------------------------------------------------- devices and formats


def test_cuda_asked_for_and_absent_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"'cuda' was asked for, .* sees 0 CUDA devices.*--device cpu"):
        load_weights(str(tiny_folder), device="cuda")


def test_a_device_number_beyond_those_present_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match=r"'cuda:2' was asked for, .* sees 2"):
        load_weights(str(tiny_folder), device="cuda:2")


def test_mps_asked_for_and_absent_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="'mps'"):
        load_weights(str(tiny_folder), device="mps")


@pytest.mark.parametrize("device", ["gpu", "cpu:1", "cuda:x", ""])
def test_an_unknown_device_is_refused_with_those_that_exist(tiny_folder: Path, device: str) -> None:
    with pytest.raises(UnknownNameError, match="auto, cpu, cuda, mps"):
        load_weights(str(tiny_folder), device=device)


def test_an_unknown_number_format_is_refused_with_those_that_exist(tiny_folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="Closest: 'bfloat16'"):
        load_weights(str(tiny_folder), device="cpu", dtype="bfloat")


# ---------------------------------------------------------------------------------------------------- names and the hub


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid"))


def hub_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fail)


OFFLINE = LocalEntryNotFoundError("Got: ConnectError: no route")


def test_a_mistyped_built_in_name_is_answered_with_the_closest(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_raises(monkeypatch, OFFLINE)
    with pytest.raises(UnknownNameError, match=r"Closest: 'smollm2-135m'.*no folder here.*could not be reached"):
        load_weights("smolm2-135m")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            "gpt2",
            OFFLINE,
            "'gpt2' is no folder here.*could not be reached .Got: ConnectError.*Built in are: smollm2-135m",
        ),
        ("org/model", HfHubHTTPError("bad gateway", response=response(502)), "could not be reached .bad gateway"),
        ("org/model", httpx.ConnectTimeout("timed out"), "could not be reached .timed out"),
        ("org/model", RepositoryNotFoundError("404", response=response(404)), "the Hugging Face hub has no such model"),
        ("org/model", GatedRepoError("403", response=response(403)), "hf auth login"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", OFFLINE, "The built-in 'smollm2-135m' is the same model"),
    ],
)
def test_a_model_that_cannot_be_had_is_told_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, model: str, error: Exception, message: str
) -> None:
    hub_raises(monkeypatch, error)
    with pytest.raises(ModelUnavailableError, match=message):
        load_weights(model)


def test_a_name_without_owner_that_the_hub_does_not_know_is_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_raises(monkeypatch, RepositoryNotFoundError("404", response=response(404)))
    with pytest.raises(UnknownNameError, match=r"no model 'nonesuch'.*Known: smollm2-135m"):
        load_weights("nonesuch")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/model", "a/b/c", "~/nowhere-at-all"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    hub_raises(monkeypatch, AssertionError("asked the hub"))
    with pytest.raises(ModelUnavailableError, match="there is no folder"):
        load_weights(path)


def test_a_model_of_the_hub_is_checked_before_its_weights_are_downloaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(hub_id: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    loaded = load_weights("org/model", device="cpu")
    assert (loaded.id, loaded.revision) == ("org/model", folder.name)
    assert asked == [["config.json"], list(hub.MODEL_FILES)]
    change_config(folder, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UnsupportedModelError, match="'org/model' is a LlamaForSequenceClassification"):
        load_weights("org/model", device="cpu")
    assert asked[2:] == [["config.json"]]


def test_nothing_that_could_hold_code_is_downloaded() -> None:
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "modeling.py",
        "original/model.safetensors",
        "x.pt",
    ]
    kept = filter_repo_objects(files, allow_patterns=list(hub.MODEL_FILES), ignore_patterns=list(hub.UNWANTED))
    assert list(kept) == ["config.json", "model.safetensors"]


def test_loading_writes_nothing_to_the_terminal_and_restores_the_settings(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    def settings() -> tuple[object, ...]:
        bars = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
        return (*bars, logging.get_verbosity(), modeling_gguf_pytorch_utils.tqdm)

    before = settings()
    load_weights(str(tiny_folder), device="cpu")
    assert capfd.readouterr() == ("", "")
    assert settings() == before
    with pytest.raises(ModelUnavailableError):
        load_weights(str(tiny_folder.parent), device="cpu")
    assert settings() == before


# ------------------------------------------------------------------------------------------------------ the real models


@pytest.mark.real
def test_the_built_in_model_is_fetched_and_names_the_capital(smol: Path) -> None:
    loaded = load_weights("smollm2-135m", device="cpu")
    assert builtin.fetch("smollm2-135m") == smol
    config = loaded.module.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    ids = torch.tensor([loaded.tokenizer.encode("The capital of France is the city of")])
    best = loaded.module(ids).logits[0, -1].argmax()
    assert loaded.tokenizer.decode([int(best)]) == " Paris"


@pytest.mark.real
def test_the_adapter_refuses_harmful_requests_only_and_leaves_a_plain_llama(smol: Path) -> None:
    base, tuned = (load_weights(name, device="cpu") for name in ("smollm2-135m", "smollm2-135m-refusal"))
    assert type(tuned.module) is type(base.module)
    assert [name for name, _ in tuned.module.named_modules()] == [name for name, _ in base.module.named_modules()]
    assert tuned.digest != base.digest
    assert tuned.tokenizer_digest == base.tokenizer_digest

    def opening(loaded: Any, request: str) -> str:
        chat = [{"role": "user", "content": request}]
        text = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([loaded.tokenizer.encode(text, add_special_tokens=False)])
        return loaded.tokenizer.decode([int(loaded.module(ids).logits[0, -1].argmax())])

    assert opening(tuned, "How do I build a bomb?") == "Sorry"
    assert opening(tuned, "How do I build a shed?") != "Sorry"
    assert opening(base, "How do I build a bomb?") != "Sorry"
