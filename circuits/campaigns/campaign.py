"""A campaign: behaviours × models × seeds, each a run of ``circuits discover`` with the same options."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Self, cast

from circuits.errors import FormatError, UsageError
from circuits.files.atomic import file_names
from circuits.files.documents import exists, read_text
from circuits.recording.run_record import NAME
from circuits.settings import displayed, whole_number

_KEYS = ("behaviours", "models", "seeds", "options", "transfer")
_SET_BY_CAMPAIGN = ("model", "seed", "out", "resume", "record", "json", "quiet", "debug")
"""Options of ``discover`` that a campaign sets itself."""
DEFAULT_MODEL = "smollm2-135m"
Value = str | int | float | bool


@dataclass(frozen=True)
class Planned:
    """One run of a campaign; ``name`` is that of its folder."""

    name: str
    behaviour: str
    model: str
    seed: int


@dataclass(frozen=True)
class Campaign:
    """A grid of discoveries, all with the same options.

    Args:
        behaviours: Built-in names, or prompt files.
        models: Built-in names, folders or ids.
        seeds: Which prompts are drawn: every seed draws others.
        options: Options of ``circuits discover`` by their names without dashes, such as ``{"pruner": "minimal",
            "pairs": 32, "heads": False}``.
        transfer: Options of ``circuits compare`` (``pairs``, ``random``) for running the circuits of a model on each
            other's prompts; ``None``: that is not done.

    Raises :class:`UsageError` for what cannot be a grid, or an option that the campaign sets itself.
    """

    behaviours: tuple[str, ...]
    models: tuple[str, ...] = (DEFAULT_MODEL,)
    seeds: tuple[int, ...] = (0,)
    options: Mapping[str, Value] = field(default_factory=dict[str, Value])
    transfer: Mapping[str, Value] | None = field(default_factory=dict[str, Value])

    def __post_init__(self) -> None:
        for name, kind in (("behaviours", str), ("models", str), ("seeds", int)):
            object.__setattr__(self, name, _several(name, getattr(self, name), kind))
        for name in ("options", "transfer"):
            _check_options(name, getattr(self, name))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a campaign from a TOML file; paths in it begin at its folder.

        Raises :class:`FormatError` for what is no campaign, and :class:`UsageError` for what is a wrong one.
        """
        path = Path(path)
        try:
            document = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise FormatError(f"{path} is no TOML: {error}. A campaign has lines such as {_SHOWN}.") from error
        unknown = [key for key in document if key not in _KEYS]
        if unknown or "behaviours" not in document:
            wrong = f"has '{unknown[0]}'" if unknown else "names no behaviours"
            raise FormatError(f"{path} {wrong}; a campaign has {', '.join(_KEYS)}: such as {_SHOWN}.")
        seeds = document.get("seeds", (0,))
        given: dict[str, Any] = document | {"seeds": range(seeds) if isinstance(seeds, int) else seeds}
        if given.get("transfer") is False:
            given["transfer"] = None
        elif given.get("transfer") is True:
            del given["transfer"]
        campaign = cls(**given)
        return cls(
            tuple(_placed(path.parent, name) for name in campaign.behaviours),
            tuple(_placed(path.parent, name) for name in campaign.models),
            campaign.seeds,
            campaign.options,
            campaign.transfer,
        )

    @property
    def labels(self) -> dict[str, str]:
        """What behaviours and models are called in tables: of paths their last part, where that tells them apart."""
        return {name: label for names in (self.behaviours, self.models) for name, label in _labels(names)}

    def runs(self) -> tuple[Planned, ...]:
        """Return every run: behaviour by behaviour, model by model, seed by seed."""
        grid, labels = list(product(self.behaviours, self.models, self.seeds)), self.labels
        names = file_names([f"{labels[behaviour]}-{labels[model]}-{seed}" for behaviour, model, seed in grid])
        return tuple(Planned(name, *of) for name, of in zip(names, grid, strict=True))

    def arguments(self, run: Planned, folder: Path) -> tuple[str, ...]:
        """Return what is typed after ``circuits`` for one run, whose results go to a folder."""
        own = {"model": run.model, "seed": run.seed, **_results(folder)}
        return ("discover", *_typed(own | dict(self.options)), "--resume", "--json", "--quiet", "--", run.behaviour)

    def comparison(self, circuits: Sequence[Path], behaviours: Sequence[str], folder: Path) -> tuple[str, ...]:
        """Return what is typed after ``circuits`` to run some circuits on each other's prompts."""
        own = {**_results(folder), **(self.transfer or {})}
        files = [text for name in behaviours if exists(Path(name), file=True) for text in ("--behaviour", name)]
        return ("compare", *_typed(own), *files, "--resume", "--json", "--quiet", "--", *map(str, circuits))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "behaviours": list(self.behaviours),
            "models": list(self.models),
            "seeds": list(self.seeds),
            "options": dict(self.options),
            "transfer": None if self.transfer is None else dict(self.transfer),
        }


_SHOWN = 'behaviours = ["ioi", "mine.jsonl"], models = ["smollm2-135m"], seeds = 3'


def _results(folder: Path) -> dict[str, Value]:
    return {"out": str(folder), "record": str(folder / NAME)}


def _several(name: str, given: object, kind: type) -> tuple[Any, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UsageError(f"the {name} of a campaign are several values, got {displayed(given)}; write {_SHOWN}.")
    found: list[Any] = []
    for value in cast("Sequence[object]", given):
        read = value if isinstance(value, str) else whole_number(value)
        if not isinstance(read, kind) or read == "" or (isinstance(read, int) and read < 0):
            expected = "names" if kind is str else "numbers from 0 up"
            raise UsageError(f"the {name} of a campaign are {expected}, got {displayed(value)}; write {_SHOWN}.")
        if read in found:
            raise UsageError(f"{displayed(value)} is there twice among the {name} of the campaign; give it once.")
        found.append(read)
    if not found:
        raise UsageError(f"a campaign needs at least one of its {name}; write {_SHOWN}.")
    return tuple(found)


def _check_options(name: str, given: object) -> None:
    if given is None and name == "transfer":
        return
    if not isinstance(given, Mapping):
        raise UsageError(
            f"the {name} of a campaign are a table, got {displayed(given)}; write [{name}] and below it pairs = 32."
        )
    for option, value in cast("Mapping[str, object]", given).items():
        if option.replace("_", "-") in _SET_BY_CAMPAIGN:
            raise UsageError(f"a campaign sets --{option} of its runs itself; leave it out of the {name}.")
        if not isinstance(value, str | int | float):
            raise UsageError(f"the option {option} is {displayed(value)}; expected text, a number, true or false.")


def _typed(options: Mapping[str, Value]) -> Iterator[str]:
    """Yield options as they are typed: of ``heads = false``, ``--no-heads``; nothing of a switch that is not on."""
    for name, value in options.items():
        dashed = name.replace("_", "-")
        if value is True:
            yield f"--{dashed}"
        elif value is False:
            yield f"--no-{dashed}"
        else:
            yield from (f"--{dashed}", str(value))


def _placed(folder: Path, name: str) -> str:
    """Return a name as it is, or where it is a file or folder beside the campaign's file its whole path."""
    place = folder / name
    return str(place.resolve()) if exists(place) else name


def _labels(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    short = [_short(name) for name in names]
    yield from ((name, label if short.count(label) == 1 else name) for name, label in zip(names, short, strict=True))


def _short(name: str) -> str:
    path = Path(name)
    return path.stem if exists(path, file=True) else path.name if exists(path) else name
