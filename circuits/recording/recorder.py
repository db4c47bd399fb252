"""Recording a run while it goes on: what it used, how long its stages took, what it warned of and wrote."""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from circuits.behaviours.behaviour import PromptSet
from circuits.files.documents import exists
from circuits.progress import stage_name
from circuits.recording.environment import environment, peak_gpu_memory, peak_memory
from circuits.recording.run_record import RunRecord, StageTime, UsedModel, UsedPrompts, dated, place_for
from circuits.records import ModelInfo

BEGINNING = "before the first stage"
"""What the time until then is called: mostly imports, where a command is run."""


class _LoadedModel(Protocol):
    """What is asked of a model; see :class:`circuits.Model`."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def n_parameters(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...


class RunRecorder:
    """Follows a run from when it is made until :meth:`save`.

    A recorder is a progress callback: hand it to what takes one, and the record has the time of every stage.

    >>> run = RunRecorder("a look at indirect objects")
    >>> model = load_model("smollm2-135m")                                    # doctest: +SKIP
    >>> run.used(model)                                                       # doctest: +SKIP
    >>> found = discover(model, load_behaviour("ioi"), progress=run)          # doctest: +SKIP
    >>> run.save("outputs/look", [path], {"edges": len(found.circuit)})       # doctest: +SKIP
    """

    def __init__(
        self,
        command: str = "",
        *,
        arguments: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        inputs: Iterable[Path] = (),
    ) -> None:
        self._command, self.arguments, self._settings = command, tuple(arguments), dict(settings or {})
        self._date, self._begun = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        self._inputs = tuple(dated(path) for path in inputs if exists(path, file=True))
        self._models: dict[str, UsedModel] = {}
        self._prompts: list[UsedPrompts] = []
        self._warnings: list[str] = []
        self._stages: dict[str, float] = {}
        self._stage, self._since = BEGINNING, self._begun

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note which stage it is, by its name without what changes while it goes on."""
        del done, total
        head = stage_name(stage)
        if head != self._stage:
            self._end_stage()
            self._stage = head

    def used(self, model: _LoadedModel) -> None:
        """Note a model."""
        info = model.info
        self._models[info.digest or info.id] = UsedModel(
            info.id, info.revision, info.digest, model.n_parameters, model.device, model.dtype
        )

    def drew(self, prompts: PromptSet) -> None:
        """Note prompt pairs."""
        counts = prompts.n_discovery, prompts.n_heldout
        self._prompts.append(UsedPrompts(prompts.behaviour, str(prompts.metric), *counts, prompts.digest))

    def warned(self, text: str) -> None:
        """Note a warning."""
        self._warnings.append(text)

    def record(self, results: Mapping[str, Any] | None = None) -> RunRecord:
        """Return the record so far, with the figures that came out."""
        self._end_stage()
        return RunRecord(
            command=self._command,
            arguments=self.arguments,
            directory=str(Path.cwd()),
            date=self._date,
            settings=self._settings,
            models=tuple(self._models.values()),
            prompts=tuple(self._prompts),
            inputs=self._inputs,
            seconds=round(time.monotonic() - self._begun, 2),
            stages=tuple(StageTime(stage, round(seconds, 2)) for stage, seconds in self._stages.items()),
            peak_memory=peak_memory(),
            peak_gpu_memory=peak_gpu_memory(),
            environment=environment(),
            warnings=tuple(self._warnings),
            results=dict(results or {}),
        )

    def save(
        self,
        place: str | Path,
        files: Iterable[str | Path] = (),
        results: Mapping[str, Any] | None = None,
    ) -> tuple[RunRecord, Path]:
        """Write the record: into a file that ends in ``.json``, or into a folder; return it and its path.

        In a folder it is ``run.json``, or ``run-NAME.json`` where another run with other results left the former.
        Raises :class:`OutputError`.
        """
        place = Path(place)
        named = place.suffix.lower() == ".json" and not place.is_dir()
        folder = place.parent if named else place
        record = self.record(results).with_outputs(files, folder)
        path = place if named else place_for(folder, record)
        record.save(path)
        return record, path

    def _end_stage(self) -> None:
        now = time.monotonic()
        if self._stage:
            self._stages[self._stage] = self._stages.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = "", now
