"""What circuits share, what they do on each other's prompts, and what changed between models."""

from circuits.comparison.chance import PairScores, ScoreEstimate
from circuits.comparison.changes import EdgeChanges, ModelEffects, NodeChange
from circuits.comparison.crossing import Column, Dissociation, Share, TransferMatrix
from circuits.comparison.overlap import Chance, Overlap
from circuits.comparison.pair import CircuitDiff, Membership, difference
from circuits.comparison.parts import MembershipCount, Part
from circuits.comparison.several import Comparison, compare

__all__ = [
    "Chance",
    "CircuitDiff",
    "Column",
    "Comparison",
    "Dissociation",
    "EdgeChanges",
    "Membership",
    "MembershipCount",
    "ModelEffects",
    "NodeChange",
    "Overlap",
    "PairScores",
    "Part",
    "ScoreEstimate",
    "Share",
    "TransferMatrix",
    "compare",
    "difference",
]
