"""Weights that stay packed: the same numbers as expanded ones to the last bit, and one matrix expanded at a time."""

import copy
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from torch import nn
from typer.testing import CliRunner

import circuits
from circuits.cli.app import app
from circuits.errors import UnsupportedModelError, UsageError
from circuits.models.packed_weight import Blocks, PackedWeight
from circuits.patching.measurement import Resources
from tests.gguf_files import write_gguf
from tests.subjects import PAIRS, TOKENIZER
from tests.zoo import FAMILIES

WIDE = {"intermediate_size": 64}
CHANGES: dict[str, dict[str, Any]] = {
    "llama": WIDE | {"head_dim": 8},
    "qwen2": WIDE | {"head_dim": 8},
    "qwen3": WIDE | {"head_dim": 128},
    "phi3": WIDE | {"head_dim": 8},
    "gemma2": WIDE,
    "gemma3": WIDE,
    "stablelm": WIDE,
    "stablelm_parallel": WIDE,
    "starcoder2": WIDE | {"head_dim": 8},
    "nemotron": WIDE | {"head_dim": 8},
    "gpt2": {"tie_word_embeddings": True, "n_positions": 1024},
    "bloom": {"tie_word_embeddings": True},
    "falcon": {"tie_word_embeddings": True},
}
"""What a model must be like so that transformers reads its ``.gguf`` file, and blocks of 32 fill its rows."""


def file_of(family: str, folder: Path, kind: str = "Q8_0") -> Path:
    return write_gguf(FAMILIES[family].create(**CHANGES[family]), folder / "model.gguf", kind)


def loaded(path: Path, **options: Any) -> circuits.Model:
    return circuits.load_model(path, tokenizer=TOKENIZER, **options)


def measured(model: circuits.Model, **resources: Any) -> dict[str, Any]:
    """Whatever reads weights in another way: recording, gradients, single edges, circuits, gradients of circuits."""
    experiment = model.experiment(PAIRS, resources=Resources(**resources))
    edges = np.arange(0, model.graph.n_edges, 7)
    masks = np.random.default_rng(0).random((2, model.graph.n_edges)) < 0.5
    values, slopes = experiment.circuit_gradient(np.ones(model.graph.n_edges))
    return {
        "clean": experiment.clean,
        "attribution": experiment.attributions([0.1, 0.5]),
        "exact": experiment.edge_effects(edges),
        "circuits": experiment.circuits(masks),
        "values": values,
        "slopes": slopes,
    }


