"""Diagrams, reports and other tools' formats, from circuits at rest: nothing here needs a model."""
