"""The command line: each command parses, calls one function of the API and prints what came out.

Only this package prints, knows the folder ``outputs/`` and silences other packages. Importing it imports neither torch
nor transformers: commands import what they need when they run.
"""

from circuits.cli.app import app, main

__all__ = ["app", "main"]
