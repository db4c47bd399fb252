"""Options that several commands share, in groups; a command takes a whole group as one parameter."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.behaviours import load_behaviour
from circuits.behaviours.behaviour import Behaviour
from circuits.behaviours.tokens import Tokenizer
from circuits.cli.output import Output
from circuits.cli.prompting import Prompting
from circuits.cli.skipping import SkipOptions
from circuits.errors import UsageError
from circuits.patching.protocol import StageProgress
from circuits.records import BehaviourInfo, Target
from circuits.settings import Choice
from circuits.vocabulary import Ablation, Direction, Metric, ScorerName

if TYPE_CHECKING:
    from circuits.directions.stream_direction import StreamDirection
    from circuits.model import Model
    from circuits.patching.measurement import Options, Resources

DEFAULT_MODEL = "smollm2-135m"
PAIRS, DISCOVERY_PAIRS, PATCHING_PAIRS = 32, 64, 16
"""How many prompt pairs are used unless said otherwise; activation patching runs the model hundreds of times."""
LOADING = "loading the model"
DIRECTION = "direction.safetensors"
"""The file with a direction, in the folder of what was found with it."""


def then_loading(progress: StageProgress) -> StageProgress:
    """Follow the fetching of a model; when a part of it is done, loading may come next, which tells nothing itself."""

    def told(stage: str, done: int, total: int) -> None:
        progress(stage, done, total)
        if done == total:
            progress(LOADING, 0, 0)

    return told


def _choices(names: type[Choice]) -> str:
    return "|".join(names)


BehaviourArgument = Annotated[
    str,
    typer.Argument(
        metavar="BEHAVIOUR",
        help="A built-in name (see: circuits behaviours), a prompt file, or a data set (hf:OWNER/NAME:SPLIT).",
    ),
]
CircuitArgument = Annotated[Path, typer.Argument(metavar="CIRCUIT.json", help="A circuit that discover wrote.")]
DirectionOption = Annotated[
    str | None,
    typer.Option(
        metavar=_choices(Direction),
        help="Corrupt in the clean run, or restore in the corrupted one.",
        rich_help_panel="Measurement",
        show_default=False,
    ),
]


ByRoleOption = Annotated[
    bool,
    typer.Option(
        "--by-role",
        help="Edges by token role, a3.h5->m7@end: the roles that the prompts name, else those by difference (before, "
        "at, between and after the tokens that differ, end).",
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, where and how it runs."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"A built-in model, a folder or a Hugging Face id. Default: {DEFAULT_MODEL}, or the circuit's own.",
            rich_help_panel="Model",
        ),
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, CUDA or mps.", rich_help_panel="Model")] = "auto"
    device_map: Annotated[
        str | None,
        typer.Option(
            metavar="auto|balanced|FILE",
            help="Spread the model over several devices; a JSON file names a device for each module.",
            rich_help_panel="Model",
        ),
    ] = None
    packed: Annotated[
        bool,
        typer.Option(
            "--packed",
            help="Leave a .gguf file's weights packed, and expand each when it is used: less memory, more time.",
            rich_help_panel="Model",
        ),
    ] = False
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel="Model")] = "auto"
    attention: Annotated[
        str,
        typer.Option(
            metavar="auto|sdpa|eager",
            help="Attention kernel; auto is sdpa where the model has it.",
            rich_help_panel="Model",
        ),
    ] = "auto"
    batch_size: Annotated[
        str, typer.Option(metavar="auto|N", help="Rows in one forward pass.", rich_help_panel="Model")
    ] = "auto"
    memory: Annotated[
        str,
        typer.Option(
            metavar="auto|SIZE|SHARE",
            help="Memory to use on top of the model: 8GB, or 50% of what is free.",
            rich_help_panel="Model",
        ),
    ] = "auto"

    checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--checkpointing/--no-checkpointing",
            help="Gradients layer by layer: less memory, a forward pass more. Default: where memory is too small.",
            rich_help_panel="Model",
        ),
    ] = None
    matmul_precision: Annotated[
        str,
        typer.Option(
            metavar="highest|high|medium",
            help="Of float32 products, where the device has it: high allows TF32, medium bfloat16.",
            rich_help_panel="Model",
        ),
    ] = "highest"

    def load(self, progress: StageProgress, output: Output, *, default: str = DEFAULT_MODEL) -> "Model":
        """Load the model that was asked for, and note it; the guards see it at full precision."""
        from circuits.model import load_model
        from circuits.models.devices import MatmulPrecision

        precision = MatmulPrecision.parse(self.matmul_precision)
        progress(LOADING, 0, 0)
        model = load_model(
            self.model or default,
            device=self.device,
            dtype=self.dtype,
            attention=self.attention,
            device_map=self.device_map,
            packed=self.packed,
            progress=then_loading(progress),
        )
        precision.use()
        output.recorder.used(model)
        return model

    def tokenizer(self, progress: StageProgress) -> Tokenizer:
        """Load the tokenizer of the model that was asked for."""
        from circuits.models.loading import load_tokenizer

        progress("loading the tokenizer", 0, 0)
        return load_tokenizer(self.model or DEFAULT_MODEL, progress=then_loading(progress))

    def resources(self, scorer: ScorerName | None = None) -> "Resources":
        """Return what measuring may use, checked; raises :class:`UsageError`."""
        from circuits.patching.measurement import Resources

        if self.batch_size != "auto" and not re.fullmatch("0*[1-9][0-9]{0,8}", self.batch_size):
            raise UsageError(f"--batch-size is auto or a number from 1 up, got '{self.batch_size}'.")
        return Resources(
            batch_size=None if self.batch_size == "auto" else int(self.batch_size),
            memory=self.memory,
            keep_gradients=scorer in (ScorerName.EAP, ScorerName.CLEAN_CORRUPTED),
            checkpointing=self.checkpointing,
        )


@dataclass(frozen=True)
class Measurement(SkipOptions, Prompting):
    """What is measured, on which prompts."""

    pairs: Annotated[
        int | None,
        typer.Option(
            help=f"How many prompt pairs (default: discover {DISCOVERY_PAIRS}, patch {PATCHING_PAIRS}, evaluate as "
            f"many as the circuit was judged on, else {PAIRS}).",
            min=1,
            rich_help_panel="Measurement",
        ),
    ] = None
    seed: Annotated[
        int | None, typer.Option(help="Draws the prompt pairs (default: 0).", min=0, rich_help_panel="Measurement")
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(metavar=_choices(Metric), help="Default: the behaviour's own.", rich_help_panel="Measurement"),
    ] = None
    ablation: Annotated[
        str | None,
        typer.Option(metavar=_choices(Ablation), help="What replaces a corrupted edge.", rich_help_panel="Measurement"),
    ] = None
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|PLACE",
            help="Circuits lead to one number instead of to the logits: a direction of the residual stream (a "
            ".safetensors file, as circuits direction writes it), a linear probe (.npz or .safetensors, with 'coef_', "
            "'intercept_' and 'layer'), a head's query, key or value ('a14.h5<q>'), what it writes (a14.h5) or a "
            "neuron (m14.n123), at the last token, or another ('a14.h5<q>:-5', m14.n123:subject); or "
            "resid:LAYER:TOKEN, with --along.",
            rich_help_panel="Measurement",
            show_default=False,
        ),
    ] = None

    along: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="With --to resid:LAYER:TOKEN: the direction that is read there (TOKEN: last, -5 from the end, or a "
            "token role of the prompts). With --to a14.h5: that along which it is read (default: between the means of "
            "what the head writes).",
            rich_help_panel="Measurement",
            show_default=False,
        ),
    ] = None

    @property
    def towards(self) -> "Path | Target | None":
        """Where ``--to`` lets circuits lead: the file of a direction or probe, or a place."""
        if self.to is None:
            if self.along is not None:
                raise UsageError("--along is the direction for --to resid:LAYER:TOKEN or --to a14.h5; give --to too.")
            return None
        file = Path(self.to)
        if file.is_file() and self.along is None:
            return file
        if file.suffix in (".safetensors", ".npz"):
            raise UsageError(f"--to: there is no file {file}; `circuits direction` writes one.")
        try:
            found = Target.parse(self.to)
        except UsageError as error:
            raise UsageError(f"--to: {error} Or the file of a direction or a linear probe.") from error
        if self.along is not None and found.site and found.head is None:
            raise UsageError(
                f"--along belongs to a place in the stream (--to resid:LAYER:TOKEN) or to what a head writes (--to "
                f"a14.h5), got --to {self.to}."
            )
        if not found.site and self.along is None:
            raise UsageError(
                f"--to: {found} is a vector; give the file of the direction that it is read along: --along FILE, or in "
                "place of this."
            )
        return found

    @property
    def read_along(self) -> "StreamDirection | None":
        """The direction that circuits are to lead to, at its place, where ``--to`` or ``--along`` names one."""
        from circuits.directions.stream_direction import StreamDirection

        to = self.towards
        if isinstance(to, Target):
            return StreamDirection.load(self.along).at(to) if self.along is not None else None
        return None if to is None else StreamDirection.load(to)

    def led(self, model: "Model", *, beside: Path | None = None, target: Target | None = None) -> "Model":
        """Return the model, its circuits leading where ``--to`` says, or to the ``target`` that a circuit has already.

        The direction of a circuit is looked for ``beside`` it. Raises :class:`UsageError` where it is not there, or is
        another than the circuit's.
        """
        from circuits.directions.stream_direction import StreamDirection
        from circuits.directions.target import leading_to

        to, direction = self.towards, self.read_along
        if to is None and target is not None and target.site and not target.digest:
            return leading_to(model, target)
        if to is None and target is not None and beside is not None:
            file = beside.with_name(DIRECTION)
            if not file.is_file():
                raise UsageError(
                    f"the circuit leads to {target}, and its direction is not beside it ({file}); give it with --to."
                )
            to, direction = target, StreamDirection.load(file).at(target)
        if to is None:
            return model
        if direction is not None:
            known = direction.target if isinstance(to, Path) else replace(to, digest=direction.digest)
        else:
            assert isinstance(to, Target)
            known = to
        if target is not None and known != target:
            raise UsageError(
                f"the circuit leads to {target}, and to another place or along another direction than "
                f"{self.to or DIRECTION} (layer {known.layer}); give what it was found with, or leave --to out."
            )
        return leading_to(model, known, along=direction)

    def behaviour(self, name: str | Path, *, recorded: BehaviourInfo | None = None) -> Behaviour:
        """Load a behaviour as it was asked for; what was not asked for is as a circuit has recorded it."""
        behaviour = self.varied(load_behaviour(name, recorded=recorded, skip_unusable=self.skip_unusable))
        if self.towards is not None:
            if self.metric not in (None, Metric.PROJECTION):
                raise UsageError(
                    f"what does not lead to the logits (--to) is measured by the metric {Metric.PROJECTION}, got "
                    f"'{self.metric}'; leave --metric out."
                )
            return replace(behaviour, metric=Metric.PROJECTION)
        chosen = self.metric or (recorded.metric if recorded else None)
        return replace(behaviour, metric=Metric.parse(chosen)) if chosen else behaviour

    def options(
        self,
        behaviour: Behaviour,
        *,
        direction: str = Direction.NOISING,
        ablation: str | None = None,
    ) -> "Options":
        """Return what is measured; names are checked before anything long begins."""
        chosen = Ablation.parse(self.ablation or ablation or Ablation.CORRUPTED)
        towards = Direction.parse(direction)

        from circuits.patching.measurement import Options

        return Options(metric=behaviour.metric, ablation=chosen, direction=towards)
