"""Directions of the residual stream: found, saved, acted on, and taken as the end of a circuit."""

from circuits.directions.means import direction_of

__all__ = ["direction_of"]
