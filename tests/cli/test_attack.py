"""``circuits attack``: refusal before and under an attack, on a tiny model."""

import json
from pathlib import Path

import pytest

import circuits
from tests.cli.conftest import as_json, done, invoke, write_pairs

OPTIONS = ("--pairs", 6, "--tokens", 3)
SIDES = {"clean": "John", "corrupted": "Paul"}


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {side: [{"role": "user", "content": f"When {a}{b} and {name}"}] for side, name in SIDES.items()}
        | {"answers": ["I"], "wrong_answers": [" to"]}
        for a in "abcdefgh"
        for b in "xyz"
    ]
    return write_pairs(tmp_path_factory.mktemp("requests") / "asked.jsonl", rows)


def test_it_prints_and_writes_what_the_python_call_returns(requests: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "attack.json"
    given = (requests, "--model", tiny_folder, *OPTIONS, "--out", out)
    attacks = ("--attack", "the cats", "--attack-prefill", "Mary and")
    printed = as_json("attack", *given, *attacks)
    model, behaviour = circuits.load_model(str(tiny_folder)), circuits.load_behaviour(requests)
    found = circuits.answers_under_attack(
        model, behaviour, attack="the cats", attack_prefill="Mary and", pairs=6, tokens=3
    )
    assert printed["quantities"] == json.loads(found.to_json())["quantities"]
    assert json.loads(out.read_text())["summary"] == found.describe() == printed["summary"]
    text = " ".join(done("attack", *given, *attacks).stdout.split())
    assert "before and under attack, with 95 % intervals" in text
    assert "attack 'the cats'; attack prefill 'Mary and'" in text
    assert not list(tmp_path.glob("*.journal"))


def test_the_length_along_a_direction_stands_beside_it(requests: Path, tiny_folder: Path, tmp_path: Path) -> None:
    import numpy as np

    model = circuits.load_model(str(tiny_folder))
    direction = tmp_path / "direction.safetensors"
    circuits.StreamDirection(np.arange(1.0, model.info.d_model + 1), 1).save(direction)
    given = (
        requests,
        "--model",
        tiny_folder,
        *OPTIONS,
        "--out",
        tmp_path,
        "--attack",
        "the cats",
        "--along",
        direction,
    )
    printed = as_json("attack", *given)
    assert printed["layer"] == 1
    assert printed["quantities"][-1]["name"] == "length along the direction on harmless prompts"
    assert printed["quantities"][-1]["before"] != printed["quantities"][-1]["after"]


def test_without_an_attack_it_ends_before_the_model_is_loaded(requests: Path) -> None:
    result = invoke("attack", requests, "--model", "/nowhere")
    assert result.exit_code == 2
    assert "there is no attack; give --attack TEXT, or --attack-prefill TEXT" in " ".join(result.stderr.split())
