"""From scores to a circuit."""

from circuits.pruning.closest import closest
from circuits.pruning.connected import connected
from circuits.pruning.minimal import minimal
from circuits.pruning.selection import Selection
from circuits.pruning.top import top

__all__ = ["Selection", "closest", "connected", "minimal", "top"]
