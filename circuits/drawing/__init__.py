"""A circuit, or several, as a picture."""
