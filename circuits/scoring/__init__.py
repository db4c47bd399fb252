"""Scores for every edge: measured effects or cheap estimates of them."""

from circuits.scoring.sampled_agreement import Agreement, agreement
from circuits.scoring.scorers import score

__all__ = ["Agreement", "agreement", "score"]
