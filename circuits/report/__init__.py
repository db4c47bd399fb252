"""The report on a circuit or a comparison: one page of HTML that needs nothing else."""
