"""Model folders of unknown origin: whatever their small files say, they are loaded as they are or refused in time."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from circuits.errors import CircuitsError, ModelUnavailableError, UnsupportedModelError
from circuits.models.loading import load_weights
from tests.tiny import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.zoo import ZOO

SECONDS = 20
"""On a busy machine; what is refused is refused in much less than one."""
Damage = Callable[[Path], None]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that the test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refused(folder: Path, kind: type[CircuitsError], message: str) -> None:
    begun = time.monotonic()
    with pytest.raises(kind, match=message):
        load_weights(str(folder), device="cpu")
    assert time.monotonic() - begun < SECONDS


def changed(name: str, **changes: Any) -> Damage:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def config(**changes: Any) -> Damage:
    return changed("config.json", **changes)


def written(name: str, text: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(text.encode() if isinstance(text, str) else text) and None


# ------------------------------------------------------------------------------------------------------ configuration

NONSENSE = "describes no architecture that transformers has built in"


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (written("config.json", "[" * 100_000), ModelUnavailableError, "cannot be read: .*levels deep"),
        (written("config.json", '{"hidden_size": ' + "9" * 5_000 + "}"), ModelUnavailableError, "has 5000 digits"),
        (written("config.json", b"\xff{}"), ModelUnavailableError, "config.json is not UTF-8 text"),
        (written("config.json", "[]"), UnsupportedModelError, NONSENSE),
        (written("config.json", "{}"), UnsupportedModelError, NONSENSE),
        (config(model_type=5), UnsupportedModelError, "model_type: Input should be a valid string, got 5"),
        (config(model_type="llama\x1b[2J"), UnsupportedModelError, NONSENSE),
        (config(architectures=5), UnsupportedModelError, "architectures: Input should be a valid array, got 5"),
        (config(architectures=[5]), UnsupportedModelError, "architectures.0: Input should be a valid string, got 5"),
        (config(dtype="os.system"), UnsupportedModelError, NONSENSE),
        (config(dtype=["float32"]), CircuitsError, "config.json of"),
        (config(num_attention_heads=0), CircuitsError, "config.json of|has no"),
        (config(num_key_value_heads=0), CircuitsError, "config.json of|has no"),
        (config(num_attention_heads=3), CircuitsError, "config.json of|could not be read"),
        (config(hidden_size=-32), CircuitsError, NONSENSE),
        (config(hidden_size="32"), ModelUnavailableError, "a value that its architecture cannot have"),
        (config(rope_parameters={"rope_type": "evil", "rope_theta": 1e4}), CircuitsError, NONSENSE),
        (config(rope_scaling={"rope_type": "evil", "factor": 2.0}), CircuitsError, NONSENSE),
        (config(rope_parameters=7), CircuitsError, "config.json of"),
        (config(hidden_act="os.system"), UnsupportedModelError, NONSENSE),
        (config(layer_types="sliding"), UnsupportedModelError, "layer_types: Input should be a valid array"),
        (config(quantization_config="4bit"), UnsupportedModelError, "quantization_config: Input should be an object"),
        (config(num_hidden_layers=10**9), UnsupportedModelError, "num_hidden_layers is 1000000000; no model has more"),
        (config(num_hidden_layers=-1), CircuitsError, "config.json of|do not use|does not use|hold"),
        (config(num_attention_heads=10**9), UnsupportedModelError, "num_attention_heads is 1000000000; no model"),
        (config(n_layer=10**9, model_type="gpt2"), UnsupportedModelError, "n_layer is 1000000000; no model has more"),
        (config(text_config={"num_hidden_layers": 10**9}), UnsupportedModelError, "num_hidden_layers is 1000000000"),
        (config(num_hidden_layers=9_999), ModelUnavailableError, "of 9999 layers, and its weights hold 30 tensors"),
        (config(vocab_size=10**12), ModelUnavailableError, r"a model of 6.4e\+13 numbers, and its weights hold"),
        (config(intermediate_size=10**12), ModelUnavailableError, "numbers, and its weights hold .*do not belong"),
        (config(vocab_size=10**25), CircuitsError, "config.json of"),
        (config(transformers_weights="other.safetensors"), UnsupportedModelError, "names a file of weights, 'other"),
        (config(transformers_weights="../../x.bin"), UnsupportedModelError, "remove transformers_weights"),
    ],
)  # fmt: skip
def test_nonsense_in_a_configuration_is_refused(
    folder: Path, damage: Damage, kind: type[CircuitsError], message: str
) -> None:
    damage(folder)
    refused(folder, kind, message)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("asked", ["auto", "eager"])
def test_a_configuration_does_not_choose_the_attention_code(
    folder: Path, key: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loader(*_: object, **__: object) -> None:
        raise AssertionError("the kernel loader was reached")

    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", loader)
    monkeypatch.setattr("transformers.integrations.hub_kernels.load_and_register_attn_kernel", loader)
    config(**{key: "someone/kernel", "_experts_implementation": "someone/experts", "use_kernels": True})(folder)
    loaded = load_weights(str(folder), device="cpu", attention=asked)
    assert loaded.attention == {"auto": "sdpa", "eager": "eager"}[asked]
    ids = torch.arange(10)[None]
    torch.testing.assert_close(loaded.module(ids).logits, tiny_llama()(ids).logits, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ weights


def sharded(folder: Path, **weight_map: Any) -> None:
    """Write an index in place of the single file; ``weight_map`` overrides all of it."""
    (folder / "model.safetensors").unlink()
    tiny_llama().save_pretrained(folder, max_shard_size="20KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = min(index["weight_map"])
    index["weight_map"] = (
        index["weight_map"] | {first: weight_map["first"]} if "first" in weight_map else weight_map["all"]
    )
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["x.bin", "pytorch_model.bin", "../outside.safetensors", "/etc/x.safetensors", "a/b.safetensors", "",
             "..", "x.safetensors.pkl", "..\\x.safetensors", "x.safetensors/"]
)  # fmt: skip
def test_an_index_that_names_anything_but_plain_safetensors_is_refused(folder: Path, name: str) -> None:
    sharded(folder, first=name)
    for place in (folder / "x.bin", folder.parent / "outside.safetensors"):
        torch.save({"w": torch.zeros(3)}, place)
    refused(
        folder, ModelUnavailableError, "as weights; expected names of .safetensors files in its own folder: pickles"
    )


@pytest.mark.parametrize("weight_map", [{}, [], None, 5, {"a": 5}, {"a": None}, {"a": ["x.safetensors"]}])
def test_an_index_without_a_map_of_names_is_refused(folder: Path, weight_map: Any) -> None:
    sharded(folder, all=weight_map)
    refused(folder, ModelUnavailableError, "is not an index of safetensors files|names no file as weights")


def broken_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes((10**15).to_bytes(8, "little") + path.read_bytes()[8:])


def huge_tensor(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize("damage", [broken_header, huge_tensor, written("model.safetensors", b""),
                                    written("model.safetensors", b"\x80\x04\x95pickle")])  # fmt: skip
def test_weights_that_are_none_are_refused(folder: Path, damage: Damage) -> None:
    damage(folder)
    refused(folder, ModelUnavailableError, "weights in '.*' could not be read")


def adding(folder: Path, *names: str) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: torch.ones(3) for name in names}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.mlp.up_proj.bias",
        "model.layers.2.self_attn.q_norm.weight",
        "model.layers.3.input_layernorm.weight",
        "model.norm.bias",
        "lm_head.bias",
        "layers.0.self_attn.o_proj.bias",
    ],
)
def test_weights_of_parts_that_the_configuration_denies_are_refused(folder: Path, name: str) -> None:
    adding(folder, name)
    refused(folder, ModelUnavailableError, f"hold '(model.)?{name}', one of 1 tensors that a model as its config.json")


def test_fewer_layers_than_the_weights_hold_are_refused(folder: Path) -> None:
    config(num_hidden_layers=2)(folder)
    refused(folder, ModelUnavailableError, r"hold 'model.layers.2.*or the number of layers")


def test_weights_beside_the_model_and_tables_it_computes_itself_are_left_out(folder: Path) -> None:
    adding(folder, "v_head.summary.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "score.weight")
    ids = torch.arange(10)[None]
    assert torch.equal(load_weights(str(folder), device="cpu").module(ids).logits, tiny_llama()(ids).logits)
    tiny_gpt2().save_pretrained(folder)
    adding(folder, "transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias")
    assert torch.equal(load_weights(str(folder), device="cpu").module(ids).logits, tiny_gpt2()(ids).logits)


# ---------------------------------------------------------------------------------------------------------- tokenizers


def tokenizer(**changes: Any) -> Damage:
    return changed("tokenizer.json", **changes)


@pytest.mark.parametrize(
    "damage",
    [
        written("tokenizer.json", "[" * 100_000),
        written("tokenizer.json", "{}"),
        written("tokenizer.json", "null"),
        written("tokenizer.json", b"\xff\xfe"),
        tokenizer(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}),
        tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y z"]}),
        tokenizer(model=5),
        tokenizer(added_tokens=[{"id": 10**30, "content": "x"}]),
        tokenizer(pre_tokenizer={"type": "Nothing"}),
        written("tokenizer_config.json", "[" * 100_000),
        written("tokenizer_config.json", "5"),
        changed("tokenizer_config.json", eos_token=5),
        changed("tokenizer_config.json", added_tokens_decoder={"x": 5}),
    ],
)
def test_a_tokenizer_that_is_none_is_refused(folder: Path, damage: Damage) -> None:
    damage(folder)
    refused(folder, ModelUnavailableError, "has no tokenizer that can be read")


def test_code_that_tokenizer_files_name_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('code of the model was run')")
    changed("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})(folder)
    ids = load_weights(str(folder), device="cpu").tokenizer.encode(" gave a book")
    assert ids == tiny_tokenizer().encode(" gave a book")


@pytest.mark.parametrize("family", ["gpt_oss", "mpt_clipped", "mixtral", "gpt_bigcode", "qwen2_moe", "gptj"])
def test_families_of_other_weights_and_attention_are_loaded_as_they_were_saved(family: str, tmp_path: Path) -> None:
    module = ZOO[family]()
    module.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ids = torch.arange(10)[None]
    loaded = load_weights(str(tmp_path), device="cpu").module
    torch.testing.assert_close(loaded(ids).logits, module(ids).logits, rtol=1e-5, atol=1e-5)
