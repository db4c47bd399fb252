"""Models written with a direction taken out of their weights: they do what ablating it in a run does."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from circuits.adapters.families import LLAMA
from circuits.directions.stream_direction import StreamDirection
from circuits.directions.target import leading_to
from circuits.errors import GuardError, OutputError, UnsupportedModelError, UsageError
from circuits.model import Model, load_model
from circuits.steering.ablated_weights import RECORD, write_ablated_weights
from circuits.steering.steered_model import SteeredModel
from tests.subjects import random_pairs
from tests.tiny import FAMILIES, tiny_tokenizer
from tests.zoo import ZOO

PROMPTS = [pair.clean for pair in random_pairs(3, 7)]
WRITERS = {"llama": 13, "qwen2-tied": 7, "gpt2-tied": 14, "falcon": 13, "opt": 14, "granite": 13, "phi": 13}
"""How many weights and biases write to the stream, counted by hand: of three layers' attention and MLP, embeddings."""


@cache
def model(family: str) -> Model:
    create = FAMILIES[family.removesuffix("-tied")] if family.endswith("-tied") else ZOO[family]
    return load_model(create(), tokenizer=tiny_tokenizer(), name=family)


def direction(family: str) -> StreamDirection:
    return StreamDirection(np.random.default_rng(1).normal(size=model(family).info.d_model), 1, size=3.0)


@pytest.mark.parametrize("family", WRITERS)
def test_a_written_model_answers_as_the_model_does_with_the_direction_ablated(family, tmp_path):
    before = {name: value.clone() for name, value in model(family).tracer.anatomy.module.state_dict().items()}
    found = write_ablated_weights(model(family), direction(family), tmp_path / "new")
    assert len(found.changed) == WRITERS[family]
    assert found.difference < 1e-5
    again = load_model(str(tmp_path / "new"))
    logits = SteeredModel(again).answers(PROMPTS)[1]
    ablated = SteeredModel(model(family), direction(family)).answers(PROMPTS)[1]
    torch.testing.assert_close(logits, ablated, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits, SteeredModel(model(family)).answers(PROMPTS)[1], atol=0.1)
    for name, value in model(family).tracer.anatomy.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_writes_has_no_direction_left_and_what_reads_is_as_it_was(tmp_path):
    """A tied output matrix reads the stream; it is stored apart from the embedding, which writes to it."""
    write_ablated_weights(model("qwen2-tied"), direction("qwen2-tied"), tmp_path)
    tensors, d = load_file(tmp_path / "model.safetensors"), torch.tensor(direction("qwen2-tied").vector.copy()).float()
    old = model("qwen2-tied").tracer.anatomy.module.state_dict()
    assert torch.equal(old["lm_head.weight"], old["model.embed_tokens.weight"])
    assert torch.equal(tensors["lm_head.weight"], old["lm_head.weight"])
    assert float((tensors["model.embed_tokens.weight"] @ d).abs().max()) < 1e-6
    assert float((d @ tensors["model.layers.1.mlp.down_proj.weight"]).abs().max()) < 1e-6
    assert float((d @ old["model.layers.1.mlp.down_proj.weight"]).abs().max()) > 0.1
    changed = {name for name, value in tensors.items() if not torch.equal(value, old[name])}
    ends = ("embed_tokens.weight", "o_proj.weight", "down_proj.weight")
    assert changed == {name for name in old if name.endswith(ends)}


def test_the_folder_says_what_was_taken_out_of_which_model(tmp_path):
    found = write_ablated_weights(model("llama"), direction("llama"), tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["model"] == "llama"
    assert record["model_digest"] == model("llama").info.digest
    assert (record["direction"]["layer"], record["direction"]["digest"]) == (1, direction("llama").digest)
    assert tuple(record["changed"]) == found.changed
    assert json.loads((tmp_path / "config.json").read_text())["ablated_direction"]["digest"] == (
        direction("llama").digest
    )
    assert "taken out of 13 weights" in found.describe()
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize(
    ("family", "kind", "message"),
    [
        ("gemma2", UnsupportedModelError, "a norm stands between a block and the residual stream"),
        ("mixtral", UnsupportedModelError, r"'model\.layers\.0\.mlp' holds experts"),
        ("bloom", GuardError, "something else writes to the residual stream"),
    ],
)
def test_models_whose_weights_alone_cannot_do_it_are_refused_and_nothing_is_written(family, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        write_ablated_weights(model(family), direction(family), tmp_path / "new")
    assert not (tmp_path / "new").exists()


class Plain(nn.Module):
    """A decoder of one's own: one layer of attention without MLP."""

    def __init__(self) -> None:
        super().__init__()
        inner = ZOO["llama"]()
        self.inner, self.heads = inner.model, 4
        self.lm_head = inner.lm_head

    def forward(self, ids: torch.Tensor, **_: object) -> torch.Tensor:
        return self.lm_head(self.inner(ids, use_cache=False).last_hidden_state)


def test_other_modules_other_directions_and_full_folders_are_refused(tmp_path: Path, monkeypatch):
    places = {"layers": "inner.layers", "final_norm": "inner.norm", "heads": "heads", "unembedding": "lm_head"}
    own = replace(LLAMA, name="mine", model_types=(), **places)
    mine = load_model(Plain().eval(), architecture=own, tokenizer=tiny_tokenizer())
    with pytest.raises(UnsupportedModelError, match="Plain is no model of transformers, so no folder"):
        write_ablated_weights(mine, direction("llama"), tmp_path / "new")
    with pytest.raises(UsageError, match="the direction has 3 numbers"):
        write_ablated_weights(model("llama"), StreamDirection(np.ones(3), 1), tmp_path / "new")
    with pytest.raises(UsageError, match="the model ends at resid:1:last; give the model as it was loaded"):
        write_ablated_weights(leading_to(model("llama"), direction("llama")), direction("llama"), tmp_path / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="is there already; a model is written into a new or empty folder"):
        write_ablated_weights(model("llama"), direction("llama"), tmp_path / "full")
    assert (tmp_path / "full" / "config.json").read_text() == "{}"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(OutputError, match=r"cannot write the model into '.*new': No space left on device"):
        write_ablated_weights(model("llama"), direction("llama"), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
