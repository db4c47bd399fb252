"""Files of circuits and scores: this package's own, what may lie beside them, and those of other tools."""
