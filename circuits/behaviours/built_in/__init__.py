"""The built-in behaviours, one file each."""
