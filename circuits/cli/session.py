"""What most commands begin with: the model, the behaviour's prompts, and what the model does on them."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.behaviours.behaviour import Behaviour, TokenPair
from circuits.circuit import Circuit
from circuits.cli.arguments import DEFAULT_MODEL, PAIRS, Measurement, ModelOptions
from circuits.cli.output import Output, printable
from circuits.errors import UsageError
from circuits.interchange.foreign import UNKNOWN, Imported, read_circuit
from circuits.interchange.sidecars import PROMPTS, read_prompts
from circuits.patching.protocol import StageProgress
from circuits.records import ModelInfo

if TYPE_CHECKING:
    from circuits.files.journal import Journal
    from circuits.model import Model
    from circuits.patching.measurement import Options, Resources
    from circuits.patching.sequences import AnyExperiment


@dataclass(frozen=True)
class Recorded:
    """A model's runs on a behaviour's discovery prompts, and remarks on them."""

    behaviour: str
    model: "Model"
    pairs: tuple[TokenPair, ...]
    experiment: "AnyExperiment"
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Session:
    """What most commands are given: a model to load, what to measure, and where to talk."""

    model_options: ModelOptions
    resources: "Resources"
    measurement: Measurement
    output: Output
    folder: Path
    """Where results go."""


def recorded(
    session: Session,
    behaviour: Behaviour,
    options: "Options",
    progress: StageProgress,
    *,
    pairs: int = PAIRS,
    by_role: bool = False,
    journal: "Journal | None" = None,
) -> Recorded:
    """Load the model, record the prompts, and check that the model shows the behaviour.

    With ``by_role`` edges have the token roles of the prompts. A journal keeps what is measured on them.
    """
    from circuits.behaviours.lint import check_gap
    from circuits.behaviours.roles import role_names

    measurement = session.measurement
    model = session.model_options.load(progress, session.output)
    model = measurement.led(model)
    behaviour = measurement.with_openings(behaviour, model, session.output)
    count = measurement.pairs or pairs
    prompts = behaviour.sample(model.tokenizer, count, seed=measurement.seed or 0)
    session.output.recorder.drew(prompts)
    measurement.list_unusable(prompts.unusable, session.folder, session.output)
    if by_role:
        model = model.by_role(role_names(prompts.discovery))
    progress("recording the prompts", 0, 0)
    experiment = model.experiment(
        prompts.discovery, options, resources=session.resources, reference=prompts.reference, journal=journal
    )
    clean, corrupted = experiment.clean, experiment.corrupted
    warnings = check_gap(clean, corrupted, options.metric, behaviour=behaviour.name, model=model.info.id)
    return Recorded(behaviour.name, model, prompts.discovery, experiment, (*prompts.remarks, *warnings))


def model_name(model_options: ModelOptions) -> str:
    """Return the name of the model that will be loaded."""
    return model_options.model or DEFAULT_MODEL


def command_line() -> str:
    """Return the command as it was typed."""
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


def circuit_behaviour_name(circuit: Circuit, given: str | None, option: str, *, file: Path | None = None) -> str:
    """Return what to load for a circuit's behaviour.

    That is what was asked for, else the built-in one that it names, else the ``prompts.json`` beside the circuit's
    ``file``, if it is of this circuit. Raises :class:`UsageError` where there is none.
    """
    from circuits.behaviours import BUILT_IN

    if given is not None:
        return given
    if circuit.behaviour.name == UNKNOWN:
        raise UsageError(
            f"the file does not say of which behaviour the circuit is; give it with {option} NAME or FILE."
        )
    if circuit.behaviour.name not in BUILT_IN:
        beside = file.with_name(PROMPTS) if file else None
        if beside is not None and beside.is_file():
            read_prompts(beside, circuit)
            return str(beside)
        raise UsageError(
            f"the circuit is of the behaviour '{circuit.behaviour.name}', which is not built in; give its prompt file "
            f"with {option} FILE."
        )
    return circuit.behaviour.name


def require_same_prompts(behaviour: Behaviour, name: str, circuit: Circuit, model: "Model") -> None:
    """Raise where a ``prompts.json`` gives this model other tokens than those that the circuit was found on.

    Its texts are what was decoded: chats without their structure, of long answers the first tokens alone.
    """
    from circuits.behaviours.behaviour import digest_of
    from circuits.behaviours.split import split_pairs

    if Path(name).name != PROMPTS or model.info.tokenizer_digest != circuit.model.tokenizer_digest:
        return
    if digest_of(*split_pairs(behaviour.checked(model.tokenizer))) != circuit.behaviour.digest:
        raise UsageError(
            f"the texts in {name} do not give the tokens that the circuit was found on (as with chats and answers of "
            "several tokens); give the prompt file itself with --behaviour FILE."
        )


def require_same_model(circuit: Circuit, model: "Model", out: Output, *, nodes: bool = False) -> None:
    """Raise when a circuit, or ``nodes`` of it, cannot be run on a model; warn when it was found on another."""
    if remark := circuit.remark_on(model.info, nodes=nodes):
        out.warn(remark)
