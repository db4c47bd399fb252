"""Acting on a direction of the residual stream: what ablating or adding it changes, and which direction does most."""
