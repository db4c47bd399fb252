"""Tests of diagrams, reports and file formats."""
