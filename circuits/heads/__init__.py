"""What the heads of a circuit do: where they attend, what they write, and what they do on random sequences."""

from circuits.heads.evidence import HeadEvidence, HeadRoles
from circuits.heads.measure import head_roles

__all__ = ["HeadEvidence", "HeadRoles", "head_roles"]
