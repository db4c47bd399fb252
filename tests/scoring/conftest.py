"""Tests of this folder run on every family."""

from tests.every_family import double, subject

__all__ = ["double", "subject"]
