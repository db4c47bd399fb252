"""Keep transformers from writing progress bars and advice to the terminal while a model is loaded."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import modeling_gguf_pytorch_utils as gguf_reader
from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Silence transformers inside the block and restore its settings, and the hub's, on every way out."""
    verbosity, bars, hub_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
    )
    # The bar of the GGUF reader follows no setting.
    reader = cast(Any, gguf_reader)
    gguf_bar, reader.tqdm = reader.tqdm, _without_bar
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        reader.tqdm = gguf_bar
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        (enable_progress_bars if hub_bars else disable_progress_bars)()


def _without_bar(items: Iterable[Any], **_: object) -> Iterable[Any]:
    return items
