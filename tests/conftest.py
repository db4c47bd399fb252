"""Fixtures that every test may use, and shape checks on the package's tensor code."""

# First of all, since it imports beartype, which cannot be imported after nnsight.
from tests.typechecker import checked

# isort: split
import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(
    [
        f"circuits.{part}"
        for part in ("metrics", "adapters", "memory", "tracing", "passes", "guards", "patching", "heads", "ablation")
    ],
    f"{checked.__module__}.{checked.__name__}",
)


def pytest_configure() -> None:
    """Give each of several test processes one thread: threads that wait for each other on busy cores are very slow."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def smol() -> Path:
    """The folder of the built-in model, fetched once and kept in the cache."""
    from circuits.models.fetching.builtin import fetch

    return fetch("smollm2-135m")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and a tokenizer, as `save_pretrained` writes it; not to be changed."""
    from tests.tiny import tiny_llama, tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
