"""Models of the Hugging Face hub, brought into its cache on this machine; nothing here reads weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from circuits.errors import ModelUnavailableError

# Top-level files only: configuration, tokenizer, safetensors. Never pickled weights, never code.
MODEL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
CONFIGURATION = ("config.json",)
ADAPTER_CONFIGURATION = ("adapter_config.json",)
ADAPTER_FILES = (*ADAPTER_CONFIGURATION, "adapter_model.safetensors", "tokenizer*.json", "tokenizer.model", "*.jinja")
TOKENIZER_FILES = (
    *("tokenizer*", "*.jinja", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json"),
    *CONFIGURATION,
    *ADAPTER_CONFIGURATION,
)
UNWANTED = ("*/*", "consolidated*")


class NotOnHubError(ModelUnavailableError):
    """The hub says that there is no such model, or it cannot have a model of this name."""


def cached_snapshot(hub_id: str, files: Sequence[str]) -> Path | None:
    """Return the folder of a model in the hub's cache if all these files are there; no network."""
    found = [huggingface_hub.try_to_load_from_cache(hub_id, file) for file in files]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths[0].parent if len(paths) == len(files) and len({path.parent for path in paths}) == 1 else None


def download_snapshot(hub_id: str, files: Sequence[str] = MODEL_FILES) -> Path:
    """Return the cache's folder of the newest version of a model; its name is the revision.

    What is missing of ``files`` (patterns, top level only) is downloaded.

    Without network the newest version that the cache holds is used. Raises :class:`ModelUnavailableError`.
    """
    try:
        download = cast(Any, huggingface_hub).snapshot_download
        # Repositories may hold a model and an adapter made from it; the adapter's files are for who asks for them.
        unwanted = [*UNWANTED, *(() if any(name.startswith("adapter_") for name in files) else ("adapter_*",))]
        return Path(download(hub_id, allow_patterns=list(files), ignore_patterns=unwanted))
    except GatedRepoError as error:
        raise ModelUnavailableError(
            f"the hub gives '{hub_id}' only to those who accepted its terms. Accept them on the model's page, then "
            "log in with `hf auth login`."
        ) from error
    except HFValidationError as error:
        raise NotOnHubError(
            f"'{hub_id}' is no folder here, and no name that a model on the Hugging Face hub can have."
        ) from error
    except RepositoryNotFoundError as error:
        raise NotOnHubError(
            f"'{hub_id}' is no folder here, and the Hugging Face hub has no such model (or it is private: "
            "`hf auth login`)."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, ConnectionError) as error:
        raise ModelUnavailableError(
            f"'{hub_id}' is no folder here and not in the Hugging Face cache, and the hub could not be reached "
            f"({_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
