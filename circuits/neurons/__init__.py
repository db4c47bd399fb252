"""The neurons of a circuit's MLPs, or of a whole model's: which few of them matter."""
