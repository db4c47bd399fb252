"""From scores to a circuit."""

from circuits.pruning.connected import connected
from circuits.pruning.minimal import minimal
from circuits.pruning.selection import Selection
from circuits.pruning.top import top

__all__ = ["Selection", "connected", "minimal", "top"]
