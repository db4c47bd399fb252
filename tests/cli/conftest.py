"""A tiny model folder, prompt files on which it shows a behaviour, and a run of ``discover`` on them."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from circuits.cli import app

Run = Callable[..., Result]
WORDS = (" John", " Paul", " city", " capital", " gave", " the")
SMALL = ("--pairs", "6", "--quiet")


def invoke(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    """Run the command line; it must succeed."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def as_json(*arguments: object) -> dict[str, Any]:
    """Run the command line with ``--json`` and read all of stdout."""
    return json.loads(done(*arguments, "--json").stdout)


def pairs_shown_by(folder: Path, texts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Choose answers by the model's own logits, so that it prefers them on the clean side and not on the corrupted."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows: list[dict[str, Any]] = []
    for clean, corrupted in texts:
        with torch.no_grad():
            logits = [model(torch.tensor([tokenizer.encode(text)])).logits[0, -1] for text in (clean, corrupted)]
        change = logits[0] - logits[1]
        pair = {"clean": clean, "corrupted": corrupted, "answer": int(logits[0].argmax())}
        rows.append(pair | {"wrong_answer": int(change.argmin())})
    return rows


def write_pairs(path: Path, rows: Sequence[object]) -> Path:
    """Write a prompt file in JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def swapped(start: str, end: str) -> list[tuple[str, str]]:
    """Prompts with two words between two texts; the corrupted side has another second word."""
    texts: list[tuple[str, str]] = []
    for first, second in itertools.product(WORDS, WORDS):
        other = WORDS[(WORDS.index(second) + 1) % len(WORDS)]
        texts.append((f"{start}{first}{second}{end}", f"{start}{first}{other}{end}"))
    return texts


@pytest.fixture(scope="session")
def prompts(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt file of 36 pairs that the tiny model shows, named ``mine.jsonl``."""
    rows = pairs_shown_by(tiny_folder, swapped("When", " went to"))
    return write_pairs(tmp_path_factory.mktemp("prompts") / "mine.jsonl", rows)


@pytest.fixture(scope="session")
def other_prompts(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, named ``yours.jsonl``."""
    rows = pairs_shown_by(tiny_folder, swapped("The", " is"))
    return write_pairs(tmp_path_factory.mktemp("prompts") / "yours.jsonl", rows)


def discover_options(folder: Path, out: Path) -> list[str]:
    """Options of a quick discovery in the tiny model."""
    quick = ["--pairs", "6", "--heldout", "6", "--target", "0.8", "--pruner", "minimal"]
    return ["--model", f"{folder}", "--out", f"{out}", *quick]


@pytest.fixture(scope="session")
def found(tiny_folder: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished discovery; not to be changed."""
    out = tmp_path_factory.mktemp("found")
    done("discover", prompts, *discover_options(tiny_folder, out))
    return out


@pytest.fixture(scope="session")
def other_found(tiny_folder: Path, other_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished discovery of the other behaviour, by the other pruner; not to be changed."""
    out = tmp_path_factory.mktemp("other")
    done("discover", other_prompts, *discover_options(tiny_folder, out), "--pruner", "top", "--size", 40)
    return out
