"""Measuring a model: adapters, the nnsight tracer, and every measurement as a run with live and recorded edges."""