@pytest.mark.parametrize("family", CHANGES)
def test_packed_weights_give_the_numbers_of_expanded_ones_to_the_last_bit(family: str, tmp_path: Path) -> None:
    path = file_of(family, tmp_path)
    whole, packed = loaded(path), loaded(path, packed=True)
    assert whole.packing is None
    assert packed.packing is not None
    assert packed.info == whole.info
    expected, found = measured(whole), measured(packed)
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    assert np.abs(expected["exact"]).max() > 0.01


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_of_every_type_and_products_of_every_precision_are_those_of_expanded_weights(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    path = file_of("llama", tmp_path, kind)
    whole, packed = loaded(path, dtype=dtype), loaded(path, dtype=dtype, packed=True)
    assert packed.dtype == dtype
    expected, found = measured(whole, checkpointing=True), measured(packed, checkpointing=True)
    assert all(np.array_equal(found[name], values) for name, values in expected.items())


@pytest.mark.parametrize("scorer", ["eap-ig", "relp", "gim", "atp-star", "conductance", "ifr"])
def test_every_kind_of_scorer_takes_packed_weights(scorer: str, tmp_path: Path) -> None:
    path = file_of("llama", tmp_path)
    whole, packed = (circuits.score(loaded(path, packed=on).experiment(PAIRS), scorer) for on in (False, True))
    assert np.array_equal(packed.values, whole.values, equal_nan=True)


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes of expanded numbers that exist now, the most that did, and all that were ever made."""
    counted, expand = {"now": 0, "most": 0, "ever": 0}, Blocks.expanded

    def counting(blocks: Blocks) -> Any:
        made = expand(blocks)
        owner, size = made if made.base is None else made.base, made.nbytes

        def freed() -> None:
            counted["now"] -= size

        weakref.finalize(owner, freed)
        counted["now"] += size
        counted["ever"] += size
        counted["most"] = max(counted["most"], counted["now"])
        return made

    monkeypatch.setattr(Blocks, "expanded", counting)
    return counted


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_matrix_is_expanded_at_a_time_also_on_the_way_back(
    checkpointing: bool, tmp_path: Path, alive: dict[str, int]
) -> None:
    model = loaded(file_of("llama", tmp_path), packed=True)
    assert model.packing is not None
    alive.update(most=0, ever=0)
    measured(model, checkpointing=checkpointing)
    assert alive["now"] == 0
    assert alive["ever"] > 20 * model.packing.largest
    assert alive["most"] <= 1.25 * model.packing.largest  # the tokens' embeddings are counted too


def test_loading_packed_expands_one_matrix_after_the_other(tmp_path: Path, alive: dict[str, int]) -> None:
    model = loaded(file_of("llama", tmp_path), packed=True)
    assert model.packing is not None
    assert alive["most"] <= 2 * model.packing.largest  # each is held against what the reader makes of it


def test_how_much_is_packed_is_told(tmp_path: Path) -> None:
    path = file_of("llama", tmp_path, "Q4_0")
    model = loaded(path, packed=True)
    assert model.packing is not None
    matrices = [weight for weight in model.tracer.anatomy.module.parameters() if weight.dim() == 2]
    assert model.packing.packed == sum(weight.numel() for weight in matrices)
    assert model.packing.expanded == 4 * model.n_parameters
    plain = 4 * (model.n_parameters - model.packing.packed)
    assert model.packing.bytes == plain + model.packing.packed * 18 // 32  # Q4_0: 32 numbers in 18 bytes
    assert repr(model).endswith("packed)")
    assert repr(loaded(path)).endswith("on cpu)")


def test_check_says_how_weights_are_held(tmp_path: Path) -> None:
    path = file_of("llama", tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    shown = CliRunner().invoke(app, ["check", "--model", str(path), "--packed"])
    assert "one matrix is expanded at a time" in " ".join(shown.output.split()), shown.output


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    module: Any = FAMILIES["llama"].create()
    module.save_pretrained(tmp_path / "plain")
    TOKENIZER.save_pretrained(tmp_path / "plain")
    with pytest.raises(UsageError, match=r"holds its weights as safetensors, and packed is for .gguf files"):
        loaded(tmp_path / "plain", packed=True)
    with pytest.raises(UsageError, match="a module in memory is as it is"):
        circuits.load_model(module, packed=True)
    path = write_gguf(FAMILIES["llama"].create(**CHANGES["llama"]), tmp_path / "float.gguf", "F32")
    with pytest.raises(UsageError, match=r"no matrix in '.*float.gguf' is packed"):
        loaded(path, packed=True)
    with pytest.raises(UsageError, match="packed and a device map were asked for"):
        loaded(path, packed=True, device_map="auto")
    experts = write_gguf(FAMILIES["qwen2_moe"].create(), tmp_path / "experts.gguf")
    with pytest.raises(UnsupportedModelError, match=r"holds experts .* cannot stay packed"):
        loaded(experts, packed=True)


@pytest.fixture
def weight() -> PackedWeight:
    numbers = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    blocks = Blocks(quantize(numbers, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    return PackedWeight.of(blocks, torch.float32, torch.device("cpu"))


def test_rearranged_weights_stay_packed_and_what_is_calculated_does_not(weight: PackedWeight) -> None:
    whole, rows = weight.expanded(), torch.tensor([[4, 1], [1, 0]])
    rearranged = {
        "transposed": (weight.T, whole.T),
        "reshaped": (weight.reshape(6, 4, 16).permute(1, 0, 2), whole.reshape(6, 4, 16).permute(1, 0, 2)),
        "sliced": (weight[2:4, 5], whole[2:4, 5]),
        "rows": (weight[rows], whole[rows]),
        "copied": (weight.clone(), whole),
    }
    for name, (found, expected) in rearranged.items():
        assert isinstance(found, PackedWeight), name
        assert found.shape == expected.shape, name
        assert found.stride() == expected.stride(), name
        assert torch.equal(found.expanded(), expected), name
    assert weight[rows].blocks.data.nbytes == 4 * 36  # these rows alone
    for made in (weight + 0, weight.double(), nn.functional.embedding(rows, weight), weight @ whole.T):
        assert type(made) is torch.Tensor


def test_a_packed_weight_can_be_copied_and_sent_but_not_changed_in_place(weight: PackedWeight) -> None:
    before = weight.expanded()
    changes = (
        lambda: weight.mul_(2),
        lambda: weight.copy_(before),
        lambda: weight.T.zero_(),
        lambda: torch.add(before, before, out=weight),
    )
    for change in changes:
        with pytest.raises(UsageError, match="a packed weight cannot be changed in place"):
            change()
    assert copy.deepcopy(weight) is weight
    for sent in (weight.T, nn.Parameter(weight, requires_grad=False)):
        arrived = copy.copy(sent)  # made anew from what would be sent to another process
        assert type(arrived) is PackedWeight
        assert isinstance(arrived, nn.Parameter) == isinstance(sent, nn.Parameter)
        assert torch.equal(arrived.expanded(), sent.expanded())
    assert torch.equal(weight.expanded(), before)
