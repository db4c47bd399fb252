"""What most commands begin with: the model, the behaviour's prompts, and what the model does on them."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from circuits.behaviours.behaviour import Behaviour, TokenPair
from circuits.circuit import Circuit
from circuits.cli.arguments import DEFAULT_MODEL, PAIRS, Machine, Measurement
from circuits.cli.output import Output, Told, printable
from circuits.errors import UsageError
from circuits.interchange.foreign import UNKNOWN, Imported, read_circuit
from circuits.interchange.score_files import read_scores_of, scores_of
from circuits.records import ModelInfo
from circuits.scores import EdgeScores

if TYPE_CHECKING:
    from circuits.experiments import AnyExperiment
    from circuits.files.journal import Journal
    from circuits.model import Model
    from circuits.patching.experiment import Options, PatchingExperiment


@dataclass(frozen=True)
class Recorded:
    """A model's runs on a behaviour's discovery prompts, and remarks on them."""

    behaviour: str
    model: "Model"
    pairs: tuple[TokenPair, ...]
    experiment: "AnyExperiment"
    warnings: tuple[str, ...]

    @property
    def of_one_token(self) -> "PatchingExperiment":
        """The experiment, where it measures one token of an answer; raises :class:`UsageError`."""
        from circuits.patching.experiment import PatchingExperiment

        if isinstance(self.experiment, PatchingExperiment):
            return self.experiment
        raise UsageError(
            f"the metric {self.experiment.metric} measures several tokens, and activation patching and paths one; "
            "choose another metric."
        )


@dataclass(frozen=True)
class Session:
    """What most commands are given: a model to load, what to measure, and where to talk."""

    machine: Machine
    measurement: Measurement
    output: Output


def recorded(
    session: Session,
    behaviour: Behaviour,
    options: "Options",
    progress: Told,
    *,
    pairs: int = PAIRS,
    journal: "Journal | None" = None,
) -> Recorded:
    """Load the model, record the prompts, and check that the model shows the behaviour.

    A journal keeps what is measured on them.
    """
    from circuits.behaviours.lint import check_gap
    from circuits.experiments import experiment_on

    measurement = session.measurement
    model = session.machine.load(progress)
    behaviour = measurement.suited(behaviour, model, session.output)
    count = measurement.pairs or pairs
    prompts = behaviour.prompts(model.tokenizer, discovery=count, heldout=0, seed=measurement.seed or 0)
    progress("recording the prompts", 0, 0)
    experiment = experiment_on(model, prompts.discovery, options, reference=prompts.reference, journal=journal)
    clean, corrupted = experiment.clean, experiment.corrupted
    warnings = check_gap(clean, corrupted, options.metric, behaviour=behaviour.name, model=model.info.id)
    return Recorded(behaviour.name, model, prompts.discovery, experiment, (*prompts.remarks, *warnings))


def model_name(machine: Machine) -> str:
    """Give the name of the model that will be loaded."""
    return machine.model or DEFAULT_MODEL


def command_line() -> str:
    """Give the command as it was typed."""
    return printable(shlex.join(["circuits", *sys.argv[1:]]))


def imported(path: Path, out: Output) -> Imported:
    """Return a circuit of this or another tool, with the scores its file has; warn of what was lost."""
    found = read_circuit(path)
    for loss in found.losses:
        out.warn(loss)
    return found


def fitted(found: Imported, model: ModelInfo, out: Output) -> Imported:
    """Return a circuit that does not know its model as one of this model; warn of what is lost by that."""
    now = found.of_model(model)
    for loss in now.losses[len(found.losses) :]:
        out.warn(loss)
    return now


def scores_beside(circuit: Circuit, path: Path) -> EdgeScores | None:
    """Give the scores of the whole graph that ``discover`` left beside a circuit, if they are the circuit's."""
    file = path.parent / "scores.parquet"
    if circuit.model.id == UNKNOWN or not file.is_file():
        return None
    scores = read_scores_of(file, circuit.graph, scores_of(circuit.model.digest, circuit.behaviour.digest))
    if scores is None:
        return None
    same = np.allclose(scores.values[circuit.edges], circuit.scores, rtol=1e-5, atol=1e-12, equal_nan=True)
    return scores if same else None


def circuit_behaviour_name(circuit: Circuit, given: str | None, option: str) -> str:
    """Give what to load for a circuit's behaviour: what was asked for, else the built-in one it names."""
    from circuits.behaviours import BUILT_IN

    if given is not None:
        return given
    if circuit.behaviour.name == UNKNOWN:
        raise UsageError(
            f"the file does not say of which behaviour the circuit is; give it with {option} NAME or FILE."
        )
    if circuit.behaviour.name not in BUILT_IN:
        raise UsageError(
            f"the circuit is of the behaviour '{circuit.behaviour.name}', which is not built in; give its prompt file "
            f"with {option} FILE."
        )
    return circuit.behaviour.name


def require_same_model(circuit: Circuit, model: "Model", out: Output) -> None:
    """Raise when a circuit cannot be run on a model; warn when it was found on another."""
    if model.info.shape != circuit.model.shape:
        raise UsageError(
            f"the circuit is of {circuit.model.id} with {circuit.model.shape.describe()}, but {model.info.id} has "
            f"{model.info.shape.describe()}; give the circuit's own model with --model."
        )
    if model.info.digest != circuit.model.digest:
        out.warn(
            f"the circuit was found on other weights ({circuit.model.id}, {circuit.model.digest[:12] or 'unknown'}) "
            f"than those of {model.info.id} ({model.info.digest[:12]}); its numbers are not those of its evaluation."
        )
