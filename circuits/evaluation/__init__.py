"""How good a circuit is, and how sure we are."""

from circuits.evaluation.evaluate import evaluate
from circuits.evaluation.faithfulness import faithfulness, faithfulness_interval

__all__ = ["evaluate", "faithfulness", "faithfulness_interval"]
