"""How good a circuit is, and how sure we are; what circuits do on each other's prompts and in each other's models."""

from circuits.evaluation.comparing import Crossing, compare_models, measure_comparison
from circuits.evaluation.evaluate import evaluate

__all__ = [
    "Crossing",
    "compare_models",
    "evaluate",
    "measure_comparison",
]
