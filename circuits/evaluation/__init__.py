"""How good a circuit is, and how sure we are."""

from circuits.evaluation.evaluating import evaluate

__all__ = ["evaluate"]
