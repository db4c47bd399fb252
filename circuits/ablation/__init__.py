"""Acting on a circuit: a model that generates with the circuit's nodes ablated, scaled or steered, and what changes."""
