"""Experiments on prompt pairs: circuits, edges, paths and sites patched, and what is kept of it."""
