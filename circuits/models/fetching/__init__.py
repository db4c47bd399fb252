"""Fetching the built-in models."""
