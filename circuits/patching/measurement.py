"""What an experiment measures, and what it may use for that."""

from dataclasses import dataclass

from circuits.errors import UsageError
from circuits.memory.memory_plan import AUTO, parse_budget
from circuits.settings import settle
from circuits.vocabulary import Ablation, Direction, Metric


@dataclass(frozen=True)
class Options:
    """What is measured: the metric, what replaces a corrupted edge, and the direction; all that results depend on."""

    metric: Metric = Metric.LOGIT_DIFFERENCE
    ablation: Ablation = Ablation.CORRUPTED
    direction: Direction = Direction.NOISING

    def __post_init__(self) -> None:
        settle(self)
        if not self.ablation.by_runs and self.direction is Direction.DENOISING:
            raise UsageError(
                f"denoising restores an edge of the corrupted run, and {self.ablation} ablation has no corrupted run. "
                "Use --direction noising, or --ablation corrupted."
            )


@dataclass(frozen=True)
class Resources:
    """What measuring may use: time and memory depend on it, results only by rounding.

    ``batch_size`` is the number of rows per pass (None: automatic), ``memory`` what may be used on top of the loaded
    model: ``8GB``, ``50%`` of what is free, or ``auto``. Without ``prefix_cache`` the positions that clean
    and corrupted prompts share are run again each time. With ``keep_gradients`` the run at whose end of the path
    attribution starts (clean; in denoising corrupted) is recorded so that its first attribution there needs no forward
    pass. With ``checkpointing`` a backward pass holds the activations of one layer at a time, for one forward pass more
    (None: where memory is too small for those of all layers).
    """

    batch_size: int | None = None
    memory: str = AUTO
    prefix_cache: bool = True
    keep_gradients: bool = False
    checkpointing: bool | None = None

    def __post_init__(self) -> None:
        settle(self)
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, got {self.batch_size}.")
        parse_budget(self.memory, 0, default=1.0)
