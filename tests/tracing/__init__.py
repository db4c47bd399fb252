"""Tests of everything that runs a model."""
