"""Loading a model by a device map, on a machine without a second device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import circuits
from circuits.cli.app import app
from circuits.errors import DeviceError, FormatError, UnknownNameError, UsageError
from tests.subjects import PAIRS, TOKENIZER, relative
from tests.tiny import FAMILIES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    module: Any = FAMILIES["llama"]()
    module.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def map_in(folder: Path, text: str) -> str:
    file = folder.parent / "map.json"
    file.write_text(text)
    return str(file)


def test_a_model_is_loaded_by_a_device_map(folder: Path) -> None:
    plain = circuits.load_model(folder)
    edges = np.arange(0, plain.graph.n_edges, 41)
    expected = plain.experiment(PAIRS).edge_effects(edges)
    for given in ("auto", "balanced", {"": "cpu"}, map_in(folder, '{"": "cpu"}')):
        found = circuits.load_model(folder, device_map=given)
        assert found.info.digest == plain.info.digest
        assert relative(found.experiment(PAIRS).edge_effects(edges), expected) < 1e-6


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"model": 0}', DeviceError, "device 'cuda:0' was asked for, but torch .* sees 0 CUDA devices"),
        ('{"": "disk"}', DeviceError, "puts '' on disk; expected all weights on devices"),
        ('{"": "tpu"}', UnknownNameError, "no device 'tpu'"),
        ("[]", FormatError, "holds a list; expected an object of modules and their devices"),
        ("{}", FormatError, "expected an object of modules and their devices"),
    ],
)
def test_a_device_map_that_cannot_be_followed_is_refused(
    folder: Path, text: str, error: type[Exception], message: str
) -> None:
    if "CUDA" in message and torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(error, match=message):
        circuits.load_model(folder, device_map=map_in(folder, text))


def test_device_maps_go_with_names_alone(folder: Path) -> None:
    with pytest.raises(UsageError, match="the device map is 'evenly'; expected auto, balanced, or a JSON file"):
        circuits.load_model(folder, device_map="evenly")
    with pytest.raises(UsageError, match="device 'cpu' and a device map were asked for; expected one of them"):
        circuits.load_model(folder, device="cpu", device_map="auto")
    with pytest.raises(UsageError, match="a device map was given with a module in memory"):
        circuits.load_model(FAMILIES["llama"](), device_map="auto")


def test_the_command_line_takes_a_device_map(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["check", "--model", str(folder), "--device-map", "balanced"])
    assert shown.exit_code == 0, shown.output
    refused = CliRunner().invoke(app, ["check", "--model", str(folder), "--device-map", "evenly"])
    assert refused.exit_code != 0
