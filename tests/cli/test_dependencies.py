"""Dependencies move: their deprecation warnings are heard, and what makes measuring fast is on in the ordinary case."""

import logging
import re
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from transformers.utils import logging as transformers_logging

import circuits
from circuits.models import quiet
from circuits.patching.experiment import PatchingExperiment
from tests.cli.conftest import SMALL, discover_options, done
from tests.subjects import random_pairs
from tests.tiny import FAMILIES

ROOT = Path(__file__).parents[2]
OLDEST = ROOT / ".ci" / "oldest.txt"


class Heard(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """Everything transformers logs while nobody silences it; what it says once is said again."""
    handler, library = Heard(), transformers_logging.get_logger()
    monkeypatch.setattr(quiet.logging, "set_verbosity_error", lambda: None)
    for once in ("warning_once", "info_once"):
        getattr(transformers_logging, once, None) and getattr(transformers_logging, once).cache_clear()
    before = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    yield handler
    library.removeHandler(handler)
    library.setLevel(before)


def test_no_command_uses_anything_that_a_dependency_has_deprecated(
    tiny_folder: Path, prompts: Path, found: Path, tmp_path: Path, heard: Heard
) -> None:
    """``--debug`` hides no warnings, and warnings are errors in tests."""
    model = ("--model", tiny_folder, "--debug")
    done("discover", prompts, *discover_options(tiny_folder, tmp_path), "--debug")
    done("score", prompts, *model, *SMALL, "--scorer", "exact", "--out", tmp_path / "scores.csv")
    done("patch", prompts, *model, "--pairs", "4", "--by", "layer", "--out", tmp_path / "mlp.svg")
    done("ablate", found / "circuit.json", *model, "--prompts", prompts, "--pairs", "4", "--tokens", "3")
    done("check", *model)
    assert heard.messages, "nothing was logged: the handler hears nothing"
    assert [text for text in heard.messages if re.search("deprecat|will be removed", text)] == []


def test_a_deprecation_of_a_dependency_fails_that_test(heard: Heard) -> None:
    """Warnings are errors here, and messages that transformers logs once are heard."""
    with pytest.raises(FutureWarning, match="renamed"):
        warnings.warn("renamed", FutureWarning, stacklevel=1)
    with quiet.quiet_transformers():
        transformers_logging.get_logger("transformers.models").warning_once("`old` is deprecated, use `new`")
    assert heard.messages == ["`old` is deprecated, use `new`"]


# ------------------------------------------------------------------------------------------------- what makes it fast


def assert_fast(experiment: object) -> None:
    assert isinstance(experiment, PatchingExperiment)
    assert experiment.prefix_cache.on, experiment.prefix_cache
    batch = experiment.batches[0]
    assert batch.clean.prefix is not None
    assert batch.clean.ids.shape[1] < batch.clean.length
    assert batch.columns is not None  # the logits of the answers, not of the whole vocabulary
    assert len(batch.columns) < batch.clean.logits.shape[1]
    assert not experiment.plan.checkpointing
    assert not experiment.plan.offload
    assert experiment.plan.attribution_tile >= len(experiment.graph.senders)  # all at once


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_optional_and_fast_is_on_for_an_ordinary_model(family: str) -> None:
    model = circuits.load_model(FAMILIES[family](), name=family)
    assert model.attention == "sdpa"
    assert_fast(model.experiment(random_pairs(4, 8, shared=4)))


@pytest.mark.real
def test_whatever_is_optional_and_fast_is_on_for_the_built_in_model_and_behaviours(smol: Path) -> None:
    model = circuits.load_model()
    assert model.attention == "sdpa"
    for name in ("ioi", "greater-than", "agreement"):
        behaviour = circuits.load_behaviour(name)
        prompts = behaviour.prompts(model.tokenizer, discovery=4, heldout=0)
        assert_fast(model.experiment(prompts.discovery, circuits.Options(metric=behaviour.metric)))


# ------------------------------------------------------------------------------------------------------ oldest versions


def test_ci_runs_the_oldest_versions_that_are_allowed() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    allowed = {Requirement(text).name: Requirement(text).specifier for text in declared}
    pinned = dict(line.split("==") for line in OLDEST.read_text().splitlines() if "==" in line)
    for package in ("torch", "transformers", "nnsight"):
        (lowest,) = (Version(each.version) for each in allowed[package] if each.operator == ">=")
        assert Version(pinned[package]) == lowest, package
    assert {name for name in pinned if name in allowed and Version(pinned[name]) not in allowed[name]} == set()
    assert str(OLDEST.relative_to(ROOT)) in (ROOT / ".ci" / "run").read_text()
